"""Sums of padded cotangents that lie side by side, as concatenations.

The parts of an array that was cut up by slices (`jnp.roll`, stencils, rotary embeddings) each send back a cotangent,
padded with zeros to the size of the whole, and these are added. XLA:CPU makes each padded array, and where it fuses the
sums, it evaluates what was cut up anew for each part. Laid side by side, the parts are the same sum, to the bit but for
the sign of zeros, without either.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jax import lax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.capture.inline import FlatJaxpr
from tiny_backprop.integration.jax.compat import Literal


@dataclasses.dataclass(frozen=True)
class _Part:
    """What `pad` was given, and where it lies in the result: all of it but along one axis."""

    operand: Any
    axis: int
    start: int
    stop: int


def join_pads(flat: FlatJaxpr) -> FlatJaxpr:
    """Return a jaxpr whose sums of padded parts that make up a whole are concatenations; linear.

    Only parts that are added one right after the other are joined, so that no other sum changes its order.
    """
    parts = {e.outvars[0]: part for e in flat.eqns if (part := _part(e)) is not None}
    if not parts:
        return flat
    n_uses = Counter(v for e in flat.eqns for v in e.invars if not isinstance(v, Literal))
    n_uses.update(v for v in flat.outvars if not isinstance(v, Literal))
    sums = {e.outvars[0]: e for e in flat.eqns if e.primitive.name == "add_any"}
    inner = {e.invars[0] for e in sums.values() if e.invars[0] in sums and n_uses[e.invars[0]] == 1}
    new: dict[int, list[Any]] = {}
    for v in sums:
        if v not in inner:
            new.update(_joined(_chain(v, sums, inner), parts))
    eqns = [e for old in flat.eqns for e in new.get(id(old), [old])]
    return dataclasses.replace(flat, eqns=eqns)


def _part(eqn: Any) -> _Part | None:
    """Return what a `pad` pads with zeros along one axis, None for anything else."""
    if eqn.primitive.name != "pad" or compat.is_sharded(eqn.outvars[0].aval):
        return None
    operand, value = eqn.invars
    config = eqn.params["padding_config"]
    axes = [axis for axis, (low, high, _) in enumerate(config) if (low, high) != (0, 0)]
    if len(axes) != 1 or any(between or low < 0 or high < 0 for low, high, between in config):
        return None
    if isinstance(operand, Literal) or not isinstance(value, Literal) or value.val != 0:
        return None
    (axis,) = axes
    start = int(config[axis][0])
    return _Part(operand, axis, start, start + operand.aval.shape[axis])


def _chain(v: Any, sums: dict[Any, Any], inner: set[Any]) -> list[Any]:
    """Return the equations that add up to v one term after the other, first to last."""
    eqns = [sums[v]]
    while eqns[-1].invars[0] in inner:
        eqns.append(sums[eqns[-1].invars[0]])
    return eqns[::-1]


def _joined(chain: Sequence[Any], parts: dict[Any, _Part]) -> dict[int, list[Any]]:
    """Return what is to stand for each equation of a chain of sums that changes."""
    terms = [chain[0].invars[0], *(e.invars[1] for e in chain)]
    new: dict[int, list[Any]] = {}
    first, total = 0, None  # of the terms before `first`
    while first < len(terms):
        end, whole = _whole(terms, first, parts)
        term = terms[first]
        if whole is not None:
            last = chain[end - 2]  # it adds the last of the terms that are joined
            term = last.outvars[0] if total is None else compat.Var(last.outvars[0].aval)
            new.update({id(e): [] for e in chain[max(first - 1, 0) : end - 1]})
            axis, operands = whole[0].axis, [p.operand for p in whole]
            joined = last.replace(
                primitive=lax.concatenate_p, params={"dimension": axis}, invars=operands, outvars=[term]
            )
            added = [] if total is None else [last.replace(invars=[total, term])]
            new[id(last)] = [joined, *added]
        total = term if end == 1 else chain[end - 2].outvars[0]
        first = end
    return new


def _whole(terms: Sequence[Any], first: int, parts: dict[Any, _Part]) -> tuple[int, list[_Part] | None]:
    """Return the end of the terms from `first` on that make up a whole, and their parts in order; else the next."""
    found: list[_Part] = []
    for end in range(first, len(terms)):
        part = None if isinstance(terms[end], Literal) else parts.get(terms[end])
        if part is None or any(part.axis != p.axis or (part.start < p.stop and p.start < part.stop) for p in found):
            break
        found.append(part)
        if len(found) > 1 and sum(p.stop - p.start for p in found) == terms[end].aval.shape[part.axis]:
            return end + 1, sorted(found, key=lambda p: p.start)
    return first + 1, None
