"""From an order of steps to a plan: every value is freed right after the last step that reads it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.simulate import Op
from tiny_backprop.schedule.steps import lives


def schedule(graph: Graph, steps: np.ndarray, meta: dict[str, Any]) -> Plan:
    """Turn the order in which nodes run into a plan.

    A value that is made several times lives, each time, until the last step that reads it before it is made anew; what
    the program returns lives to the end. Forward values alive when the backward phase begins are saved. O(n log n) in
    the number of steps and reads.

    Args:
      graph: Any graph.
      steps: Nodes in the order in which they run, forward nodes possibly several times; int64 of shape (n_steps,).
      meta: Kept as the plan's `meta`.

    Returns:
      The plan, played by the referee.

    Raises:
      IllegalPlanError: A step reads a value that no earlier step makes.
    """
    steps = np.asarray(steps, np.int64)
    n = len(steps)
    backward = graph.is_backward[steps]
    kinds = np.where(backward, Op.BACKWARD, Op.RECOMPUTE)
    first = np.unique(steps, return_index=True)[1]
    kinds[first[~backward[first]]] = Op.RUN
    made, made_at, last = lives(graph, steps)
    kept = last == n
    border = int(np.flatnonzero(backward)[0]) if backward.any() else n
    saved = (made_at < border) & (last >= border) & (last < n)  # the function's own outputs too, where made again
    saved |= kept & (made_at < border) & np.isin(made, graph.residuals)
    saved &= border < n

    # Each step is followed by the saving of what it made and by the freeing of what it read last.
    freed = last < n
    slots = np.r_[np.arange(n), made_at[saved], last[freed]]
    ops = np.r_[kinds, np.full(saved.sum(), Op.SAVE), np.full(freed.sum(), Op.FREE)]
    targets = np.r_[steps, made[saved], made[freed]]
    rank = np.r_[np.zeros(n, int), np.ones(saved.sum(), int), np.full(freed.sum(), 2)]
    order = np.argsort(slots * 3 + rank, kind="stable")
    return Plan.from_actions(graph, ops[order].astype(np.uint8), targets[order], meta)
