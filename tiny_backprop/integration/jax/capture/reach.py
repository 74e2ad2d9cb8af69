"""Which results of a jaxpr depend on some of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.compat import Literal


def reached(
    jaxpr: Any,
    is_reached: Sequence[bool],
    visit: Callable[[Any], None],
    carries: Callable[[Any], bool] = lambda aval: True,
) -> list[bool]:
    """Return which results of a jaxpr depend on some of its inputs.

    Loops, branches and calls are followed inside. All results of anything else depend on all that it reads; so do those
    of functions with derivative rules, which say more than their bodies.

    Args:
      jaxpr: The jaxpr, not closed.
      is_reached: Which inputs are meant.
      visit: Called with each equation that reads what depends on them, in order; more than once in a loop.
      carries: Whether an abstract value passes on what it depends on.
    """
    known = {v for v, t in zip(jaxpr.invars, is_reached, strict=True) if t}

    def of(atoms: Sequence[Any]) -> list[bool]:
        return [not isinstance(v, Literal) and v in known for v in atoms]

    for eqn in drop_dead(jaxpr.eqns, jaxpr.outvars, keep_effects=False):
        operands = of(eqn.invars)
        if any(operands):
            visit(eqn)
            results = zip(eqn.outvars, _through(eqn, operands, visit, carries), strict=True)
            known.update(v for v, t in results if t)
    return of(jaxpr.outvars)


def _through(
    eqn: Any, operands: list[bool], visit: Callable[[Any], None], carries: Callable[[Any], bool]
) -> list[bool]:
    """Return which results of an equation depend on some of its operands."""
    name = eqn.primitive.name
    if name == "cond" and not operands[0]:
        branches = [reached(compat.open_jaxpr(b), operands[1:], visit, carries) for b in eqn.params["branches"]]
        return [any(results) for results in zip(*branches, strict=True)]
    if name == "scan":
        n_consts, n_carry = compat.scan_counts(eqn)
        carry = slice(n_consts, n_consts + n_carry)
        while True:
            results = reached(compat.open_jaxpr(eqn.params["jaxpr"]), operands, visit, carries)
            following = [a or b for a, b in zip(operands[carry], results[:n_carry], strict=True)]
            if following == operands[carry]:
                return results
            operands = [*operands[:n_consts], *following, *operands[carry.stop :]]
    if not compat.has_rule(eqn):
        called = compat.open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        if len(getattr(called, "invars", ())) == len(operands):
            return reached(called, operands, visit, carries)
    return [carries(v.aval) for v in eqn.outvars]
