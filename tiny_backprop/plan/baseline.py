"""What JAX's own gradient takes: what every plan is held against."""

from __future__ import annotations

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.loops.nested import as_jax_has_it, keeping_everything
from tiny_backprop.predict.allocation import predict_allocation, predict_jax_allocation
from tiny_backprop.predict.materialized import Materialized


def predict_jax_gradient(graph: Graph) -> Materialized:
    """Return what XLA is predicted to allocate for JAX's own gradient, its loops and its `jax.checkpoint` included.

    Args:
      graph: A captured graph.
    """
    return predict_jax_allocation(as_jax_has_it(graph))


def live_bytes_of_everything(graph: Graph) -> np.ndarray:
    """Return the live bytes of save-everything, counted as `Plan.materialized` counts."""
    graph = keeping_everything(graph)
    return predict_allocation(graph, np.arange(graph.n_nodes)).live_bytes if graph.backend else frontier(graph)
