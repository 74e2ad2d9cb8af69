"""`Gradient`: what is explored. Its graph at any sizes, what is compiled for a plan, the Python that makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import Call, check_donate_argnums
from tiny_backprop.integration.jax.capture.capture import capture_gradient
from tiny_backprop.integration.jax.capture.symbolic import capture_symbolic_gradient, has_symbolic_dimensions
from tiny_backprop.integration.jax.run.gradient import height_compressed_value_and_grad
from tiny_backprop.plan.plan import Plan
from tiny_backprop_widgets.background.compiling import Program

_DEFAULTS = {"argnums": 0, "has_aux": False, "donate_argnums": ()}


class Gradient:
    """The gradient of a function, captured once, or a gradient graph alone.

    Attributes:
      is_function: Whether there is a function, which can be compiled.
      example_sizes: Sizes of the symbolic dimensions to begin with; empty where there are none.

    Raises:
      PlanError: `graph_or_fun` is neither a graph nor a function, or a graph that comes with arguments.
      CaptureError: The function cannot be differentiated.
    """

    def __init__(
        self,
        graph_or_fun: Graph | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ):
        """Capture the gradient; `options` are `argnums`, `has_aux` and `donate_argnums`."""
        self._fun, self._args, self._kwargs, self._options = graph_or_fun, args, kwargs, options
        self.is_function = not isinstance(graph_or_fun, Graph)
        self._symbolic, self.example_sizes = None, {}
        if callable(graph_or_fun) and has_symbolic_dimensions((args, kwargs)):
            self._symbolic = capture_symbolic_gradient(graph_or_fun, *args, **options, **kwargs)
            self.example_sizes = self._symbolic.example_sizes()
        else:
            self._graph = _graph(graph_or_fun, args, options, kwargs)

    def graph_at(self, sizes: Mapping[str, int]) -> Graph:
        """Return the graph, its symbolic dimensions at these sizes."""
        return self._graph if self._symbolic is None else self._symbolic.at(**sizes)

    def checked(self, sizes: Mapping[str, Any]) -> Mapping[str, int]:
        """Return sizes of the symbolic dimensions as whole numbers; raise CaptureError where they cannot be."""
        assert self._symbolic is not None
        return self._symbolic.checked(dict(sizes))

    def program(self, plan: Plan, sizes: Mapping[str, int]) -> Program:
        """Return what to compile for a plan: a function of lists of arrays, and those; the rest are constants of it."""
        args, kwargs = self._args, self._kwargs
        if self._symbolic is not None:
            args, kwargs = self._symbolic.args_at(**sizes)
        assert callable(self._fun)
        planned = height_compressed_value_and_grad(self._fun, plan=plan, **self._options, on_error="raise")
        leaves, tree = jax.tree.flatten((args, kwargs))
        call = Call.of(self._fun, args, kwargs, self._options["argnums"])
        donated = {call.traced[i] for i in check_donate_argnums(call, self._options["donate_argnums"])}
        given, others = [[i for i in call.traced if (i in donated) is which] for which in (True, False)]

        def gradient(given_arrays: list[Any], other_arrays: list[Any]) -> Any:
            arrays = zip([*given, *others], [*given_arrays, *other_arrays], strict=True)
            filled = dict(enumerate(leaves)) | dict(arrays)
            a, k = jax.tree.unflatten(tree, filled.values())
            return planned(*a, **k)

        return gradient, [leaves[i] for i in given], [leaves[i] for i in others]

    def code(self, plan: Plan, sizes: Mapping[str, int]) -> str:
        """Return lines of Python that make a plan, and run it; the function is the caller's."""
        meta = plan.meta
        size, levels = meta.get("block_size"), meta.get("levels")
        if "budget" in meta:
            planner, call = "plan_budget", f"plan_budget(graph, {meta['budget']!r})"
        elif meta["strategy"] == "blocks":
            planner, call = "plan_blocks", f"plan_blocks(graph, block_size={size})"
        else:
            planner = "plan_height_compressed"
            call = f"{planner}(graph, levels={levels}, block_size={size})"
        if not self.is_function:
            return f"from tiny_backprop import {planner}\n\nplan = {call}"
        capture, at = "capture_gradient", ""
        if self._symbolic is not None:
            capture, at = "capture_symbolic_gradient", f".at({', '.join(f'{k}={n}' for k, n in sizes.items())})"
        names = ", ".join([capture, "height_compressed_value_and_grad", planner])
        given, run = self._lines()
        lines = [f"graph = {capture}({given}){at}", f"plan = {call}", run]
        return "\n".join([f"from tiny_backprop import {names}", "", *lines])

    def _lines(self) -> tuple[str, str]:
        """Return what is given to the function that captures, and the line that runs a plan."""
        name = getattr(self._fun, "__name__", "")
        name = name if name.isidentifier() else "fun"
        said = [f"{k}={v!r}" for k, v in self._options.items() if v != _DEFAULTS[k]]
        given = [name, "*args", *said, *(["**kwargs"] if self._kwargs else [])]
        run = f"value_and_grad = height_compressed_value_and_grad({', '.join([name, 'plan=plan', *said])})"
        return ", ".join(given), run


def _graph(graph_or_fun: Any, args: tuple[Any, ...], options: Mapping[str, Any], kwargs: dict[str, Any]) -> Graph:
    """Return the gradient graph."""
    if isinstance(graph_or_fun, Graph):
        if args or kwargs:
            raise PlanError(
                f"PlanExplorer(graph) takes no further arguments; found {len(args)} positional and {sorted(kwargs)}. "
                "Give it either a graph or a function with its example arguments."
            )
        return graph_or_fun
    if not callable(graph_or_fun):
        raise PlanError(
            f"PlanExplorer needs a gradient graph, or a function and its example arguments; found "
            f"{type(graph_or_fun).__name__}. Try PlanExplorer(capture_gradient(fun, *args))."
        )
    return capture_gradient(graph_or_fun, *args, **options, **kwargs)
