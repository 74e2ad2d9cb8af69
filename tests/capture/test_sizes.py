"""Bytes of arrays by their abstract values."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tiny_backprop.integration.jax.capture.sizes import aval_bytes


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("aval", "expected"),
    [
        (array(3, 5), 60),
        (array(3, 5, dtype="bool"), 15),
        (array(3, 5, dtype="bfloat16"), 30),
        (array(3, 5, dtype="float8_e4m3fn"), 15),
        (array(3, 5, dtype="complex64"), 120),
        (array(3, 5, dtype="int4"), 8),
        (array(3, 5, dtype="uint4"), 8),
        (array(3, 5, dtype="float4_e2m1fn"), 8),
        (array(), 4),
        (array(0, 5), 0),
        (jax.eval_shape(lambda: jax.random.key(0)), 8),
        (jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="rbg"), 3)), 48),
        (array(3, dtype=jax.dtypes.float0), 0),
        (jax.make_jaxpr(lax.create_token)().jaxpr.outvars[0].aval, 0),
    ],
    ids=str,
)
def test_aval_bytes(aval, expected):
    assert aval_bytes(aval) == expected


def test_bytes_agree_with_the_arrays_that_jax_makes():
    for dtype in ("float32", "bfloat16", "bool", "int8", "complex64", "float8_e5m2"):
        x = jnp.zeros((3, 7), dtype)
        assert aval_bytes(jax.typeof(x)) == x.nbytes
