"""`checkpoint`: the same function, with a planned reverse pass."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.errors import FallbackWarning, IrreversibleError, PlanError, RefError
from tiny_backprop.integration.jax.capture.call import Call, Outputs
from tiny_backprop.integration.jax.capture.capture import capture_program
from tiny_backprop.integration.jax.capture.trace import trace_function
from tiny_backprop.integration.jax.run import linear_map
from tiny_backprop.integration.jax.run.irreversible import irreversible
from tiny_backprop.integration.jax.run.planned import PlannedProgram, ProgramCache, Request
from tiny_backprop.integration.jax.wrapper import FunctionWrapper
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class _Checkpointed:
    outputs: Outputs
    constants: Sequence[Any]
    run: Callable[..., Any]
    plan: Plan | RefError | IrreversibleError


class Checkpointed(FunctionWrapper):
    """A function with a planned reverse pass; made by `checkpoint`."""

    def __init__(self, fun: Callable[..., Any], request: Request):
        if not callable(fun):
            raise PlanError(f"the function to checkpoint must be callable; found {type(fun).__name__}")
        super().__init__(fun)
        self._fun, self._request = fun, request
        self._programs = ProgramCache[_Checkpointed]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        call = Call.of(self._fun, args, kwargs, ())
        made = self._programs.find(self._make, call)
        if isinstance(made.plan, RefError):
            warnings.warn(f"{made.plan} jax.checkpoint runs instead, unplanned.", FallbackWarning, stacklevel=2)
        return made.outputs.unflatten(made.run([*made.constants, *call.arrays]))

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Return the plan for arguments (or `jax.ShapeDtypeStruct` objects) without running anything."""
        made = self._programs.find(self._make, Call.of(self._fun, args, kwargs, ()))
        if not isinstance(made.plan, Plan):
            raise made.plan
        return made.plan

    def _make(self, call: Call) -> _Checkpointed:
        try:
            program, constants = capture_program(call, None)
        except (RefError, IrreversibleError) as e:
            return _unplanned(call, e)
        planned = PlannedProgram.make(program, self._request)
        run = jax.jit(planned.plain) if planned.jaxprs is None else _with_planned_reverse(planned)
        return _Checkpointed(program.outputs, constants, run, planned.plan)


def _unplanned(call: Call, error: RefError | IrreversibleError) -> _Checkpointed:
    """Return the function as `jax.checkpoint` has it; where reverse mode fails on it, that says why."""
    flat, _, outputs = trace_function(call)
    run = compat.jaxpr_as_fun(flat.closed())

    def marked(*inputs: Any) -> list[Any]:
        outs = run(*inputs)
        if isinstance(error, RefError):  # that is no reason for JAX
            return outs
        return [irreversible(x, error) if compat.is_inexact(jax.typeof(x)) else x for x in outs]

    checkpointed = jax.checkpoint(marked)
    return _Checkpointed(outputs, flat.consts, lambda inputs: checkpointed(*inputs), error)


def _with_planned_reverse(planned: PlannedProgram) -> Callable[[Sequence[Any]], list[Any]]:
    """Return the flat function of constants and arguments, its reverse pass that of the plan."""
    program = planned.program
    plain, forward = jax.jit(planned.plain), jax.jit(planned.forward)

    @jax.custom_jvp
    def run(inputs: Sequence[Any]) -> list[Any]:
        return plain(inputs)

    def with_tangents(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        (inputs,), (of_inputs,) = primals, tangents
        along = tuple(i for i in program.differentiated if type(of_inputs[i]) is not SymbolicZero)
        made = forward(inputs)
        outs, saved = made[: planned.n_outs], made[planned.n_outs :]
        of_outs = [SymbolicZero(compat.tangent_aval(jax.typeof(x))) for x in outs]
        if along and program.cotangent_of:
            moved = linear_map.apply(planned.derivative(along), inputs, saved, [of_inputs[i] for i in along])
            for i, t in zip(program.cotangent_of, moved, strict=True):
                of_outs[i] = t
        return outs, of_outs

    run.defjvp(with_tangents, symbolic_zeros=True)
    return run


def checkpoint(
    fun: Callable[..., Any] | None = None,
    *,
    block_size: int | None = None,
    levels: int | None = None,
    plan: Plan | None = None,
    budget: int | float | str | None = None,
    loops: LoopChoice | None = None,
) -> Any:
    """Return a function with the same values as `fun` and a planned reverse pass.

    Unlike `jax.checkpoint`, the plan says block by block what is saved and when what is recomputed. It is the plan for
    differentiating by everything of floating-point or complex dtype, traced values that `fun` closes over included; put
    what cannot be differentiated by through `lax.stop_gradient`. Integers, keys and leaves that are no arrays pass
    through; Python's bools and ints as they are, planned for each of their values.
    The function need not return a scalar. Differentiation in reverse and forward mode, `jit`, `vmap`, `shard_map`,
    `scan` and higher derivatives work. Forward mode saves nothing and is JAX's own, evaluated beside the function's
    value: a result of what may run only once (`io_callback`) is refused there.

    Args:
      fun: Function of pytrees of arrays that JAX can trace and differentiate; leave it out to use `checkpoint` as a
        decorator with options.
      block_size: Forward nodes per block, in loops steps; see `plan_blocks`.
      levels: Levels of checkpointing; see `plan_height_compressed`. No step of a loop runs again more often. Without
        `block_size`, `levels`, `plan` and `budget`, the block size with the smallest predicted peak among some that are
        tried.
      plan: A plan made before for this function and these shapes, as `checkpoint(fun).plan(*args)` returns it.
      budget: The bytes that the function's activations and gradients may take together; see `plan_budget`.
      loops: How loops are reversed; see `height_compressed_grad`.

    Returns:
      The function; `.plan(*args)` returns its plan for arguments or `jax.ShapeDtypeStruct` objects.

    Raises:
      PlanError: `block_size` or `levels` is not a whole number of at least 1, more than one way to plan is given, or,
        when called, `plan` does not fit.
      BudgetError: When called: no plan was found within the budget.
      IrreversibleError: When differentiated in reverse mode: the function cannot be.
      CaptureError: When differentiated in forward mode: it needs a result of what may run only once.

    A function that uses refs (`jax.new_ref`) runs under `jax.checkpoint`, unplanned, with a `FallbackWarning`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = checkpoint(lambda x: jnp.sin(jnp.sin(x)), block_size=1)
      >>> float(jax.grad(f)(0.0))
      1.0
    """
    if fun is None:
        options = {"block_size": block_size, "levels": levels, "plan": plan, "budget": budget, "loops": loops}
        return functools.partial(checkpoint, **options)
    return Checkpointed(fun, Request(block_size, levels, plan, budget, loops=loops))
