"""`tiny_backprop.jit`: `jax.jit`, but that it keeps every recomputation."""

import jax
import jax.numpy as jnp
from jax import lax

import tiny_backprop as tb


def temp_bytes(jitted, *args):
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_jit_keeps_the_recomputation_of_jax_checkpoint():
    ws = [0.05 * jax.random.normal(jax.random.key(i), (256, 256)) for i in range(12)]
    x = jax.random.normal(jax.random.key(99), (1024, 256))

    def by_layers(ws, x):
        for w in ws:
            x = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(jnp.sin(jnp.sin(x @ w)))))(w, x)
        return jnp.sum(x * x)

    def plain(ws, x):
        for w in ws:
            x = jnp.sin(jnp.sin(jnp.sin(jnp.sin(x @ w))))
        return jnp.sum(x * x)

    kept = temp_bytes(tb.jit(jax.grad(by_layers)), ws, x)
    assert kept < 20 * x.size * 4
    assert kept < 0.6 * temp_bytes(jax.jit(jax.grad(plain)), ws, x)
    # Where jax.jit keeps it too, as XLA:CPU does from JAX 0.12 on, our options cost nothing.
    assert kept <= 1.01 * temp_bytes(jax.jit(jax.grad(by_layers)), ws, x)


def test_jit_is_jit():
    @tb.jit
    def f(x):
        """Say something."""
        return {"y": x + 1}

    assert f.__doc__ == "Say something."
    assert f(jnp.ones(2))["y"].tolist() == [2, 2]
    assert f.lower(jnp.ones(2)).compile().memory_analysis().output_size_in_bytes >= 8
    g = tb.jit(static_argnums=1)(lambda x, n: x * n)
    assert float(g(jnp.float32(2), 3)) == 6
    # Inside another transformation it is part of that one's program.
    assert float(jax.jit(lambda x: f(x)["y"] * 2)(1.0)) == 4
    assert float(jax.grad(lambda x: f(x)["y"] ** 2)(1.0)) == 4
    assert float(lax.map(lambda x: f(x)["y"], jnp.ones(3)).sum()) == 6
    g.clear_cache()
    assert float(g(jnp.float32(2), 3)) == 6
