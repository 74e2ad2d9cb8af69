"""How far predictions have been off, and the margin that budgets in bytes take from it.

Where a prediction is too small, it is nearly always by one buffer: a value of which XLA keeps a second copy, or keeps
it for longer. So programs of many small values are predicted within some per cent, and those of few large ones may be
off by a third. The record, by `python -m benchmarks.margins`, is the multiple of the largest value, and the share of
the prediction, of which 19 plans of 20 exceeded their prediction by no more than the smaller one.
"""

from __future__ import annotations

from tiny_backprop.graph import Graph
from tiny_backprop.predict.backends import compiler_of


def recorded_margin(graph: Graph, budget_bytes: int) -> float:
    """Return by which share of its prediction a plan for a budget may be expected to take more, in 19 cases of 20.

    Args:
      graph: A gradient graph; for one made by hand, whose bytes are what they are, it is 0.
      budget_bytes: The budget.
    """
    if not graph.backend or budget_bytes <= 0:
        return 0.0
    record = compiler_of(graph.backend, graph.jax_version).margin
    rest = budget_bytes - record.values * largest_value_bytes(graph)
    return min(record.share, budget_bytes / rest - 1) if rest > 0 else record.share


def largest_value_bytes(graph: Graph) -> int:
    """Return the bytes of the largest value that a node makes, in a step of a loop too; what loops stack up apart."""
    nested = {i for n in graph.nested for i in (n.forward_node, n.backward_node)}
    starts, n_bytes = graph.output_start.tolist(), graph.value_bytes
    own = [int(n_bytes[starts[i] : starts[i + 1]].max(initial=0)) for i in range(graph.n_nodes) if i not in nested]
    return max([0, *own, *(largest_value_bytes(body) for n in graph.nested for body in n.bodies)])
