"""Another order of the same nodes, where that lowers the frontier at no cost.

A node that makes more bytes than it frees is moved down to its first reader; one that frees more than it makes is moved
up to the last node that it reads from. Phases stay apart, and nodes with an effect stay where they are.

A known weakness: it is a heuristic of pairwise moves; the best order of a graph is NP-hard to find (Sethi 1975,
doi:10.1137/0204020, for the pebbling of DAGs).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from tiny_backprop.graph import LITERAL, Graph
from tiny_backprop.liveness import frontier
from tiny_backprop.schedule.simulate import ranges

_ROUNDS = 2
_LEAST_GAIN = 1e-3


def better_order(graph: Graph) -> np.ndarray | None:
    """Return an order of the nodes whose peak and mean live bytes are lower than those of the program's own.

    Args:
      graph: Any graph.

    Returns:
      The nodes in their new order, int64 of shape (n_nodes,), or None where none is found. O(n) in nodes and edges,
      times the number of rounds.
    """
    own = frontier(graph)
    if not len(own):
        return None
    best, best_price = None, (int(own.max()), float(own.mean()))
    order = _Order(graph)
    for _ in range(_ROUNDS):
        for move in (order.sink, order.rise):
            move()
            nodes = order.nodes()
            live = frontier(permuted(graph, nodes))
            price = (int(live.max()), float(live.mean()))
            if price[0] <= best_price[0] and price[1] <= best_price[1] * (1 - _LEAST_GAIN):
                best, best_price = nodes, price
    return best


def permuted(graph: Graph, order: np.ndarray) -> Graph:
    """Return the graph with its nodes in another order, in which no node may read a later one.

    Args:
      graph: Any graph.
      order: The nodes in their new order, forward nodes first.

    Returns:
      The graph; node i of it is node `order[i]` of `graph`. Values are numbered anew.

    Raises:
      GraphError: A node reads a later one.
    """
    order = np.asarray(order, np.int64)
    starts, ends = graph.output_start[order], graph.output_start[order + 1]
    old = np.concatenate([np.arange(graph.n_inputs), *map(np.arange, starts, ends)]).astype(np.int64)
    number = np.empty(graph.n_values + 1, np.int64)
    number[old] = np.arange(graph.n_values)
    number[LITERAL] = LITERAL  # the last entry
    bounds = graph.operand_start
    slots = ranges(bounds[order], np.diff(bounds)[order])
    indices, values, place = order.tolist(), old.tolist(), np.argsort(order)
    return dataclasses.replace(
        graph,
        primitives=tuple(graph.primitives[i] for i in indices),
        is_backward=graph.is_backward[order],
        flops=graph.flops[order],
        bytes_moved=graph.bytes_moved[order],
        rerun_flops=graph.rerun_flops[order],
        rerun_bytes_moved=graph.rerun_bytes_moved[order],
        has_effect=graph.has_effect[order],
        sources=tuple(graph.sources[i] for i in indices),
        scopes=tuple(graph.scopes[i] for i in indices),
        operand_start=np.r_[0, np.cumsum(np.diff(bounds)[order])],
        operands=number[graph.operands[slots]],
        relaid_operands=graph.relaid_operands[slots],
        output_start=graph.n_inputs + np.r_[0, np.cumsum(ends - starts)],
        value_shapes=tuple(graph.value_shapes[v] for v in values),
        value_dtypes=tuple(graph.value_dtypes[v] for v in values),
        value_bytes=graph.value_bytes[old],
        nested=tuple(
            dataclasses.replace(n, forward_node=int(place[n.forward_node]), backward_node=int(place[n.backward_node]))
            for n in graph.nested
        ),
        relaid_values=graph.relaid_values[old],
        outputs=number[graph.outputs],
    )


class _Order:
    """The nodes as a linked list with labels that say who comes first."""

    def __init__(self, graph: Graph):
        n = graph.n_nodes
        self.graph = graph
        self.after, self.before = [*range(1, n + 1), 0], [n, *range(n)]  # entry n is the list's head and end
        self.label = [float(i) for i in range(n)] + [float(n)]
        self.phase = graph.is_backward.tolist()
        self.is_fixed = graph.has_effect.tolist()
        self.made = graph.node_bytes.tolist()
        self.sizes = graph.value_bytes.tolist()
        self.makers = graph.value_node.tolist()
        node, value = graph.reads
        readers: list[list[int]] = [[] for _ in range(graph.n_values)]
        for i, v in zip(node.tolist(), value.tolist(), strict=True):
            readers[v].append(i)
        self.readers = readers
        starts = graph.output_start.tolist()
        self.outputs = [range(i, j) for i, j in itertools.pairwise(starts)]
        self.returned = set(graph.outputs.tolist())

    def nodes(self) -> np.ndarray:
        """Return the order."""
        end, out = len(self.phase), []
        i = self.after[end]
        while i != end:
            out.append(i)
            i = self.after[i]
        return np.array(out, np.int64)

    def sink(self) -> None:
        """Move nodes that make more than they free down to their first readers."""
        for i in self.nodes()[::-1].tolist():
            readers = [r for v in self.outputs[i] for r in self.readers[v]]
            if self.is_fixed[i] or not readers or self.made[i] <= self._freed(i):
                continue
            first = min(readers, key=self.label.__getitem__)
            if self.phase[first] == self.phase[i]:
                self._move(i, self.before[first], first)

    def rise(self) -> None:
        """Move nodes that free more than they make up to the last node that they read from."""
        for i in self.nodes().tolist():
            makers = [self.makers[v] for v in self.graph.read_lists[i]]
            if self.is_fixed[i] or not makers or self.made[i] >= self._freed(i):
                continue
            last = max(makers, key=self.label.__getitem__)
            if self.phase[last] == self.phase[i]:
                self._move(i, last, self.after[last])

    def _freed(self, i: int) -> int:
        """Return the bytes of what node i is the last to read."""
        return sum(
            self.sizes[v]
            for v in self.graph.read_lists[i]
            if v not in self.returned and all(self.label[r] <= self.label[i] for r in self.readers[v])
        )

    def _move(self, i: int, before: int, after: int) -> None:
        if i in (before, after):
            return
        low = self.label[before] if before != len(self.phase) else -1.0
        label = (low + self.label[after]) / 2
        if not low < label < self.label[after]:
            return  # no number is left between the two
        self.after[self.before[i]], self.before[self.after[i]] = self.after[i], self.before[i]
        self.before[i], self.after[i] = before, after
        self.after[before], self.before[after] = i, i
        self.label[i] = label
