"""A planned gradient as a function: its forward and backward part, differentiable again, compiled and cached."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax import compat
from tiny_backprop.integration.jax.capture import Call, Program
from tiny_backprop.integration.jax.rewrite import PlannedJaxprs, rewrite
from tiny_backprop.plan import Plan, plan_blocks, plan_height_compressed, plan_save_everything
from tiny_backprop.plan.blocks import check_count
from tiny_backprop.plan.plan import check_fits


@dataclasses.dataclass(frozen=True)
class Request:
    """Which plan is asked for: at most one way of asking.

    Attributes:
      block_size: Forward nodes per block, or None.
      levels: Levels of checkpointing, or None.
      plan: A plan that was made before, or None.
    """

    block_size: int | None = None
    levels: int | None = None
    plan: Plan | None = None

    def __post_init__(self):
        if self.plan is not None and (self.block_size is not None or self.levels is not None):
            raise PlanError("give either plan or block_size and levels, not both: a plan has its block size already")
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise PlanError(f"plan must be a tiny_backprop.Plan; found {type(self.plan).__name__}")
        for name in ("block_size", "levels"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    def plan_for(self, graph: Graph) -> Plan:
        """Return the plan for a gradient graph.

        Raises:
          PlanError: The given plan belongs to another graph.
        """
        if self.plan is not None:
            check_fits(self.plan.graph.fingerprint, graph)
            return self.plan
        if not graph.n_backward:
            return plan_save_everything(graph)
        if self.levels is None:
            return plan_blocks(graph, self.block_size)
        return plan_height_compressed(graph, self.levels, self.block_size)


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedProgram:
    """A traced gradient with its plan and the functions that carry it out.

    Attributes:
      program: The traced gradient.
      plan: The plan.
      jaxprs: What runs.
    """

    program: Program
    plan: Plan
    jaxprs: PlannedJaxprs

    @classmethod
    def make(cls, program: Program, request: Request) -> PlannedProgram:
        """Plan a program and rewrite it."""
        plan = request.plan_for(program.graph)
        return cls(program, plan, rewrite(program, plan))

    @property
    def n_outs(self) -> int:
        """Number of arrays that the function returns."""
        return self.jaxprs.n_outs

    # The planned parts are built of primitives whose own derivatives may be neither defined nor wanted (the body of a
    # function with custom derivatives). Their derivatives are those of the function and of its plain gradient: exactly
    # what JAX gives for higher derivatives, which are not planned.

    def plain(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the function's outputs for constants and arguments, its derivatives unplanned."""
        return compat.jaxpr_as_fun(self.program.primal)(*inputs)

    @functools.cached_property
    def forward(self) -> Callable[[Sequence[Any]], list[Any]]:
        """Function from constants and arguments to the function's outputs and then the saved values."""
        run = compat.jaxpr_as_fun(self.jaxprs.forward)

        @jax.custom_jvp
        def forward(inputs: Sequence[Any]) -> list[Any]:
            return run(*inputs)

        @forward.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            outs = forward(*primals)
            _, out_tangents = jax.jvp(self.plain, primals, tangents)
            return outs, [*out_tangents, *map(compat.zero_tangent, outs[self.n_outs :])]

        return forward

    @functools.cached_property
    def backward(self) -> Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], list[Any]]:
        """Function from constants and arguments, saved values and cotangents to the gradients."""
        run = compat.jaxpr_as_fun(self.jaxprs.backward)

        @jax.custom_jvp
        def backward(inputs: Sequence[Any], saved: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
            return run(*inputs, *saved, *cotangents)

        @backward.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            inputs, _, cotangents = primals
            _, gradient_tangents = jax.jvp(self._plain_gradients, (inputs, cotangents), (tangents[0], tangents[2]))
            return backward(*primals), gradient_tangents

        return backward

    def _plain_gradients(self, inputs: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        def by_differentiated(*xs: Any) -> list[Any]:
            full = list(inputs)
            for i, x in zip(self.program.differentiated, xs, strict=True):
                full[i] = x
            outs = self.plain(full)
            return [outs[i] for i in self.program.cotangent_of]

        _, pullback = jax.vjp(by_differentiated, *(inputs[i] for i in self.program.differentiated))
        return list(pullback(list(cotangents)))


class ProgramCache:
    """Planned programs by what a plan depends on: tree, shapes, dtypes, shardings, and the settings of the trace."""

    def __init__(self, make: Callable[[Call], Any]):
        self._make = make
        self._cache: dict[Any, Any] = {}

    def get(self, call: Call) -> Any:
        """Return what `make(call)` returned for a call of this kind, or make it.

        A program that closed over tracers belongs to their trace alone and is not kept, nor is one whose arguments that
        are no arrays cannot be hashed.
        """
        try:
            key = self._key(call)
            if key in self._cache:
                return self._cache[key]
        except TypeError:  # a leaf that is no array cannot be hashed
            return self._make(call)
        made = self._make(call)
        if not any(map(compat.is_tracer, made.planned.program.constants)):
            self._cache[key] = made
        return made

    @staticmethod
    def _key(call: Call) -> Any:
        fixed: tuple[Any, ...] = ()
        if len(call.traced) < len(call.leaves):
            traced = set(call.traced)
            fixed = tuple((type(x), x) for i, x in enumerate(call.leaves) if i not in traced)
        return (call.tree, tuple(map(compat.aval_of, call.arrays)), call.traced, fixed, compat.trace_context())
