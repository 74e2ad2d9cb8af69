"""The gradient of max-pooling in slices: the same bits, with less scratch space on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tiny_backprop import capture_gradient, height_compressed_value_and_grad, measure, plan_save_everything

X = jax.random.normal(jax.random.key(0), (8, 33, 32, 16))


def pooled(x, window=(1, 3, 3, 1), strides=(1, 2, 2, 1), padding="SAME"):
    return lax.reduce_window(jnp.sin(x), -jnp.inf, lax.max, window, strides, padding)


def loss(x, **how):
    return jnp.sum(jnp.cos(pooled(x, **how)))


CASES = {
    "batch": {},
    "padding": {"padding": ((0, 0), (2, 1), (0, 2), (0, 0))},
    "channels first": {"window": (1, 1, 3, 3), "strides": (1, 1, 2, 2)},
    "across the batch": {"window": (2, 3, 3, 1)},
    "everywhere": {"window": (2, 3, 3, 2), "strides": (2, 2, 2, 2)},
}


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_the_gradient_has_the_same_bits(how):
    def f(x):
        return loss(x, **how)

    expected = jax.jit(jax.grad(f))(X)
    planned = height_compressed_value_and_grad(f, block_size=2, on_error="raise")
    np.testing.assert_array_equal(planned(X)[1], expected)
    np.testing.assert_array_equal(jax.jit(planned)(X)[1], expected)


def test_in_vmap_over_any_axis():
    planned = height_compressed_value_and_grad(loss, block_size=2, on_error="raise")
    xs = jnp.stack([X, 2 * X, X - 1])
    expected = jax.vmap(jax.grad(loss))(xs)
    np.testing.assert_array_equal(jax.vmap(planned)(xs)[1], expected)
    last = jnp.moveaxis(xs, 0, -1)
    np.testing.assert_array_equal(jax.vmap(planned, in_axes=-1)(last)[1], expected)


def test_it_needs_less_scratch_space():
    plain = measure(jax.value_and_grad(loss), X)
    plan = plan_save_everything(capture_gradient(loss, X))
    planned = height_compressed_value_and_grad(loss, plan=plan)
    assert measure(planned, X).temp_bytes < 0.6 * plain.temp_bytes
