"""Loops and branches of a program as programs of their own, planned together with what is around them.

Before a gradient is traced, each `scan` on its way, and each `cond` with a scan inside, becomes a pair of primitives,
one in each phase. Its body, with its gradient, is captured as a program, and what is nested in it likewise. In the
joint trace the pair hands on one array without elements, which stands for whatever the forward phase leaves for the
backward phase; another one, which nobody reads, stands for scratch space. Their bytes, and what both nodes cost, depend
on the plan: the graph has them (`plan.loops.nested`). Once there is a plan, `run.nested` puts the arrays that are
really handed on in the place of the first.

Scans are left to JAX where there is nothing to plan (no gradient goes through them, or they have no steps), where
steps must not run again (they print, say; a pure callback may be called again), and where they name a mapped axis.
Those inside `while` and functions with derivative rules of their own are left, too. `unroll` is not kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.graph import Nested
from tiny_backprop.integration.jax.capture.call import Call
from tiny_backprop.integration.jax.capture.cost import NESTED, NESTED_GRADIENT
from tiny_backprop.integration.jax.capture.sizes import aval_bytes
from tiny_backprop.integration.jax.capture.trace import Program, Unplanned, trace_gradient
from tiny_backprop.integration.jax.compat import Literal

nested_p = Primitive(NESTED)
nested_gradient_p = Primitive(NESTED_GRADIENT)
_NUMBERS = (int, float, complex)  # what literals of a jaxpr are where it is run as a function


def _define(primitive: Primitive, function: Callable[[Any], Callable[..., list[Any]]]) -> None:
    def run(*operands: Any, what: Any) -> list[Any]:
        return function(what)(*operands)

    def abstract(*avals: Any, what: Any) -> Any:
        return compat.out_avals(function(what), avals)

    def batch(operands: Any, dims: Any, *, what: Any) -> Any:
        arrays = [jnp.asarray(x, jax.typeof(x).dtype) if isinstance(x, _NUMBERS) else x for x in operands]
        results = jax.vmap(function(what), in_axes=tuple(dims))(*arrays)
        return results, [0] * len(results)

    primitive.multiple_results = True
    primitive.def_impl(lambda *operands, what: jax.jit(function(what))(*operands))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))


_define(nested_p, lambda what: what.forward)
_define(nested_gradient_p, lambda what: what.backward)


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
    kind = LoopProgram if eqn.primitive.name == "scan" else BranchesProgram

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


# ---- one step of a loop, or one branch ----


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
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
    def make(cls, closed: Any, differentiated: Sequence[int], with_cotangent: Sequence[int]) -> Body:
        """Capture a closed jaxpr with its gradient by some inputs, of some outputs."""
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

    def in_order(self, results: Sequence[Any]) -> list[Any]:
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

    def forward(self, *operands: Any) -> list[Any]:
        """Run it as it is."""
        return [*self.eqn.primitive.bind(*operands, **self.eqn.params), _nothing(), _nothing()]

    def backward(self, *operands: Any) -> list[Any]:
        """Return zeros of the shapes of the gradients."""
        return [*(compat.zeros_of(self.eqn.invars[i].aval) for i in self.places), _nothing()]


def _nothing() -> Any:
    return jax.numpy.zeros((0,))


# ---- loops ----


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class LoopProgram(_NestedProgram):
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
    body: Body
    n_consts: int
    n_carry: int
    differentiated: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cotangent_of: tuple[int, ...]
    kind = "scan"

    @classmethod
    def make(cls, eqn: Any, perturbed: Sequence[bool], is_read: Sequence[bool]) -> LoopProgram:
        """Capture the step of a `scan` whose operands are differentiated and whose results are read as told."""
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
        body = Body.make(closed, [i for i, x in enumerate(inputs) if x], with_cotangent)
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

    def operands_of_backward(self, operands: Sequence[Any]) -> list[Any]:
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


# ---- branches ----


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class BranchesProgram(_NestedProgram):
    """A `cond`, not yet planned.

    Attributes:
      eqn: Its equation: the index of the branch, then the operands of all of them.
      bodies: The branches.
      places: Which operands have a gradient, the index counted.
      cotangents: Which results have a cotangent.
    """

    eqn: Any
    bodies: tuple[Body, ...]
    places: tuple[int, ...]
    cotangents: tuple[int, ...]
    kind = "cond"

    @classmethod
    def make(cls, eqn: Any, perturbed: Sequence[bool], is_read: Sequence[bool]) -> BranchesProgram:
        """Capture the branches of a `cond`, likewise."""
        branches = eqn.params["branches"]
        reached = [_reached(closed, perturbed[1:], 0, 0) for closed in branches]
        inputs = reached[0][0]
        outputs = [any(outs) and read for *outs, read in zip(*(r[1] for r in reached), is_read, strict=True)]
        differentiated = [i for i, x in enumerate(inputs) if x]
        cotangents = [i for i, x in enumerate(outputs) if x]
        bodies = tuple(Body.make(closed, differentiated, cotangents) for closed in branches)
        return cls(eqn, bodies, tuple(1 + i for i in differentiated), tuple(cotangents))

    def operands_of_backward(self, operands: Sequence[Any]) -> list[Any]:
        """Return what the backward phase reads of the operands."""
        return list(operands)

    def nested(self, forward_node: int, backward_node: int) -> Nested:
        """Return it as the graph has it."""
        graphs = tuple(body.program.graph for body in self.bodies)
        return Nested(self.kind, forward_node, backward_node, 1, graphs, (), 0, 0, ((), ()), {})
