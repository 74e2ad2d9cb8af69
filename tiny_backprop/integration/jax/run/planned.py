"""A planned gradient as a function: its forward and backward part, differentiable again, compiled and cached."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.door import TRUTH
from tiny_backprop.errors import (
    BudgetError,
    CaptureError,
    LeftAloneWarning,
    NoGainWarning,
    PlanError,
    warn_caller,
)
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import Call
from tiny_backprop.integration.jax.capture.inline import drop_dead
from tiny_backprop.integration.jax.capture.trace import Program
from tiny_backprop.integration.jax.run.linear_map import LinearMap
from tiny_backprop.integration.jax.run.rewrite import PlannedJaxprs, rewrite
from tiny_backprop.integration.jax.run.state_key import NoKeyError, state_key
from tiny_backprop.integration.jax.run.verify import plan_verified
from tiny_backprop.plan.baseline import predict_jax_gradient
from tiny_backprop.plan.blocks import plan_blocks, plan_height_compressed, plan_jax_gradient, plan_save_everything
from tiny_backprop.plan.budget import plan_budget
from tiny_backprop.plan.checks import check_count
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.budget import parse_budget
from tiny_backprop.predict.margin import recorded_margin
from tiny_backprop.units import format_bytes

_MOST_CACHED = 256
_LARGE_SHARE, _MOST_LISTED = 0.1, 3  # of what is left alone: of the peak, to be warned of; how many are named


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
            return self._within(graph, self.budget)
        if self.levels is None:
            plan = plan_blocks(graph, self.block_size, loops=self.loops)
            return plan if self.is_explicit else _the_better(plan, plan_jax_gradient(graph))
        return plan_height_compressed(graph, self.levels, self.block_size, loops=self.loops)

    @property
    def is_explicit(self) -> bool:
        """Whether a plan of some kind is asked for; if not, any gradient that takes less memory will do."""
        return any(x is not None for x in (self.block_size, self.levels, self.plan, self.budget, self.loops))

    def _within(self, graph: Graph, budget: int | float | str) -> Plan:
        """Return the plan for a budget: JAX's own gradient where that fits and the plan takes more, or is none."""
        budget_bytes, plain = parse_budget(graph, budget), plan_jax_gradient(graph)
        is_share = isinstance(budget, float)  # of a prediction, which is off by as much
        recorded = 0.0 if is_share else recorded_margin(graph, budget_bytes)
        for margin in dict.fromkeys((recorded, 0.0)):
            fits = plain.peak_bytes * (1 + margin) <= budget_bytes
            try:
                plan = plan_budget(graph, budget, loops=self.loops, margin=margin)
            except BudgetError:
                if fits:
                    return plain
                continue  # with less of a margin
            if fits and plan.recompute_flops >= plain.recompute_flops:  # the user's jax.checkpoint may run more again
                return _the_better(plan, plain)
            return plan
        return plan_budget(graph, budget, loops=self.loops)  # which says why there is none


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedProgram:
    """A traced gradient with its plan and the functions that carry it out.

    Attributes:
      program: The traced gradient.
      plan: The plan.
      jaxprs: What runs; None for JAX's own gradient.
    """

    program: Program
    plan: Plan
    jaxprs: PlannedJaxprs | None

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
            return measured_bytes(cls.of(program, plan))

        plan = request.plan_for(program.graph, of_plan if measured_bytes else None)
        _warn_without_gain(plan, request)
        _warn_of_what_is_left_alone(plan)
        return cls.of(program, plan)

    @classmethod
    def of(cls, program: Program, plan: Plan) -> PlannedProgram:
        """Return a traced gradient with a plan for it."""
        return cls(program, plan, None if plan.is_jax_gradient else rewrite(program, plan))

    @property
    def n_outs(self) -> int:
        """Number of arrays that the function returns."""
        return len(self.program.primal_outs)

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

    def value_and_gradients(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the function's outputs for constants and arguments, and the gradients of those with a cotangent, of 1.

        JAX's own gradient is taken of the function with its own `jax.checkpoint`s and loops.
        """
        cotangent_of = self.program.cotangent_of
        if self.jaxprs is not None:
            outs = self.forward(inputs)
            return outs[: self.n_outs], self.backward(inputs, outs[self.n_outs :], _ones(outs, cotangent_of))

        def of_differentiated(*xs: Any) -> tuple[list[Any], list[Any]]:
            full = list(inputs)
            for i, x in zip(self.program.differentiated, xs, strict=True):
                full[i] = x
            outs = self.plain(full)
            return [outs[i] for i in cotangent_of], outs

        xs = [inputs[i] for i in self.program.differentiated]
        _, pullback, outs = jax.vjp(of_differentiated, *xs, has_aux=True)
        return outs, list(pullback(_ones(outs, cotangent_of)))

    @functools.cached_property
    def forward(self) -> Callable[[Sequence[Any]], list[Any]]:
        """Function from constants and arguments to the function's outputs and then the saved values."""
        assert self.jaxprs is not None
        run = compat.jaxpr_as_fun(self.jaxprs.forward)

        @jax.custom_jvp
        def forward(inputs: Sequence[Any]) -> list[Any]:
            return run(*inputs)

        def rule(primals: Any, tangents: Any) -> Any:
            outs = forward(*primals)
            _, out_tangents = _jvp(self._outs_of_vjp, primals, tangents)
            return outs, [*out_tangents, *map(compat.zero_tangent, outs[self.n_outs :])]

        forward.defjvp(rule, symbolic_zeros=True)

        return forward

    @functools.cached_property
    def backward(self) -> Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], list[Any]]:
        """Function from constants and arguments, saved values and cotangents to the gradients."""
        assert self.jaxprs is not None
        run = compat.jaxpr_as_fun(self.jaxprs.backward)

        @jax.custom_jvp
        def backward(inputs: Sequence[Any], saved: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
            return run(*inputs, *saved, *cotangents)

        def rule(primals: Any, tangents: Any) -> Any:
            inputs, _, cotangents = primals
            _, gradient_tangents = _jvp(self._plain_gradients, (inputs, cotangents), (tangents[0], tangents[2]))
            return backward(*primals), gradient_tangents

        backward.defjvp(rule, symbolic_zeros=True)
        return backward

    def derivative(self, along: tuple[int, ...]) -> LinearMap:
        """Return the derivative along some of the inputs, of which `differentiated` has all; its transpose is planned.

        It takes no tangents of other outputs than those with a cotangent.
        """
        if along not in self._derivatives:
            self._derivatives[along] = self._derivative(along)
        return self._derivatives[along]

    @functools.cached_property
    def _derivatives(self) -> dict[tuple[int, ...], LinearMap]:
        return {}

    @functools.cached_property
    def _compiled_backward(self) -> Callable[..., list[Any]]:
        return jax.jit(self.backward)

    def _derivative(self, along: tuple[int, ...]) -> LinearMap:
        assert self.jaxprs is not None
        jaxpr = self.program.primal.jaxpr
        outvars = [jaxpr.outvars[i] for i in self.program.cotangent_of]
        primal = compat.close_jaxpr(jaxpr.invars, outvars, drop_dead(jaxpr.eqns, outvars, keep_effects=False))
        saved = self.jaxprs.forward.out_avals[self.n_outs :]
        n_inputs, n_saved = len(jaxpr.invars), len(saved)
        places = [self.program.differentiated.index(i) for i in along]

        def transpose(*operands: Any) -> list[Any]:
            inputs, rest = list(operands[:n_inputs]), list(operands[n_inputs:])
            gradients = self._compiled_backward(inputs, rest[:n_saved], rest[n_saved:])
            return [gradients[k] for k in places]

        return LinearMap.of(primal, saved, along, transpose, self._check_runs_once)

    def _check_runs_once(self) -> None:
        """Refuse forward mode where a result of what may run only once is needed: it would run for the tangents again.

        Raises:
          CaptureError: There is such an equation.
        """
        for eqn in drop_dead(self.program.primal.jaxpr.eqns, self.program.primal.jaxpr.outvars, keep_effects=False):
            if any(map(compat.is_side_effect, eqn.effects)):
                raise CaptureError(
                    f"forward mode of {self.program.graph.name} was asked for; {eqn.primitive.name} at "
                    f"{compat.source_line(eqn) or 'a line that JAX does not tell'} may run only once, and would run "
                    "again for the tangents. Call it outside of tb.checkpoint and pass on what it returns."
                )

    def _outs_of_vjp(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs as the forward phase of reverse mode has them: by `fwd` of a `jax.custom_vjp`."""
        return self._vjp(inputs)[0]

    def _plain_gradients(self, inputs: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        return list(self._vjp(inputs)[1](list(cotangents)))

    def _vjp(self, inputs: Sequence[Any]) -> tuple[list[Any], Callable[..., Any]]:
        """Return all outputs, and the pullback of those with a cotangent to what is differentiated."""

        def by_differentiated(*xs: Any) -> tuple[list[Any], list[Any]]:
            full = list(inputs)
            for i, x in zip(self.program.differentiated, xs, strict=True):
                full[i] = x
            outs = self._without_effects(full)
            return [outs[i] for i in self.program.cotangent_of], outs

        _, pullback, outs = jax.vjp(by_differentiated, *(inputs[i] for i in self.program.differentiated), has_aux=True)
        return outs, pullback


def _jvp(fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Return `jax.jvp` by what has a tangent; the rest stays out of it, as a `jax.custom_vjp` there must."""
    flat, tree = jax.tree.flatten(tuple(primals))
    flat_tangents = jax.tree.leaves(tuple(tangents), is_leaf=_is_zero)
    moving = [i for i, t in enumerate(flat_tangents) if not _is_zero(t)]

    def of_moving(*xs: Any) -> Any:
        full = list(flat)
        for i, x in zip(moving, xs, strict=True):
            full[i] = x
        return fun(*jax.tree.unflatten(tree, full))

    return jax.jvp(of_moving, [flat[i] for i in moving], [flat_tangents[i] for i in moving])


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _ones(outs: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [lax.full_like(outs[i], 1) for i in places]


def _the_better(plan: Plan, plain: Plan) -> Plan:
    """Return the plan, or JAX's own gradient where that takes less memory, or as much without what the plan does."""
    does_more = plan.recompute_flops > 0 or bool(plan.graph.nested)
    is_better = plan.peak_bytes < plain.peak_bytes or (plan.peak_bytes == plain.peak_bytes and not does_more)
    return plan if is_better else plain


def _warn_without_gain(plan: Plan, request: Request) -> None:
    """Warn where a plan is predicted to take more memory than JAX's own gradient, or where that runs instead."""
    if not plan.graph.n_backward or (plan.is_jax_gradient and request.is_explicit):
        return
    plain_bytes = predict_jax_gradient(plan.graph).peak_bytes
    if plan.is_jax_gradient:
        text = (
            f"no plan that was tried for {plan.graph.name} is predicted to take less than jax.grad's "
            f"{format_bytes(plain_bytes)}: jax.grad runs as it is"
        )
    elif plan.peak_bytes > plain_bytes:
        text = (
            f"the plan that was asked for {plan.graph.name} is predicted to take {format_bytes(plan.peak_bytes)}, "
            f"more than jax.grad's {format_bytes(plain_bytes)}. Without block_size, levels, loops and plan, what takes "
            "least is chosen"
        )
    else:
        return
    warn_caller(f"{text}.", NoGainWarning)


def _warn_of_what_is_left_alone(plan: Plan) -> None:
    large = [x for x in plan.left_alone if x.bytes > _LARGE_SHARE * plan.peak_bytes]
    if large:
        listed = "; ".join(map(str, large[:_MOST_LISTED]))
        warn_caller(f"left as JAX has it in {plan.graph.name}: {listed}. plan.left_alone lists all.", LeftAloneWarning)


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
