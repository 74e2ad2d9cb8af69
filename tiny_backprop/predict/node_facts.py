"""What the rules need to know of each node of a graph: what a compiler can do with it and to what it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tiny_backprop.graph import LITERAL, Graph
from tiny_backprop.predict.kinds import KINDS, MERGED, MOVES, REDUCTIONS, Kind


class NodeFacts:
    """What the rules need to know of each node, found once for a graph and kept with what is made of it.

    What holds for every XLA compiler stands here; what a compiler does beside is told by a class that is derived.

    Attributes:
      shapes: Shape of each value.
      dtypes: Its dtype.
      sizes: Its number of elements.
      n_bytes: Its bytes.
      makers: The node that makes it, -1 for an input.
      readers: The nodes that read it.
      starts: Node i makes the values from `starts[i]` up to `starts[i + 1]`.
      operands: What each node reads, as `Graph.operands` has it.
      reads: The values that each node reads, and what is done to each for that: `Graph.relaid_operands`.
      primitives: What each node is to the compiler.
      cancelled: Transpositions that cancel each other.
      kinds: `Kind` of each node.
      is_broadcast: Which values repeat what they are made of; the last entry stands for literals.
      moves: Whether an element of what the node makes comes from another place of its operand.
      is_unary: Whether a node reads at most one array of its own rank that is no broadcast.
      is_merged: Whether its result is told by its operands: two of them are one.
      is_widened: Whether what is smaller than its result is repeated for it.
      is_shared: Whether something that the compiler expands reads its result, too.
      is_absorbed: Whether a reduction that alone reads its result takes it in.
      waits_for: The nodes that reverse a loop, with what there must be before room is made for their gradients.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.shapes, self.dtypes = graph.value_shapes, graph.value_dtypes
        self.sizes = [math.prod(s) for s in graph.value_shapes]
        self.makers = graph.value_node.tolist()
        self.starts, self.n_bytes = graph.output_start.tolist(), graph.value_bytes.tolist()
        self.readers: list[list[int]] = [[] for _ in range(graph.n_values)]
        for node, value in zip(*(a.tolist() for a in graph.reads), strict=True):
            self.readers[value].append(node)
        bounds, operands = graph.operand_start.tolist(), graph.operands.tolist()
        relaid = graph.relaid_operands.tolist()
        self.operands = [operands[bounds[i] : bounds[i + 1]] for i in range(graph.n_nodes)]
        self.reads: list[dict[int, int]] = []
        for i, (start, of_node) in enumerate(zip(bounds, self.operands, strict=False)):
            reads: dict[int, int] = {}
            for v, c in zip(of_node, relaid[start : bounds[i + 1]], strict=True):
                if v != LITERAL:
                    reads[v] = max(reads.get(v, 0), c)
            self.reads.append(reads)
        self.primitives = [self._primitive(i) for i in range(graph.n_nodes)]
        self.cancelled = self._cancelled()
        self.kinds = [self._kind(i) for i in range(graph.n_nodes)]
        self.is_broadcast = self._broadcasts()
        self.moves = [p in MOVES for p in self.primitives]
        self.is_unary = [self._is_unary(i) for i in range(graph.n_nodes)]
        is_loop = [k == Kind.CHEAP for k in self.kinds]
        self.is_merged = [
            is_loop[i] and p in MERGED and bool(o) and LITERAL not in o
            for i, (p, o) in enumerate(zip(self.primitives, self.operands, strict=True))
        ]
        self.is_widened = [is_loop[i] and not self.moves[i] and len(self.reads[i]) > 1 for i in range(graph.n_nodes)]
        self.is_shared = [False] * graph.n_nodes
        self.is_absorbed = [False] * graph.n_nodes
        self.waits_for = dict(self._waits())

    def _waits(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the nodes that reverse a loop, with what there must be before room is made for their gradients."""
        for n in self.graph.nested:
            saved = self.starts[n.forward_node + 1] - 2
            if n.kind == "scan" and saved in self.operands[n.backward_node]:
                first = self.operands[n.backward_node].index(saved)
                yield n.backward_node, [v for v in self.operands[n.backward_node][first:] if v >= 0]

    def _primitive(self, i: int) -> str:
        return self.graph.primitives[i]

    def _cancelled(self) -> set[int]:
        """Return the transpositions of matrices that come in pairs, of which the first is for the second alone."""
        found, returned = set[int](), set(self.graph.outputs.tolist())
        for i, p in enumerate(self.primitives):
            v = next(iter(self.reads[i]), LITERAL)
            before = self.makers[v] if p == "transpose" and len(self.shapes[v]) == 2 else LITERAL
            if before >= 0 and self.primitives[before] == "transpose" and before not in found and v not in returned:
                found |= {before, i} if len(self.readers[v]) == 1 else set()
        return found

    def _kind(self, i: int) -> Kind:
        kind = KINDS.get(self.primitives[i], Kind.KERNEL)
        first = next(iter(self.reads[i]), None)
        if first is None or self.starts[i] == self.starts[i + 1]:
            return kind
        return Kind.ALIAS if self._is_alias(i, first, self.starts[i]) else kind

    def _is_alias(self, i: int, operand: int, out: int) -> bool:
        """Return whether a node that could do more only relabels its operand."""
        primitive = self.primitives[i]
        if primitive == "broadcast_in_dim" or (primitive in REDUCTIONS and primitive[:3] != "arg"):
            return self.sizes[operand] == self.sizes[out]
        if primitive == "convert_element_type":
            return self.dtypes[operand] == self.dtypes[out]
        if primitive != "transpose":
            return False
        if i in self.cancelled:
            return True
        before, after = ([d for d in self.shapes[v] if d != 1] for v in (operand, out))
        return before == after and len(set(before)) == len(before)

    def _broadcasts(self) -> list[bool]:
        found = [False] * (self.graph.n_values + 1)  # the last entry stands for literals
        for i, p in enumerate(self.primitives):
            if self.kinds[i] == Kind.ALIAS:
                first = next(iter(self.reads[i]), LITERAL)
                is_broadcast = found[first]
            else:
                is_broadcast = p in ("broadcast_in_dim", "iota")
            if is_broadcast:
                found[self.starts[i] : self.starts[i + 1]] = [True] * (self.starts[i + 1] - self.starts[i])
        return found

    def _is_unary(self, i: int) -> bool:
        if self.starts[i] == self.starts[i + 1]:
            return True
        out = self.starts[i]
        rank, size, moves = len(self.shapes[out]), self.sizes[out], self.moves[i]
        full = [
            v
            for v in self.reads[i]
            if not self.is_broadcast[v]
            and self.sizes[v] > 1
            and len(self.shapes[v]) >= rank
            and (moves or self.sizes[v] >= size)
        ]
        return len(full) <= 1
