"""Equations collapsed by block.

Forward equations go by the plan's own blocks (merged where those are too many), backward equations by the block whose
residuals are read at that time. Without a plan, blocks are as small as the number of boxes allows: one equation each,
where that is possible.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.tree import block_starts


@dataclasses.dataclass(frozen=True)
class Groups:
    """Runs of consecutive nodes, the first `n_forward` of them forward.

    Attributes:
      graph: The graph.
      plan: The plan whose blocks they go by, or None.
      starts: The first node of each group.
      n_forward: How many groups are forward.
      of_node: The group of each node.
      n_merged: How many blocks of the plan make one forward group.
    """

    graph: Graph
    plan: Plan | None
    starts: np.ndarray
    n_forward: int
    of_node: np.ndarray
    n_merged: int

    @functools.cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The first node of each group, and one more than its last."""
        bounds = [*self.starts.tolist(), self.graph.n_nodes]
        return list(itertools.pairwise(bounds))


def group_by_block(graph: Graph, plan: Plan | None, max_boxes: int) -> Groups:
    """Return at most so many groups that a drawing of them, with what a plan saves, has `max_boxes` boxes."""
    n_merged = 1
    if plan is None and graph.n_nodes <= max_boxes:
        starts, n_forward = np.arange(graph.n_nodes), graph.n_forward
    else:
        forward, n_merged = _forward_starts(graph, plan, max_boxes // (2 if plan is None else 3))
        starts, n_forward = np.r_[forward, backward_starts(graph, forward)], len(forward)
    of_node = np.searchsorted(starts, np.arange(graph.n_nodes), side="right") - 1
    return Groups(graph, plan, starts, n_forward, of_node, n_merged)


def _forward_starts(graph: Graph, plan: Plan | None, n_most: int) -> tuple[np.ndarray, int]:
    """Return the first node of each forward group, at most `n_most`, and how many of the plan's blocks make one."""
    if not graph.n_forward:
        return np.zeros(0, np.int64), 1
    smallest = -(-graph.n_forward // n_most)
    block_size = plan.meta.get("block_size") if plan else None
    starts = block_starts(graph, block_size or smallest)
    n_merged = -(-len(starts) // n_most)
    return starts[::n_merged], n_merged


def backward_starts(graph: Graph, forward_starts: np.ndarray) -> np.ndarray:
    """Return the first node of each backward group: nodes go to the block whose residuals are being read then.

    Then: a block's time is the median, over its residuals, of the first backward read; halfway between the times of two
    blocks one group ends and the next begins. A few residuals that are read out of turn do not matter.
    """
    if not graph.n_backward:
        return np.zeros(0, np.int64)
    node, value = graph.reads
    is_residual_read = (node >= graph.n_forward) & (value < graph.output_start[graph.n_forward])
    residuals, at = np.unique(value[is_residual_read], return_index=True)
    first = node[is_residual_read][at]
    block = np.searchsorted(forward_starts, graph.value_node[residuals], side="right") - 1
    times = np.array([np.median(first[block == b]) for b in np.unique(block)[::-1]])
    times = np.maximum.accumulate(times) if len(times) else times
    borders = np.ceil((times[:-1] + times[1:]) / 2).astype(np.int64)
    return np.unique(np.r_[graph.n_forward, borders])
