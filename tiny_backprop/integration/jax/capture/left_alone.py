"""Why an equation that holds a program of its own is one node, and is run as JAX has it."""

from __future__ import annotations

from typing import Any

import tiny_backprop.integration.jax.compat as compat

_ONE_STEP = {
    "shard_map": "what is inside runs on each device: it is planned as one step",
    "pmap": "what is inside runs on each device: it is planned as one step",
    "xla_pmap": "what is inside runs on each device: it is planned as one step",
    "cond": "branches without a loop inside are planned as one step",
    "custom_linear_solve": "a linear solve is planned as one step",
    "pallas_call": "a kernel is planned as one step",
}
_LOOPS = ("scan", "while")


def why_left_alone(eqn: Any) -> str:
    """Return why an equation runs as JAX has it, or "" where it holds no program.

    Args:
      eqn: An equation of a gradient whose loops and branches, where they can be planned, are equations of our own.
    """
    name = eqn.primitive.name
    if name not in _LOOPS:
        return _ONE_STEP.get(name, "")
    if any(map(compat.is_side_effect, eqn.effects)):
        return "its steps have an effect (they print, say), so that they may not run again"
    if eqn.effects:
        return "its steps name a mapped axis"
    return "it stands in a function with a derivative rule of its own, or in a while loop"


def what_is_not_kept(eqn: Any) -> str:
    """Return what a planned loop does not keep of the equation that it was, "" for nothing."""
    unroll = eqn.params.get("unroll", 1)
    return "" if unroll in (1, False) else f"its steps are planned, and unroll={unroll} is not kept"
