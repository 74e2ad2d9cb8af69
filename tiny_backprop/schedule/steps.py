"""Orders of steps: when what they make is alive, and how to write one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.schedule.simulate import ranges


def lives(graph: Graph, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return when what the steps make is alive; see `Schedule.from_steps`.

    Args:
      graph: Any graph.
      steps: Nodes in the order in which they run, int64 of shape (n_steps,).

    Returns:
      Three int64 arrays with an entry for each time that a value is made, sorted by value and time: the value, the step
      that makes it, and the last step at which it is alive, n_steps where the program returns it.
    """
    n = len(steps)
    # A production is one making of one value; sorted by (value, step), so that a read belongs to the one before it.
    n_made = np.diff(graph.output_start)[steps]
    keys = np.sort(ranges(graph.output_start[steps], n_made) * (n + 1) + np.repeat(np.arange(n), n_made))
    made, made_at = keys // (n + 1), keys % (n + 1)
    last = made_at.copy()
    read, read_at = values_read(graph, steps)
    owner = np.searchsorted(keys, read * (n + 1) + read_at) - 1
    np.maximum.at(last, owner[owner >= 0], read_at[owner >= 0])
    is_latest = np.append(made[1:] != made[:-1], True) if len(made) else np.zeros(0, bool)
    last[is_latest & np.isin(made, graph.outputs)] = n
    # What the function itself returns is there when the backward phase begins, even if it is made again later.
    backward = np.flatnonzero(graph.is_backward[steps])
    border = int(backward[0]) if len(backward) else n
    is_early = made_at < border
    is_last_early = is_early & np.append((made[1:] != made[:-1]) | ~is_early[1:], True) if len(made) else is_early
    handed_over = is_last_early & np.isin(made, graph.outputs[: graph.n_primal_outputs])
    last[handed_over] = np.maximum(last[handed_over], border)
    return made, made_at, last


def values_read(graph: Graph, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that steps read and the step of each read, in the order of steps; int64 of shape (n_reads,)."""
    node, value = graph.reads
    bounds = np.searchsorted(node, np.arange(graph.n_nodes + 1))
    n_read = np.diff(bounds)[steps]
    return value[ranges(bounds[steps], n_read)], np.repeat(np.arange(len(steps)), n_read)


def peak_bytes(graph: Graph, steps: np.ndarray) -> int:
    """Return the peak of a schedule without making a plan of it."""
    made, made_at, last = lives(graph, steps)
    n = len(steps)
    size = graph.value_bytes[made].astype(float)  # exact below 2 ** 53 bytes
    live = np.bincount(made_at, size, n + 2) - np.bincount(last + 1, size, n + 2)
    return int(np.cumsum(live)[:n].max(initial=0.0))


class Rerun:
    """Which values are there while a schedule is written, and the nodes that make others from them.

    Attributes:
      there: Whether a later step may read each value without it being made again; bytes of shape (n_values,).
    """

    def __init__(self, graph: Graph):
        self._makers, self._reads = graph.value_node.tolist(), graph.read_lists
        self.there = bytearray(graph.n_values)
        self.there[: graph.n_inputs] = b"\1" * graph.n_inputs

    def make(self, wanted: Iterable[int], nodes: Iterable[int] = ()) -> list[int]:
        """Return, in order, the nodes that make the values `wanted`, and `nodes`; what is wanted is there from then."""
        there, makers, reads = self.there, self._makers, self._reads
        wanted = list(wanted)
        found = set(nodes)
        found.update(makers[v] for v in wanted if not there[v])
        stack = list(found)
        while stack:
            for v in reads[stack.pop()]:
                if not there[v]:
                    i = makers[v]
                    if i not in found:
                        found.add(i)
                        stack.append(i)
        for v in wanted:
            there[v] = 1
        return sorted(found)
