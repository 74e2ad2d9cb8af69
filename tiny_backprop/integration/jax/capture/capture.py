"""Capture: turn a function, or its gradient, into a graph."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiny_backprop.door import FUNCTION, door
from tiny_backprop.errors import CaptureError, CotangentWarning
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import Call, check_argnums, check_donate_argnums
from tiny_backprop.integration.jax.capture.checkpoints import without_marks
from tiny_backprop.integration.jax.capture.inline import drop_dead, flatten
from tiny_backprop.integration.jax.capture.nested import with_nested_programs
from tiny_backprop.integration.jax.capture.trace import Program, build_graph, trace_function, trace_gradient


@door(CaptureError, fun=FUNCTION)
def capture_graph_jaxpr(
    fun: Callable[..., Any], example_inputs: Sequence[Any] | Mapping[str, Any] = (), **example_kwargs: Any
) -> Graph:
    """Capture a function, without its gradient, as a graph.

    Calls (`jit`, `checkpoint`, functions with custom derivatives) are inlined, and what no output needs is left out.
    Nothing is computed or allocated.

    Args:
      fun: Any function that JAX can trace.
      example_inputs: The positional arguments, or a mapping with the keyword arguments: arrays,
        `jax.ShapeDtypeStruct` objects, or pytrees of them.
      **example_kwargs: Keyword arguments, likewise.

    Returns:
      The graph; `graph.nodes` are its equations in execution order.

    Raises:
      CaptureError: `example_inputs` is neither a sequence nor a mapping.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = capture_graph_jaxpr(lambda x: jnp.tanh(jnp.sin(x)), example_inputs=(jnp.ones(4),))
      >>> [node.primitive for node in graph.nodes]
      ['sin', 'tanh']
    """
    if isinstance(example_inputs, Mapping):
        example_inputs, example_kwargs = (), {**example_inputs, **example_kwargs}
    elif not isinstance(example_inputs, (tuple, list)):
        raise CaptureError(
            "example_inputs must be a tuple of the positional arguments or a mapping of the keyword arguments; found "
            f"{type(example_inputs).__name__}. For one argument write example_inputs=(x,)."
        )
    call = Call.of(fun, example_inputs, example_kwargs)
    traced, *_ = trace_function(call)
    flat = flatten(traced.closed(), keep_custom_rules=False)
    eqns, _ = without_marks(drop_dead(flat.eqns, flat.outvars))
    inputs = [*flat.constvars, *flat.invars]
    n_hoisted = len(flat.constvars)
    names = [f"constant {i}" for i in range(n_hoisted + len(traced.constvars))] + call.argument_names()
    graph, _ = build_graph(call.name, eqns, len(eqns), inputs, names, flat.outvars, len(flat.outvars))
    return graph


@door(CaptureError, fun=FUNCTION)
def capture_gradient(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    **kwargs: Any,
) -> Graph:
    """Capture the forward and the backward phase of a function's gradient together, as a graph.

    The function may return any arrays, not only a scalar. Nothing is computed or allocated.

    Args:
      fun: A function that JAX can differentiate in reverse mode.
      *args: Positional arguments: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is not differentiated.
      donate_argnums: Which positional arguments the program that runs the gradient is given for its own use, as
        `jax.jit(jax.value_and_grad(fun), donate_argnums=...)` is; it changes what XLA is predicted to allocate.
      **kwargs: Keyword arguments; they are not differentiated.

    Returns:
      The gradient graph; arguments and constants are its inputs, and so are the cotangents.

    Raises:
      CaptureError: `argnums` or `donate_argnums` does not fit the arguments, an argument to differentiate by is not of
        floating-point or complex dtype, the function cannot be differentiated in reverse mode, or a dimension is
        symbolic (`capture_symbolic_gradient`).

    Warns:
      CotangentWarning: The function returns more than one array of floating-point or complex dtype, as a training step
        does: what is captured is the reverse pass from a cotangent for each of them.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = capture_gradient(lambda w, x: jnp.sum(jnp.sin(w @ x)), jnp.ones((4, 4)), jnp.ones(4))
      >>> graph.n_forward > 0 and graph.n_backward > 0
      True
    """
    call = Call.of(fun, args, kwargs, argnums)
    donated = check_donate_argnums(call, donate_argnums)
    program, _ = capture_program(call, check_argnums(call, argnums), has_aux=has_aux, donated=donated)
    n_cotangents = len(program.cotangent_of)
    if n_cotangents > 1:
        warnings.warn(
            f"the gradient of {call.name} was asked for, which returns {n_cotangents} arrays with a gradient (is it a "
            "training step?); jax.grad refuses it. Captured is its reverse pass from a cotangent for each. For the "
            "gradient of a loss, pass the loss alone, or return a pair and say has_aux=True.",
            CotangentWarning,
            stacklevel=3,
        )
    return program.graph


def capture_program(
    call: Call, positions: Sequence[int] | None, has_aux: bool = False, donated: Sequence[int] = ()
) -> tuple[Program, Sequence[Any]]:
    """Trace a call and its reverse pass, its loops ready to be planned; see `trace_gradient`.

    Args:
      call: The function and its arguments.
      positions: See `trace_gradient`.
      has_aux: See `trace_gradient`.
      donated: Which of `call.arrays` are donated.

    Raises:
      CaptureError: A dimension is symbolic, and for the reasons of `trace_gradient`.
    """
    symbolic = ", ".join(dict.fromkeys(map(str, call.symbolic_dimensions())))
    if symbolic:
        raise CaptureError(
            f"arguments of {call.name} have the symbolic dimensions {symbolic}; what is planned and run needs numbers. "
            f"capture_symbolic_gradient({call.name}, …).at(…) gives the graph for any sizes."
        )
    program, constants = trace_gradient(call, positions, has_aux, with_nested_programs)
    if donated:
        graph = dataclasses.replace(program.graph, donated=tuple(program.n_constants + i for i in donated))
        program = dataclasses.replace(program, graph=graph)
    return program, constants
