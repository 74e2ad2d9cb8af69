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
from tiny_backprop.integration.jax.capture.reach import reached


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

    def visit(eqn: Any) -> None:
        if eqn.primitive.name == "while":
            lines[_place(eqn)] = None

    is_tangent = [i >= len(inputs) for i in range(len(traced.jaxpr.invars))]
    reached(traced.jaxpr, is_tangent, visit, compat.is_inexact)
    return list(lines)


def _place(eqn: Any) -> str:
    line = compat.source_line(eqn) or "a line that JAX does not tell"
    body = compat.function_source(compat.open_jaxpr(eqn.params["body_jaxpr"]))
    return line if not body or line.split(" ")[0] == body.split(" at ")[-1] else f"{line}, its body {body}"
