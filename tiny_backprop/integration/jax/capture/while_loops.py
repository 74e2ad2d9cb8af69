"""Which `while` equations keep a function from being differentiated in reverse mode.

Reverse mode needs what each step has read, and of a `while` nobody knows how many steps there will be. JAX says so
without a line. Forward mode works, so the function's linear part can be traced all the same: a `while` through which a
tangent passes there, into a result, is one that reverse mode fails on; a `while` beside it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.compat import Literal


def while_lines(primal: Any, differentiated: Sequence[int], cotangent_of: Sequence[int]) -> list[str]:
    """Return where the `while` equations stand that reverse mode would have to pass, each as `file:line (function)`.

    They may stand in bodies of scans, branches, calls, checkpointed functions and derivative rules. Where the loop's
    body is defined elsewhere, that is said, too: of a loop in a derivative rule, JAX gives the line where the function
    with the rule is called. Traces the function once in forward mode.

    Args:
      primal: A closed jaxpr, derivative rules intact.
      differentiated: Positions of the arguments that it is differentiated by.
      cotangent_of: Positions of the results that are differentiated.
    """
    run = compat.jaxpr_as_fun(primal)

    def linear(inputs: list[Any], tangents: list[Any]) -> list[Any]:
        def by_differentiated(*xs: Any) -> list[Any]:
            full = list(inputs)
            for i, x in zip(differentiated, xs, strict=True):
                full[i] = x
            outs = run(*full)
            return [outs[i] for i in cotangent_of]

        _, pushforward = jax.linearize(by_differentiated, *(inputs[i] for i in differentiated))
        return pushforward(*tangents)

    inputs = [compat.struct_of(v.aval) for v in primal.jaxpr.invars]
    traced = jax.make_jaxpr(linear)(inputs, [inputs[i] for i in differentiated])
    lines: dict[str, None] = {}
    _follow(traced.jaxpr, [i >= len(inputs) for i in range(len(traced.jaxpr.invars))], lines)
    return list(lines)


def _follow(jaxpr: Any, is_tangent: Sequence[bool], lines: dict[str, None]) -> list[bool]:
    """Add the lines of what tangents pass on their way through a jaxpr; return which results they reach."""
    reached = {v for v, t in zip(jaxpr.invars, is_tangent, strict=True) if t}

    def is_reached(atoms: Sequence[Any]) -> list[bool]:
        return [not isinstance(v, Literal) and v in reached for v in atoms]

    for eqn in drop_dead(jaxpr.eqns, jaxpr.outvars, keep_effects=False):
        operands = is_reached(eqn.invars)
        if any(operands):
            reached.update(v for v, t in zip(eqn.outvars, _through(eqn, operands, lines), strict=True) if t)
    return is_reached(jaxpr.outvars)


def _through(eqn: Any, operands: list[bool], lines: dict[str, None]) -> list[bool]:
    """Do the same for an equation."""
    if eqn.primitive.name == "while":
        lines[_place(eqn)] = None
    elif eqn.primitive.name == "cond":
        branches = [_follow(_open(b), operands[1:], lines) for b in eqn.params["branches"]]
        return [any(results) for results in zip(*branches, strict=True)]
    elif eqn.primitive.name == "scan":
        n_consts, n_carry = compat.scan_counts(eqn)
        carry = slice(n_consts, n_consts + n_carry)
        while True:
            results = _follow(_open(eqn.params["jaxpr"]), operands, lines)
            following = [a or b for a, b in zip(operands[carry], results[:n_carry], strict=True)]
            if following == operands[carry]:
                return results
            operands = [*operands[:n_consts], *following, *operands[carry.stop :]]
    else:
        called = _open(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        if len(getattr(called, "invars", ())) == len(operands):
            return _follow(called, operands, lines)
    return [compat.is_inexact(v.aval) for v in eqn.outvars]


def _place(eqn: Any) -> str:
    line = compat.source_line(eqn) or "a line that JAX does not tell"
    body = compat.function_source(_open(eqn.params["body_jaxpr"]))
    return line if not body or line.split(" ")[0] == body.split(" at ")[-1] else f"{line}, its body {body}"


def _open(closed: Any) -> Any:
    return getattr(closed, "jaxpr", closed)
