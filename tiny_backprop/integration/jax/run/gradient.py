"""`jax.grad` and `jax.value_and_grad` with a plan: `height_compressed_grad` and `height_compressed_value_and_grad`."""

from __future__ import annotations

import dataclasses
import numbers
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tiny_backprop.door import one_of
from tiny_backprop.errors import CaptureError, FallbackWarning, IrreversibleError, PlanError, UntraceableError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import (
    Call,
    check_argnums,
    check_donate_argnums,
    function_name,
    joined,
    separated,
)
from tiny_backprop.integration.jax.capture.capture import capture_program
from tiny_backprop.integration.jax.capture.trace import Program
from tiny_backprop.integration.jax.run.planned import PlannedProgram, ProgramCache, Request
from tiny_backprop.integration.jax.wrapper import FunctionWrapper
from tiny_backprop.integration.jax.xla.measure import compiled_bytes
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class HeightCompressedExecutor:
    """What a planned gradient did when it was last called.

    Attributes:
      checkpoint_plan: The plan that ran; its `meta` has `block_size` and `peak_frontier` (bytes, predicted).
    """

    checkpoint_plan: Plan

    @property
    def is_jax_gradient(self) -> bool:
        """Whether JAX's own gradient ran, because no plan was predicted to take less memory."""
        return self.checkpoint_plan.is_jax_gradient

    @property
    def graph(self) -> Graph:
        """The gradient graph that was planned."""
        return self.checkpoint_plan.graph

    def __repr__(self) -> str:
        return f"HeightCompressedExecutor({self.checkpoint_plan!r})"


@dataclasses.dataclass(frozen=True, eq=False)
class _Compiled:
    planned: PlannedProgram
    constants: Sequence[Any]
    donated: Sequence[int]
    executor: HeightCompressedExecutor
    run: Callable[..., Any]


class PlannedGradient(FunctionWrapper):
    """A planned gradient function; made by `height_compressed_grad` and `height_compressed_value_and_grad`.

    Attributes:
      last_executor: The `HeightCompressedExecutor` of the last call, or None before the first call and after a
        fall-back to `jax.grad`.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        request: Request,
        argnums: int | Sequence[int],
        has_aux: bool,
        donate_argnums: int | Sequence[int],
        with_value: bool,
        on_error: str,
    ):
        if not callable(fun):
            raise PlanError(f"the function to differentiate must be callable; found {type(fun).__name__}")
        one_of("fallback", "raise").check(PlanError, "on_error", on_error)
        super().__init__(fun)
        self.last_executor: HeightCompressedExecutor | None = None
        self._fun, self._request = fun, request
        is_integer = isinstance(argnums, numbers.Integral)  # a numpy integer, say
        self._argnums = operator.index(argnums) if is_integer else argnums
        self._donate_argnums = donate_argnums
        self._has_aux, self._with_value, self._on_error = has_aux, with_value, on_error
        self._programs = ProgramCache[_Compiled]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the gradient (or value and gradient) at the arguments."""
        try:
            call = Call.of(self._fun, args, kwargs, self._argnums)
            compiled = self._programs.find(self._compile, call)
        except (UntraceableError, IrreversibleError) as e:
            return self._fall_back(e, args, kwargs)
        self.last_executor = compiled.executor
        outs, gradients = compiled.run(*separated(call.arrays, compiled.donated), compiled.constants)
        return self._result(compiled.planned, outs, gradients, args)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Return the plan for arguments (or `jax.ShapeDtypeStruct` objects) without running anything."""
        call = Call.of(self._fun, args, kwargs, self._argnums)
        return self._programs.find(self._compile, call).planned.plan

    def _compile(self, call: Call) -> _Compiled:
        positions, donated = check_argnums(call, self._argnums), check_donate_argnums(call, self._donate_argnums)
        program, constants = capture_program(call, positions, self._has_aux, donated)
        _check_scalar(call, program, self._has_aux)

        def jitted(planned: PlannedProgram) -> Any:
            return jax.jit(_runner(planned, donated, call.name), donate_argnums=0)

        def measured_bytes(planned: PlannedProgram) -> int:
            return compiled_bytes(jitted(planned), *separated(call.arrays, donated), constants)

        planned = PlannedProgram.make(program, self._request, measured_bytes)
        return _Compiled(planned, constants, donated, HeightCompressedExecutor(planned.plan), jitted(planned))

    def _result(self, planned: PlannedProgram, outs: list[Any], gradients: list[Any], args: Sequence[Any]) -> Any:
        value = planned.program.outputs.unflatten(outs)
        chosen = args[self._argnums] if isinstance(self._argnums, int) else tuple(args[i] for i in self._argnums)
        gradient = jax.tree.unflatten(jax.tree.structure(chosen), gradients)
        if self._with_value:
            return value, gradient
        return (gradient, value[1]) if self._has_aux else gradient

    def _fall_back(self, error: CaptureError, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.last_executor = None
        if self._on_error == "raise":
            raise error
        grad = jax.value_and_grad if self._with_value else jax.grad
        plain = grad(self._fun, argnums=self._argnums, has_aux=self._has_aux)
        if isinstance(error, IrreversibleError):
            try:
                result = plain(*args, **kwargs)
            except Exception as e:
                raise CaptureError(f"{error}\njax.grad by the same arguments fails likewise.") from e
            warnings.warn(f"{error} jax.grad ran instead, unplanned.", FallbackWarning, stacklevel=3)
            return result
        warnings.warn(f"{error} jax.grad runs instead, unplanned.", FallbackWarning, stacklevel=3)
        return plain(*args, **kwargs)

    def __repr__(self) -> str:
        state = repr(self.last_executor) if self.last_executor else "not planned yet"
        return f"<planned gradient of {function_name(self._fun)}: {state}>"


def _runner(planned: PlannedProgram, donated: Sequence[int], name: str) -> Callable[..., Any]:
    """Return the function from donated and other arguments and constants to outputs and gradients."""

    def run(given: Sequence[Any], arrays: Sequence[Any], constants: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return planned.value_and_gradients([*constants, *joined(given, arrays, donated)])

    run.__name__ = f"planned_gradient_of_{name}".replace("<lambda>", "lambda")
    return run


def _check_scalar(call: Call, program: Program, has_aux: bool) -> None:
    """Refuse what `jax.grad` refuses: a function whose (first) output is not one real number."""
    tree, n_main = program.outputs.main(call.name) if has_aux else (program.outputs.tree, len(program.primal_outs))
    avals = [v.aval for v in program.primal_outs[:n_main]]
    is_leaf = jax.tree_util.treedef_is_leaf(tree)
    if is_leaf and len(avals) == 1 and avals[0].shape == () and jnp.issubdtype(avals[0].dtype, jnp.floating):
        return
    found = ", ".join(f"{a.dtype}{list(a.shape)}" for a in avals) or "nothing"
    found += "" if is_leaf else f" in {tree}"
    raise CaptureError(
        f"the gradient of {call.name} was asked for, which needs one real number as output; {call.name} returns "
        f"{found}. Reduce it (jnp.sum, jnp.mean), return a pair and say has_aux=True, or use tiny_backprop.checkpoint "
        "with jax.vjp."
    )


def height_compressed_grad(
    fun: Callable[..., Any],
    block_size: int | None = None,
    levels: int | None = None,
    plan: Plan | None = None,
    *,
    budget: int | float | str | None = None,
    verify: bool = False,
    loops: LoopChoice | None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    on_error: str = "fallback",
) -> PlannedGradient:
    """Return a function that computes what `jax.grad(fun)` does, along a plan.

    The first call for a set of shapes traces, plans and compiles; later ones only run. It works inside `jit`, `vmap`,
    `shard_map`, `scan` and `cond`, and can be differentiated again (higher derivatives are JAX's own, unplanned). As
    with `jax.jit`, arrays that `fun` closes over are taken as they are at the first call.

    Args:
      fun: Function whose output is a real scalar, or, with `has_aux`, a pair of that and anything else. Its positional
        and keyword arguments are pytrees of arrays; leaves that are no arrays are passed on as they are, and so are
        Python's bools and ints in arguments that are not differentiated. Each other value of these is planned and
        compiled for; a counter that changes at every call is better an array.
      block_size: Forward nodes per block, in loops steps; see `plan_blocks`.
      levels: Levels of checkpointing; see `plan_height_compressed`. No step of a loop runs again more often. Without
        `block_size`, `levels`, `plan` and `budget`, the block size with the smallest predicted peak among some that are
        tried.
      plan: A plan made before, by any planner, for this function and these shapes.
      budget: The bytes that activations, gradients and other outputs may take together; see `plan_budget`. Where it is
        in bytes and not verified, the plan leaves the margin that the record of predictions asks for, where one can.
      verify: Whether the budget is for what XLA allocates instead of what is predicted: the first call for a set of
        shapes then compiles up to six plans and keeps the best whose temporaries and outputs fit, by XLA's count.
      loops: How loops are reversed, where `block_size`, `levels` or the budget's planner are not to say: with so many
        saved carries, for example.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is passed through.
      donate_argnums: Which positional arguments the gradient may write over, as with `jax.jit`; budgets and predictions
        count on it. Where it runs inside a `jit` of yours, say the same there.
      on_error: What to do where `fun` cannot be traced because it looks at the values of its arguments, can be
        differentiated only without tracing, or uses refs (`jax.new_ref`), which are not planned: `"fallback"` warns
        with `FallbackWarning` and runs `jax.grad`; `"raise"` raises.

    Returns:
      The gradient function. Its `last_executor.checkpoint_plan` is the plan of the last call.

    Raises:
      PlanError: `block_size` or `levels` is not a whole number of at least 1, more than one way to plan is given, or,
        when called, `plan` does not fit.
      BudgetError: When called: no plan was found within the budget.
      CaptureError: When called: the function does not return a real scalar, or cannot be differentiated, or an index
        names no argument.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient = height_compressed_grad(lambda x: jnp.sum(jnp.sin(x) ** 2), block_size=2)
      >>> gradient(jnp.zeros(3)).tolist()
      [0.0, 0.0, 0.0]
      >>> gradient.last_executor.checkpoint_plan.meta["block_size"]
      2
    """
    request = Request(block_size, levels, plan, budget, verify, loops)
    return PlannedGradient(fun, request, argnums, has_aux, donate_argnums, False, on_error)


def height_compressed_value_and_grad(
    fun: Callable[..., Any],
    block_size: int | None = None,
    levels: int | None = None,
    plan: Plan | None = None,
    *,
    budget: int | float | str | None = None,
    verify: bool = False,
    loops: LoopChoice | None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    on_error: str = "fallback",
) -> PlannedGradient:
    """Return a function that computes what `jax.value_and_grad(fun)` does, along a plan.

    Args:
      fun: See `height_compressed_grad`, as for all arguments.
      block_size: Forward nodes per block.
      levels: Levels of checkpointing.
      plan: A plan made before.
      budget: Bytes for activations, gradients and other outputs.
      verify: Whether the budget is for what XLA allocates.
      loops: How loops are reversed.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is passed through.
      donate_argnums: Which positional arguments the gradient may write over.
      on_error: `"fallback"` or `"raise"`.

    Returns:
      The function, which returns a pair of value and gradient.

    Raises:
      PlanError: See `height_compressed_grad`.
      CaptureError: See `height_compressed_grad`.

    Example:
      >>> import jax.numpy as jnp
      >>> value, gradient = height_compressed_value_and_grad(lambda x: jnp.sum(x**2))(jnp.ones(2))
      >>> float(value), gradient.tolist()
      (2.0, [2.0, 2.0])
    """
    request = Request(block_size, levels, plan, budget, verify, loops)
    return PlannedGradient(fun, request, argnums, has_aux, donate_argnums, True, on_error)
