"""A mark on what a function returns that has no reverse mode: forward mode passes, reverse mode is told why.

JAX itself says neither where nor what to do.
"""

from __future__ import annotations

from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tiny_backprop.errors import CaptureError

irreversible_p = Primitive("irreversible")


def irreversible(x: Any, error: CaptureError) -> Any:
    """Return an array as it is; differentiating by it in reverse mode raises the error."""
    return irreversible_p.bind(x, error=error)


def _raise(cotangent: Any, x: Any, *, error: CaptureError) -> Any:
    if type(cotangent) is ad.Zero:
        return [cotangent]
    raise error


def _batch(operands: Any, dims: Any, *, error: CaptureError) -> tuple[Any, Any]:
    return irreversible_p.bind(*operands, error=error), dims[0]


irreversible_p.def_impl(lambda x, error: x)
irreversible_p.def_abstract_eval(lambda aval, error: aval)
ad.deflinear2(irreversible_p, _raise)
batching.primitive_batchers[irreversible_p] = _batch
mlir.register_lowering(irreversible_p, lambda ctx, x, error: [x])
