"""Planned loops and branches: what `capture.nested` puts into a program, as its plan says.

The two primitives of a loop are given the function that carries the plan out, and between them, in the place of the
array that stood for whatever is handed on, the arrays that are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from jax import lax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.capture.nested import Body, BranchesProgram, LoopProgram, nested_p
from tiny_backprop.integration.jax.capture.trace import Program, Unplanned, build_graph
from tiny_backprop.integration.jax.compat import Literal, Var
from tiny_backprop.integration.jax.run.loops import (
    Arrays,
    Loop,
    no_gradients,
    room_for_returned,
    run_backward,
    run_forward,
)
from tiny_backprop.predict.nested import NestedPlan, nested_plans
from tiny_backprop.predict.step_plan import StepPlan
from tiny_backprop.schedule.loop_schedule import LoopSchedule

RewriteStep = Callable[[Program, StepPlan], Any]
"""Turns the plan of a step into the jaxprs that carry it out: `rewrite.rewrite_step`, which builds on this module."""


def realized(program: Program, graph: Graph, rewrite_step: RewriteStep) -> tuple[Program, dict[Any, Sequence[Any]]]:
    """Return a program whose loops and branches hand on what their plans say.

    Args:
      program: A traced gradient.
      graph: Its graph, what is nested in it planned.
      rewrite_step: Turns plans of steps into jaxprs.

    Returns:
      The program, its nodes the same, and the variables that now stand for each one that stood for what is handed on.
    """
    handed_on: dict[Any, Sequence[Any]] = {}
    eqns = list(program.eqns)
    for nested, plan in zip(graph.nested, nested_plans(graph), strict=True):
        eqn, gradient = eqns[nested.forward_node], eqns[nested.backward_node]
        what = _planned(eqn.params["what"], plan, rewrite_step, nested.forward_node)
        outs, saved = eqn.outvars[:-2], eqn.outvars[-2]
        avals = compat.out_avals(what.forward, [v.aval for v in eqn.invars])
        handed_on[saved] = [Var(a) for a in avals[len(outs) :]]
        operands = [w for v in gradient.invars for w in ([v] if v is not saved else handed_on[saved])]
        eqns[nested.forward_node] = eqn.replace(outvars=[*outs, *handed_on[saved]], params={"what": what})
        eqns[nested.backward_node] = gradient.replace(
            invars=operands, outvars=gradient.outvars[:-1], params={"what": what}
        )
    for i, eqn in enumerate(eqns):
        if isinstance(eqn.params.get("what"), Unplanned):  # nobody reverses it
            plain = eqn.params["what"].eqn
            eqns[i] = eqn.replace(primitive=plain.primitive, params=plain.params, outvars=eqn.outvars[:-2])
    if eqns == list(program.eqns):
        return program, {}
    inputs = program.variables[: program.graph.n_inputs]
    outvars = [*program.primal_outs, *program.gradients]
    new, variables = build_graph(
        graph.name, eqns, graph.n_forward, inputs, graph.input_names, outvars, graph.n_primal_outputs
    )
    return dataclasses.replace(program, graph=new, eqns=eqns, variables=variables), handed_on


def drop_unread(eqns: Sequence[Any], outvars: Sequence[Any]) -> list[Any]:
    """Return equations whose planned loops do not stack up what no other equation reads, nor is returned.

    XLA would not find out where loops are in loops.
    """
    read = {v for e in eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in outvars if not isinstance(v, Literal))
    return [_without_unread(e, read) if e.primitive is nested_p else e for e in eqns]


def _without_unread(eqn: Any, read: set[Any]) -> Any:
    what = eqn.params["what"]
    if not isinstance(what, _PlannedLoop):
        return eqn
    first, end = what.program.n_carry, len(what.program.eqn.outvars)
    unread = [i for i in range(first, end) if eqn.outvars[i] not in read]
    outvars = [v for i, v in enumerate(eqn.outvars) if i not in unread]
    what = dataclasses.replace(what, unread=frozenset(i - first for i in unread))
    return eqn.replace(outvars=outvars, params={"what": what})


def _planned(
    program: LoopProgram | BranchesProgram, plan: NestedPlan, rewrite_step: RewriteStep, number: int
) -> _PlannedLoop | _PlannedBranches:
    """Return a loop or branches as the plan says; among the loops of its program a loop has a number of its own."""
    if isinstance(program, BranchesProgram):  # branches make no room, and need no number
        bodies = zip(program.bodies, plan.parts, strict=True)
        return _PlannedBranches(program, tuple(rewrite_step(body.program, part.step) for body, part in bodies))
    first, parts = 0, []
    for part in plan.parts:
        assert part.schedule is not None
        jaxprs = rewrite_step(program.body.program, part.step)
        parts.append((_loop(program, jaxprs, number, first, part.schedule.length), part.schedule))
        first += part.schedule.length
    return _PlannedLoop(program, tuple(parts))


# ---- loops ----


@dataclasses.dataclass(frozen=True, eq=False)
class _PlannedLoop:
    """A `scan` whose parts, in time order, follow their schedules."""

    program: LoopProgram
    parts: tuple[tuple[Loop, LoopSchedule], ...]
    unread: frozenset[int] = frozenset()

    def forward(self, *operands: Any) -> Arrays:
        """Return what the scan returns, what is stacked and `unread` apart, and what is saved."""
        n_consts, n_carry = self.program.n_consts, self.program.n_carry
        consts, carry, stacked = _split(operands, n_consts, n_carry)
        parts = [(loop.without(self.unread), schedule) for loop, schedule in self.parts]
        returned, saved = room_for_returned(parts[0][0], consts, carry, stacked), []
        for loop, schedule in parts:
            carry, returned, of_part = run_forward(loop, schedule, consts, carry, stacked, returned)
            saved += of_part
        return [*carry, *returned, *saved]

    def backward(self, *operands: Any) -> Arrays:
        """Return gradients for constants, stacked operands, what was saved, and cotangents."""
        program, n_carry = self.program, self.program.n_carry
        n_saved = [n_carry + (0 if schedule.reruns else loop.n_kept) for loop, schedule in self.parts]
        n_stacked = len(program.eqn.invars) - program.n_consts - n_carry
        sizes = program.n_consts, n_stacked, *n_saved, len(program.differentiated[1])
        consts, stacked, *saved, of_carry, of_returned = _split(operands, *sizes)
        after = [x for (loop, s), slots in zip(self.parts, saved, strict=True) for x in loop.read_slots(s, slots)]
        gradients = no_gradients(self.parts[0][0], consts, stacked, of_carry, [*of_returned, *after])
        for (loop, schedule), slots in reversed(list(zip(self.parts, saved, strict=True))):
            gradients = run_backward(loop, schedule, consts, n_carry, stacked, slots, gradients, of_returned)
        of_carry, of_consts, of_stacked = gradients
        return [*of_consts, *of_carry, *of_stacked]


def _from_carry(program: LoopProgram, jaxprs: Any) -> list[int]:
    """Return for each saved value the carry that equals it after the step, -1 for none: it is kept anyway."""
    outs, order = jaxprs.forward.jaxpr.outvars, program.body.order
    carry = {outs[k]: i for k, i in enumerate(order) if i < program.n_carry and isinstance(outs[k], Var)}
    return [carry.get(v, -1) for v in outs[jaxprs.n_outs :]]


def _read_carries(program: LoopProgram, backward: Any, from_carry: Sequence[int]) -> frozenset[int]:
    """Return the carries that a backward step reads, as they were before the step or are after it."""
    read = {v for e in backward.eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in backward.outvars if not isinstance(v, Literal))
    first = program.body.program.n_constants + program.n_consts
    carries = backward.invars[first : first + program.n_carry]
    return frozenset(i for i, v in enumerate(carries) if v in read or i in from_carry)


def _loop(program: LoopProgram, jaxprs: Any, number: int, first: int, length: int) -> Loop:
    """Return the steps from `first` on, so many of them, that run as the jaxprs say."""
    body, n_carry, n_outs, from_carry = program.body, program.n_carry, jaxprs.n_outs, _from_carry(program, jaxprs)
    run, advance = compat.jaxpr_as_fun(body.closed), _first_outputs(body.closed, n_carry)
    run_forward, run_backward = map(compat.jaxpr_as_fun, (jaxprs.forward, jaxprs.backward))
    is_own = [i < 0 for i in from_carry]
    n_of_consts, n_of_carry = len(program.differentiated[0]), len(program.differentiated[1])

    def step(consts: Arrays, carry: Arrays, elements: Arrays) -> tuple[Arrays, Arrays]:
        outs = run(*consts, *carry, *elements)
        return outs[:n_carry], outs[n_carry:]

    def step_forward(consts: Arrays, carry: Arrays, elements: Arrays) -> tuple[Arrays, Arrays]:
        results = run_forward(*body.constants, *consts, *carry, *elements)
        saved = [x for x, own in zip(results[n_outs:], is_own, strict=True) if own]
        return body.in_order(results[:n_outs])[:n_carry], saved

    def step_backward(
        consts: Arrays, carry: Arrays, following: Arrays, elements: Arrays, saved: Arrays, cotangents: Arrays
    ) -> tuple[Arrays, Arrays, Arrays]:
        own = iter(saved)
        all_saved = [next(own) if i < 0 else following[i] for i in from_carry]
        gradients = run_backward(*body.constants, *consts, *carry, *elements, *all_saved, *cotangents)
        ends = n_of_consts, n_of_consts + n_of_carry
        return gradients[: ends[0]], gradients[ends[0] : ends[1]], gradients[ends[1] :]

    return Loop(
        number=number,
        first=first,
        length=length,
        n_steps=program.eqn.params["length"],
        is_reverse=program.eqn.params["reverse"],
        step=step,
        advance=lambda consts, carry, elements: advance(*consts, *carry, *elements),
        step_forward=step_forward,
        step_backward=step_backward,
        n_kept=sum(is_own),
        read_carries=_read_carries(program, jaxprs.backward.jaxpr, from_carry),
        differentiated=program.differentiated,
        cotangent_of=program.cotangent_of,
    )


def _first_outputs(closed: Any, n: int) -> Callable[..., Arrays]:
    """Return the function that a closed jaxpr is, without all but its first n results."""
    jaxpr, outvars = closed.jaxpr, closed.jaxpr.outvars[:n]
    run = compat.jaxpr_as_fun(
        compat.close_jaxpr([*jaxpr.constvars, *jaxpr.invars], outvars, drop_dead(jaxpr.eqns, outvars))
    )
    return functools.partial(run, *closed.consts)


def _split(arrays: Sequence[Any], *sizes: int) -> list[Arrays]:
    """Return parts of so many arrays, and what is left."""
    ends = [*itertools.accumulate(sizes), len(arrays)]
    return [list(arrays[i:j]) for i, j in itertools.pairwise([0, *ends])]


# ---- branches ----


@dataclasses.dataclass(frozen=True, eq=False)
class _PlannedBranches:
    """A `cond` whose branches save what their plans say; branches share arrays of the same shape and dtype."""

    program: BranchesProgram
    jaxprs: tuple[Any, ...]

    @functools.cached_property
    def _slots(self) -> tuple[list[Any], list[list[int]]]:
        """Abstract values of the arrays that are handed on, and for each branch in which of them it saves its own."""
        avals: list[Any] = []
        places = []
        for jaxprs in self.jaxprs:
            taken: list[int] = []
            for v in jaxprs.forward.jaxpr.outvars[jaxprs.n_outs :]:
                key = v.aval.shape, v.aval.dtype
                fits = (i for i, a in enumerate(avals) if (a.shape, a.dtype) == key and i not in taken)
                at = next(fits, len(avals))
                avals += [v.aval] if at == len(avals) else []
                taken.append(at)
            places.append(taken)
        return avals, places

    def forward(self, index: Any, *operands: Any) -> Arrays:
        """Return what the branch returns, and what is saved."""
        avals, places = self._slots

        def branch(body: Body, jaxprs: Any, taken: Sequence[int]) -> Callable[..., Arrays]:
            def run(*operands: Any) -> Arrays:
                results = compat.jaxpr_as_fun(jaxprs.forward)(*body.constants, *operands)
                saved = dict(zip(taken, results[jaxprs.n_outs :], strict=True))
                slots = [saved[i] if i in saved else compat.zeros_of(a) for i, a in enumerate(avals)]
                return [*body.in_order(results[: jaxprs.n_outs]), *slots]

            return run

        return lax.switch(index, list(map(branch, self.program.bodies, self.jaxprs, places)), *operands)

    def backward(self, index: Any, *operands: Any) -> Arrays:
        """Return gradients for operands, what was saved, and cotangents."""
        n_operands, n_slots = len(self.program.eqn.invars) - 1, len(self._slots[0])

        def branch(body: Body, jaxprs: Any, taken: Sequence[int]) -> Callable[..., Arrays]:
            def run(*operands: Any) -> Arrays:
                slots = operands[n_operands : n_operands + n_slots]
                saved = [slots[i] for i in taken]
                cotangents = operands[n_operands + n_slots :]
                run = compat.jaxpr_as_fun(jaxprs.backward)
                return run(*body.constants, *operands[:n_operands], *saved, *cotangents)

            return run

        return lax.switch(index, list(map(branch, self.program.bodies, self.jaxprs, self._slots[1])), *operands)
