"""What every planner asks of its arguments."""

from __future__ import annotations

import numbers
from typing import Any

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph


def check_count(name: str, value: Any) -> int:
    """Return `value` as an int, or raise PlanError naming the argument unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise PlanError(f"{name} must be a whole number of at least 1; found {value!r}")
    return int(value)


def check_gradient(graph: Graph) -> None:
    """Raise PlanError unless `graph` is a gradient graph."""
    if not isinstance(graph, Graph):
        raise PlanError(
            f"a plan needs a Graph; found {type(graph).__name__}. Capture one: capture_gradient(fun, *args)"
        )
    if not graph.n_backward:
        raise PlanError(
            f"a plan needs the backward phase; the graph {graph.name!r} has {graph.n_nodes} forward nodes alone. "
            "Capture the gradient with capture_gradient(fun, *args)."
        )
