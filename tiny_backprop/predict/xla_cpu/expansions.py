"""Nodes that XLA:CPU writes as several kernels, and what these take on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from tiny_backprop.graph import COPIED, LITERAL
from tiny_backprop.predict.kinds import Kind, names
from tiny_backprop.predict.node_facts import NodeFacts

OPERANDS, FIRST, SECOND = -1, -2, -3
"""Stand in `Stage.reads` for what the node reads: all of it, its first operand, its second one."""
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_OF_WINDOWS = names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or")
_WINDOW = 32
_END_IN_KERNELS = ("conv_general_dilated", "ragged_dot", "bcoo_dot_general")
_POOL_GRADIENT = "select_and_scatter_add"


class Stage(NamedTuple):
    """What XLA makes on the way to a node that it writes as several kernels.

    Attributes:
      n_bytes: Size of each of its buffers.
      n_buffers: How many it makes.
      reads: The numbers of the stages that it reads, `OPERANDS`, `FIRST` or `SECOND` for what the node reads.
      is_loop: Whether it is a loop, which computes what it reads where that can be.
    """

    n_bytes: int
    n_buffers: int
    reads: tuple[int, ...]
    is_loop: bool = False


class Expansion(NamedTuple):
    """A node that XLA writes as several kernels.

    Attributes:
      stages: What comes before the last one.
      reads: What the last one reads, as in `Stage`.
    """

    stages: tuple[Stage, ...]
    reads: tuple[int, ...]


def expansions(facts: NodeFacts, is_in_float32: list[bool]) -> Iterator[tuple[int, Expansion]]:
    """Yield the nodes that XLA writes as several kernels.

    The gradient of a depthwise kernel is a convolution without groups, of each feature with each other, of which those
    with themselves are selected and the others summed away as zeros (XLA's `ConvolutionGroupConverter`).
    A ragged dot is one of matrices in which each group's rows stand among zeros: of all groups side by side where rows
    are multiplied, and of each group where they are summed (XLA's `RaggedDotRewriter`). A product with a sparse matrix
    gathers a row for each of its elements, and adds them to zeros; a sampled one gathers of both operands.
    Reductions without a kernel of the library are taken of windows first.
    Random bits come out of a loop over two arrays of 32-bit words, a new pair of which it makes in each step.
    Cumulative sums are taken of pieces of a copy. The gradient of max-pooling reduces windows of the operand
    together with its indices, one array for each dimension, and scatters into zeros by the indices that it finds.
    """
    for i, p in enumerate(facts.primitives):
        out = facts.starts[i]
        words = 4 * facts.sizes[out] if out < len(facts.sizes) else 0
        if p == "random_bits" and any(facts.dtypes[v] == "key<fry>" for v in facts.reads[i]):
            yield i, Expansion((Stage(words, 2, (OPERANDS,)), Stage(words, 2, (0,))), (1,))
        elif p in CUMULATIVE:
            n_bytes = words if is_in_float32[i] else facts.n_bytes[out]
            yield i, Expansion((Stage(n_bytes, 1, (OPERANDS,)), Stage(n_bytes, 1, (0,))), (1,))
        elif p.startswith("ragged_dot") and len(facts.operands[i]) == 3 and min(facts.operands[i]) >= 0:
            yield i, _ragged_dot(facts, i, 2 if is_in_float32[i] else 1)
        elif p.startswith("bcoo_dot_general") and len(facts.operands[i]) == 3 and min(facts.operands[i]) >= 0:
            yield i, _sparse_dot(facts, i)
        elif n_windows := _n_windows(facts, i):
            yield i, Expansion((Stage(facts.n_bytes[out] * n_windows, 1, (OPERANDS,)),), (0,))
        elif n_groups := _n_groups(facts, i):
            n_bytes = n_groups * (words if is_in_float32[i] else facts.n_bytes[out])
            yield i, Expansion((Stage(n_bytes, 1, (OPERANDS,)), Stage(n_bytes, 1, (0,))), (1,))
        elif _is_pool_gradient(facts, i):
            rank, found = len(facts.shapes[out]), 4 * facts.sizes[facts.operands[i][0]]
            n_padded = _n_padded(facts, i)
            indices, windows = Stage(4 * n_padded, rank, ()), Stage(found, rank + 1, (0, SECOND))
            zeros = Stage(facts.n_bytes[out] // max(facts.sizes[out], 1) * n_padded, 1, ())
            joined = Stage(rank * found, 1, (1,))
            yield i, Expansion((indices, windows, joined, zeros), (3, 2, FIRST))


def sums_rows(facts: NodeFacts, i: int) -> bool:
    """Return whether a ragged dot sums the rows of each group, and does not multiply each row by its group's matrix."""
    return len(facts.shapes[facts.starts[i]]) > len(facts.shapes[facts.operands[i][0]])


def _ragged_dot(facts: NodeFacts, i: int, width: int) -> Expansion:
    """Return the kernels of a ragged dot of (rows, k) and (groups, k, n), or of (rows, k) and (rows, n) in groups.

    Args:
      facts: What is known of each node.
      i: The node.
      width: How many times wider than its operands it computes.
    """
    left, right, group_sizes = facts.operands[i]
    n_groups = facts.shapes[group_sizes][-1]
    of_left = Stage(width * facts.n_bytes[left] * n_groups, 1, (FIRST,), is_loop=True)
    n_bytes = width * facts.n_bytes[right] * (n_groups if sums_rows(facts, i) else 1)
    return Expansion((of_left, Stage(n_bytes, 1, (SECOND,), is_loop=True)), (0, 1))


def _sparse_dot(facts: NodeFacts, i: int) -> Expansion:
    """Return the kernels of a product with a sparse matrix, or of the elements of a product that one has."""
    out = facts.starts[i]
    n_bytes = int(facts.graph.flops[i]) // 2 * facts.n_bytes[out] // max(facts.sizes[out], 1)
    rows = Stage(n_bytes, 1, (OPERANDS,), is_loop=True)
    if facts.primitives[i] == "bcoo_dot_general":
        return Expansion((rows, Stage(facts.n_bytes[out], 1, ())), (0, 1))
    return Expansion((rows._replace(reads=(FIRST,)), rows._replace(reads=(SECOND,))), (0, 1))


def ends_in_loop(facts: NodeFacts, i: int) -> bool:
    """Return whether a node that XLA writes as several kernels ends in a loop over what the last stage makes."""
    if facts.primitives[i].startswith(_END_IN_KERNELS):
        return False
    return not _is_pool_gradient(facts, i) or _n_padded(facts, i) != facts.sizes[facts.starts[i]]


def pools_by_slice(facts: NodeFacts) -> Iterator[tuple[int, Expansion]]:
    """Yield the gradients of max-pooling that planned gradients run slice by slice (`run/pooling`)."""
    for i in range(facts.graph.n_nodes):
        if not _is_pool_gradient(facts, i):
            continue
        out = facts.starts[i]
        shape, n_found = facts.shapes[out], facts.sizes[facts.operands[i][0]]
        n = next((a for a, b in zip(shape, facts.shapes[facts.operands[i][0]], strict=True) if a == b > 1), 0)
        if n:
            n_words = (len(shape) + 2) * _n_padded(facts, i) + (len(shape) + 1) * n_found
            zeros, slices = Stage(facts.n_bytes[out], 1, ()), Stage(4 * n_words // n, 1, (OPERANDS,))
            yield i, Expansion((zeros, slices), (0, 1, OPERANDS))


def _is_pool_gradient(facts: NodeFacts, i: int) -> bool:
    return facts.primitives[i] == _POOL_GRADIENT and len(facts.operands[i]) == 2 and min(facts.operands[i]) >= 0


def _n_windows(facts: NodeFacts, i: int) -> int:
    """Return of how many windows a reduction is made that is taken of windows first, 0 for others (rule 16)."""
    v = next(iter(facts.reads[i]), LITERAL)
    if facts.kinds[i] != Kind.EXPENSIVE or facts.primitives[i] not in _OF_WINDOWS or v < 0:
        return 0
    left, reduced = list(facts.shapes[facts.starts[i]]), []
    for d in facts.shapes[v]:
        if left and left[0] == d:
            left.pop(0)
        else:
            reduced.append(d)
    is_windowed = any(d > _WINDOW for d in reduced)
    return math.prod(-(-d // _WINDOW) for d in reduced) if is_windowed else 0


def _n_groups(facts: NodeFacts, i: int) -> int:
    """Return how many groups a convolution has that XLA makes one without groups of; 0 for others."""
    if facts.primitives[i] != "conv_general_dilated" or len(facts.operands[i]) != 2:
        return 0
    how = int(facts.graph.relaid_operands[facts.graph.operand_start[i] + 1])
    return max(how - COPIED, 0)


def _n_padded(facts: NodeFacts, i: int) -> int:
    """Return how many elements the operand of a pooling's gradient has with the edge that windows reach over."""
    how = int(facts.graph.relaid_operands[facts.graph.operand_start[i] + 1])
    return how - COPIED if how else facts.sizes[facts.starts[i]]
