"""How often a `while` runs its body, where literals tell."""

from __future__ import annotations

from typing import Any

import numpy as np

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.compat import Literal

_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def while_trip_count(eqn: Any) -> int | None:
    """Find how often a `while` equation runs its body, where literals tell.

    Recognised: a condition `i < n` (or `<=`, `>`, `>=`, either way round) where the carry `i` starts at an integer
    literal and the body adds or subtracts an integer literal, and `n` is an integer literal, directly or through a
    carry that the body hands on unchanged. `lax.fori_loop` with static bounds needs none of this: it becomes a `scan`.

    Args:
      eqn: An equation of the primitive `while`.

    Returns:
      The trip count, or `None` if the equation does not tell it.

    Raises:
      Nothing.
    """
    condition = compat.open_jaxpr(eqn.params["cond_jaxpr"])
    test = _defining_eqn(condition, condition.outvars[0])
    if test is None or test.primitive.name not in _MIRRORED:
        return None
    comparison, (left, right) = test.primitive.name, test.invars
    for counter, bound, name in ((left, right, comparison), (right, left, _MIRRORED[comparison])):
        progression, limit = _counter(eqn, counter), _invariant(eqn, bound)
        if progression is not None and limit is not None:
            return _count_trips(*progression, limit, name)
    return None


def _defining_eqn(jaxpr: Any, var: Any) -> Any:
    return next((eqn for eqn in jaxpr.eqns if any(out is var for out in eqn.outvars)), None)


def _integer(atom: Any) -> int | None:
    """The value of an integer literal."""
    if type(atom) is not Literal or np.ndim(atom.val) or np.asarray(atom.val).dtype.kind not in "iu":
        return None
    return int(atom.val)


def _carry_index(eqn: Any, atom: Any) -> int | None:
    """Which carry an atom of the condition is."""
    invars = compat.open_jaxpr(eqn.params["cond_jaxpr"]).invars[eqn.params["cond_nconsts"] :]
    return next((i for i, var in enumerate(invars) if var is atom), None)


def _counter(eqn: Any, atom: Any) -> tuple[int, int] | None:
    """(start, step) of a carry that counts."""
    index = _carry_index(eqn, atom)
    if index is None:
        return None
    body, skip = compat.open_jaxpr(eqn.params["body_jaxpr"]), eqn.params["body_nconsts"]
    update = _defining_eqn(body, body.outvars[index])
    if update is None or update.primitive.name not in ("add", "sub"):
        return None
    left, right = update.invars
    if update.primitive.name == "add" and right is body.invars[skip + index]:
        left, right = right, left
    start, step = _integer(eqn.invars[eqn.params["cond_nconsts"] + skip + index]), _integer(right)
    if left is not body.invars[skip + index] or start is None or step is None:
        return None
    return start, step if update.primitive.name == "add" else -step


def _invariant(eqn: Any, atom: Any) -> int | None:
    """The integer that an atom of the condition has in every trip."""
    if type(atom) is Literal:
        return _integer(atom)
    condition, body = compat.open_jaxpr(eqn.params["cond_jaxpr"]), compat.open_jaxpr(eqn.params["body_jaxpr"])
    for var, operand in zip(condition.invars[: eqn.params["cond_nconsts"]], eqn.invars, strict=False):
        if var is atom:
            return _integer(operand)
    index = _carry_index(eqn, atom)
    skip = eqn.params["body_nconsts"]
    if index is None or body.outvars[index] is not body.invars[skip + index]:
        return None
    return _integer(eqn.invars[eqn.params["cond_nconsts"] + skip + index])


def _count_trips(start: int, step: int, limit: int, comparison: str) -> int | None:
    """Trips of `i = start; while i <comparison> limit: i += step`; `None` if it never ends."""
    if comparison in ("gt", "ge"):
        start, step, limit = -start, -step, -limit
    distance = limit - start + (comparison in ("le", "ge"))
    if distance <= 0:
        return 0
    return -(-distance // step) if step > 0 else None
