"""A planned gradient as a function: its forward and backward part, differentiable again, compiled and cached."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.door import TRUTH
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import Call
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.capture.trace import Program
from tiny_backprop.integration.jax.run.rewrite import PlannedJaxprs, rewrite
from tiny_backprop.integration.jax.run.state_key import NoKeyError, state_key
from tiny_backprop.integration.jax.run.verify import plan_verified
from tiny_backprop.plan.blocks import plan_blocks, plan_height_compressed, plan_save_everything
from tiny_backprop.plan.budget import plan_budget
from tiny_backprop.plan.checks import check_count
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.plan import Plan

_MOST_CACHED = 256


@dataclasses.dataclass(frozen=True)
class Request:
    """Which plan is asked for: at most one way of asking.

    Attributes:
      block_size: Forward nodes per block, or None.
      levels: Levels of checkpointing, or None.
      plan: A plan that was made before, or None.
      budget: A byte budget, or None; see `plan_budget`.
      verify: Whether the budget is for what XLA allocates.
      loops: How loops are reversed, where the planner is not to choose, or None.
    """

    block_size: int | None = None
    levels: int | None = None
    plan: Plan | None = None
    budget: int | float | str | None = None
    verify: bool = False
    loops: LoopChoice | None = None

    def __post_init__(self):
        others = {k: getattr(self, k) for k in ("block_size", "levels", "loops")}
        if self.plan is not None and any(v is not None for v in others.values()):
            raise PlanError("give either plan or block_size, levels and loops, not both: a plan has them already")
        if self.loops is not None and not isinstance(self.loops, LoopChoice):
            raise PlanError(f"loops must be a tiny_backprop.LoopChoice; found {type(self.loops).__name__}")
        if self.budget is not None and not (self.plan is self.block_size is self.levels is None):
            raise PlanError("give either budget or plan, block_size and levels: by budget, the planner chooses them")
        TRUTH.check(PlanError, "verify", self.verify)
        if self.verify and self.budget is None:
            raise PlanError("verify=True holds XLA's bytes against a budget; give one: budget='2GiB', say")
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise PlanError(f"plan must be a tiny_backprop.Plan; found {type(self.plan).__name__}")
        for name in ("block_size", "levels"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    def plan_for(self, graph: Graph, measured_bytes: Callable[[Plan], int] | None = None) -> Plan:
        """Return the plan for a gradient graph.

        Args:
          graph: The gradient graph.
          measured_bytes: Compiles a plan and returns XLA's bytes; needed where `verify` is asked for.

        Raises:
          PlanError: The given plan belongs to another graph.
          BudgetError: No plan was found within the budget.
        """
        if self.plan is not None:
            return self.plan.on(graph)
        if not graph.n_backward:
            return plan_save_everything(graph)
        if self.budget is not None:
            if self.verify and measured_bytes is not None:
                return plan_verified(graph, self.budget, measured_bytes, self.loops)
            return plan_budget(graph, self.budget, loops=self.loops)
        if self.levels is None:
            return plan_blocks(graph, self.block_size, loops=self.loops)
        return plan_height_compressed(graph, self.levels, self.block_size, loops=self.loops)


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
    def make(
        cls, program: Program, request: Request, measured_bytes: Callable[[PlannedProgram], int] | None = None
    ) -> PlannedProgram:
        """Plan and rewrite a traced gradient.

        Args:
          program: The traced gradient.
          request: Which plan is asked for.
          measured_bytes: Compiles a planned program, where the request wants its memory verified.
        """

        def of_plan(plan: Plan) -> int:
            assert measured_bytes is not None
            return measured_bytes(cls(program, plan, rewrite(program, plan)))

        plan = request.plan_for(program.graph, of_plan if measured_bytes else None)
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
    def _without_effects(self) -> Callable[[Sequence[Any]], list[Any]]:
        """Function as `plain`, for derivative rules: the effects belong to the planned functions, which run too."""
        jaxpr = self.program.primal.jaxpr
        eqns = drop_dead(jaxpr.eqns, jaxpr.outvars, keep_effects=False)
        run = compat.jaxpr_as_fun(compat.close_jaxpr(jaxpr.invars, jaxpr.outvars, eqns))
        return lambda inputs: run(*inputs)

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
            _, out_tangents = jax.jvp(self._without_effects, primals, tangents)
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
            outs = self._without_effects(full)
            return [outs[i] for i in self.program.cotangent_of]

        _, pullback = jax.vjp(by_differentiated, *(inputs[i] for i in self.program.differentiated))
        return list(pullback(list(cotangents)))


class Made(Protocol):
    """What a `ProgramCache` keeps for a call."""

    @property
    def constants(self) -> Sequence[Any]:
        """Values of the constants that the function closed over."""
        ...


M = TypeVar("M", bound=Made)


class ProgramCache(Generic[M]):
    """What was made for a call, by what a plan depends on: tree, shapes, dtypes, shardings, settings of the trace.

    Arguments that are no arrays are looked up by what they are and hold, see `state_key`. Not kept is what was made for
    those that may change unseen, and what closed over tracers, which belongs to their trace alone.
    """

    def __init__(self) -> None:
        self._cache: OrderedDict[Any, M] = OrderedDict()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy begins empty: what runs belongs to this process and this device

    def find(self, make: Callable[[Call], M], call: Call) -> M:
        """Return what `make` returned for a call or for one of its kind before."""
        key = _key(call)
        if key is None:
            return make(call)
        if key in self._cache:
            return self._cache[key]
        with self._lock:
            if key in self._cache:
                return self._cache[key]
            made = make(call)
            if not any(map(compat.is_tracer, made.constants)):
                self._cache[key] = made
                if len(self._cache) > _MOST_CACHED:
                    self._cache.popitem(last=False)
            return made


def _key(call: Call) -> Any:
    """Return what a plan for a call depends on, hashable, or None where nothing may be kept for it."""
    fixed: tuple[Any, ...] = ()
    if len(call.traced) < len(call.leaves):
        traced = set(call.traced)
        try:
            fixed = tuple([state_key(x) for i, x in enumerate(call.leaves) if i not in traced])
        except NoKeyError:
            return None
    return (call.tree, tuple(map(compat.aval_of, call.arrays)), call.traced, fixed, compat.trace_context())
