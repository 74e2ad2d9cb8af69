"""A plan as the program that XLA is given: instructions, with what a plan holds apart and what XLA copies and merges.

Each time that a plan runs a node it becomes one instruction for each of its outputs. To these come the holds of the
planned gradient (see `integration/jax/rewrite.py`, whose rules are told again here in terms of the graph alone; a test
holds the two against each other), copies into the order of dimensions that contractions read, and the broadcasts that
JAX leaves unwritten where sizes of 1 meet larger ones. What XLA merges as common subexpressions stands once.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tiny_backprop.graph import COPIED, LITERAL, Graph


class Kind(enum.IntEnum):
    """What XLA:CPU can do with an instruction; the first three can be fused into the loop that reads them.

    * `ALIAS`: the same bytes under another shape; it never takes memory beside its operand.
    * `CHEAP`: element-wise or moving data; computed again in each loop that reads it.
    * `EXPENSIVE`: element-wise, but computed once: `exp`, `tanh`, a division by an array.
    * `REDUCTION`: a kernel of its own that takes chains of element-wise operations in.
    * `KERNEL`: anything else: contractions, scatters, sorts, loops.
    * `HOLD`: a conditional that passes values on.
    """

    ALIAS = 0
    CHEAP = 1
    EXPENSIVE = 2
    REDUCTION = 3
    KERNEL = 4
    HOLD = 5


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def _of_kind(kind: Kind, text: str) -> dict[str, Kind]:
    return dict.fromkeys(text.split(), kind)


_KINDS = (
    _of_kind(Kind.ALIAS, "reshape squeeze expand_dims copy copy_p stop_gradient optimization_barrier pvary random_wrap")
    | _of_kind(Kind.ALIAS, "random_unwrap")
    | _of_kind(
        Kind.CHEAP, "add sub mul neg abs sign floor ceil round max min and or not xor eq ne lt le gt ge select_n"
    )
    | _of_kind(
        Kind.CHEAP, "clamp convert_element_type bitcast_convert_type integer_pow square is_finite nextafter real"
    )
    | _of_kind(
        Kind.CHEAP, "imag complex conj shift_left shift_right_logical shift_right_arithmetic population_count clz"
    )
    | _of_kind(Kind.CHEAP, "add_any reduce_precision broadcast_in_dim iota pad slice concatenate transpose gather rev")
    | _of_kind(Kind.CHEAP, "dynamic_slice dynamic_update_slice split eq_to le_to lt_to")
    | _of_kind(
        Kind.EXPENSIVE, "exp exp2 expm1 log log1p tanh sin cos tan rsqrt sqrt cbrt erf erfc erf_inv logistic pow"
    )
    | _of_kind(Kind.EXPENSIVE, "atan2 lgamma digamma asin acos atan sinh cosh asinh acosh atanh div rem")
    | _of_kind(Kind.REDUCTION, "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin")
)
"""Kind of each primitive; what is not named is a `KERNEL`."""
_MOVES = names(
    "broadcast_in_dim iota pad slice concatenate transpose gather dynamic_slice rev split dynamic_update_slice"
)
_MERGED = names(
    "broadcast_in_dim exp tanh neg mul add sub div convert_element_type max min log rsqrt sqrt square select_n logistic"
)
"""Element-wise primitives whose result is told by operands, shape and dtype alone."""
_CONTRACTIONS = ("dot_general", "conv_general_dilated")
_EXPANDED = ("erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e")
_LEAST_SHARED_BYTES = 4096
_SMALL_BYTES = 64

HELD, PREDICATE, COPY, BROADCAST, FLAT = -1, -2, -3, -4, -5
"""Stand in `Instructions.nodes` for what no node of the graph makes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Instructions:
    """Instructions in the order of the program, as sequences with an entry for each.

    Attributes:
      graph: The graph.
      returned: The instructions that the program returns, each with its first place among the outputs.
      kinds: `Kind` of each.
      nodes: The node that makes it, or `HELD`, `PREDICATE`, `COPY`, `BROADCAST` or `FLAT`.
      values: The value of the graph that it stands for, -1 for a predicate.
      n_bytes: Its size.
      operands: The instructions that it reads; inputs of the graph are left out.
      steps: Its place in the program; the outputs of one node, or of one hold, have the same.
      is_unary: Whether it reads at most one array of its own rank that is no broadcast.
      moves: Whether an element of it comes from another place of its operand.
      is_shared_exp: Whether it is the exponential that XLA also computes for an `erfc` of the same operand.
    """

    graph: Graph
    returned: dict[int, int]
    kinds: Sequence[int]
    nodes: Sequence[int]
    values: Sequence[int]
    n_bytes: Sequence[int]
    operands: Sequence[list[int]]
    steps: Sequence[int]
    is_unary: Sequence[bool]
    moves: Sequence[bool]
    is_shared_exp: Sequence[bool]

    def __len__(self) -> int:
        return len(self.kinds)

    def primitive(self, i: int) -> str:
        """Return the primitive of an instruction, `""` where it has none."""
        node = self.nodes[i]
        if node >= 0:
            return self.graph.primitives[node]
        return {BROADCAST: "broadcast_in_dim", FLAT: "reshape"}.get(node, "")


class NodeFacts:
    """What the rules need to know of each node, found once for a graph and kept with it."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.shapes, self.dtypes = graph.value_shapes, graph.value_dtypes
        self.sizes = [math.prod(s) for s in graph.value_shapes]
        self.makers = graph.value_node.tolist()
        self.starts = graph.output_start.tolist()
        self.readers: list[list[int]] = [[] for _ in range(graph.n_values)]
        for node, value in zip(*(a.tolist() for a in graph.reads), strict=True):
            self.readers[value].append(node)
        bounds, operands = graph.operand_start.tolist(), graph.operands.tolist()
        relaid = graph.relaid_operands.tolist()
        self.operands = [operands[bounds[i] : bounds[i + 1]] for i in range(graph.n_nodes)]
        self.reads: list[dict[int, int]] = []  # each value read, and what is done to it for that
        for i, (start, of_node) in enumerate(zip(bounds, self.operands, strict=False)):
            reads: dict[int, int] = {}
            for v, c in zip(of_node, relaid[start : bounds[i + 1]], strict=True):
                if v != LITERAL:
                    reads[v] = max(reads.get(v, 0), c)
            self.reads.append(reads)
        self.kinds = [self._kind(i) for i in range(graph.n_nodes)]
        self.is_broadcast = self._broadcasts()
        for i, p in enumerate(graph.primitives):
            if p == "div" and self.kinds[i] == Kind.EXPENSIVE and self.is_broadcast[self.operands[i][1]]:
                self.kinds[i] = Kind.CHEAP  # XLA multiplies by the reciprocal of what was broadcast
        self.moves = [p in _MOVES for p in graph.primitives]
        self.is_unary = [self._is_unary(i) for i in range(graph.n_nodes)]
        self.is_merged = [
            self.kinds[i] in (Kind.CHEAP, Kind.EXPENSIVE) and p in _MERGED and bool(o) and LITERAL not in o
            for i, (p, o) in enumerate(zip(graph.primitives, self.operands, strict=True))
        ]
        self.is_widened = [
            self.kinds[i] in (Kind.CHEAP, Kind.EXPENSIVE) and not self.moves[i] and len(self.reads[i]) > 1
            for i in range(graph.n_nodes)
        ]
        self.is_shared_exp = self._shared_exponentials()
        self.is_held_when_made, self.varies = _held_when_made(graph), self._varies()
        self.waits_for = dict(self._waits())

    @classmethod
    def of(cls, graph: Graph) -> NodeFacts:
        """Return the facts that are kept with a graph."""
        if "node facts" not in graph.memo:
            graph.memo["node facts"] = cls(graph)
        return graph.memo["node facts"]

    def _waits(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the nodes that reverse a loop, with what there must be before room is made for their gradients."""
        for n in self.graph.nested:
            saved = self.starts[n.forward_node + 1] - 2
            if n.kind == "scan" and saved in self.operands[n.backward_node]:
                first = self.operands[n.backward_node].index(saved)
                yield n.backward_node, [v for v in self.operands[n.backward_node][first:] if v >= 0]

    def _kind(self, i: int) -> Kind:
        kind = _KINDS.get(self.graph.primitives[i], Kind.KERNEL)
        if self.starts[i] == self.starts[i + 1]:
            return kind
        first = next(iter(self.reads[i]), None)
        return Kind.ALIAS if first is not None and self._is_alias(i, first, self.starts[i]) else self._divided(i, kind)

    def _is_alias(self, i: int, operand: int, out: int) -> bool:
        """Return whether a node that could do more only relabels its operand, or XLA folds it into a dot."""
        primitive = self.graph.primitives[i]
        if primitive == "broadcast_in_dim" or (_KINDS.get(primitive) == Kind.REDUCTION and primitive[:3] != "arg"):
            return self.sizes[operand] == self.sizes[out]
        if primitive == "convert_element_type":
            return self.dtypes[operand] == self.dtypes[out]
        if primitive != "transpose":
            return False
        before, after = ([d for d in self.shapes[v] if d != 1] for v in (operand, out))
        if before == after and len(set(before)) == len(before):
            return True
        if len(self.shapes[out]) != 2:
            return False
        maker = self.makers[operand]
        is_of_dot = maker >= 0 and self.graph.primitives[maker] == "dot_general" and len(self.readers[operand]) == 1
        readers = self.readers[out]
        return is_of_dot or (bool(readers) and all(self.graph.primitives[r] == "dot_general" for r in readers))

    def _divided(self, i: int, kind: Kind) -> Kind:
        """Return the kind of a division: expensive by an array of full size, else as cheap as a multiplication."""
        if self.graph.primitives[i] != "div":
            return kind
        divisor = self.operands[i][1]
        is_full = divisor != LITERAL and self.sizes[divisor] >= self.sizes[self.starts[i]]
        return Kind.EXPENSIVE if is_full else Kind.CHEAP

    def _broadcasts(self) -> list[bool]:
        found = [False] * (self.graph.n_values + 1)  # the last entry stands for literals
        for i, p in enumerate(self.graph.primitives):
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

    def _shared_exponentials(self) -> list[bool]:
        """Return which nodes are exp(-x * x) beside an erfc(x)."""
        primitives = self.graph.primitives
        erfc_of = {v for i, p in enumerate(primitives) if p == "erfc" for v in self.reads[i]}
        shared = [False] * self.graph.n_nodes
        for i, p in enumerate(primitives):
            if p != "exp" or not erfc_of:
                continue
            v, found = next(iter(self.reads[i]), -1), []
            while v >= 0 and self.makers[v] >= 0 and len(found) < 2 and len(self.reads[self.makers[v]]) == 1:
                found.append(primitives[self.makers[v]])
                v = next(iter(self.reads[self.makers[v]]))
            is_square = len(found) == 2 and found[0] == "neg" and found[1] in ("square", "integer_pow", "mul")
            shared[i] = is_square and v in erfc_of
        return shared

    def _varies(self) -> list[bool]:
        """Return which values depend on an argument; inputs named `constant` and `cotangent` are none."""
        varies = [not name.startswith(("constant ", "cotangent ")) for name in self.graph.input_names]
        varies += [False] * (self.graph.n_values - len(varies))
        for i, reads in enumerate(self.reads):
            if any(varies[v] for v in reads):
                for v in range(self.starts[i], self.starts[i + 1]):
                    varies[v] = True
        return varies


def _held_when_made(graph: Graph) -> list[bool]:
    """Return which values the planned backward phase holds as soon as they are made."""
    node, value = graph.reads
    is_contraction = np.isin(graph.primitives, _CONTRACTIONS)
    n_readers = np.bincount(value, minlength=graph.n_values)
    n_contractions = np.bincount(value[is_contraction[node]], minlength=graph.n_values)
    is_backward = graph.value_node >= graph.n_forward
    is_expanded = np.isin(graph.primitives, _EXPANDED)[graph.value_node] if graph.n_nodes else is_backward
    is_large = graph.value_bytes >= _LEAST_SHARED_BYTES
    return (is_large & (n_readers >= 2) & (is_backward & (n_contractions >= 1) | is_expanded)).tolist()


def segment_starts(graph: Graph, steps: Sequence[int]) -> list[int]:
    """Return where the segments of a backward phase start: where it turns to the forward phase, or repeats a node."""
    starts, seen = [0], set[int]()
    for i, node in enumerate(steps):
        if i and node < graph.n_forward and (steps[i - 1] >= graph.n_forward or node in seen):
            starts.append(i)
            seen.clear()
        if node < graph.n_forward:
            seen.add(node)
    return starts


def unroll(graph: Graph, steps: Sequence[int], n_forward_steps: int, is_planned: bool) -> Instructions:
    """Return the instructions of a gradient.

    Args:
      graph: A gradient graph.
      steps: Nodes in the order in which they run.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as planned, with holds, or as JAX's own.
    """
    unroller = _Unroller(NodeFacts.of(graph))
    forward, backward = list(steps[:n_forward_steps]), list(steps[n_forward_steps:])
    unroller.play(forward, None, is_planned)
    outputs = graph.outputs.tolist()
    unroller.returns(outputs[: graph.n_primal_outputs], 0)
    starts = segment_starts(graph, backward) if is_planned else [0]
    previous = forward[-1:]
    for start, end in zip(starts, [*starts[1:], len(backward)], strict=True):
        segment = backward[start:end]
        waits = is_planned and bool(segment) and segment[0] < graph.n_forward
        unroller.play(segment, previous if waits else None, is_planned)
        previous = segment
    unroller.returns(outputs[graph.n_primal_outputs :], graph.n_primal_outputs)
    columns = zip(*unroller.rows, strict=True) if unroller.rows else [()] * 9
    return Instructions(graph, unroller.returned, *columns)


class _Unroller:
    """Writes instructions and knows which one now stands for each value; -1 for an input."""

    def __init__(self, facts: NodeFacts):
        self.facts, self.graph = facts, facts.graph
        self.rows: list[tuple[Any, ...]] = []  # an entry per instruction, in the order of the fields of `Instructions`
        self.returned: dict[int, int] = {}
        self.now = [-1] * facts.graph.n_values
        self.n_bytes = facts.graph.value_bytes.tolist()
        self.relaid = facts.graph.relaid_values.tolist()
        self.ran = bytearray(facts.graph.n_nodes)
        self.step = 0
        self.known: dict[Any, int] = {}

    def returns(self, values: Sequence[int], place: int) -> None:
        """Note that the instructions that now stand for values are outputs, the first one at a place."""
        for k, v in enumerate(values, place):
            if v >= 0 and self.now[v] >= 0:
                self.returned.setdefault(self.now[v], k)

    def play(self, segment: Sequence[int], after: Sequence[int] | None, is_planned: bool) -> None:
        """Write a segment; with `after`, what it reads of the forward phase is held until those nodes are done."""
        held: dict[int, int] = {}
        if after is not None:
            held = self._hold(self._values_to_hold(segment), self._tokens(segment, after))
        n_forward, starts, when_made = self.graph.n_forward, self.facts.starts, self.facts.is_held_when_made
        for node in segment:
            self._run(node, held)
            if is_planned and (node >= n_forward or self.ran[node]):
                apart = [
                    v
                    for v in range(starts[node], starts[node + 1])
                    if when_made[v] and self.now[v] >= 0 and self.facts.varies[v]
                ]
                if apart:
                    for v, i in self._hold(apart, apart).items():
                        self.now[v] = i
            self.ran[node] = 1

    def _run(self, node: int, held: dict[int, int]) -> None:
        facts, rows, now = self.facts, self.rows, self.now
        start, end = facts.starts[node], facts.starts[node + 1]
        kind = facts.kinds[node]
        if kind == Kind.ALIAS:
            v = next(iter(facts.reads[node]), -1)
            i = held.get(v, now[v]) if v >= 0 else -1
            if i >= 0:
                i = self._once(("alias", i, facts.shapes[start]), Kind.ALIAS, node, start, [i])
            now[start] = i
            held.pop(start, None)
            return
        operands = self._operands(node, held)
        if node in facts.waits_for:
            operands = [*operands, *self._predicate(facts.waits_for[node], held)]
        key = None
        if facts.is_merged[node]:
            read = tuple(i if (i := held.get(v, now[v])) >= 0 else -2 - v for v in facts.reads[node])
            key = (self.graph.primitives[node], read, facts.shapes[start], facts.dtypes[start])
            if key in self.known:
                now[start] = self.known[key]
                held.pop(start, None)
                return
            self.known[key] = len(rows)
        traits = facts.is_unary[node], facts.moves[node], facts.is_shared_exp[node]
        for v in range(start, end):
            now[v] = len(rows)
            rows.append((kind, node, v, self.n_bytes[v], operands, self.step, *traits))
            held.pop(v, None)
        self.step += 1
        for v in range(start, end):
            if self.relaid[v]:
                now[v] = self._add(Kind.CHEAP, COPY, v, [now[v]])

    def _operands(self, node: int, held: dict[int, int]) -> list[int]:
        """Return what a node reads, copied or broadcast where it must be."""
        facts = self.facts
        out = facts.starts[node]
        found: dict[int, None] = {}
        for v, how in facts.reads[node].items():
            i = held.get(v, self.now[v])
            source = i if i >= 0 else -2 - v
            if how >= COPIED:
                order = how if how > COPIED else len(found)
                key = ("copy", source, self.graph.primitives[node] == "dot_general", order)
                i = self._once(key, Kind.CHEAP, COPY, v, [i] if i >= 0 else [])
            elif how:
                i = self._once(("flat", i), Kind.ALIAS, FLAT, v, [i]) if i >= 0 else i
            elif facts.is_widened[node] and 1 < facts.sizes[v] < facts.sizes[out]:
                key = ("broadcast", source, facts.shapes[out], facts.shapes[v])
                i = self._once(key, Kind.CHEAP, BROADCAST, out, [i] if i >= 0 else [])
            if i >= 0:
                found[i] = None
        return list(found)

    def _add(self, kind: Kind, node: int, value: int, operands: list[int], n_bytes: int | None = None) -> int:
        """Write an instruction that no node makes, unary and moving data, and return it."""
        size = self.n_bytes[value] if n_bytes is None else n_bytes
        self.rows.append((kind, node, value, size, operands, self.step, True, True, False))
        self.step += 1
        return len(self.rows) - 1

    def _once(self, key: Any, kind: Kind, node: int, value: int, operands: list[int]) -> int:
        """Return the instruction of a key, written now unless it was."""
        if key not in self.known:
            self.known[key] = self._add(kind, node, value, operands)
        return self.known[key]

    def _predicate(self, tokens: Sequence[int], held: dict[int, int]) -> list[int]:
        """Write what tells that values are there, if any, and return it."""
        read = list(dict.fromkeys(i for v in tokens if (i := held.get(v, self.now[v])) >= 0))
        return [self._add(Kind.CHEAP, PREDICATE, -1, read, 1)] if read else []

    def _hold(self, values: Sequence[int], tokens: Sequence[int]) -> dict[int, int]:
        """Write a hold, and its predicate, which reads the tokens; return the held instruction of each value."""
        if not values:
            return {}
        predicate = self._predicate(tokens, {})
        held = {}
        for v in values:
            operands = [*([self.now[v]] if self.now[v] >= 0 else []), *predicate]
            held[v] = len(self.rows)
            self.rows.append((Kind.HOLD, HELD, v, self.n_bytes[v], operands, self.step, True, True, False))
        self.step += 1
        return held

    def _values_to_hold(self, segment: Sequence[int]) -> list[int]:
        """Return what a segment reads of the forward phase, and for nodes that read only inputs the smallest.

        Recomputed constants, but for small ones, are merged with those of the first run and tell nothing apart.

        What a loop hands on to its reverse is not held.
        """
        graph, reads, starts = self.graph, self.facts.reads, self.facts.starts
        border = starts[graph.n_forward]
        made, apart = {starts[n.forward_node + 1] - 2 for n in graph.nested}, dict[int, None]()
        constant = set[int]()
        for node in segment:
            apart.update(
                (v, None) for v in reads[node] if graph.n_inputs <= v < border and not (v in made or v in constant)
            )
            if node < graph.n_forward:
                shared = [v for v in reads[node] if v not in constant]
                if shared and not any(v in made or v in apart for v in shared):
                    apart[min(shared, key=lambda v: self.n_bytes[v])] = None
                is_constant = not shared and graph.node_bytes[node] > _SMALL_BYTES
                (constant if is_constant else made).update(range(starts[node], starts[node + 1]))
        return list(apart)

    def _tokens(self, segment: Sequence[int], after: Sequence[int]) -> list[int]:
        starts, border = self.facts.starts, self.facts.starts[self.graph.n_forward]
        made = [v for node in after for v in range(starts[node], starts[node + 1])]
        read = {v for node in segment for v in self.facts.reads[node]}
        return [v for v in made if v in read and v >= border] or made[-1:]
