"""Programs that several tests differentiate, and how their gradients are compared."""

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 16))
PARAMS = {"w": [0.1 * jax.random.normal(jax.random.fold_in(KEY, i), (16, 16)) for i in range(6)], "b": jnp.zeros(16)}


def net(params, x, key):
    """Apply six residual layers with softplus (a custom derivative) and a reused bias, every third with dropout."""
    for i, w in enumerate(params["w"]):
        h = jnp.tanh(x @ w + params["b"][None])
        if i % 3 == 0:
            h = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), 0.8, h.shape), h / 0.8, 0.0)
        x = x + jax.nn.softplus(h)
    return x


def loss(params, x, key):
    """Return the mean square of `net`."""
    return jnp.mean(net(params, x, key) ** 2)


def assert_same_bits(got, want):
    """Assert that two pytrees hold the same arrays to the bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(got, want, n_ulps=64):
    """Assert that two pytrees are equal but for some units in the last place of their largest entries."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jnp.inexact):
            scale = float(jnp.max(jnp.abs(b), initial=0.0)) + 1e-30
            np.testing.assert_allclose(a, b, rtol=0, atol=n_ulps * float(jnp.finfo(b.dtype).eps) * scale)
        else:
            assert a.tolist() == b.tolist()
