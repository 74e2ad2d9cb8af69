"""How long values live when every node runs once, in order; linear in nodes and edges."""

from __future__ import annotations

import numpy as np

from tiny_backprop.graph import Graph

NEVER = np.iinfo(np.int64).max


def live_ranges(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last step at which each value is alive, for the program's own order.

    A value is alive from the node that makes it to the last node that reads it, both included; what the program returns
    lives to the end; a value that nobody reads lives for one step.

    Args:
      graph: Any graph.

    Returns:
      Two int64 arrays of shape (n_values,): first step and last step. Inputs of the graph have (-1, -1): their bytes
      are the caller's.
    """
    first = graph.value_node.copy()
    last = first.copy()
    node, value = graph.reads
    np.maximum.at(last, value, node)
    made = graph.outputs[graph.outputs >= graph.n_inputs]
    last[made] = graph.n_nodes - 1
    return first, last


def frontier(graph: Graph) -> np.ndarray:
    """Return the live bytes at each step of the program's own order, what the step reads and makes included.

    Args:
      graph: Any graph.

    Returns:
      int64 bytes of shape (n_nodes,); inputs of the graph are not counted.
    """
    first, last = live_ranges(graph)
    made = slice(graph.n_inputs, None)
    delta = np.zeros(graph.n_nodes + 1, np.int64)
    np.add.at(delta, first[made], graph.value_bytes[made])
    np.add.at(delta, last[made] + 1, -graph.value_bytes[made])
    return np.cumsum(delta)[:-1]


def working_set(graph: Graph) -> np.ndarray:
    """Return the bytes that each node alone needs: what it reads (inputs of the graph apart) and what it makes."""
    node, value = graph.reads
    read = np.bincount(node, weights=graph.value_bytes[value], minlength=graph.n_nodes).astype(np.int64)
    return read + graph.node_bytes


def crossing_bytes(graph: Graph, is_reader: np.ndarray | None = None) -> np.ndarray:
    """Return the bytes of forward values that cross each cut of the forward phase.

    Args:
      graph: Any graph.
      is_reader: Which nodes' reads count, bool of shape (n_nodes,); by default all forward nodes'.

    Returns:
      int64 bytes of shape (n_forward + 1,): entry c is what nodes before c make and counted nodes from c on read.
    """
    node, value = graph.reads
    keep = node < graph.n_forward
    if is_reader is not None:
        keep &= is_reader[node]
    last = np.full(graph.n_values, -1, np.int64)
    np.maximum.at(last, value[keep], node[keep])
    crossing = np.flatnonzero(last >= 0)
    delta = np.zeros(graph.n_forward + 2, np.int64)
    np.add.at(delta, graph.value_node[crossing] + 1, graph.value_bytes[crossing])
    np.add.at(delta, last[crossing] + 1, -graph.value_bytes[crossing])
    return np.cumsum(delta)[:-1]


def first_backward_read(graph: Graph) -> np.ndarray:
    """Return the first backward node that reads each value, `NEVER` where none does; int64 of shape (n_values,)."""
    node, value = graph.reads
    first = np.full(graph.n_values, NEVER)
    backward = node >= graph.n_forward
    np.minimum.at(first, value[backward], node[backward])
    return first
