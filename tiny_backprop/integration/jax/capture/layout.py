"""Which operands and results of contractions XLA:CPU copies into another order of dimensions.

XLA brings every `dot_general` and convolution into one form before it compiles it, and transposes what is not in it:

- Dots have their batch dimensions first and one contracting dimension. A dot that has not becomes one of matrices, the
  left one (batch, free, contracted) and the right one (batch, contracted, free), each group of dimensions flattened. A
  plain transposition of a matrix, or of each matrix of a batch, is folded into the dot; any other order is copied.
- Triangular systems are solved by LAPACK, which has columns together.
- Convolutions read (batch, space, features) and kernels (space, inputs, outputs), and write (batch, space, features).
  One with a group for each result, the gradient of a depthwise kernel, becomes one without groups: see `expansions` of
  XLA:CPU.

Copies are skipped where only dimensions of size 1 move. `tests/predict/test_materialized.py` holds this against XLA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax import lax

from tiny_backprop.graph import COPIED, FLATTENED, TRANSPOSED, copied

Relaid = tuple[tuple[int, ...], tuple[bool, ...]]


def relaid(eqn: Any) -> Relaid:
    """Return what XLA:CPU does to each operand (see `Graph.relaid_operands`), and which results it copies."""
    rule = _RULES.get(eqn.primitive.name)
    if rule is None:
        return (0,) * len(eqn.invars), (False,) * len(eqn.outvars)
    return rule(eqn)


def _moves(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Return whether an order of dimensions changes how elements lie in memory."""
    kept = [d for d in order if shape[d] != 1]
    return kept != sorted(kept)


def _dot(eqn: Any) -> Relaid:
    contracted, batch = eqn.params["dimension_numbers"]
    shapes = [v.aval.shape for v in eqn.invars]
    n_batch = len(batch[0])
    is_canonical = all(
        len(shape) <= n_batch + 2 and len(c) == 1 and tuple(b) == tuple(range(n_batch))
        for shape, c, b in zip(shapes, contracted, batch, strict=True)
    )
    if is_canonical:
        left, right = shapes
        is_left = len(left) == n_batch + 2 and contracted[0][0] == n_batch
        is_right = len(right) == n_batch + 2 and contracted[1][0] == n_batch + 1
        return (TRANSPOSED * is_left, TRANSPOSED * is_right), (False,)
    free = [
        [d for d in range(len(shape)) if d not in (*c, *b)]
        for shape, c, b in zip(shapes, contracted, batch, strict=True)
    ]
    orders = [[*batch[0], *free[0], *contracted[0]], [*batch[1], *contracted[1], *free[1]]]
    is_flat = [all(len(dims) == 1 for dims in (*batch[:1], f, contracted[0])) for f in free]
    how = [
        _ordered(s, order, flat, n_batch) if _moves(s, order) else 0 if flat else FLATTENED
        for s, order, flat in zip(shapes, orders, is_flat, strict=True)
    ]
    return tuple(h if len(s) > 2 else 0 for h, s in zip(how, shapes, strict=True)), (False,)


def _ordered(shape: Sequence[int], order: Sequence[int], is_flat: bool, n_batch: int) -> int:
    """Return what is done to an operand of a dot whose dimensions are in another order."""
    rank = len(shape)
    is_folded = is_flat and rank == n_batch + 2 and [*order] == [*range(rank - 2), rank - 1, rank - 2]
    return TRANSPOSED if is_folded else copied(order)


def _convolution(eqn: Any) -> Relaid:
    spec = eqn.params["dimension_numbers"]
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    data = [(shape, [s[0], *s[2:], s[1]]) for shape, s in ((lhs, spec.lhs_spec), (out, spec.out_spec))]
    kernel = [*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]]
    n_groups = eqn.params["batch_group_count"]
    if n_groups > 1 and n_groups == lhs[spec.lhs_spec[0]] == rhs[spec.rhs_spec[0]]:
        return (COPIED * _moves(*data[0]), COPIED + n_groups), (False,)
    return (COPIED * _moves(*data[0]), COPIED * _moves(rhs, kernel)), (_moves(*data[1]),)


def _triangular_solve(eqn: Any) -> Relaid:
    rank = len(eqn.invars[0].aval.shape)
    columns = copied([*range(rank - 2), rank - 1, rank - 2])
    return (columns, columns), (False,)


def _gather(eqn: Any) -> Relaid:
    """Where indices out of bounds give a value of their own, XLA selects it in a loop after it has gathered."""
    fills = eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    return (0,) * len(eqn.invars), (fills,)


def _pool_gradient(eqn: Any) -> Relaid:
    """Windows that reach over the edge read a copy with the edge; how many elements that has stands for its order."""
    shape, padding = eqn.invars[1].aval.shape, eqn.params["padding"]
    n_padded = math.prod(n + low + high for n, (low, high) in zip(shape, padding, strict=True))
    return (0, COPIED + n_padded if n_padded != math.prod(shape) else 0), (False,)


_RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "triangular_solve": _triangular_solve,
    "gather": _gather,
    "select_and_scatter_add": _pool_gradient,
}
