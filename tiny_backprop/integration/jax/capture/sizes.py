"""Elements and bytes of an array, by its abstract value."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from tiny_backprop.errors import TinyBackpropError

_element_bits_by_dtype: dict[Any, int] = {}


class CostError(TinyBackpropError, TypeError):
    """An equation's cost cannot be told: a dimension is symbolic, or a dtype has no known size."""


def aval_bytes(aval: Any) -> int:
    """Count the bytes of an array with this abstract value.

    Sub-byte dtypes are packed (`int4` takes half a byte, the array rounded up), a PRNG key counts its underlying
    words, `float0` and tokens are 0. Under explicit sharding these are the bytes of the whole array.

    Args:
      aval: Anything with `shape` and `dtype` (a `ShapedArray`, `ShapeDtypeStruct` or array), or a token.

    Returns:
      Bytes, without padding or tiling.

    Raises:
      CostError: A dimension is symbolic, or the dtype has no known size.

    Example:
      >>> aval_bytes(jax.ShapeDtypeStruct((3,), "int4"))
      2
    """
    try:
        dtype, size = aval.dtype, math.prod(aval.shape)
    except AttributeError:  # a token
        return 0
    bits = _element_bits_by_dtype.get(dtype)
    if bits is None:
        bits = _element_bits_by_dtype[dtype] = _element_bits(dtype)
    if type(size) is not int:
        size = _concrete_size(size, aval)
    return (size * bits + 7) >> 3


def n_elements(aval: Any) -> int:
    """Count the elements of an array with this abstract value.

    Args:
      aval: Anything with a `shape`.

    Raises:
      CostError: A dimension is symbolic.
    """
    size = math.prod(aval.shape)
    return size if type(size) is int else _concrete_size(size, aval)


def _concrete_size(size: Any, aval: Any) -> int:
    try:
        return operator.index(size)
    except Exception as error:
        symbolic = ", ".join(str(d) for d in aval.shape if not isinstance(d, (int, np.integer)))
        raise CostError(
            f"cannot count the elements of {aval}: dimension {symbolic} is symbolic. Cost and bytes need numbers: "
            "trace again with concrete shapes, for instance jax.ShapeDtypeStruct((8, 128), 'float32')."
        ) from error


def _element_bits(dtype: Any) -> int:
    """Bits of one element of any dtype that JAX knows."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
        return math.prod(words.shape) * words.dtype.itemsize * 8
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise CostError(f"cannot count the bytes of the extended dtype {dtype}: only PRNG keys are known.")
    dtype = np.dtype(dtype)
    if dtype.kind != "V" or dtype.itemsize != 1:  # ml_dtypes' narrow types are one opaque byte to NumPy
        return dtype.itemsize * 8
    info = ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo
    return info(dtype).bits
