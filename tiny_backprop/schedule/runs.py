"""The runs of nodes in a schedule, and what each of them reads: the latest making of every value."""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.graph import LITERAL, Graph
from tiny_backprop.schedule.simulate import ranges

NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Reads:
    """What each node reads, inputs of the graph among it, in the order of its operands and without repeats.

    Attributes:
      start: Node i reads `values[start[i]:start[i] + n[i]]`.
      n: How many values each node reads.
      values: The values.
    """

    start: np.ndarray
    n: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, graph: Graph) -> Reads:
        """Return the reads that are kept with a graph."""
        if "reads" not in graph.memo:
            is_value = graph.operands != LITERAL
            node, value = graph.operand_node[is_value], graph.operands[is_value]
            first = np.sort(np.unique(node * max(graph.n_values, 1) + value, return_index=True)[1])
            n = np.bincount(node[first], minlength=graph.n_nodes)
            graph.memo["reads"] = cls(np.cumsum(n) - n, n, value[first])
        return graph.memo["reads"]


class Runs:
    """The runs of nodes, in order, and what each reads: the last run before it that made the value, if any did.

    Attributes:
      graph: The graph.
      steps: The node of each run.
      before: The run of the same node before each, -1 for none.
      n_reads: How many values each run reads.
      read_start: Where those of each run start.
      values: The values that are read.
      readers: The run of each read.
      makers: The run that made what is read, -1 for an input.
    """

    def __init__(self, graph: Graph, steps: np.ndarray):
        self.graph, self.steps, reads = graph, steps, Reads.of(graph)
        self._order = np.argsort(steps, kind="stable")
        self._keys = steps[self._order] * (len(steps) + 1) + self._order
        self._final = np.full(graph.n_nodes + 1, NONE)  # the last run of each node, and -1 for that of an input
        self._final[steps] = np.arange(len(steps))
        self.before = np.full(len(steps), NONE)
        again = np.flatnonzero(np.diff(steps[self._order]) == 0)
        self.before[self._order[again + 1]] = self._order[again]
        self.n_reads = reads.n[steps]
        self.read_start = np.cumsum(self.n_reads) - self.n_reads
        self.values = reads.values[ranges(reads.start[steps], self.n_reads)]
        self.readers = np.repeat(np.arange(len(steps)), self.n_reads)
        self.makers = self.last(self.values, self.readers)

    @property
    def is_late(self) -> np.ndarray:
        """Which runs are those of backward nodes, or runs of a node that ran before."""
        return (self.steps >= self.graph.n_forward) | (self.before != NONE)

    def last(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return the last run before another that made each value, -1 where none did."""
        nodes = self.graph.value_node[values]
        last = self._final[nodes]
        later = np.flatnonzero(last >= before)
        if len(later):
            wanted = nodes[later]
            run = self._order[np.searchsorted(self._keys, wanted * (len(self.steps) + 1) + before[later]) - 1]
            last[later] = np.where((self.steps[run] == wanted) & (run < before[later]), run, NONE)
        return last
