"""Play a plan's actions into new jaxprs: the gradient that runs.

What a segment of the backward phase reads of the forward phase goes through one `hold`, together with the cotangents
that the segment before has just made; some values are held as soon as they are made. Which values, before which step
and until what is there, `tiny_backprop.schedule.holds` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.trace import Program
from tiny_backprop.integration.jax.compat import Literal, Var
from tiny_backprop.integration.jax.run.hold import hold_p
from tiny_backprop.integration.jax.run.nested import drop_unread, realized
from tiny_backprop.integration.jax.run.pooling import in_slices
from tiny_backprop.plan.plan import Plan
from tiny_backprop.predict.step_plan import StepPlan
from tiny_backprop.schedule.holds import Holds, find_holds, held_when_made
from tiny_backprop.schedule.runs import Runs


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedJaxprs:
    """A gradient as a plan runs it.

    Attributes:
      forward: Closed jaxpr from constants and arguments to what the function returns and then the saved values.
      backward: Closed jaxpr from constants and arguments, saved values and cotangents to the gradients.
      n_outs: Number of values that the function returns.
    """

    forward: Any
    backward: Any
    n_outs: int


def rewrite(program: Program, plan: Plan) -> PlannedJaxprs:
    """Turn a plan into the jaxprs that carry it out; linear in the number of actions.

    Args:
      program: The traced gradient.
      plan: A plan for `program.graph`.

    Returns:
      The jaxprs; their equations are those of the program, each as often as the plan runs it, and the holds.

    Raises:
      PlanError: The plan belongs to another graph.
    """
    plan = plan.on(program.graph)
    n_forward_steps = plan.timeline.n_forward_steps if program.graph.n_backward else len(plan.timeline.steps)
    steps = plan.timeline.steps.tolist()
    return _play(program, plan.graph, steps, n_forward_steps, plan.saved.tolist())


def rewrite_step(program: Program, step: StepPlan) -> PlannedJaxprs:
    """Turn the plan of a loop's step into the jaxprs that carry it out.

    Both phases run in loops of their own, between which XLA merges nothing. Unless the backward part is planned by
    itself, nothing runs again in it, and it is XLA's to order.
    """
    forward, backward = step.steps[: step.n_forward_steps], step.steps[step.n_forward_steps :]
    if not step.keeps_nothing:
        backward = sorted(backward)
    return _play(program, step.graph, [*forward, *backward], step.n_forward_steps, step.saved)


def _play(
    program: Program, graph: Graph, steps: Sequence[int], n_forward_steps: int, saved: Sequence[int]
) -> PlannedJaxprs:
    """Emit both phases, loops planned as in the graph."""
    kept = [program.variables[v] for v in saved]
    program, handed_on = realized(program, graph, rewrite_step)
    number = {v: i for i, v in enumerate(program.variables)}
    saved = [number[w] for v in kept for w in handed_on.get(v, [v])]
    runs = Runs(program.graph, np.asarray(steps, np.int64))
    of_loops = [number[w] for ws in handed_on.values() for w in ws]
    player = _Player(program, number, runs, find_holds(runs, n_forward_steps, of_loops, saved))
    player.play(range(n_forward_steps))
    outs = [player.current(v) for v in program.primal_outs]
    # A saved value may itself be recomputed before the border; what crosses is its latest making.
    # Without a cotangent there is no backward phase, and the gradients (zeros) are made beside the function itself.
    made = {player.env[k] for k in player.env if k >= program.graph.n_inputs}
    early = [v for v in program.gradients if not isinstance(v, Literal) and v in made]
    crossing = list(dict.fromkeys([*(player.env[v] for v in saved), *early]))
    jaxpr = compat.close_jaxpr(
        program.input_variables, [*outs, *crossing], drop_unread(player.take_eqns(), [*outs, *crossing])
    )
    player.play(range(n_forward_steps, len(steps)))
    gradients = [player.current(v) for v in program.gradients]
    inputs = [*program.input_variables, *crossing, *program.cotangent_variables]
    assert not _free_variables(player.eqns, gradients) - set(inputs), "the backward phase reads what was not saved"
    return PlannedJaxprs(
        jaxpr, compat.close_jaxpr(inputs, gradients, drop_unread(player.take_eqns(), gradients)), len(outs)
    )


def _free_variables(eqns: Sequence[Any], outvars: Sequence[Any]) -> set[Any]:
    read = {v for e in eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in outvars if not isinstance(v, Literal))
    return read - {v for e in eqns for v in e.outvars}


class _Player:
    """Emits equations in the order of a plan's steps and knows the variable that now stands for each value."""

    def __init__(self, program: Program, number: dict[Any, int], runs: Runs, holds: Holds):
        self.program, self.number = program, number
        self.env: dict[int, Any] = dict(enumerate(program.variables[: program.graph.n_inputs]))
        self.eqns: list[Any] = []
        self.output_start = program.graph.output_start.tolist()
        self.steps, self.values, self.read_start = runs.steps.tolist(), runs.values.tolist(), runs.read_start.tolist()
        self.n_reads, self.runs_again, self.is_late = runs.n_reads.tolist(), runs.before >= 0, runs.is_late
        self.is_held_when_made = held_when_made(program.graph).tolist()
        self.to_hold = _grouped(holds.steps, range(len(holds.values)))
        self.tokens = _grouped(holds.token_steps, holds.tokens.tolist())
        self.held_values, self.of_read = holds.values.tolist(), holds.of_read.tolist()
        self.held_variables: dict[int, Any] = {}  # by the number of the hold
        self.token_step = dict(zip(holds.constant_steps.tolist(), holds.constant_starts.tolist(), strict=True))

    def take_eqns(self) -> list[Any]:
        """Return the equations emitted so far and forget them."""
        eqns, self.eqns = self.eqns, []
        return eqns

    def current(self, atom: Any) -> Any:
        """Return the variable that now stands for a variable of the program."""
        return atom if isinstance(atom, Literal) else self.env[self.number[atom]]

    def play(self, steps: range) -> None:
        """Emit the nodes of some steps, and the holds before and after them."""
        for i in steps:
            numbers = self.to_hold.get(i, [])
            held = self._hold([self.held_values[n] for n in numbers], self.tokens.get(i, []))
            self.held_variables.update(zip(numbers, held, strict=True))
            outs = range(self.output_start[self.steps[i]], self.output_start[self.steps[i] + 1])
            self.env.update(zip(outs, self._run(i), strict=True))
            if i in self.token_step:
                self._hold_in_place(outs, self.tokens.get(self.token_step[i], []))
            if self.is_late[i]:
                shared = [k for k in outs if self.is_held_when_made[k]]
                self._hold_in_place(shared, shared)

    def _run(self, i: int) -> Sequence[Any]:
        """Emit the node of a step and return the variables that it makes."""
        eqn = self.program.eqns[self.steps[i]]
        fresh = eqn.outvars
        if self.runs_again[i]:
            eqn, fresh = compat.as_recomputed(eqn), [Var(v.aval) for v in eqn.outvars]
        reads = slice(self.read_start[i], self.read_start[i] + self.n_reads[i])
        held = {k: n for k, n in zip(self.values[reads], self.of_read[reads], strict=True) if n >= 0}
        operands = []
        for v in eqn.invars:
            n = held.get(self.number[v]) if not isinstance(v, Literal) else None
            operands.append(self.current(v) if n is None else self.held_variables[n])
        self.eqns.append(in_slices(eqn.replace(invars=operands, outvars=fresh)))
        return fresh

    def _hold_in_place(self, values: Sequence[int], tokens: Sequence[int]) -> None:
        """Emit the `hold` of some values, which the held variables stand for from then on."""
        self.env.update(zip(values, self._hold(values, tokens), strict=True))

    def _hold(self, values: Sequence[int], tokens: Sequence[int]) -> Sequence[Any]:
        """Emit the `hold` of some values and return the held variable of each."""
        if not values:
            return []
        fresh = [Var(self.env[k].aval) for k in values]
        template = self.program.eqns[0]
        self.eqns.append(
            template.replace(
                primitive=hold_p,
                params={"n_tokens": len(tokens)},
                invars=[*(self.env[k] for k in tokens), *(self.env[k] for k in values)],
                outvars=fresh,
                effects=frozenset(),
            )
        )
        return fresh


def _grouped(steps: np.ndarray, things: Iterable[int]) -> dict[int, list[int]]:
    """Return the things that belong to each step."""
    groups: dict[int, list[int]] = {}
    for step, thing in zip(steps.tolist(), things, strict=True):
        groups.setdefault(step, []).append(thing)
    return groups
