"""`hold`: an identity that XLA does not see through, in anybody's `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop as tb
from tiny_backprop.integration.jax.run.hold import hold

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn, jnp.int4, jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64]


def bits(x):
    return np.frombuffer(np.asarray(x).tobytes(), np.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("token", [np.nan, 0.0, -0.0, np.inf], ids=str)
def test_values_come_back_to_the_bit_whatever_the_token(dtype, token):
    values = [jnp.array([[0, 1], [1, 0]]).astype(dtype), jnp.array(1).astype(dtype)]
    f = jax.jit(lambda t, vs: hold([t], vs))
    for got, want in zip(f(jnp.full((2, 2), token, jnp.float32), values), values, strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_tokens_of_every_dtype(dtype):
    token = jnp.zeros((3, 2), jnp.float32).astype(dtype)
    assert jax.jit(lambda t, v: hold([t], [v]))(token, jnp.arange(3.0))[0].tolist() == [0, 1, 2]


def test_special_floats_keys_and_empty_arrays():
    odd = jnp.array([np.nan, -0.0, np.inf, -np.inf, 1e-45], jnp.float32)
    key = jax.random.key(3)
    empty = jnp.zeros((0, 2))
    got = jax.jit(lambda t, vs: hold([t, key, empty], vs))(jnp.float32(1), [odd, key, empty])
    assert np.array_equal(bits(got[0]), bits(odd))
    assert jax.random.key_data(got[1]).tolist() == jax.random.key_data(key).tolist()
    assert got[2].shape == (0, 2)
    assert jax.jit(lambda v: hold([empty], [v]))(odd)[0].shape == (5,)
    assert hold([odd], [odd])[0] is odd


def test_vmap_of_tokens_or_values_alone():
    x = jnp.arange(6.0).reshape(3, 2)
    for axes in ((0, None), (None, 0), (0, 0)):
        got = jax.jit(jax.vmap(lambda t, v: hold([t], [v])[0], in_axes=axes))(x, x)
        want = jax.vmap(lambda t, v: v, in_axes=axes)(x, x)
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_gets_its_barrier(platform):
    """GPU and TPU keep optimisation barriers; the conditional is for CPU alone."""
    f = jax.jit(lambda t, v: hold([t], [v]))
    text = jax.export.export(f, platforms=[platform])(jnp.ones(3), jnp.ones(2)).mlir_module()
    assert ("optimization_barrier" in text) == (platform != "cpu")
    assert ("stablehlo.case" in text) == (platform == "cpu")


def chain(n, width=256):
    """Return the loss of n wide layers, its gradient plain, and its arguments."""
    ws = [0.05 * jax.random.normal(jax.random.key(i), (width, width)) for i in range(n)]
    x = jax.random.normal(jax.random.key(99), (1024, width))

    def loss(ws, x):
        for w in ws:
            x = jnp.sin(x @ w)
        return jnp.sum(x * x)

    return loss, ws, x


def temp_bytes(jitted, *args):
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("compile_with", [jax.jit, tb.jit], ids=["jax.jit", "tiny_backprop.jit"])
@pytest.mark.parametrize("within", ["grad", "checkpoint"])
def test_recomputation_survives_in_any_jit(compile_with, within):
    """XLA's temporaries are the plan's, with no option from the user; an XLA that undoes it is noticed here."""
    loss, ws, x = chain(24)
    activation = x.size * 4
    plain = temp_bytes(jax.jit(jax.grad(loss)), ws, x)
    assert plain > 22 * activation
    if within == "grad":
        gradient = tb.height_compressed_grad(loss, block_size=8)
        plan = gradient.plan(ws, x)
    else:
        checkpointed = tb.checkpoint(loss, block_size=8)
        gradient = jax.grad(checkpointed)
        plan = checkpointed.plan(ws, x)
    outputs = sum(w.size * 4 for w in ws)
    planned = temp_bytes(compile_with(lambda ws, x: gradient(ws, x)), ws, x)
    assert plan.liveness_peak_bytes < 14 * activation + outputs
    assert planned + outputs == pytest.approx(plan.peak_bytes, rel=0.1)
    assert planned <= plan.peak_bytes
    assert planned < 0.45 * plain


@pytest.mark.parametrize("within", ["grad", "checkpoint"])
def test_recomputation_survives_where_the_first_cotangents_are_constants(within):
    """The gradient of a sum begins with ones: a predicate made of them alone is one that XLA folds."""
    _, ws, x = chain(3, 256)

    def tail(ws, x):
        for w in ws:
            for _ in range(6):
                x = jnp.sin(x)
            x = x @ w
        for _ in range(8):
            x = x.T.reshape(x.shape)
        return jnp.sum(x)

    options = {"block_size": 6}
    if within == "grad":
        gradient = tb.height_compressed_grad(tail, **options)
        plan = gradient.plan(ws, x)
    else:
        gradient = jax.grad(tb.checkpoint(tail, **options))
        plan = tb.checkpoint(tail, **options).plan(ws, x)
    assert plan.recompute_flops > 10 * x.size
    lowered = jax.jit(lambda ws, x: gradient(ws, x)).lower(ws, x)
    n_holds = lowered.as_text().count("stablehlo.case")
    assert n_holds >= 3
    assert lowered.compile().as_text().count(" conditional(") == n_holds
