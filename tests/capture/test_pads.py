"""Cotangents of slices that make up a whole are laid side by side, with the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_backprop import capture_gradient, height_compressed_grad

X = jax.random.normal(jax.random.key(0), (6, 8))


def rotary(x):
    """A product with the halves swapped, as in rotary position embeddings."""
    half = x.shape[-1] // 2
    return x * jnp.cos(x) + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * jnp.sin(x)


def stencil(x):
    """Differences without the ends: the parts overlap."""
    return jnp.sum((x[2:] - 2 * x[1:-1] + x[:-2]) ** 2)


JOINED = {
    "roll": (lambda x: jnp.sin(jnp.roll(x, 2, 0)), 0),
    "rolls along both axes": (lambda x: x * jnp.roll(x, 1, 0) * jnp.roll(x, -3, 1), 0),
    "rotary embedding": (rotary, 0),
    "thirds": (lambda x: jnp.sin(x[:2]) + jnp.cos(x[2:4]) * x[4:], 0),
    "read whole, too": (lambda x: x.sum() + (x[:1] * x[1:2]).sum() + (x[2:] ** 2).sum(), 0),
    "a stencil": (stencil, 3),
    "a part is missing": (lambda x: x[:2] * x[2:4], 2),
    "with gaps": (lambda x: x[::2] * x[1::2], 2),
}


@pytest.mark.parametrize(("f", "n_pads"), JOINED.values(), ids=JOINED)
def test_parts_that_make_up_a_whole_are_joined_and_no_others(f, n_pads):
    def loss(x):
        return jnp.sum(f(x * x) ** 2)

    assert capture_gradient(loss, X).primitives.count("pad") == n_pads
    planned, expected = height_compressed_grad(loss, on_error="raise")(X), jax.jit(jax.grad(loss))(X)
    np.testing.assert_allclose(planned, expected, rtol=2e-6, atol=1e-6)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["cut", "whole", "rows", "edge"]), min_size=1, max_size=5), st.integers(1, 5))
def test_sums_of_integers_are_exact_whatever_is_added_between(terms, at):
    """With whole numbers every order of a sum gives the same bits, so that any part lost or put wrong is seen."""
    weight = jnp.arange(48.0).reshape(6, 8)
    use = {
        "cut": lambda x: jnp.concatenate([x[at:], x[:at]]) * weight,
        "whole": lambda x: 3 * x,
        "rows": lambda x: jnp.concatenate([x[:, 5:], x[:, :2], x[:, 2:5]], 1) * weight,
        "edge": lambda x: jnp.concatenate([x[:at], x[:at], x[at:]])[:6] * weight,
    }

    def loss(x):
        return sum(jnp.sum(use[term](x)) for term in terms)

    whole = jnp.round(4 * X)
    np.testing.assert_array_equal(height_compressed_grad(loss, on_error="raise")(whole), jax.grad(loss)(whole))
