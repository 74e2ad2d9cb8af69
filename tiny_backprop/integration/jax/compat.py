"""The only module that touches JAX internals, or hides a difference between JAX versions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import core
from jax._src import ad_util as _ad_util  # no public zeros of an abstract value with its varying axes
from jax._src import config as _config  # no public way to key a cache by the trace context
from jax._src import core as _core  # no public way to know whether a transformation is under way
from jax._src import source_info_util as _source_info_util  # no public way to a traceback's user frame
from jax._src.interpreters import batching as _batching  # no public way to batch and keep what has no batch dimension
from jax._src.sharding_impls import UnspecifiedValue as _UnspecifiedValue  # no public name
from jax._src.state import AbstractRef as _AbstractRef  # no public name
from jax.extend import core as jex_core
from jax.interpreters import partial_eval as _partial_eval

Var = jex_core.Var
Literal = jex_core.Literal
ClosedJaxpr = jex_core.ClosedJaxpr
JaxprEqn = jex_core.JaxprEqn
ShapedArray = core.ShapedArray
jaxpr_as_fun = jex_core.jaxpr_as_fun
JAX_VERSION = jax.__version_info__[:2]
CPU_DROPS_BARRIERS = JAX_VERSION < (0, 12)

_CALLED_JAXPR = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_lin": "call_jaxpr",
    "linear_map": "linear",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "remat3": "jaxpr",
    "checkpoint": "jaxpr",
}
_CUSTOM_RULES = {"custom_jvp_call", "custom_vjp_call"}
_CHECKPOINT_MARK = "tiny_backprop checkpoint "
_CHECKPOINTS = {"remat", "remat2", "remat3", "checkpoint"}


def trace_context() -> Any:
    """Return a hashable key of the settings (64-bit mode, matmul precision, …) that change what tracing gives."""
    return _config.trace_context()


def is_tracing() -> bool:
    """Return whether some transformation (`jit`, `grad`, `vmap`, …) is under way."""
    return not _core.trace_state_clean()


def is_checkpoint(eqn: Any) -> bool:
    """Return whether an equation is a call of a function under `jax.checkpoint`."""
    return eqn.primitive.name in _CHECKPOINTS


def policy_of(eqn: Any) -> Callable[..., Any] | None:
    """Return the policy of a call under `jax.checkpoint`, None for the one that saves nothing."""
    return _params(eqn).get("policy")


def verdict(policy: Callable[..., Any] | None, eqn: Any) -> str:
    """Return what a policy of `jax.checkpoint` does with the results of an equation: save, offload or recompute."""
    answer = policy is not None and policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    if isinstance(answer, bool):
        return "save" if answer else "recompute"
    return {"SaveableType": "save", "RecomputeType": "recompute", "Offloadable": "offload"}[type(answer).__name__]


def in_checkpoint(info: Any, number: int) -> Any:
    """Return source info of which what is traced can be told to have come from a call under `jax.checkpoint`."""
    return info.replace(name_stack=info.name_stack.extend(f"{_CHECKPOINT_MARK}{number}"))


def checkpoints_around(info: Any) -> tuple[int, ...]:
    """Return the numbers that `in_checkpoint` has put into source info, the outermost first."""
    names = [entry.name for entry in info.name_stack.stack]
    return tuple(int(n.removeprefix(_CHECKPOINT_MARK)) for n in names if n.startswith(_CHECKPOINT_MARK))


def without_checkpoints(info: Any) -> Any:
    """Return source info without what `in_checkpoint` has put there."""
    stack = info.name_stack
    left = tuple(entry for entry in stack.stack if not entry.name.startswith(_CHECKPOINT_MARK))
    return info if len(left) == len(stack.stack) else info.replace(name_stack=type(stack)(left))


def has_rule(eqn: Any) -> bool:
    """Return whether an equation is a call of a function with a derivative rule of its own."""
    return eqn.primitive.name in _CUSTOM_RULES


def called_jaxpr(eqn: Any, keep_custom_rules: bool) -> tuple[Any, Sequence[Any]] | None:
    """Return the jaxpr that a call equation may be replaced by, with its constants, or None where it may not.

    A `jit` that constrains shardings is kept, and so are custom derivative rules where asked for.
    """
    name, params = eqn.primitive.name, _params(eqn)
    key = "jaxpr" if params is not eqn.params else _CALLED_JAXPR.get(name)
    if key is None or key not in params or (keep_custom_rules and has_rule(eqn)):
        return None
    for which in ("in_shardings", "out_shardings"):
        if any(not isinstance(s, _UnspecifiedValue) for s in params.get(which, ())):
            return None
    called = params[key]
    return open_jaxpr(called), getattr(called, "consts", ())


def ref_equation(jaxpr: Any) -> Any:
    """Return the first equation that makes, reads or writes a ref, in a jaxpr, closed or not, or None."""
    for eqn in jaxpr.eqns:
        if any(isinstance(v.aval, _AbstractRef) for v in (*eqn.invars, *eqn.outvars)):
            return eqn
        if any(ref_equation(inner) is not None for inner in called_jaxprs(eqn)):
            return eqn
    return None


def _params(eqn: Any) -> Mapping[str, Any]:
    """Return the parameters of an equation; with `JAX_REMAT3=1`, JAX 0.12 has those of a checkpoint in an object."""
    what = eqn.params.get("_prim")
    return what.params if type(what).__name__ == "RematTraced" else eqn.params


def open_jaxpr(jaxpr: Any) -> Any:
    """Return the `Jaxpr` inside a `ClosedJaxpr`; newer JAX has one class for both."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def called_jaxprs(eqn: Any) -> list[Any]:
    """Return the jaxprs that the parameters of an equation hold, closed or not."""
    values = [x for v in _params(eqn).values() for x in (v if isinstance(v, tuple | list) else [v])]
    return [x for x in values if hasattr(x, "eqns")]


def is_side_effect(effect: Any) -> bool:
    """Return whether an effect means that an equation may run only once; naming a mapped axis does not."""
    return type(effect).__name__ != "NamedAxisEffect"


def close_jaxpr(invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]) -> Any:
    """Return a closed jaxpr without constants."""
    effects = frozenset().union(*(e.effects for e in eqns))
    info = jex_core.DebugInfo("tiny_backprop", "a planned program", ("",) * len(invars), ("",) * len(outvars))
    return ClosedJaxpr(jex_core.Jaxpr([], list(invars), list(outvars), list(eqns), effects, info), [])


def without_unused(closed: Any) -> Any:
    """Return a closed jaxpr that has no constants without what no result of it needs, carries of loops included."""
    jaxpr, _ = _partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), True)
    return ClosedJaxpr(jaxpr, [])


def with_eqns(jaxpr: Any, invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]) -> Any:
    """Return a jaxpr, closed or not, with other equations; its constants are not kept, so it is not to be run."""
    closed = close_jaxpr(invars, outvars, eqns)
    return closed if hasattr(jaxpr, "consts") else closed.jaxpr


def dimension_scope(dimension: Any) -> Any:
    """Return the scope that a symbolic dimension belongs to; those of one program have the same."""
    return dimension.scope


def dimension_names(dimension: Any) -> set[str]:
    """Return the names in a symbolic dimension such as `2*batch`."""
    return dimension._get_vars()


def dimension_at(dimension: Any, sizes: Mapping[str, int]) -> int:
    """Return a symbolic dimension as a number, for given sizes of the names in it."""
    return int(dimension._evaluate(dict(sizes)))


def dimension_constraints(dimension: Any) -> list[tuple[str, Callable[[Mapping[str, int]], bool]]]:
    """Return the constraints of a symbolic dimension: their text, and whether given sizes meet them."""

    def is_met(constraint: Any, sizes: Mapping[str, int]) -> bool:
        difference = constraint.diff
        n = dimension_at(difference, sizes) if jax.export.is_symbolic_dim(difference) else int(difference)
        return n == 0 if constraint.cmp.name == "EQ" else n >= 0

    constraints = dimension_scope(dimension)._explicit_constraints
    return [(c.debug_str, functools.partial(is_met, c)) for c in constraints]


def with_outer_scope(eqn: Any, outer: Any) -> Any:
    """Return the source info of an inlined equation, its name stack put inside the name stack of its call.

    An equation without a line of the user's, as inside a library's own `jit`, gets the line of its call.
    """
    info = eqn.source_info
    traceback = info.traceback if _has_user_frame(info.traceback) else outer.traceback
    return info.replace(name_stack=outer.name_stack + info.name_stack, traceback=traceback)


@functools.lru_cache(maxsize=4096)
def _has_user_frame(traceback: Any) -> bool:
    return _source_info_util.user_frame(traceback) is not None


def as_recomputed(eqn: Any) -> Any:
    """Return an equation whose name stack says that it runs again, in the word that `jax.checkpoint` has for it."""
    stack = eqn.source_info.name_stack.extend("rematted_computation")
    return eqn.replace(source_info=eqn.source_info.replace(name_stack=stack))


def source_line(eqn: Any) -> str:
    """Return `file:line (function)` of the user's code that an equation came from, or `""`."""
    frame = _source_info_util.user_frame(eqn.source_info.traceback)
    return "" if frame is None else f"{frame.file_name}:{frame.start_line} ({frame.function_name})"


def function_source(jaxpr: Any) -> str:
    """Return `name at file:line` of the function that a jaxpr was traced from, or `""`."""
    return getattr(getattr(jaxpr, "debug_info", None), "func_src_info", None) or ""


def aval_of(x: Any) -> Any:
    """Return the abstract value of an array, a tracer, a Python scalar or a `jax.ShapeDtypeStruct`; hashable."""
    aval = getattr(x, "aval", None)  # at hand in arrays and tracers; every call of a planned gradient comes here
    if aval is not None:
        return aval
    if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is None and x.manual_axis_type is None:
        return core.ShapedArray(x.shape, x.dtype, weak_type=x.weak_type)
    if isinstance(x, jax.ShapeDtypeStruct):
        return ("struct", x.shape, x.dtype, x.weak_type, x.sharding, x.manual_axis_type)
    return jax.typeof(x)


def zero_tangent(x: Any) -> Any:
    """Return the zero tangent of an array, of dtype float0 where it is not of floating-point or complex dtype."""
    dtype = getattr(x, "dtype", None) or jnp.result_type(x)
    return zeros_of(x) if jnp.issubdtype(dtype, jnp.inexact) else np.zeros(jnp.shape(x), jax.dtypes.float0)


def tangent_aval(aval: Any) -> Any:
    """Return the abstract value of the tangent of an array; its dtype is float0 where that has none."""
    return aval.to_tangent_aval()


def batch_jaxpr(closed: Any, axis: Any, dims: Sequence[int | None]) -> tuple[Any, Sequence[int | None]]:
    """Return a closed jaxpr over a batch, as a rule for `vmap` is given it, and the batch dimensions of its results.

    Args:
      closed: The closed jaxpr.
      axis: What `vmap` knows of the axis: size, name, place on a mesh.
      dims: Batch dimension of each input, or None.
    """
    return _batching.batch_jaxpr2(closed, axis, tuple(dims))


def batched(
    fun: Callable[..., Sequence[Any]],
    avals: Sequence[Any],
    axis: Any,
    dims: Sequence[int | None],
    out_dims: Sequence[int | None],
    sums: bool = False,
) -> Callable[..., list[Any]]:
    """Return a function over a batch, traced when it is first called.

    Args:
      fun: The function.
      avals: Abstract values of its arguments without batch dimension.
      axis: What `vmap` knows of the axis.
      dims: Batch dimension of each argument, or None.
      out_dims: Batch dimension that each result is to have, or None.
      sums: Whether a result that is to have none, and has one, is summed over it.
    """

    @functools.cache
    def traced() -> tuple[Callable[..., list[Any]], Sequence[int | None]]:
        with _core.extend_axis_env_nd([(axis.name, axis.size)]):
            closed = jax.make_jaxpr(fun)(*map(struct_of, avals))
        over_batch, found = batch_jaxpr(closed, axis, dims)
        return jaxpr_as_fun(over_batch), found

    def run(*args: Any) -> list[Any]:
        over_batch, found = traced()
        matched = zip(over_batch(*args), found, out_dims, strict=True)
        return [_batching.matchaxis(axis, d, wanted, x, sum_match=sums) for x, d, wanted in matched]

    return run


def first_of_batch(axis: Any, x: Any) -> Any:
    """Return a batch, along its first dimension, of an array and zeros."""
    return jax.lax.pad(x[None], jnp.zeros((), x.dtype), [(0, axis.size - 1, 0), *[(0, 0, 0)] * x.ndim])


def is_tracer(x: Any) -> bool:
    """Return whether `x` is a value of a trace that is under way."""
    return isinstance(x, core.Tracer)


def struct_of(aval: Any) -> jax.ShapeDtypeStruct:
    """Return the shape, dtype, sharding and varying axes of an abstract value as an example argument."""
    if not is_sharded(aval):
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        weak_type=aval.weak_type,
        sharding=aval.sharding,
        manual_axis_type=aval.manual_axis_type,
    )


def is_sharded(aval: Any) -> bool:
    """Return whether an abstract value says how it is laid out on a mesh of devices."""
    sharding = getattr(aval, "sharding", None)
    return sharding is not None and not sharding.mesh.empty


def without_sharding(aval: Any) -> Any:
    """Return an abstract value of the same shape and dtype that says nothing of shardings and mapped axes."""
    return core.ShapedArray(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def is_inexact(aval: Any) -> bool:
    """Return whether an abstract value is of floating-point or complex dtype."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Return how many constants and carries an equation of `scan` has."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.12
    return len(consts), len(carry)


def out_avals(fun: Any, avals: Iterable[Any]) -> list[Any]:
    """Return the abstract values of what a function of arrays returns."""
    return list(jax.make_jaxpr(fun)(*map(struct_of, avals)).out_avals)


def zeros_of(x: Any) -> Any:
    """Return zeros of the shape, dtype, sharding and varying axes of an array or an abstract value; keys of zeros."""
    aval = x if isinstance(x, core.ShapedArray) else jax.typeof(x)
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=aval.dtype._impl.name)
    return _ad_util.zeros_like_aval(aval)
