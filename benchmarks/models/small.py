"""Compact models of many kinds, so small that a gradient compiles in seconds; each returns a loss and its arguments.

BERT and LLaMA are transformers' own Flax classes, their source untouched, with random weights from a configuration made
here (nothing is fetched); the others are written in plain JAX. They are for what is predicted and measured of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.models.untouched import TRANSFORMERS, from_library

Example = tuple[Callable[..., jax.Array], tuple[Any, ...]]


def _normals(seed: int, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Return random weights by name, scaled by the square root of how many numbers enter each output."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape)
        * max(1, shape[0] if len(shape) < 4 else shape[0] * shape[1] * shape[2]) ** -0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()


# ---- transformers' own ----


def bert(n_layers: int = 3, width: int = 128, n_batch: int = 4, n_tokens: int = 96) -> Example:
    """Masked language modelling with BERT."""
    Model, Sizes = from_library("transformers", "FlaxBertForMaskedLM", "BertConfig", install=TRANSFORMERS)
    sizes = Sizes(
        vocab_size=800,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=n_tokens,
    )
    return _language_model(Model(sizes, input_shape=(1, n_tokens), seed=0), n_batch, n_tokens, 800)


def llama(n_layers: int = 3, width: int = 128, n_batch: int = 4, n_tokens: int = 96) -> Example:
    """Next-token prediction with LLaMA: rotary positions, RMS norms, gated feed-forward layers."""
    Model, Sizes = from_library("transformers", "FlaxLlamaForCausalLM", "LlamaConfig", install=TRANSFORMERS)
    sizes = Sizes(
        vocab_size=800,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=3 * width,
        max_position_embeddings=n_tokens,
    )
    return _language_model(Model(sizes, input_shape=(1, n_tokens), seed=0), n_batch, n_tokens, 800)


def _language_model(model: Any, n_batch: int, n_tokens: int, n_vocabulary: int) -> Example:
    tokens = jax.random.randint(jax.random.key(1), (n_batch, n_tokens), 0, n_vocabulary, jnp.int32)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return _cross_entropy(model(tokens, params=params).logits[:, :-1], tokens[:, 1:])

    return loss, (model.params, tokens)


# ---- image models ----


def _conv(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _group_norm(x: jax.Array, n_groups: int = 4) -> jax.Array:
    b, h, w, c = x.shape
    groups = x.reshape(b, h, w, n_groups, c // n_groups)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = groups.var((1, 2, 4), keepdims=True)
    return ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def unet(n_batch: int = 2, n_pixels: int = 64, width: int = 16, n_scales: int = 3) -> Example:
    """Segmentation with a U-Net (Ronneberger et al. 2015, arXiv:1505.04597), skip connections concatenated."""
    shapes: dict[str, tuple[int, ...]] = {"in": (3, 3, 3, width)}
    for i in range(n_scales):
        c = width << i
        shapes |= {f"down{i}a": (3, 3, c, c), f"down{i}b": (3, 3, c, c), f"shrink{i}": (3, 3, c, 2 * c)}
        shapes |= {f"grow{i}": (3, 3, 2 * c, c), f"up{i}a": (3, 3, 2 * c, c), f"up{i}b": (3, 3, c, c)}
    shapes["out"] = (1, 1, width, 4)
    params = _normals(0, **shapes)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        def layer(name: str, x: jax.Array, stride: int = 1) -> jax.Array:
            return jax.nn.relu(_group_norm(_conv(x, params[name], stride)))

        x, skips = layer("in", images), []
        for i in range(n_scales):
            x = layer(f"down{i}b", layer(f"down{i}a", x))
            skips.append(x)
            x = layer(f"shrink{i}", x, 2)
        for i in reversed(range(n_scales)):
            x = layer(f"grow{i}", jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
            x = jnp.concatenate([x, skips[i]], -1)
            x = layer(f"up{i}b", layer(f"up{i}a", x))
        return _cross_entropy(_conv(x, params["out"]), labels)

    images = jax.random.normal(jax.random.key(1), (n_batch, n_pixels, n_pixels, 3))
    return loss, (params, images, jax.random.randint(jax.random.key(2), images.shape[:3], 0, 4))


def densenet(n_batch: int = 4, n_pixels: int = 32, growth: int = 12, n_layers: int = 5, n_stages: int = 3) -> Example:
    """Classification where every layer of a stage reads all before it (Huang et al. 2017, arXiv:1608.06993)."""
    shapes: dict[str, tuple[int, ...]] = {"in": (3, 3, 3, 2 * growth)}
    c = 2 * growth
    for s in range(n_stages):
        for i in range(n_layers):
            shapes[f"narrow{s}_{i}"], shapes[f"layer{s}_{i}"] = (1, 1, c, 4 * growth), (3, 3, 4 * growth, growth)
            c += growth
        shapes[f"transition{s}"] = (1, 1, c, c // 2 // 4 * 4)
        c = c // 2 // 4 * 4
    shapes["out"] = (c, 10)
    params = _normals(0, **shapes)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        def layer(name: str, x: jax.Array) -> jax.Array:
            return _conv(jax.nn.relu(_group_norm(x)), params[name])

        x = _conv(images, params["in"])
        for s in range(n_stages):
            for i in range(n_layers):
                x = jnp.concatenate([x, layer(f"layer{s}_{i}", layer(f"narrow{s}_{i}", x))], -1)
            x = lax.reduce_window(layer(f"transition{s}", x), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return _cross_entropy(x.mean((1, 2)) @ params["out"], labels)

    images = jax.random.normal(jax.random.key(1), (n_batch, n_pixels, n_pixels, 3))
    return loss, (params, images, jax.random.randint(jax.random.key(2), (n_batch,), 0, 10))


def mixer(n_layers: int = 4, n_batch: int = 8, n_patches: int = 64, width: int = 96) -> Example:
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601) over patches already embedded."""
    shapes: dict[str, tuple[int, ...]] = {"in": (48, width), "out": (width, 10)}
    for i in range(n_layers):
        shapes |= {f"tokens{i}a": (n_patches, 2 * n_patches), f"tokens{i}b": (2 * n_patches, n_patches)}
        shapes |= {f"channels{i}a": (width, 4 * width), f"channels{i}b": (4 * width, width)}
    params = _normals(0, **shapes)

    def loss(params: Any, patches: jax.Array, labels: jax.Array) -> jax.Array:
        x = patches @ params["in"]
        for i in range(n_layers):
            y = jnp.swapaxes(_standardised(x), 1, 2)
            x = x + jnp.swapaxes(jax.nn.gelu(y @ params[f"tokens{i}a"]) @ params[f"tokens{i}b"], 1, 2)
            x = x + jax.nn.gelu(_standardised(x) @ params[f"channels{i}a"]) @ params[f"channels{i}b"]
        return _cross_entropy(_standardised(x).mean(1) @ params["out"], labels)

    patches = jax.random.normal(jax.random.key(1), (n_batch, n_patches, 48))
    return loss, (params, patches, jax.random.randint(jax.random.key(2), (n_batch,), 0, 10))


def _standardised(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


# ---- loops, and a mixture of experts ----


def lstm(length: int = 256, width: int = 64, n_batch: int = 16) -> Example:
    """Regression of a sequence's last element with an LSTM, a scan over time."""
    params = _normals(0, x=(8, 4 * width), h=(width, 4 * width), out=(width, 1))

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, None]:
            h, c = state
            i, f, g, o = jnp.split(x @ params["x"] + h @ params["h"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((xs.shape[1], width))
        (h, _), _ = lax.scan(step, (start, start), xs)
        return jnp.square(h @ params["out"] - 1).mean()

    return loss, (params, jax.random.normal(jax.random.key(1), (length, n_batch, 8)))


def neural_ode(length: int = 128, width: int = 64, n_batch: int = 32) -> Example:
    """A neural ODE by the classical Runge-Kutta method of fixed steps, a scan."""
    params = _normals(0, a=(width, 2 * width), b=(2 * width, width))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        def speed(x: jax.Array) -> jax.Array:
            return jnp.tanh(x @ params["a"]) @ params["b"]

        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            h = 1 / length
            k1 = speed(x)
            k2 = speed(x + h / 2 * k1)
            k3 = speed(x + h / 2 * k2)
            k4 = speed(x + h * k3)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        x, _ = lax.scan(step, x, None, length=length)
        return jnp.square(x).mean()

    return loss, (params, jax.random.normal(jax.random.key(1), (n_batch, width)))


def mixture_of_experts(
    n_layers: int = 3, n_experts: int = 4, width: int = 96, n_batch: int = 4, n_tokens: int = 64
) -> Example:
    """Layers whose tokens go to the better of several experts by one-hot dispatch (arXiv:2101.03961)."""
    shapes: dict[str, tuple[int, ...]] = {"out": (width, 10)}
    for i in range(n_layers):
        shapes |= {f"route{i}": (width, n_experts)}
        shapes |= {f"up{i}": (width, n_experts * 2 * width), f"down{i}": (2 * width, n_experts * width)}
    params = _normals(0, **shapes)
    capacity = n_batch * n_tokens // n_experts * 2

    def experts(params: Any, i: int, x: jax.Array) -> jax.Array:
        tokens = x.reshape(-1, width)
        weights = jax.nn.softmax(tokens @ params[f"route{i}"])
        chosen = jax.nn.one_hot(weights.argmax(-1), n_experts)
        place = (jnp.cumsum(chosen, 0) * chosen - 1).max(-1).astype(jnp.int32)
        dispatch = chosen[:, :, None] * jax.nn.one_hot(place, capacity)[:, None, :]
        up = params[f"up{i}"].reshape(width, n_experts, 2 * width)
        down = params[f"down{i}"].reshape(2 * width, n_experts, width)
        inside = jnp.einsum("tec,td->ecd", dispatch, tokens)
        hidden = jax.nn.relu(jnp.einsum("ecd,def->ecf", inside, up))
        outside = jnp.einsum("ecf,fed->ecd", hidden, down)
        return jnp.einsum("tec,ecd,te->td", dispatch, outside, weights).reshape(x.shape)

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        for i in range(n_layers):
            x = x + experts(params, i, _standardised(x))
        return _cross_entropy(x @ params["out"], labels)

    x = jax.random.normal(jax.random.key(1), (n_batch, n_tokens, width))
    return loss, (params, x, jax.random.randint(jax.random.key(2), x.shape[:2], 0, 10))
