"""What XLA is predicted to allocate for a schedule: the one place that chooses how a schedule is run and by whom."""

from __future__ import annotations

import numpy as np

from tiny_backprop.fifo_cache import FifoCache
from tiny_backprop.graph import Graph
from tiny_backprop.predict.materialized import Materialized, by_liveness, materialize
from tiny_backprop.schedule.checkpointed import jax_schedule
from tiny_backprop.schedule.schedule import Schedule

JAX_GRADIENT = "jax.grad"
"""`Schedule.meta["strategy"]` of JAX's own gradient, which runs as it is: no hold, no loop of ours."""
_MOST_PREDICTIONS = 16


def allocation_of(schedule: Schedule) -> Materialized:
    """Return what is in memory over time, predicted; see `Plan.materialized`."""
    if not schedule.graph.backend:
        return by_liveness(schedule.graph, schedule.ops, schedule.targets, schedule.timeline)
    if schedule.meta.get("strategy") == JAX_GRADIENT:
        return predict_jax_allocation(schedule.graph)
    return predict_allocation(schedule.graph, schedule.steps)


def predicted_peak_bytes(schedule: Schedule) -> int:
    """Return the peak of temporaries and outputs, predicted; see `Plan.peak_bytes`."""
    return allocation_of(schedule).peak_bytes


def predict_allocation(graph: Graph, steps: np.ndarray) -> Materialized:
    """Return what XLA is predicted to allocate for a captured gradient; see `Plan.materialized`.

    The latest few predictions are kept with the graph: planners ask before there is a plan.

    Args:
      graph: A captured graph.
      steps: Nodes in the order in which they run.
    """

    def predict() -> Materialized:
        is_backward = graph.is_backward[steps]
        n_forward_steps = int(is_backward.argmax()) if is_backward.any() else len(steps)
        is_late = n_forward_steps < graph.n_forward  # some of the forward phase waits for the backward phase
        is_planned = len(steps) > graph.n_nodes or is_late or bool(graph.nested)
        return materialize(graph, steps, n_forward_steps, is_planned=is_planned, backend=graph.backend)

    return _known(graph).get(steps.tobytes(), predict)


def predict_jax_allocation(graph: Graph) -> Materialized:
    """Return what XLA is predicted to allocate for JAX's own gradient, whose loops are JAX's, too.

    Args:
      graph: A captured graph whose loops keep what JAX's own do; see `plan.loops.nested.as_jax_has_it`.
    """

    def predict() -> Materialized:
        as_jax = jax_schedule(graph)
        steps, n_forward_steps = as_jax.steps, as_jax.n_forward_steps
        return materialize(
            graph, steps, n_forward_steps, is_planned=False, backend=graph.backend, has_barriers=bool(as_jax.starts)
        )

    return _known(graph).get(JAX_GRADIENT, predict)


def _known(graph: Graph) -> FifoCache[Materialized]:
    return graph.memo.setdefault("predicted allocations", FifoCache(_MOST_PREDICTIONS))
