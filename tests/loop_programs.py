"""Programs with loops that several tests differentiate."""

import jax
import jax.numpy as jnp
from jax import lax

WIDTH = 8
W = 0.3 * jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))
H = jax.random.normal(jax.random.key(1), (3, WIDTH))


def rnn(w, h, length, reverse=False):
    return lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=length, reverse=reverse)[0]


def many(params, xs, key, length, reverse):
    """Several carries, an int and a key among them; stacked operands and results; something that is never read."""

    def step(carry, x):
        h, c, i, key = carry
        key, used = jax.random.split(key)
        gate = jax.nn.sigmoid(h @ params["w"] + x["a"] + params["b"][None])
        c = gate * c + (1 - gate) * jnp.cos(x["a"] * i.astype(jnp.float32))
        h = (
            h
            + jnp.tanh(c) * jax.random.bernoulli(used, 0.8, c.shape).astype(c.dtype)
            + params["table"][x["token"]][None]
        )
        return (h, c, i + 1, key), {"h": h.sum(-1), "c2": c * c, "i": i, "unused": jnp.exp(h)}

    carry = params["h"], jnp.ones_like(params["h"]), jnp.int32(0), key
    (h, c, i, _), ys = lax.scan(step, carry, xs, length=length, reverse=reverse)
    weights = jnp.arange(length, dtype=jnp.float32)[:, None]
    return (h * c).sum() * 0.1 + (weights * ys["h"]).mean() + ys["c2"].sum() + (ys["i"].sum() + i).astype(jnp.float32)


def many_arguments(length, seed=0):
    keys = jax.random.split(jax.random.key(seed), 6)
    params = {
        "w": 0.3 * jax.random.normal(keys[0], (WIDTH, WIDTH)),
        "b": jax.random.normal(keys[1], (WIDTH,)),
        "h": jax.random.normal(keys[2], (2, WIDTH)),
        "table": jax.random.normal(keys[3], (5, WIDTH)),
    }
    tokens = jax.random.randint(keys[5], (length,), 0, 5)
    return params, {"a": jax.random.normal(keys[4], (length, 2, WIDTH)), "token": tokens}, keys[5]


def wide(length):
    """A loss whose carry takes 64 KiB, with its arguments."""

    def loss(w, h):
        return jnp.sum(rnn(w, h, length) ** 2)

    return loss, (jnp.eye(64), jnp.ones((256, 64)))
