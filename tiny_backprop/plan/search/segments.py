"""The forward phase cut into blocks, and which part of the backward phase belongs to each.

The backward phase goes through the blocks from the last to the first. The *window* of a block is the run of backward
nodes from the first that reads what it makes or is given by the block before it (early reads apart) to where the window
of the block before it begins.
A value *crosses* a cut when it is made before the cut and needed after it: read by a forward node that may be
recomputed, or by a backward node in the window of a later block.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import NEVER, crossing_bytes, first_backward_read, live_ranges


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """Blocks of a gradient graph.

    Attributes:
      graph: The gradient graph.
      starts: First node of each block, int64 of shape (n_blocks,), increasing from 0. The last block may be empty: then
        its window reads what the last node makes.
    """

    graph: Graph
    starts: np.ndarray

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.starts)

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """First node of each block, and at the end the number of forward nodes."""
        return np.append(self.starts, self.graph.n_forward)

    @functools.cached_property
    def value_block(self) -> np.ndarray:
        """The block that makes each forward value, -1 for all others; int64 of shape (n_values,)."""
        graph = self.graph
        block = np.full(graph.n_values, -1, np.int64)
        forward = slice(graph.n_inputs, int(graph.output_start[graph.n_forward]))
        block[forward] = np.searchsorted(self.starts, graph.value_node[forward], side="right") - 1
        return block

    @functools.cached_property
    def window_starts(self) -> np.ndarray:
        """The backward node with which each block's window begins; not increasing with the block."""
        graph = self.graph
        first = first_backward_read(graph)
        residuals = graph.residuals
        # What the next block reads belongs there: it is that block's input, and there when its window runs.
        is_given = (self._read_until > self.value_block) | np.isin(graph.value_node, self.bounds[1:] - 1)
        block = np.minimum(self.value_block + is_given, self.n_blocks - 1)
        # A block has its turn when half of its residuals have been read; what is read before the turn of the block
        # after it is read early.
        order = residuals[np.lexsort((first[residuals], block[residuals]))]
        turn = np.full(self.n_blocks + 1, graph.n_forward, np.int64)
        starts = turn.copy()
        if len(order):
            at = np.flatnonzero(np.r_[True, np.diff(block[order]) > 0])
            middle = (at + np.r_[at[1:], len(order)]) // 2
            turn[block[order[at]]] = first[order[middle]]
            turn = np.maximum.accumulate(turn[::-1])[::-1]
            in_turn = residuals[first[residuals] >= turn[block[residuals] + 1]]
            starts[:] = NEVER
            np.minimum.at(starts, block[in_turn], first[in_turn])
            # A block of which nothing is read has an empty window, just before that of the block before it.
            empty = starts == NEVER
            starts = np.minimum.accumulate(np.where(empty, graph.n_nodes, starts))
        starts = np.maximum.accumulate(starts[:-1][::-1])[::-1]
        starts[-1] = graph.n_forward
        return starts

    @functools.cached_property
    def node_window(self) -> np.ndarray:
        """The block in whose window each backward node lies; int64 of shape (n_backward,)."""
        nodes = np.arange(self.graph.n_forward, self.graph.n_nodes)
        # Of blocks whose windows begin with the same node, the first takes it.
        later = np.searchsorted(self.window_starts[::-1], nodes, side="right")
        return self.n_blocks - later

    @functools.cached_property
    def _read_until(self) -> np.ndarray:
        """The last block whose recomputation reads each forward value, at least its own; -1 for all others."""
        node, value = self.graph.reads
        forward = (node < self.graph.n_forward) & self.graph.feeds_backward[node]
        block_of_node = np.searchsorted(self.starts, np.arange(self.graph.n_forward), side="right") - 1
        last = self.value_block.copy()
        np.maximum.at(last, value[forward], block_of_node[node[forward]])
        return last

    @functools.cached_property
    def needed_until(self) -> np.ndarray:
        """The last block that needs each forward value, at least its own; -1 for all others; int64 (n_values,)."""
        graph = self.graph
        node, value = graph.reads
        last = self._read_until.copy()
        backward = (node >= graph.n_forward) & (self.value_block[value] >= 0)
        np.maximum.at(last, value[backward], self.node_window[node[backward] - graph.n_forward])
        return last

    @functools.cached_property
    def is_required(self) -> np.ndarray:
        """Whether the window of a value's own block, or a later part of the backward phase, reads it; (n_values,)."""
        graph = self.graph
        node, value = graph.reads
        block = self.value_block
        read = (node >= graph.n_forward) & (block[value] >= 0)
        node, value = node[read], value[read]
        required = np.zeros(graph.n_values, bool)
        required[value[self.node_window[node - graph.n_forward] <= block[value]]] = True
        return required

    @functools.cached_property
    def required_values(self) -> list[list[int]]:
        """The values of each block that are required; see `is_required`."""
        lists: list[list[int]] = [[] for _ in range(self.n_blocks)]
        values = np.flatnonzero(self.is_required)
        for v, b in zip(values.tolist(), self.value_block[values].tolist(), strict=True):
            lists[b].append(v)
        return lists

    def crossing_values(self, s: int, c: int, t: int) -> list[int]:
        """Return, in order, the values that blocks s to c - 1 make and blocks c to t need."""
        if (s, c, t) not in self._crossing_values:
            made, by, value = self._needs
            here = (made >= s) & (made < c) & (by >= c) & (by <= t)
            self._crossing_values[s, c, t] = np.unique(value[here]).tolist()
        return self._crossing_values[s, c, t]

    @functools.cached_property
    def _crossing_values(self) -> dict[tuple[int, int, int], list[int]]:
        return {}

    @functools.cached_property
    def _needs(self) -> np.ndarray:
        """Who needs a value of an earlier block: rows of block that makes it, block that needs it, value."""
        graph, block = self.graph, self.value_block
        node, value = graph.reads
        is_forward = node < graph.n_forward
        by = np.where(
            is_forward,
            block[graph.output_start[np.minimum(node, graph.n_forward)]],
            self.node_window[np.maximum(node - graph.n_forward, 0)],
        )
        pairs = (~is_forward | graph.feeds_backward[node]) & (block[value] >= 0) & (by > block[value])
        return np.unique(np.stack([block[value[pairs]], by[pairs], value[pairs]], 1), axis=0).T

    @functools.cached_property
    def is_kept(self) -> np.ndarray:
        """Whether a forward value is alive to the end or cannot be made again, so that no plan chooses; (n_values,)."""
        graph = self.graph
        kept = np.zeros(graph.n_values, bool)
        kept[graph.outputs[graph.outputs >= 0]] = True
        made = self.value_block >= 0
        kept[made] |= graph.has_effect[graph.value_node[made]]
        return kept & made

    @functools.cached_property
    def crossing(self) -> np.ndarray:
        """Bytes made in blocks s to c - 1 and needed in block c or later, int64 [s, c] of shape (n + 1, n + 1)."""
        n = self.n_blocks
        made = np.flatnonzero((self.value_block >= 0) & ~self.is_kept)
        table = np.zeros((n + 1, n + 1), np.int64)
        np.add.at(table, (self.value_block[made], self.needed_until[made]), self.graph.value_bytes[made])
        later = np.cumsum(table[:, ::-1], axis=1)[:, ::-1]  # [b, c]: made in b, needed in c or later
        upto = np.cumsum(later, axis=0)
        crossing = np.zeros((n + 1, n + 1), np.int64)
        for c in range(1, n):
            before = np.r_[0, upto[: c - 1, c]] if c > 1 else np.zeros(1, np.int64)
            crossing[:c, c] = upto[c - 1, c] - before
        return crossing

    @functools.cached_property
    def backward_live(self) -> np.ndarray:
        """Live bytes that no plan chooses, at each backward node: what it and others made, kept and late-read values.

        A value is read late when the backward phase reads it after the window of its block. int64 (n_backward,).
        """
        graph = self.graph
        first, last = live_ranges(graph)
        delta = np.zeros(graph.n_nodes + 1, np.int64)
        backward = np.arange(graph.output_start[graph.n_forward], graph.n_values)
        np.add.at(delta, first[backward], graph.value_bytes[backward])
        np.add.at(delta, last[backward] + 1, -graph.value_bytes[backward])
        kept = np.flatnonzero(self.is_kept)
        delta[0] += graph.value_bytes[kept].sum()
        window_ends = np.append(graph.n_nodes, self.window_starts[:-1])
        late = np.flatnonzero((self.value_block >= 0) & ~self.is_kept)
        late = late[last[late] >= window_ends[self.value_block[late]]]
        np.add.at(delta, window_ends[self.value_block[late]], graph.value_bytes[late])
        np.add.at(delta, last[late] + 1, -graph.value_bytes[late])
        return np.cumsum(delta)[graph.n_forward : graph.n_nodes]


def cheap_cuts(graph: Graph, n_blocks: int) -> np.ndarray:
    """Return the first node of about `n_blocks` blocks, cut where few bytes cross.

    Cuts are taken from the cheapest up; each keeps its distance from those before it, in bytes of what the forward
    phase makes, so that blocks are of like size.

    Args:
      graph: A gradient graph.
      n_blocks: Most blocks to make, 1 or more.

    Returns:
      Increasing int64 array whose first entry is 0. It ends with the number of forward nodes, an empty block, where the
      backward phase reads what the last of them makes.
    """
    n = graph.n_forward
    if not n:
        return np.zeros(1, np.int64)
    crossing = crossing_bytes(graph, graph.feeds_backward)
    made = np.where(graph.feeds_backward[:n], graph.node_bytes[:n], 0).astype(float)
    position = np.r_[0.0, np.cumsum(made + made.mean() / 8)]
    total = position[-1]
    last = graph.value_node[graph.residuals].max(initial=-1) == n - 1
    end = [n] if last else []
    if n_blocks >= n:
        return np.array([*range(n), *end], np.int64)
    gap = total / n_blocks / 2
    taken = [0.0, total]
    starts = [0]
    candidates = 1 + np.lexsort((_spread(n)[1:], crossing[1:n]))
    is_open = np.ones(n + 1, bool)
    is_open[np.searchsorted(position, total - gap, side="right") :] = False
    is_open[: np.searchsorted(position, gap)] = False
    for c in candidates.tolist():
        if len(starts) == n_blocks:
            break
        if is_open[c]:
            starts.append(c)
            taken.append(position[c])
            low = np.searchsorted(position, position[c] - gap, side="right")
            high = np.searchsorted(position, position[c] + gap)
            is_open[low:high] = False
    return np.sort(np.array([*starts, *end], np.int64))


def _spread(n: int) -> np.ndarray:
    """Return ranks of 0 to n - 1 such that the first few lie far apart: their bits reversed (van der Corput)."""
    index, rank = np.arange(n), np.zeros(n, np.int64)
    for _ in range(max(1, (n - 1).bit_length())):
        rank = 2 * rank + index % 2
        index = index // 2
    return rank
