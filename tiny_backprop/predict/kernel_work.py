"""The work of each kernel: FLOPs by class of primitive, and the bytes that it reads and writes.

What is fused into several kernels is computed in each of them. A loop reads of each array at most as many bytes as it
writes, since it takes from it what it needs: a slice, or rows that it gathers. What writes into its operand moves the
bytes that its node does by itself. The node of a loop or of branches has no work: its steps have (see `step_time`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.predict.arrays import distinct, starts_of
from tiny_backprop.predict.fusion import Fusion
from tiny_backprop.predict.instructions import BROADCAST, CONVERT, COPY, FLAT, HELD, PREDICATE, RECIPROCAL, SCRATCH
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.schedule.cost import CLASSES, node_classes
from tiny_backprop.schedule.simulate import ranges

_CLASS_OF = {
    HELD: "movement",
    PREDICATE: "other",
    COPY: "transpose",
    BROADCAST: "movement",
    FLAT: "movement",
    RECIPROCAL: "elementwise",
    CONVERT: "elementwise",
    SCRATCH: "other",
}


@dataclasses.dataclass(frozen=True, eq=False)
class KernelWork:
    """What kernels do, in the order of the program.

    Attributes:
      nodes: The node that each ends with, negative where none does; int64 of shape (n_kernels,).
      classes: The place in `CLASSES` of what each ends with.
      flops: FLOPs by class of primitive; float64 of shape (n_kernels, len(CLASSES)).
      bytes_moved: Bytes read and written; float64 of shape (n_kernels,).
    """

    nodes: np.ndarray
    classes: np.ndarray
    flops: np.ndarray
    bytes_moved: np.ndarray


def kernel_work(fusion: Fusion) -> KernelWork:
    """Return what the kernels of a program do that was fused."""
    of = fusion.instructions
    graph, n_bytes = of.graph, of.n_bytes.astype(float)
    written = np.flatnonzero(fusion.has_buffer)
    kernel = np.full(len(of), -1)
    steps, first, kernel[written] = np.unique(of.steps[written], return_index=True, return_inverse=True)
    n, n_classes = len(steps), len(CLASSES)
    kernel_nodes = of.nodes[written[first]]
    by_node = np.append(node_classes(graph), [CLASSES.index(_CLASS_OF[k]) for k in sorted(_CLASS_OF)])
    flops_of_node, input_bytes_of_node = _own(graph)

    inside, host = _computed(fusion, kernel)
    is_node = of.nodes[inside] >= 0
    inside, host = inside[is_node], host[is_node]
    is_first = of.values[inside] == graph.output_start[of.nodes[inside]]  # of the outputs of a node
    nodes, host = of.nodes[inside[is_first]], host[is_first]
    flops = np.bincount(host * n_classes + by_node[nodes], flops_of_node[nodes], n * n_classes)
    moved = np.bincount(host, input_bytes_of_node[nodes], n)

    is_apart = fusion.is_in_place | np.append(_is_nested(graph), np.zeros(len(_CLASS_OF), bool))[of.nodes]
    of_reader = np.where(of.kinds < Kind.REDUCTION, n_bytes, np.inf)
    reads = np.where(is_apart, 0.0, of_reader)[fusion.readers]
    moved += np.bincount(kernel[fusion.readers], np.minimum(reads, n_bytes[fusion.sources]), n)
    moved += np.bincount(kernel[written], np.where(is_apart, 0.0, n_bytes)[written], n)
    in_place = written[fusion.is_in_place[written] & (of.nodes[written] >= 0)]
    moved += np.bincount(kernel[in_place], graph.bytes_moved[of.nodes[in_place]], n)
    return KernelWork(kernel_nodes, by_node[kernel_nodes], flops.reshape(n, n_classes), moved)


def _computed(fusion: Fusion, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of an instruction and a kernel that computes it, whether or not it also has memory of its own."""
    of, n = fusion.instructions, len(fusion.instructions)
    inner = np.flatnonzero(fusion.is_read_through)
    readers, operands = of.readers[inner], of.operands[inner]
    starts, written = starts_of(readers, n), np.flatnonzero(fusion.has_buffer)
    found = new = distinct(kernel[written] * n + written)
    while len(new):
        instructions = new % n
        n_further = np.diff(starts)[instructions]
        further = operands[ranges(starts[instructions], n_further)]
        reached = distinct(np.repeat(new // n, n_further) * n + further)
        place = np.searchsorted(found, reached)
        new = reached[np.append(found, -1)[place] != reached]
        found = np.sort(np.append(found, new), kind="stable")  # which merges what is sorted
    return found % n, found // n


def _is_nested(graph: Graph) -> np.ndarray:
    """Return which nodes are loops or branches that are planned as programs of their own."""
    is_nested = np.zeros(graph.n_nodes, bool)
    is_nested[[node for n in graph.nested for node in (n.forward_node, n.backward_node)]] = True
    return is_nested


def _own(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Return each node's FLOPs, those of steps of loops apart, and the bytes of the graph's inputs that it reads."""
    if "own work" not in graph.memo:
        is_input = (graph.operands >= 0) & (graph.operands < graph.n_inputs)
        pairs = np.unique(graph.operand_node[is_input] * graph.n_inputs + graph.operands[is_input])
        node, value = pairs // max(graph.n_inputs, 1), pairs % max(graph.n_inputs, 1)
        input_bytes = np.minimum(np.bincount(node, graph.value_bytes[value], graph.n_nodes), graph.bytes_moved)
        is_nested = _is_nested(graph)
        graph.memo["own work"] = np.where(is_nested, 0.0, graph.flops), np.where(is_nested, 0.0, input_bytes)
    return graph.memo["own work"]
