"""Planning the `scan` equations of a program before its gradient is traced.

A scan becomes a pair of primitives, one in each phase: `planned_scan`, which runs all steps and saves the carries that
its schedule wants, and `planned_scan_gradient`, which takes them and reverses the steps. The body is a program of its
own: it is captured with its gradient, its own scans planned likewise, and what a step keeps for its backward step comes
from a minimum cut, at next to no recomputation.

Scans are left to JAX where there is nothing to plan (no gradient goes through them, or they have no steps), where
steps must not run again (they print, say; a pure callback may be called again), and where they name a mapped axis.
Scans inside `cond`, `while` and functions with derivative rules of their own are left, too. `unroll` is not kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from tiny_backprop.integration.jax import compat
from tiny_backprop.integration.jax.capture import Call, Program, capture_program
from tiny_backprop.integration.jax.compat import Literal, Var
from tiny_backprop.integration.jax.cost import PLANNED_SCAN, PLANNED_SCAN_GRADIENT, aval_bytes
from tiny_backprop.integration.jax.inline import drop_dead
from tiny_backprop.integration.jax.loops import Arrays, Loop, run_backward, run_forward
from tiny_backprop.integration.jax.rewrite import PlannedJaxprs, rewrite_step
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.loops import LoopChoice, LoopSchedule, plan_loop, step_plans

planned_scan_p = Primitive(PLANNED_SCAN)
planned_scan_gradient_p = Primitive(PLANNED_SCAN_GRADIENT)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class PlannedScan:
    """A scan with its schedule; what both primitives know of it.

    Attributes:
      loop: Its parts.
      schedule: Its schedule.
      n_consts: Operands that are the same in all steps; they come first.
      n_carry: Carries; they come next, then the stacked operands.
      n_stacked: Stacked operands.
      forward_cost: FLOPs and bytes moved of the forward phase.
      backward_cost: FLOPs and bytes moved of the backward phase, with what runs again.
      rerun_flops: Those of its FLOPs that run again.
      forward_scratch_bytes: What the forward phase needs beside its operands and results.
      backward_scratch_bytes: What the backward phase needs beside them.
    """

    loop: Loop
    schedule: LoopSchedule
    n_consts: int
    n_carry: int
    n_stacked: int
    forward_cost: tuple[float, float]
    backward_cost: tuple[float, float]
    rerun_flops: float
    forward_scratch_bytes: int
    backward_scratch_bytes: int

    def split(self, operands: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        """Return constants, carries and stacked operands."""
        first, last = self.n_consts, self.n_consts + self.n_carry
        return list(operands[:first]), list(operands[first:last]), list(operands[last:])

    def forward(self, *operands: Any) -> Arrays:
        """Return what the scan returns, what is saved, and nothing, which stands for the scratch space."""
        carry, returned, slots = run_forward(self.loop, self.schedule, *self.split(operands))
        return [*carry, *returned, *slots, _nothing()]

    def backward(self, *operands: Any) -> Arrays:
        """Return gradients, and nothing, for constants, stacked operands, what was saved, and cotangents."""
        n_returned, n_carry = len(self.loop.cotangent_of), len(self.loop.differentiated[1])
        first, last = self.n_consts + self.n_stacked, len(operands) - n_returned
        ends = [self.n_consts, first, last - n_carry, last]
        consts, stacked, slots, carry, returned = (
            list(operands[i:j]) for i, j in zip([0, *ends], [*ends, len(operands)], strict=True)
        )
        of_consts, of_carry, of_stacked = run_backward(
            self.loop, self.schedule, consts, self.n_carry, stacked, slots, carry, returned
        )
        return [*of_consts, *of_carry, *of_stacked, _nothing()]


def _nothing() -> Any:
    return jax.numpy.zeros((0,))


def _define(primitive: Primitive, function: Callable[[PlannedScan], Callable[..., Arrays]]) -> None:
    def run(*operands: Any, scan: PlannedScan) -> Arrays:
        return function(scan)(*operands)

    def abstract(*avals: Any, scan: PlannedScan) -> Any:
        return compat.out_avals(function(scan), avals)

    def batch(operands: Any, dims: Any, *, scan: PlannedScan) -> Any:
        results = jax.vmap(function(scan), in_axes=tuple(dims))(*operands)
        return results, [0] * len(results)

    primitive.multiple_results = True
    primitive.def_impl(lambda *operands, scan: jax.jit(function(scan))(*operands))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))


_define(planned_scan_p, lambda scan: scan.forward)
_define(planned_scan_gradient_p, lambda scan: scan.backward)


# ---- putting them into a program ----


def capture_with_loops(
    call: Call, positions: Sequence[int] | None, choice: LoopChoice | None, has_aux: bool = False
) -> tuple[Program, Sequence[Any]]:
    """Trace a call and its reverse pass, its scans planned or, without a choice, JAX's own; see `capture_program`."""
    if choice is None:
        return capture_program(call, positions, has_aux)
    return capture_program(call, positions, has_aux, functools.partial(with_planned_scans, choice))


def with_planned_scans(choice: LoopChoice, primal: Any) -> Any:
    """Return a closed jaxpr with its scans planned; for `capture_program`.

    Args:
      choice: How they are to be reversed.
      primal: A closed jaxpr of constants and arguments, derivative rules intact.
    """
    jaxpr = primal.jaxpr
    read = {v for e in jaxpr.eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in jaxpr.outvars if not isinstance(v, Literal))
    eqns = [_planned(e, [v in read for v in e.outvars], choice) if _can_be_planned(e) else e for e in jaxpr.eqns]
    return compat.close_jaxpr(jaxpr.invars, jaxpr.outvars, eqns)


def _can_be_planned(eqn: Any) -> bool:
    return eqn.primitive.name == "scan" and bool(eqn.params["length"]) and not eqn.effects


def _planned(eqn: Any, is_read: Sequence[bool], choice: LoopChoice) -> Any:
    """Return the equation of a scan as one of a function with custom derivatives, or as it is."""
    n_consts, n_carry = compat.scan_counts(eqn)

    @jax.custom_vjp
    def scan(*operands: Any) -> list[Any]:
        return eqn.primitive.bind(*operands, **eqn.params)

    def forward(*operands: Any) -> tuple[list[Any], Any]:
        values = [x.value for x in operands]
        planned = plan_scan(eqn, [x.perturbed for x in operands], is_read, choice)
        outs = planned_scan_p.bind(*values, scan=planned)
        n_outs = len(eqn.outvars)
        consts, _, stacked = planned.split(values)
        return outs[:n_outs], (planned, consts, stacked, outs[n_outs:-1])

    def backward(residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        planned, consts, stacked, slots = residuals
        loop = planned.loop
        wanted = [*loop.differentiated[1], *(n_carry + i for i in loop.cotangent_of)]
        arrived = [_instantiate(cotangents[i]) for i in wanted]
        gradients = planned_scan_gradient_p.bind(*consts, *stacked, *slots, *arrived, scan=planned)
        places = [
            *loop.differentiated[0],
            *(n_consts + i for i in loop.differentiated[1]),
            *(n_consts + n_carry + i for i in loop.differentiated[2]),
        ]
        by_place = dict(zip(places, gradients[:-1], strict=True))
        return tuple(by_place.get(i, compat.zero_tangent(v.aval)) for i, v in enumerate(eqn.invars))

    scan.defvjp(forward, backward, symbolic_zeros=True)
    traced = jax.make_jaxpr(scan)(*(compat.struct_of(v.aval) for v in eqn.invars))
    (call,) = traced.jaxpr.eqns
    return call.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info)


def _instantiate(cotangent: Any) -> Any:
    return compat.zeros_of(cotangent.aval) if isinstance(cotangent, SymbolicZero) else cotangent


# ---- the plan of one scan ----


def plan_scan(eqn: Any, perturbed: Sequence[bool], is_read: Sequence[bool], choice: LoopChoice) -> PlannedScan:
    """Plan a scan.

    Args:
      eqn: Its equation.
      perturbed: Which operands are differentiated by.
      is_read: Which results the program reads.
      choice: How it is to be reversed.
    """
    n_consts, n_carry = compat.scan_counts(eqn)
    body = eqn.params["jaxpr"]
    inputs, outputs = _reached(body, perturbed, n_consts, n_carry)
    differentiated = tuple(
        tuple(i - low for i in range(low, high) if inputs[i])
        for low, high in ((0, n_consts), (n_consts, n_consts + n_carry), (n_consts + n_carry, len(inputs)))
    )
    cotangent_of = tuple(i for i in range(len(outputs) - n_carry) if outputs[n_carry + i] and is_read[n_carry + i])
    length = eqn.params["length"]
    carry_bytes = sum(aval_bytes(v.aval) for v in eqn.invars[n_consts : n_consts + n_carry])
    step = _Step.make(body, n_consts, n_carry, differentiated, cotangent_of, choice)
    plans = step_plans(step.program.graph, [step.order.index(i) for i in range(n_carry)])
    plan, schedule = plan_loop(length, carry_bytes, plans, choice)
    graph, n_again = plan.graph, schedule.n_again
    costs = np.stack([graph.flops, graph.bytes_moved])
    forward, backward = costs[:, : graph.n_forward].sum(1), costs[:, graph.n_forward :].sum(1)
    again = n_again * forward + length * costs[:, plan.again].sum(1)
    saved_bytes, block_bytes = schedule.n_saved * carry_bytes, 0
    if not schedule.reruns:
        saved_bytes = (length + 1) * carry_bytes + length * plan.kept_bytes
    elif schedule.block_size > 1:
        block_bytes = (schedule.block_size + 1) * carry_bytes + schedule.block_size * plan.kept_bytes
    return PlannedScan(
        loop=step.loop(rewrite_step(step.program, plan), length, eqn.params["reverse"]),
        schedule=schedule,
        n_consts=n_consts,
        n_carry=n_carry,
        n_stacked=len(eqn.invars) - n_consts - n_carry,
        forward_cost=tuple(length * forward + [0, saved_bytes]),
        backward_cost=tuple(again + length * backward + [0, saved_bytes]),
        rerun_flops=float(again[0] + length * graph.rerun_flops.sum()),
        forward_scratch_bytes=int(frontier(graph)[: graph.n_forward].max(initial=0)),
        backward_scratch_bytes=block_bytes + plan.peak_bytes,
    )


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One step and its gradient.

    Attributes:
      body: The body of the scan.
      program: The step as a program: it returns first what has a cotangent.
      constants: Values of the program's constants.
      order: Which output of the body each of the program's is.
      n_consts: Constants of the scan.
      n_carry: Its carries.
      differentiated: See `Loop`.
      cotangent_of: See `Loop`.
    """

    body: Any
    program: Program
    constants: Sequence[Any]
    order: tuple[int, ...]
    n_consts: int
    n_carry: int
    differentiated: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cotangent_of: tuple[int, ...]

    @classmethod
    def make(cls, body: Any, n_consts: int, n_carry: int, differentiated: Any, cotangent_of: Any, choice: Any) -> _Step:
        run = compat.jaxpr_as_fun(body)
        n_outs = len(body.jaxpr.outvars)
        first = [*differentiated[1], *(n_carry + i for i in cotangent_of)]
        order = (*first, *(i for i in range(n_outs) if i not in first))

        def step(*inputs: Any) -> tuple[list[Any], list[Any]]:
            outs = run(*inputs)
            return [outs[i] for i in first], [outs[i] for i in order[len(first) :]]

        structs = [compat.struct_of(v.aval) for v in body.jaxpr.invars]
        offsets = (0, n_consts, n_consts + n_carry)
        positions = [low + i for low, places in zip(offsets, differentiated, strict=True) for i in places]
        call = Call.of(step, structs, {})
        program, constants = capture_with_loops(call, positions, choice, has_aux=True)
        return cls(
            body=body,
            program=program,
            constants=constants,
            order=order,
            n_consts=n_consts,
            n_carry=n_carry,
            differentiated=differentiated,
            cotangent_of=cotangent_of,
        )

    def _from_carry(self, jaxprs: PlannedJaxprs) -> list[int]:
        """Return for each saved value the carry that equals it after the step, -1 for none: it is kept anyway."""
        outs = jaxprs.forward.jaxpr.outvars
        carry = {outs[k]: i for k, i in enumerate(self.order) if i < self.n_carry and isinstance(outs[k], Var)}
        return [carry.get(v, -1) for v in outs[jaxprs.n_outs :]]

    def loop(self, jaxprs: PlannedJaxprs, length: int, is_reverse: bool) -> Loop:
        """Return the parts of the scan whose steps run as the jaxprs say."""
        n_carry, n_outs, from_carry = self.n_carry, jaxprs.n_outs, self._from_carry(jaxprs)
        run, advance = compat.jaxpr_as_fun(self.body), _first_outputs(self.body, n_carry)
        run_forward, run_backward = map(compat.jaxpr_as_fun, (jaxprs.forward, jaxprs.backward))
        is_own = [i < 0 for i in from_carry]
        n_of_consts, n_of_carry = len(self.differentiated[0]), len(self.differentiated[1])

        def step(consts: Arrays, carry: Arrays, elements: Arrays) -> tuple[Arrays, Arrays]:
            outs = run(*consts, *carry, *elements)
            return outs[:n_carry], outs[n_carry:]

        def step_forward(consts: Arrays, carry: Arrays, elements: Arrays) -> tuple[Arrays, Arrays]:
            results = run_forward(*self.constants, *consts, *carry, *elements)
            outs = dict(zip(self.order, results[:n_outs], strict=True))
            saved = [x for x, own in zip(results[n_outs:], is_own, strict=True) if own]
            return [outs[i] for i in range(n_carry)], saved

        def step_backward(
            consts: Arrays, carry: Arrays, following: Arrays, elements: Arrays, saved: Arrays, cotangents: Arrays
        ) -> tuple[Arrays, Arrays, Arrays]:
            own = iter(saved)
            all_saved = [next(own) if i < 0 else following[i] for i in from_carry]
            gradients = run_backward(*self.constants, *consts, *carry, *elements, *all_saved, *cotangents)
            ends = n_of_consts, n_of_consts + n_of_carry
            return gradients[: ends[0]], gradients[ends[0] : ends[1]], gradients[ends[1] :]

        return Loop(
            length=length,
            is_reverse=is_reverse,
            step=step,
            advance=lambda consts, carry, elements: advance(*consts, *carry, *elements),
            step_forward=step_forward,
            step_backward=step_backward,
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
