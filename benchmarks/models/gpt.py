"""A GPT in plain JAX: pre-norm blocks, causal attention, tied embedding, cross-entropy; checkpointing only if asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT; the defaults are the 12-layer model of the README.

    Attributes:
      n_layers: Transformer blocks.
      n_heads: Attention heads; divides `width`.
      width: Model width.
      n_tokens: Sequence length in tokens.
      n_vocabulary: Vocabulary size.
      n_batch: Sequences per batch.
      dropout_rate: Probability of zeroing a residual-branch output; 0 needs no key.
      is_scanned: Whether the blocks are one `lax.scan` over stacked weights, as MaxText writes them.
    """

    n_layers: int = 12
    n_heads: int = 8
    width: int = 512
    n_tokens: int = 256
    n_vocabulary: int = 8000
    n_batch: int = 8
    dropout_rate: float = 0.0
    is_scanned: bool = False


def init_params(config: GPTConfig, key: jax.Array) -> Params:
    """Return float32 parameters, normal with standard deviation 0.02 as in GPT-2."""
    d = config.width
    keys = iter(jax.random.split(key, 2 + 4 * config.n_layers))

    def normal(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape, jnp.float32)

    def norm() -> Params:
        return {"scale": jnp.ones(d), "bias": jnp.zeros(d)}

    def linear(n_in: int, n_out: int) -> Params:
        return {"w": normal(n_in, n_out), "b": jnp.zeros(n_out)}

    blocks = [
        {
            "norm1": norm(),
            "qkv": linear(d, 3 * d),
            "proj": linear(d, d),
            "norm2": norm(),
            "up": linear(d, 4 * d),
            "down": linear(4 * d, d),
        }
        for _ in range(config.n_layers)
    ]
    return {
        "token_embedding": normal(config.n_vocabulary, d),
        "position_embedding": normal(config.n_tokens, d),
        "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks) if config.is_scanned else blocks,
        "norm": norm(),
    }


def _layer_norm(p: Params, x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def _linear(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def _attention(p: Params, x: jax.Array, n_heads: int) -> jax.Array:
    b, t, d = x.shape
    q, k, v = jnp.split(_linear(p["qkv"], x).reshape(b, t, n_heads, 3 * d // n_heads), 3, axis=-1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (d // n_heads) ** -0.5
    causal = jnp.tril(jnp.ones((t, t), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    return _linear(p["proj"], jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, d))


def _mlp(p: Params, x: jax.Array) -> jax.Array:
    return _linear(p["down"], jax.nn.gelu(_linear(p["up"], x)))


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if rate == 0.0 or key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


def block(p: Params, x: jax.Array, config: GPTConfig, key: jax.Array | None = None) -> jax.Array:
    """Apply one transformer block to activations of shape (batch, tokens, width)."""
    keys = (None, None) if key is None else tuple(jax.random.split(key))
    attended = _attention(p, _layer_norm(p["norm1"], x), config.n_heads)
    x = x + _dropout(attended, config.dropout_rate, keys[0])
    return x + _dropout(_mlp(p, _layer_norm(p["norm2"], x)), config.dropout_rate, keys[1])


def make_loss(config: GPTConfig, layer_policy: Callable[..., Any] | None = None):
    """Return `loss(params, tokens, key=None)`: the mean next-token cross-entropy of int32 `tokens` (batch, tokens + 1).

    With `layer_policy` there is a `jax.checkpoint` of that policy around each block.
    """

    def apply(p: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return block(p, x, config, key)

    apply_block = jax.checkpoint(apply, policy=layer_policy) if layer_policy else apply

    def loss(params: Params, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = params["token_embedding"][inputs] + params["position_embedding"]
        if config.is_scanned:
            keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.n_layers))
            x, _ = jax.lax.scan(lambda x, pk: (apply_block(pk[0], x, pk[1]), None), x, (params["blocks"], keys))
        for i, p in enumerate([] if config.is_scanned else params["blocks"]):
            with jax.named_scope(f"block{i}"):
                x = apply_block(p, x, None if key is None else jax.random.fold_in(key, i))
        with jax.named_scope("head"):
            logits = _layer_norm(params["norm"], x) @ params["token_embedding"].T
            log_probabilities = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_probabilities, targets[..., None], -1).mean()

    return loss


def example(config: GPTConfig | None = None, seed: int = 0, layer_policy: Callable[..., Any] | None = None):
    """Return `(loss, (params, tokens))`: a loss with parameters and one random batch to call it on.

    Args:
      config: Sizes.
      seed: Of parameters and batch.
      layer_policy: Policy of a `jax.checkpoint` written by hand around each block; None writes none.
    """
    config = config or GPTConfig()
    key_params, key_tokens = jax.random.split(jax.random.key(seed))
    shape = (config.n_batch, config.n_tokens + 1)
    tokens = jax.random.randint(key_tokens, shape, 0, config.n_vocabulary, jnp.int32)
    return make_loss(config, layer_policy), (init_params(config, key_params), tokens)
