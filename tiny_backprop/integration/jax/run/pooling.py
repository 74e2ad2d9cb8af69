"""The gradient of max-pooling with less scratch space on CPU.

XLA:CPU expands `select_and_scatter_add` into reductions over windows of the operand together with its indices, an array
of integers for each dimension. Those arrays depend on nothing, so that they are made at the start of the program and
live until the operation runs, wherever a plan has put it: for an image network four times the largest activation. In a
loop over the batch they are as small as one image. The arithmetic is the same. On GPU and TPU the operation stays.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

POOL_GRADIENT = "select_and_scatter_add"

pool_gradient_p = Primitive("pool_gradient")


def in_slices(eqn: Any) -> Any:
    """Return an equation of `select_and_scatter_add` as one that XLA:CPU runs slice by slice, any other as it is."""
    if eqn.primitive.name != POOL_GRADIENT or _sliced_dimension(eqn.params, eqn.invars[1].aval.shape) is None:
        return eqn
    return eqn.replace(primitive=pool_gradient_p, params={**eqn.params, "whole": eqn.primitive})


def _sliced_dimension(params: dict[str, Any], shape: tuple[int, ...]) -> int | None:
    """Return the first dimension that windows do not reach across, such as the batch."""
    rows = zip(shape, params["window_dimensions"], params["window_strides"], params["padding"], strict=True)
    return next((d for d, (n, *window) in enumerate(rows) if n > 1 and tuple(window[:2]) == (1, 1)), None)


def _whole(source: Any, operand: Any, *, whole: Primitive, **params: Any) -> Any:
    return whole.bind(source, operand, **params)


def _by_slice(source: Any, operand: Any, *, whole: Primitive, **params: Any) -> Any:
    d = _sliced_dimension(params, operand.shape)
    assert d is not None

    def one(slices: tuple[Any, Any]) -> Any:
        return jnp.squeeze(whole.bind(*(jnp.expand_dims(x, d) for x in slices), **params), d)

    moved = [jnp.moveaxis(x, d, 0) for x in (source, operand)]
    return jnp.moveaxis(lax.map(one, tuple(moved)), 0, d)


def _batch(operands: Any, dims: Any, **params: Any) -> tuple[Any, int]:
    return jax.vmap(functools.partial(_by_slice, **params), in_axes=tuple(dims))(*operands), 0


pool_gradient_p.def_impl(_whole)
pool_gradient_p.def_abstract_eval(lambda source, operand, **_: operand)
batching.primitive_batchers[pool_gradient_p] = _batch
mlir.register_lowering(pool_gradient_p, mlir.lower_fun(_whole, multiple_results=False))
mlir.register_lowering(pool_gradient_p, mlir.lower_fun(_by_slice, multiple_results=False), platform="cpu")
