"""Small programs of the kinds that people report running out of memory with; each is a loss and its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import sparse

Program = tuple[Callable[..., jax.Array], tuple[Any, ...]]
KINDS: dict[str, Callable[[], Program]] = {}
"""What makes each program, by the name of its kind; arguments are shapes where their values do not matter."""


def _kind(name: str) -> Callable[[Callable[[], Program]], Callable[[], Program]]:
    def keep(make: Callable[[], Program]) -> Callable[[], Program]:
        KINDS[name] = make
        return make

    return keep


def _s(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


# ---- heads and attention ----


def _head(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(x @ w.T, y).mean()


@_kind("softmax cross-entropy head")
def _f32_head() -> Program:
    return _head, (_s(8192, 64), _s(256, 64), _s(256, dtype=jnp.int32))


@_kind("softmax cross-entropy head, bfloat16")
def _bf16_head() -> Program:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16).T).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return loss, (_s(8192, 64), _s(256, 64), _s(256, dtype=jnp.int32))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 6.0) @ jnp.swapaxes(v, 0, 1)


@_kind("full attention")
def _attention() -> Program:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("td,dhe->the", x, wi) for wi in w)
        return jnp.mean(_attend(q, k, v) ** 2)

    return loss, (_s(1024, 64), _s(3, 64, 2, 32))


@_kind("layers of causal attention and MLP")
def _transformer() -> Program:
    def layer(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        h = x - x.mean(-1, keepdims=True)
        q, k, v = (jnp.einsum("btd,dhe->bthe", h, wi) for wi in w["qkv"])
        a = jnp.einsum("bqhe,bkhe->bhqk", q, k) / 4.0
        a = jax.nn.softmax(jnp.where(jnp.tri(x.shape[1], dtype=bool), a, -1e9))
        x = x + jnp.einsum("bhqk,bkhe,hed->bqd", a, v, w["out"])
        return x + jax.nn.gelu(x @ w["up"]) @ w["down"]

    def loss(ws: Sequence[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    w = {"qkv": _s(3, 64, 4, 16), "out": _s(4, 16, 64), "up": _s(64, 256), "down": _s(256, 64)}
    return loss, ([w] * 4, _s(4, 128, 64))


@_kind("jax.nn.dot_product_attention")
def _dot_product_attention() -> Program:
    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.mean(jax.nn.dot_product_attention(q, k, v, is_causal=True) ** 2)

    return loss, (_s(2, 512, 4, 32),) * 3


@_kind("low-rank adapters")
def _lora() -> Program:
    def loss(adapters: Sequence[Any], ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for (a, b), w in zip(adapters, ws, strict=True):
            x = jax.nn.silu(x @ w + (x @ a) @ b)
        return jnp.mean(x**2)

    return loss, ([(_s(256, 8), _s(8, 256))] * 6, [_s(256, 256)] * 6, _s(1024, 256))


# ---- element-wise functions ----

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "snake": lambda x: x + jnp.sin(x) ** 2,
    "x sin x": lambda x: x * jnp.sin(x),
    "power of abs": lambda x: jnp.abs(x + 0.1) ** 1.5,
    "arctan2": lambda x: jnp.arctan2(x, 1 + x * x),
    "swiglu": lambda x: jax.nn.silu(x) * jnp.flip(x, -1),
}


def _activated(f: Callable[[jax.Array], jax.Array]) -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for w in ws:
            x = f(x @ w)
        return jnp.mean(x**2)

    return loss, ([_s(128, 128)] * 4, _s(1024, 128))


for _name, _f in _ACTIVATIONS.items():
    KINDS[f"layers with {_name}"] = functools.partial(_activated, _f)


@_kind("normalisations")
def _norms() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for i, w in enumerate(ws):
            h = x @ w
            if i % 3 == 0:
                x = (h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
            elif i % 3 == 1:
                x = h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
            else:
                g = h.reshape(*h.shape[:-1], 8, -1)
                x = ((g - g.mean(-1, keepdims=True)) / jnp.sqrt(g.var(-1, keepdims=True) + 1e-5)).reshape(h.shape)
        return jnp.mean(x**2)

    return loss, ([_s(128, 128)] * 6, _s(1024, 128))


@_kind("second derivatives of a PINN")
def _pinn() -> Program:
    def loss(ws: Sequence[jax.Array], xs: jax.Array) -> jax.Array:
        def u(x: jax.Array) -> jax.Array:
            h = x[None]
            for w in ws[:-1]:
                h = jnp.tanh(h @ w)
            return (h @ ws[-1])[0]

        return jnp.mean(jax.vmap(lambda x: jax.grad(jax.grad(u))(x) + u(x))(xs) ** 2)

    return loss, ([_s(1, 64), _s(64, 64), _s(64, 64), _s(64, 1)], _s(1024))


@_kind("dropout")
def _dropout() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array, key: jax.Array) -> jax.Array:
        for w, k in zip(ws, jax.random.split(key, len(ws)), strict=True):
            x = jax.nn.relu(x @ w)
            x = jnp.where(jax.random.bernoulli(k, 0.9, x.shape), x / 0.9, 0.0)
        return jnp.mean(x**2)

    return loss, ([_s(128, 128)] * 5, _s(1024, 128), jax.random.key(0))


# ---- rows, experts, sparse matrices ----


@_kind("mixture of experts by ragged_dot")
def _experts() -> Program:
    def loss(w: jax.Array, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return jnp.mean(jax.nn.relu(lax.ragged_dot(x, w, sizes)) ** 2)

    return loss, (_s(8, 64, 128), _s(1024, 64), _s(8, dtype=jnp.int32))


@_kind("embedding and head")
def _embedding() -> Program:
    def loss(w: jax.Array, ids: jax.Array) -> jax.Array:
        h = jnp.tanh(w[ids])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(h @ w.T), ids[:, None], 1))

    return loss, (_s(2048, 64), _s(512, dtype=jnp.int32))


@_kind("rows gathered in a loop")
def _rows() -> Program:
    def loss(w: jax.Array, ids: jax.Array) -> jax.Array:
        step = lambda h, i: (jnp.tanh(h + w[i]), None)  # noqa: E731
        return jnp.mean(lax.scan(step, jnp.zeros((ids.shape[1], w.shape[1])), ids)[0] ** 2)

    return loss, (_s(1024, 64), _s(16, 256, dtype=jnp.int32))


@_kind("messages on a graph by segment_sum")
def _graph() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        for w in ws:
            x = jax.nn.relu(jax.ops.segment_sum((x @ w)[senders], receivers, x.shape[0]))
        return jnp.mean(x**2)

    ids = _s(4096, dtype=jnp.int32)
    return loss, ([_s(64, 64)] * 3, _s(1024, 64), ids, ids)


@_kind("sparse BCOO matrix times dense")
def _bcoo() -> Program:
    def loss(data: jax.Array, indices: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(sparse.BCOO((data, indices), shape=(1024, 1024)) @ x) ** 2)

    return loss, (_s(4096), _s(4096, 2, dtype=jnp.int32), _s(1024, 64))


# ---- convolutions ----


def _convolve(x: jax.Array, w: jax.Array, groups: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


@_kind("depthwise convolutions")
def _depthwise() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for w in ws:
            x = jax.nn.relu(_convolve(x, w, x.shape[-1]))
        return jnp.mean(x**2)

    return loss, ([_s(3, 3, 1, 64)] * 3, _s(2, 16, 16, 64))


@_kind("convolutions, batch norm and pooling")
def _convolutions() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for w in ws:
            x = _convolve(x, w)
            x = jax.nn.relu((x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.mean(x**2)

    return loss, ([_s(3, 3, 3, 32), _s(3, 3, 32, 64), _s(3, 3, 64, 64)], _s(4, 32, 32, 3))


# ---- loops ----


@_kind("stacked bfloat16 layers in a scan")
def _bf16_scan() -> Program:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(lax.scan(lambda x, a: (x + jnp.tanh(x @ a), None), x, w)[0].astype(jnp.float32) ** 2)

    return loss, (_s(16, 128, 128, dtype=jnp.bfloat16), _s(256, 128, dtype=jnp.bfloat16))


@_kind("float32 masters of bfloat16 layers")
def _masters() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        x = x.astype(jnp.bfloat16)
        for w in ws:
            x = x + jax.nn.gelu(x @ w.astype(jnp.bfloat16))
        return jnp.mean(x.astype(jnp.float32) ** 2)

    return loss, ([_s(128, 128)] * 6, _s(1024, 128))


@_kind("an LSTM")
def _lstm() -> Program:
    def loss(w: jax.Array, xs: jax.Array) -> jax.Array:
        n = w.shape[1] // 4

        def step(carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            h, c = carry
            i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ w, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((xs.shape[1], n))
        return jnp.mean(lax.scan(step, (zeros, zeros), xs)[1] ** 2)

    return loss, (_s(128, 256), _s(64, 16, 64))


@_kind("Runge-Kutta steps of a neural ODE")
def _ode() -> Program:
    def loss(ws: Sequence[jax.Array], y: jax.Array) -> jax.Array:
        f = lambda y: jnp.tanh(y @ ws[0]) @ ws[1]  # noqa: E731

        def step(y: jax.Array, _: None) -> tuple[jax.Array, None]:
            k1 = f(y)
            k2 = f(y + 0.05 * k1)
            k3 = f(y + 0.05 * k2)
            return y + 0.1 * (k1 + 2 * k2 + 2 * k3 + f(y + 0.1 * k3)) / 6, None

        return jnp.mean(lax.scan(step, y, None, length=20)[0] ** 2)

    return loss, ([_s(32, 64), _s(64, 32)], _s(256, 32))


@_kind("loops over integers")
def _integers() -> Program:
    def loss(x: jax.Array, ids: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            n, h = carry
            h = jnp.tanh(h * (1 + (n % 3)[:, None]) + x)
            return (n + i, h), jnp.round(h).astype(jnp.int32)

        (_, h), counts = lax.scan(step, (jnp.zeros(x.shape[0], jnp.int32), x), ids)
        return jnp.mean(h**2) + jnp.mean(counts.astype(jnp.float32)) * 0

    return loss, (_s(256, 64), _s(16, 256, dtype=jnp.int32))


@_kind("a branch with a loop in a loop")
def _branches() -> Program:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        inner = lambda h: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), h, None, length=3)[0]  # noqa: E731
        step = lambda h, i: (lax.cond(i % 2 == 0, inner, lambda h: h, h), None)  # noqa: E731
        return jnp.mean(lax.scan(step, x, jnp.arange(8))[0] ** 2)

    return loss, (_s(64, 64), _s(256, 64))


@_kind("an array written in a carry")
def _carry() -> Program:
    def loss(w: jax.Array, xs: jax.Array) -> jax.Array:
        def step(ys: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            before = ys[jnp.maximum(i - 1, 0)] @ w
            return lax.dynamic_update_index_in_dim(ys, jnp.tanh(xs[i] + before + 0.1 * ys[i // 2]), i, 0), None

        return jnp.sum(lax.scan(step, jnp.zeros_like(xs), jnp.arange(len(xs)))[0] ** 2)

    return loss, (_s(32, 32), _s(128, 8, 32))


@_kind("checkpointed layers")
def _checkpointed() -> Program:
    def loss(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda w, x: x + jax.nn.gelu(x @ w[0]) @ w[1])
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    return loss, ([(_s(64, 256), _s(256, 64))] * 6, _s(512, 64))


# ---- linear algebra, sorts ----


@_kind("a Gaussian process by Cholesky")
def _gaussian_process() -> Program:
    def loss(scale: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        squares = jnp.sum((x[:, None] - x[None]) ** 2 * scale, -1)
        factor = jnp.linalg.cholesky(jnp.exp(-squares) + 1e-2 * jnp.eye(len(x)))
        solved = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return 0.5 * jnp.sum(solved**2) + jnp.sum(jnp.log(jnp.diag(factor)))

    return loss, (_s(8), _s(256, 8), _s(256))


@_kind("sorting and cumulative sums")
def _sorting() -> Program:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        h = jnp.sort(x @ w, axis=-1)
        return jnp.mean(jnp.cumsum(jax.nn.softplus(h), -1) ** 2) + jnp.mean(lax.top_k(h, 8)[0])

    return loss, (_s(128, 128), _s(512, 128))
