"""Loops and branches of a program as programs of their own, planned together with what is around them.

Before a gradient is traced, each `scan` on its way, and each `cond` with a scan inside, becomes a pair of primitives,
one in each phase. Its body, with its gradient, is captured as a program, and what is nested in it likewise. In the
joint trace the pair hands on one array without elements, which stands for whatever the forward phase leaves for the
backward phase; another one, which nobody reads, stands for scratch space. Their bytes, and what both nodes cost, depend
on the plan: the graph has them (`tiny_backprop.plan.loops.nested`). Once there is a plan, `realized` puts the arrays that are
really handed on in the place of the first.

Scans are left to JAX where there is nothing to plan (no gradient goes through them, or they have no steps), where
steps must not run again (they print, say; a pure callback may be called again), and where they name a mapped axis.
Those inside `while` and functions with derivative rules of their own are left, too. `unroll` is not kept.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from tiny_backprop.graph import Graph, Nested
from tiny_backprop.integration.jax import compat
from tiny_backprop.integration.jax.capture.call import Call
from tiny_backprop.integration.jax.capture.cost import NESTED, NESTED_GRADIENT, aval_bytes
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.capture.trace import Program, Unplanned, build_graph, trace_gradient
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

nested_p = Primitive(NESTED)
nested_gradient_p = Primitive(NESTED_GRADIENT)


def _define(primitive: Primitive, function: Callable[[Any], Callable[..., Arrays]]) -> None:
    def run(*operands: Any, what: Any) -> Arrays:
        return function(what)(*operands)

    def abstract(*avals: Any, what: Any) -> Any:
        return compat.out_avals(function(what), avals)

    def batch(operands: Any, dims: Any, *, what: Any) -> Any:
        results = jax.vmap(function(what), in_axes=tuple(dims))(*operands)
        return results, [0] * len(results)

    primitive.multiple_results = True
    primitive.def_impl(lambda *operands, what: jax.jit(function(what))(*operands))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))


_define(nested_p, lambda what: what.forward)
_define(nested_gradient_p, lambda what: what.backward)


def _nothing() -> Any:
    return jax.numpy.zeros((0,))


# ---- putting them into a program ----


def with_nested_programs(primal: Any) -> Any:
    """Return a closed jaxpr with its loops and branches as programs of their own; for `trace_gradient`.

    Args:
      primal: A closed jaxpr of constants and arguments, derivative rules intact.
    """
    jaxpr = primal.jaxpr
    read = {v for e in jaxpr.eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in jaxpr.outvars if not isinstance(v, Literal))
    eqns = [_prepared(e, [v in read for v in e.outvars]) if _can_be_planned(e) else e for e in jaxpr.eqns]
    return compat.close_jaxpr(jaxpr.invars, jaxpr.outvars, eqns)


def _can_be_planned(eqn: Any) -> bool:
    if eqn.effects:
        return False
    if eqn.primitive.name == "scan":
        return bool(eqn.params["length"])
    return eqn.primitive.name == "cond" and any(map(_has_loop, eqn.params["branches"]))


def _has_loop(closed: Any) -> bool:
    return any(_can_be_planned(e) or any(map(_has_loop, compat.called_jaxprs(e))) for e in closed.eqns)


def _prepared(eqn: Any, is_read: Sequence[bool]) -> Any:
    """Return an equation as one of a function with custom derivatives, which makes the pair of primitives."""
    kind = _LoopProgram if eqn.primitive.name == "scan" else _BranchesProgram

    @jax.custom_vjp
    def nested(*operands: Any) -> list[Any]:
        return eqn.primitive.bind(*operands, **eqn.params)

    def forward(*operands: Any) -> tuple[list[Any], Any]:
        values = [x.value for x in operands]
        program = kind.make(eqn, [x.perturbed for x in operands], is_read)
        *outs, saved, _ = nested_p.bind(*values, what=program)
        return outs, (program, program.operands_of_backward(values), saved)

    def backward(residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        program, operands, saved = residuals
        arrived = [_instantiate(cotangents[i]) for i in program.cotangents]
        *gradients, _ = nested_gradient_p.bind(*operands, saved, *arrived, what=program)
        by_place = dict(zip(program.places, gradients, strict=True))
        return tuple(by_place.get(i, compat.zero_tangent(v.aval)) for i, v in enumerate(eqn.invars))

    nested.defvjp(forward, backward, symbolic_zeros=True)
    traced = jax.make_jaxpr(nested)(*(compat.struct_of(v.aval) for v in eqn.invars))
    (call,) = traced.jaxpr.eqns
    return call.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info)


def _instantiate(cotangent: Any) -> Any:
    return compat.zeros_of(cotangent.aval) if isinstance(cotangent, SymbolicZero) else cotangent


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
        what = eqn.params["what"].planned(plan, rewrite_step, nested.forward_node)
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


# ---- one step of a loop, or one branch ----


@dataclasses.dataclass(frozen=True, eq=False)
class _Body:
    """One step or branch and its gradient.

    Attributes:
      closed: Its closed jaxpr.
      program: It as a program: it returns first what has a cotangent.
      constants: Values of the program's constants.
      order: Which output of the body each of the program's is.
    """

    closed: Any
    program: Program
    constants: Sequence[Any]
    order: tuple[int, ...]

    @classmethod
    def make(cls, closed: Any, differentiated: Sequence[int], with_cotangent: Sequence[int]) -> _Body:
        run = compat.jaxpr_as_fun(closed)
        n_outs = len(closed.jaxpr.outvars)
        order = (*with_cotangent, *(i for i in range(n_outs) if i not in with_cotangent))

        def body(*inputs: Any) -> tuple[list[Any], list[Any]]:
            outs = run(*inputs)
            ordered = [outs[i] for i in order]
            return ordered[: len(with_cotangent)], ordered[len(with_cotangent) :]

        structs = [compat.struct_of(v.aval) for v in closed.jaxpr.invars]
        program, constants = trace_gradient(Call.of(body, structs, {}), differentiated, True, with_nested_programs)
        return cls(closed, program, constants, order)

    def in_order(self, results: Sequence[Any]) -> Arrays:
        """Return the body's outputs from the program's."""
        outs = dict(zip(self.order, results, strict=True))
        return [outs[i] for i in range(len(outs))]


def _reached(body: Any, perturbed: Sequence[bool], n_consts: int, n_carry: int) -> tuple[list[bool], list[bool]]:
    """Return which inputs and outputs of a body depend on what is differentiated by, the carry of later steps too."""
    inputs = [p and compat.is_inexact(v.aval) for p, v in zip(perturbed, body.jaxpr.invars, strict=True)]
    while True:
        reached = {v for v, p in zip(body.jaxpr.invars, inputs, strict=True) if p}
        for eqn in body.jaxpr.eqns:
            if not reached.isdisjoint(v for v in eqn.invars if not isinstance(v, Literal)):
                reached.update(v for v in eqn.outvars if compat.is_inexact(v.aval))
        outputs = [not isinstance(v, Literal) and v in reached for v in body.jaxpr.outvars]
        carry = [a or b for a, b in zip(inputs[n_consts : n_consts + n_carry], outputs[:n_carry], strict=True)]
        if carry == inputs[n_consts : n_consts + n_carry]:
            return inputs, outputs
        inputs[n_consts : n_consts + n_carry] = carry


class _NestedProgram(Unplanned):
    """What both kinds have in common; of neither is more asked than the shapes of its results."""

    places: Sequence[int]

    def forward(self, *operands: Any) -> Arrays:
        """Run it as it is."""
        return [*self.eqn.primitive.bind(*operands, **self.eqn.params), _nothing(), _nothing()]

    def backward(self, *operands: Any) -> Arrays:
        """Return zeros of the shapes of the gradients."""
        return [*(compat.zeros_of(self.eqn.invars[i].aval) for i in self.places), _nothing()]


# ---- loops ----


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _LoopProgram(_NestedProgram):
    """A `scan`, not yet planned.

    Attributes:
      eqn: Its equation.
      body: One step.
      n_consts: Operands that are the same in all steps; they come first.
      n_carry: Carries; they come next, then the stacked operands.
      differentiated: Which constants, carries and stacked operands have a gradient.
      cotangent_of: Which of what the steps return has a cotangent; of the carry, those with a gradient have.
    """

    eqn: Any
    body: _Body
    n_consts: int
    n_carry: int
    differentiated: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cotangent_of: tuple[int, ...]
    kind = "scan"

    @classmethod
    def make(cls, eqn: Any, perturbed: Sequence[bool], is_read: Sequence[bool]) -> _LoopProgram:
        n_consts, n_carry = compat.scan_counts(eqn)
        closed, first, last = eqn.params["jaxpr"], n_consts, n_consts + n_carry
        inputs, outputs = _reached(closed, perturbed, n_consts, n_carry)
        of_consts, of_carry, of_stacked = (
            tuple(i - low for i in range(low, high) if inputs[i])
            for low, high in ((0, first), (first, last), (last, len(inputs)))
        )
        n_returned = len(outputs) - n_carry
        cotangent_of = tuple(i for i in range(n_returned) if outputs[n_carry + i] and is_read[n_carry + i])
        with_cotangent = [*of_carry, *(n_carry + i for i in cotangent_of)]
        body = _Body.make(closed, [i for i, x in enumerate(inputs) if x], with_cotangent)
        return cls(eqn, body, n_consts, n_carry, (of_consts, of_carry, of_stacked), cotangent_of)

    @property
    def cotangents(self) -> list[int]:
        """Which results have a cotangent."""
        return [*self.differentiated[1], *(self.n_carry + i for i in self.cotangent_of)]

    @functools.cached_property
    def places(self) -> Sequence[int]:
        """Which operands have a gradient."""
        offsets = (0, self.n_consts, self.n_consts + self.n_carry)
        return [low + i for low, places in zip(offsets, self.differentiated, strict=True) for i in places]

    def operands_of_backward(self, operands: Sequence[Any]) -> Arrays:
        """Return what the backward phase reads of the operands: carries are saved."""
        return [*operands[: self.n_consts], *operands[self.n_consts + self.n_carry :]]

    def nested(self, forward_node: int, backward_node: int) -> Nested:
        """Return it as the graph has it."""
        carry = self.eqn.invars[self.n_consts : self.n_consts + self.n_carry]
        of_consts, of_carry, _ = self.differentiated
        first_cotangent = len(self.eqn.invars) - self.n_carry + 1
        return Nested(
            kind=self.kind,
            forward_node=forward_node,
            backward_node=backward_node,
            length=self.eqn.params["length"],
            bodies=(self.body.program.graph,),
            carries=tuple(self.body.order.index(i) for i in range(self.n_carry)),
            first_carry=self.body.program.n_constants + self.n_consts,
            carry_bytes=sum(aval_bytes(v.aval) for v in carry),
            overwrites=(
                tuple((self.n_consts + i, i) for i in range(self.n_carry)),
                tuple((first_cotangent + i, len(of_consts) + i) for i in range(len(of_carry))),
            ),
            choice={},
        )

    def planned(self, plan: NestedPlan, rewrite_step: RewriteStep, number: int) -> _PlannedLoop:
        """Return it as the plan says; among the loops of its program it has a number of its own."""
        first, parts = 0, []
        for part in plan.parts:
            assert part.schedule is not None
            loop = self._loop(rewrite_step(self.body.program, part.step), number, first, part.schedule.length)
            parts.append((loop, part.schedule))
            first += part.schedule.length
        return _PlannedLoop(self, tuple(parts))

    def _from_carry(self, jaxprs: Any) -> list[int]:
        """Return for each saved value the carry that equals it after the step, -1 for none: it is kept anyway."""
        outs, order = jaxprs.forward.jaxpr.outvars, self.body.order
        carry = {outs[k]: i for k, i in enumerate(order) if i < self.n_carry and isinstance(outs[k], Var)}
        return [carry.get(v, -1) for v in outs[jaxprs.n_outs :]]

    def _read_carries(self, backward: Any, from_carry: Sequence[int]) -> frozenset[int]:
        """Return the carries that a backward step reads, as they were before the step or are after it."""
        read = {v for e in backward.eqns for v in e.invars if not isinstance(v, Literal)}
        read.update(v for v in backward.outvars if not isinstance(v, Literal))
        first = self.body.program.n_constants + self.n_consts
        carries = backward.invars[first : first + self.n_carry]
        return frozenset(i for i, v in enumerate(carries) if v in read or i in from_carry)

    def _loop(self, jaxprs: Any, number: int, first: int, length: int) -> Loop:
        """Return the steps from `first` on, so many of them, that run as the jaxprs say."""
        body, n_carry, n_outs, from_carry = self.body, self.n_carry, jaxprs.n_outs, self._from_carry(jaxprs)
        run, advance = compat.jaxpr_as_fun(body.closed), _first_outputs(body.closed, n_carry)
        run_forward, run_backward = map(compat.jaxpr_as_fun, (jaxprs.forward, jaxprs.backward))
        is_own = [i < 0 for i in from_carry]
        n_of_consts, n_of_carry = len(self.differentiated[0]), len(self.differentiated[1])

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
            n_steps=self.eqn.params["length"],
            is_reverse=self.eqn.params["reverse"],
            step=step,
            advance=lambda consts, carry, elements: advance(*consts, *carry, *elements),
            step_forward=step_forward,
            step_backward=step_backward,
            n_kept=sum(is_own),
            read_carries=self._read_carries(jaxprs.backward.jaxpr, from_carry),
            differentiated=self.differentiated,
            cotangent_of=self.cotangent_of,
        )


def _first_outputs(closed: Any, n: int) -> Callable[..., Arrays]:
    """Return the function that a closed jaxpr is, without all but its first n results."""
    jaxpr, outvars = closed.jaxpr, closed.jaxpr.outvars[:n]
    run = compat.jaxpr_as_fun(
        compat.close_jaxpr([*jaxpr.constvars, *jaxpr.invars], outvars, drop_dead(jaxpr.eqns, outvars))
    )
    return functools.partial(run, *closed.consts)


@dataclasses.dataclass(frozen=True, eq=False)
class _PlannedLoop:
    """A `scan` whose parts, in time order, follow their schedules."""

    program: _LoopProgram
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


def _split(arrays: Sequence[Any], *sizes: int) -> list[Arrays]:
    """Return parts of so many arrays, and what is left."""
    ends = [*itertools.accumulate(sizes), len(arrays)]
    return [list(arrays[i:j]) for i, j in itertools.pairwise([0, *ends])]


# ---- branches ----


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _BranchesProgram(_NestedProgram):
    """A `cond`, not yet planned.

    Attributes:
      eqn: Its equation: the index of the branch, then the operands of all of them.
      bodies: The branches.
      places: Which operands have a gradient, the index counted.
      cotangents: Which results have a cotangent.
    """

    eqn: Any
    bodies: tuple[_Body, ...]
    places: tuple[int, ...]
    cotangents: tuple[int, ...]
    kind = "cond"

    @classmethod
    def make(cls, eqn: Any, perturbed: Sequence[bool], is_read: Sequence[bool]) -> _BranchesProgram:
        branches = eqn.params["branches"]
        reached = [_reached(closed, perturbed[1:], 0, 0) for closed in branches]
        inputs = reached[0][0]
        outputs = [any(outs) and read for *outs, read in zip(*(r[1] for r in reached), is_read, strict=True)]
        differentiated = [i for i, x in enumerate(inputs) if x]
        cotangents = [i for i, x in enumerate(outputs) if x]
        bodies = tuple(_Body.make(closed, differentiated, cotangents) for closed in branches)
        return cls(eqn, bodies, tuple(1 + i for i in differentiated), tuple(cotangents))

    def operands_of_backward(self, operands: Sequence[Any]) -> Arrays:
        """Return what the backward phase reads of the operands."""
        return list(operands)

    def nested(self, forward_node: int, backward_node: int) -> Nested:
        """Return it as the graph has it."""
        graphs = tuple(body.program.graph for body in self.bodies)
        return Nested(self.kind, forward_node, backward_node, 1, graphs, (), 0, 0, ((), ()), {})

    def planned(self, plan: NestedPlan, rewrite_step: RewriteStep, number: int) -> _PlannedBranches:
        """Return it as the plan says."""
        del number  # branches make no room
        jaxprs = tuple(rewrite_step(b.program, p.step) for b, p in zip(self.bodies, plan.parts, strict=True))
        return _PlannedBranches(self, jaxprs)


@dataclasses.dataclass(frozen=True, eq=False)
class _PlannedBranches:
    """A `cond` whose branches save what their plans say; branches share arrays of the same shape and dtype."""

    program: _BranchesProgram
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

        def branch(body: _Body, jaxprs: Any, taken: Sequence[int]) -> Callable[..., Arrays]:
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

        def branch(body: _Body, jaxprs: Any, taken: Sequence[int]) -> Callable[..., Arrays]:
            def run(*operands: Any) -> Arrays:
                slots = operands[n_operands : n_operands + n_slots]
                saved = [slots[i] for i in taken]
                cotangents = operands[n_operands + n_slots :]
                run = compat.jaxpr_as_fun(jaxprs.backward)
                return run(*body.constants, *operands[:n_operands], *saved, *cotangents)

            return run

        return lax.switch(index, list(map(branch, self.program.bodies, self.jaxprs, self._slots[1])), *operands)
