"""Transformers' own FlaxGPT2LMHeadModel, its source untouched, with random weights from a configuration made here.

Nothing is fetched from a hub. Needs `pip install "flax>=0.12" "transformers==4.50.3"`, the last line of releases with
Flax models; the extra `test` has both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.untouched import TRANSFORMERS, from_library, layers_checkpointed


@dataclasses.dataclass(frozen=True)
class FlaxGPT2Config:
    """Sizes of a Flax GPT-2.

    Attributes:
      n_layers: Transformer blocks.
      n_heads: Attention heads; divides `width`.
      width: Model width.
      n_tokens: Sequence length in tokens.
      n_vocabulary: Vocabulary size. With GPT-2's own, 50,257, a few arrays of logits, which the head needs together
        under any plan, are nearly all of so small a model's memory; with 1,000 the layers are.
      n_batch: Sequences per batch.
      dropout_rate: Probability of GPT-2's three dropouts; 0 needs no key.
    """

    n_layers: int = 4
    n_heads: int = 4
    width: int = 128
    n_tokens: int = 64
    n_vocabulary: int = 1000
    n_batch: int = 2
    dropout_rate: float = 0.0


def _model(config: FlaxGPT2Config) -> Any:
    Model, Sizes = from_library("transformers", "FlaxGPT2LMHeadModel", "GPT2Config", install=TRANSFORMERS)
    sizes = Sizes(
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_embd=config.width,
        n_positions=config.n_tokens,
        vocab_size=config.n_vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout_rate),
    )
    return Model(sizes, input_shape=(1, config.n_tokens), seed=0)


def make_loss(model: Any, layer_policy: Callable[..., Any] | None = None):
    """Return `loss(params, tokens, key=None)`: cross-entropy of int32 `tokens` of shape (batch, tokens + 1).

    With `layer_policy` there is a `jax.checkpoint` of that policy around each layer.
    """

    def loss(params: Any, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        with layers_checkpointed("transformers.models.gpt2.modeling_flax_gpt2:FlaxGPT2Block", layer_policy):
            logits = model(inputs, params=params, dropout_rng=key, train=key is not None).logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()

    return loss


def example(config: FlaxGPT2Config | None = None, seed: int = 0, layer_policy: Callable[..., Any] | None = None):
    """Return `(loss, args)`: a loss with parameters, one random batch and, with dropout, a key to call it on.

    Args:
      config: Sizes.
      seed: Of the batch.
      layer_policy: Policy of a `jax.checkpoint` written by hand around each layer; None writes none.

    Raises:
      ModuleNotFoundError: Transformers or Flax is not installed; the message says what to install.
    """
    config = config or FlaxGPT2Config()
    model = _model(config)
    key_tokens, key_dropout = jax.random.split(jax.random.key(seed))
    shape = (config.n_batch, config.n_tokens + 1)
    tokens = jax.random.randint(key_tokens, shape, 0, config.n_vocabulary, jnp.int32)
    args = (model.params, tokens)
    return make_loss(model, layer_policy), (*args, key_dropout) if config.dropout_rate else args
