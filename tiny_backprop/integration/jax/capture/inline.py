"""Flatten a jaxpr: inline its calls, and drop what no result needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.compat import Literal, Var


@dataclasses.dataclass
class FlatJaxpr:
    """A jaxpr without calls: constants are inputs, and every variable is assigned once.

    Attributes:
      constvars: Variables of the constants.
      consts: Their values; tracers where the function closed over some.
      invars: Variables of the arguments.
      eqns: Equations in order.
      outvars: Variables or literals that are returned.
      checkpoints: The calls under `jax.checkpoint` that were inlined; the source info of what was in them has their
        numbers (`compat.checkpoints_around`).
    """

    constvars: list[Any]
    consts: list[Any]
    invars: list[Any]
    eqns: list[Any]
    outvars: list[Any]
    checkpoints: list[Any] = dataclasses.field(default_factory=list)

    def closed(self) -> Any:
        """Return the closed jaxpr whose arguments are the constants and then the arguments."""
        return compat.close_jaxpr([*self.constvars, *self.invars], self.outvars, self.eqns)


def flatten(closed: Any, *, keep_custom_rules: bool, keep_checkpoints: bool = False) -> FlatJaxpr:
    """Inline the calls of a closed jaxpr; linear in the number of equations that result.

    Args:
      closed: What `jax.make_jaxpr` returned.
      keep_custom_rules: Keep calls of functions with custom derivatives, for a jaxpr that is to be differentiated; and
        mark what stood in calls under `jax.checkpoint`, so that its derivatives can be told to have come from there.
      keep_checkpoints: Keep calls of functions under `jax.checkpoint`, for a jaxpr that is to run as JAX runs it.

    Returns:
      The same program without `jit`, `checkpoint` and the like.
    """
    flat = FlatJaxpr([], [], list(closed.jaxpr.invars), [], [])
    env: dict[Any, Any] = {v: v for v in flat.invars}

    def read(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else env[atom]

    def add_constants(constvars: Sequence[Any], consts: Sequence[Any]) -> None:
        for v, c in zip(constvars, consts, strict=True):
            env[v] = Var(v.aval)
            flat.constvars.append(env[v])
            flat.consts.append(c)

    def walk(jaxpr: Any, outer: Any) -> None:
        for eqn in jaxpr.eqns:
            is_checkpoint = compat.is_checkpoint(eqn)
            called = None if keep_checkpoints and is_checkpoint else compat.called_jaxpr(eqn, keep_custom_rules)
            operands = [read(v) for v in eqn.invars]
            info = eqn.source_info if outer is None else compat.with_outer_scope(eqn, outer)
            if called is None:
                fresh = [Var(v.aval) for v in eqn.outvars]
                env.update(zip(eqn.outvars, fresh, strict=True))
                flat.eqns.append(eqn.replace(invars=operands, outvars=fresh, source_info=info))
            else:
                inner, consts = called
                if is_checkpoint and keep_custom_rules:
                    info = compat.in_checkpoint(info, len(flat.checkpoints))
                    flat.checkpoints.append(eqn.replace(source_info=info))
                env.update(zip(inner.invars, operands, strict=True))
                add_constants(inner.constvars, consts)
                walk(inner, info)
                results = [read(v) for v in inner.outvars]
                env.update(zip(eqn.outvars, results, strict=True))

    add_constants(closed.jaxpr.constvars, closed.consts)
    walk(closed.jaxpr, None)
    flat.outvars = [read(v) for v in closed.jaxpr.outvars]
    return flat


def drop_dead(eqns: Sequence[Any], outvars: Sequence[Any], *, keep_effects: bool = True) -> list[Any]:
    """Return the equations that the results (and, unless told otherwise, the effects) need, in order; linear."""
    live = {v for v in outvars if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(eqns):
        if (keep_effects and any(map(compat.is_side_effect, eqn.effects))) or not live.isdisjoint(eqn.outvars):
            kept.append(eqn)
            live.update(v for v in eqn.invars if not isinstance(v, Literal))
    return kept[::-1]
