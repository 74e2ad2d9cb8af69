"""What every planner asks of its arguments."""

from __future__ import annotations

from typing import Any

from tiny_backprop.door import COUNT
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph


def check_count(name: str, value: Any) -> int:
    """Return `value` as an int, or raise PlanError naming the argument unless it is a whole number of at least 1."""
    COUNT.check(PlanError, name, value)
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
