"""Schedules in blocks: cut the forward phase into blocks, save what crosses, recompute the rest.

All of them are one: a balanced tree of intervals over blocks. With one level it is checkpointing in blocks (Chen et al.
2016, arXiv:1604.06174); with k levels a block's recomputation is itself checkpointed, which for a chain of n equal
nodes takes about k * n ** (1 / (k + 1)) values and k forward passes (Griewank & Walther 2000,
doi:10.1145/347837.347846, give the binomial optimum).

A known weakness: everything that crosses a cut is saved, and everything else recomputed, whatever either costs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import NEVER, crossing_bytes, first_backward_read
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.loops.nested import as_jax_has_it, by_choice, keeping_everything
from tiny_backprop.predict.allocation import JAX_GRADIENT, predicted_peak_bytes
from tiny_backprop.schedule.checkpointed import jax_schedule
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.schedule.steps import Rerun

_OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def save_everything(graph: Graph) -> Schedule:
    """Return the schedule that runs every node once, in order, and keeps every residual: what `jax.grad` does."""
    return Schedule.from_steps(keeping_everything(graph), np.arange(graph.n_nodes), {"strategy": "save everything"})


def jax_gradient(graph: Graph) -> Schedule:
    """Return the schedule of JAX's own gradient, which runs as JAX has it, the user's `jax.checkpoint` included."""
    graph = as_jax_has_it(graph)
    return Schedule.from_steps(graph, jax_schedule(graph).steps, {"strategy": JAX_GRADIENT})


def block_starts(graph: Graph, block_size: int) -> np.ndarray:
    """Return the first node of each block: multiples of `block_size`, each moved to where fewest bytes cross nearby.

    Args:
      graph: Any graph.
      block_size: Forward nodes per block; a cut moves by at most a quarter of it.

    Returns:
      Increasing int64 array whose first entry is 0.
    """
    n, slack = graph.n_forward, block_size // 4
    crossing = crossing_bytes(graph, graph.feeds_backward)
    starts = [0]
    for nominal in range(block_size, n, block_size):
        low, high = max(nominal - slack, starts[-1] + 1), min(nominal + slack, n - 1)
        window = crossing[low : high + 1]
        cheapest = low + np.flatnonzero(window == window.min())
        starts.append(int(cheapest[np.abs(cheapest - nominal).argmin()]))
    return np.array(starts, np.int64)


def best_tree(
    graph: Graph,
    levels: int,
    octaves: Sequence[float] = _OCTAVES,
    loops: LoopChoice | None = None,
    peak_bytes: Callable[[Schedule], int] = predicted_peak_bytes,
) -> Schedule:
    """Return the tree with the smallest predicted peak over some block sizes; within 2 % of it, what recomputes least.

    Args:
      graph: A gradient graph.
      levels: Height of the tree of blocks, 1 or more.
      octaves: The block sizes to try, as powers of two times n_forward ** (1 / (levels + 1)), the best size for a chain
        of equal nodes.
      loops: How loops are reversed; by default no step runs again more than `levels` times.
      peak_bytes: Returns the peak of a schedule.

    Returns:
      The schedule.
    """
    found = [make() for make in tree_makers(graph, levels, octaves, loops)]
    priced = [(peak_bytes(x), x) for x in found]
    good_bytes = 1.02 * min(n_bytes for n_bytes, _ in priced)
    return min((c for c in priced if c[0] <= good_bytes), key=lambda c: (c[1].recompute_flops, c[0]))[1]


def tree_makers(
    graph: Graph, levels: int, octaves: Sequence[float] = _OCTAVES, loops: LoopChoice | None = None
) -> list[Callable[[], Schedule]]:
    """Return what makes trees for some block sizes; see `best_tree`."""
    graph = by_choice(graph, loops or LoopChoice(levels=levels))
    ideal = graph.n_forward ** (1 / (levels + 1))
    sizes = sorted({max(1, min(graph.n_forward, round(ideal * 2**e))) for e in octaves})
    strategy = "blocks" if levels == 1 else "height compression"
    return [functools.partial(tree_of_blocks, graph, size, levels, {"strategy": strategy}) for size in sizes]


def tree_of_blocks(graph: Graph, block_size: int, levels: int, meta: dict[str, Any]) -> Schedule:
    """Return the schedule of a balanced tree of intervals over blocks; see `plan_height_compressed`.

    Args:
      graph: A gradient graph, its loops planned.
      block_size: Forward nodes per leaf.
      levels: Height of the tree.
      meta: Kept in the schedule's `meta`, beside `block_size`, `levels` and `n_blocks`.
    """
    starts = block_starts(graph, block_size)
    meta = {**meta, "block_size": block_size, "levels": levels, "n_blocks": len(starts)}
    useful_levels = min(levels, max(1, math.ceil(math.log2(len(starts)))))  # a binary tree has no more
    return Schedule.from_steps(graph, _Tree(graph, starts, useful_levels).steps(), meta)


class _Tree:
    """Lists the steps of a gradient whose forward phase is checkpointed over a tree of intervals.

    A group of level 0 is the whole forward phase, of level `levels` one block. To *open* a group is to make the values
    that cross between its children, from values that cross between larger groups; to open a block is to make its
    residuals. The forward phase leaves the last group of every level open, since its values are there when the backward
    phase begins.
    """

    def __init__(self, graph: Graph, starts: np.ndarray, levels: int):
        self.graph = graph
        n_blocks = len(starts)
        branching = max(2, math.ceil(n_blocks ** (1 / levels) - 1e-9))
        block_of_node = np.searchsorted(starts, np.arange(graph.n_forward), side="right") - 1
        # groups[l][b]: the group of level l that block b is in; the last level is the block itself.
        sizes = [max(1, branching ** (levels - level)) for level in range(levels + 1)]
        blocks = np.arange(n_blocks)
        self.groups = [np.zeros(n_blocks, np.int64), *(blocks // s for s in sizes[1:-1]), blocks]
        self.first_read = first_backward_read(graph)
        self.block_of_value = np.full(graph.n_values, -1, np.int64)
        forward = slice(graph.n_inputs, int(graph.output_start[graph.n_forward]))
        self.block_of_value[forward] = block_of_node[graph.value_node[forward]]
        self.level = self._crossing_levels()
        self._sort_values()

    def _crossing_levels(self) -> np.ndarray:
        """Return the lowest level at which each value crosses between groups; `NEVER` where it stays in its block."""
        graph, block = self.graph, self.block_of_value
        node, value = graph.reads
        counted = (node < graph.n_forward) & graph.feeds_backward[node]
        last = block.copy()
        np.maximum.at(last, value[counted], block[graph.output_start[node[counted]]])
        crossing = np.full(graph.n_values, NEVER)
        made = np.flatnonzero(block >= 0)
        for level in range(len(self.groups) - 1, 0, -1):
            group = self.groups[level]
            crossing[made[group[block[made]] != group[last[made]]]] = level
        crossing[self._read_early() | self._made_once(made)] = 1
        return crossing

    def _read_early(self) -> np.ndarray:
        """Return which residuals the backward phase reads before it comes to their block; they are saved.

        Comes to: half of the residuals of a later block have not yet been read for the first time.
        """
        block, first = self.block_of_value, self.first_read
        residuals = self.graph.residuals
        order = residuals[np.lexsort((first[residuals], block[residuals]))]
        if not len(order):
            return np.zeros(self.graph.n_values, bool)
        starts = np.flatnonzero(np.r_[True, np.diff(block[order]) > 0])
        middle = (starts + np.r_[starts[1:], len(order)]) // 2
        turn = np.full(len(self.groups[-1]) + 1, -1, np.int64)
        turn[block[order[starts]]] = first[order[middle]]
        latest_after = np.maximum.accumulate(turn[::-1])[::-1]
        early = np.zeros(self.graph.n_values, bool)
        early[residuals] = first[residuals] < latest_after[block[residuals] + 1]
        return early

    def _made_once(self, made: np.ndarray) -> np.ndarray:
        """Return which values come from a node with an effect; it cannot run again, so they are saved."""
        once = np.zeros(self.graph.n_values, bool)
        once[made] = self.graph.has_effect[self.graph.value_node[made]]
        return once

    def _sort_values(self) -> None:
        """List, for each group, the values that opening it makes, and note for each value the level of that group."""
        levels = len(self.groups) - 1
        self.opened_by = np.where((self.level > 1) & (self.level < NEVER), self.level - 1, -1)
        in_block = (self.first_read < NEVER) & (self.level == NEVER) & (self.block_of_value >= 0)
        self.opened_by[in_block] = levels
        self.targets: dict[tuple[int, int], list[int]] = {}
        for level in range(1, levels + 1):
            values = np.flatnonzero(self.opened_by == level)
            for v, g in zip(values.tolist(), self.groups[level][self.block_of_value[values]].tolist(), strict=True):
                self.targets.setdefault((level, g), []).append(v)

    def steps(self) -> np.ndarray:
        """Return the nodes in the order in which they run."""
        graph, levels = self.graph, len(self.groups) - 1
        self.rerun = Rerun(graph)
        last_block = len(self.groups[-1]) - 1
        self.open = {(level, int(self.groups[level][last_block])) for level in range(levels + 1)}
        for i, (depth, block) in self._needs():
            if i > graph.n_forward:
                break
            self.open |= {(level, int(self.groups[level][block])) for level in range(depth + 1)}
        wanted = set(np.flatnonzero(self.level == 1).tolist())
        for key in self.open:
            wanted.update(self.targets.get(key, ()))
        border = int(graph.output_start[graph.n_forward])
        wanted.update(v for v in graph.outputs.tolist() if graph.n_inputs <= v < border)
        effects = np.flatnonzero(graph.has_effect[: graph.n_forward]).tolist()
        out, out_upto = self.rerun.make(wanted, effects), graph.n_forward
        for i, (depth, block) in self._needs():
            while out_upto < i:
                out.append(out_upto)
                out_upto += 1
            self._open(depth, block, out)
        out.extend(range(out_upto, graph.n_nodes))
        return np.array(out, np.int64)

    def _needs(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield, in order, which backward node reads a residual that some group makes: its level and its block."""
        graph = self.graph
        node, value = graph.reads
        lazily = (node >= graph.n_forward) & (self.opened_by[value] >= 0)
        nodes, values = node[lazily], value[lazily]
        keys = zip(self.opened_by[values].tolist(), self.block_of_value[values].tolist(), strict=True)
        yield from zip(nodes.tolist(), keys, strict=True)

    def _open(self, depth: int, block: int, out: list[int]) -> None:
        """Open the groups that a block is in, from the largest down to those of level `depth`."""
        if (depth, int(self.groups[depth][block])) in self.open:
            return
        for level in range(depth + 1):
            key = (level, int(self.groups[level][block]))
            if key not in self.open:
                self.open.add(key)
                out += self.rerun.make(self.targets.get(key, ()))
