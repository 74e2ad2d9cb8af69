"""What the rules need to know of each node of a graph: what XLA:CPU can do with it and to what it reads."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tiny_backprop.graph import COPIED, LITERAL, Graph

OPERANDS, FIRST, SECOND = -1, -2, -3
"""Stand in `Stage.reads` for what the node reads: all of it, its first operand, its second one."""


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
    | _of_kind(Kind.CHEAP, "add_any reduce_precision broadcast_in_dim iota pad slice concatenate transpose rev")
    | _of_kind(Kind.CHEAP, "dynamic_slice dynamic_update_slice split eq_to le_to lt_to stack unstack one_minus_square")
    | _of_kind(Kind.CHEAP, "cumsum cumprod cummax cummin cumlogsumexp")
    | _of_kind(
        Kind.EXPENSIVE, "exp exp2 expm1 log log1p log2 tanh sin cos tan rsqrt sqrt cbrt erf erfc erf_inv logistic pow"
    )
    | _of_kind(Kind.EXPENSIVE, "atan2 lgamma digamma asin acos atan sinh cosh asinh acosh atanh div rem gather")
    | _of_kind(Kind.REDUCTION, "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin")
)
"""Kind of each primitive; what is not named is a `KERNEL`."""
_MOVES = names(
    "broadcast_in_dim iota pad slice concatenate transpose gather dynamic_slice rev split dynamic_update_slice stack "
    "unstack"
)
_MERGED = names(
    "broadcast_in_dim exp tanh neg mul add sub div convert_element_type max min log rsqrt sqrt square select_n "
    "logistic one_minus_square"
)
"""Element-wise primitives whose result is told by operands, shape and dtype alone."""
_SCALES = names("add sub mul div")
_CONTRACTIONS = ("dot_general", "conv_general_dilated")
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_IN_FLOAT32 = (*_CONTRACTIONS, "scatter-add", *_CUMULATIVE)
NARROW = ("bfloat16", "float16")
"""Floats that XLA:CPU computes with in float32."""
_POOL_GRADIENT = "select_and_scatter_add"
_EXPANDED = ("erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e")
_LEAST_SHARED_BYTES = 4096
_SMALL_BYTES = 64


class Stage(NamedTuple):
    """What XLA makes on the way to a node that it writes as several kernels.

    Attributes:
      n_bytes: Size of each of its buffers.
      n_buffers: How many it makes.
      reads: The numbers of the stages that it reads, `OPERANDS`, `FIRST` or `SECOND` for what the node reads.
    """

    n_bytes: int
    n_buffers: int
    reads: tuple[int, ...]


class Expansion(NamedTuple):
    """A node that XLA writes as several kernels.

    Attributes:
      stages: What comes before the last one.
      reads: What the last one reads, as in `Stage`.
    """

    stages: tuple[Stage, ...]
    reads: tuple[int, ...]


class NodeFacts:
    """What the rules need to know of each node, found once for a graph and kept with it."""

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
        self.reads: list[dict[int, int]] = []  # each value read, and what is done to it for that
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
        for i, p in enumerate(self.primitives):
            if p == "div" and self.kinds[i] == Kind.EXPENSIVE and self.is_broadcast[self.operands[i][1]]:
                self.kinds[i] = Kind.CHEAP  # XLA multiplies by the reciprocal of what was broadcast
        self.is_in_float32 = [
            p in _IN_FLOAT32 and self.dtypes[self.starts[i]] in NARROW for i, p in enumerate(self.primitives)
        ]
        self.expansions = dict(self._expansions())
        self.held_expansions = dict(self._pools_by_slice())
        for i in range(graph.n_nodes):
            if i in self.expansions and self._ends_in_loop(i):
                self.kinds[i] = Kind.CHEAP
            elif self._is_rounded(i):
                self.kinds[i] = Kind.EXPENSIVE
        self.reciprocals = dict(self._reciprocals())
        self.moves = [p in _MOVES for p in self.primitives]
        self.is_unary = [self._is_unary(i) for i in range(graph.n_nodes)]
        self.is_merged = [
            self.kinds[i] in (Kind.CHEAP, Kind.EXPENSIVE) and p in _MERGED and bool(o) and LITERAL not in o
            for i, (p, o) in enumerate(zip(self.primitives, self.operands, strict=True))
        ]
        self.is_widened = [
            k in (Kind.CHEAP, Kind.EXPENSIVE) and not self.moves[i] and len(self.reads[i]) > 1
            for i, k in enumerate(self.kinds)
        ]
        for i in self.expansions:
            self.is_widened[i] = False
        self.literals = self._literals(relaid)
        self.is_shared_exp = self._shared_exponentials()
        self.is_held_when_made, self.varies = _held_when_made(graph), self._varies()
        self.waits_for = dict(self._waits())
        self.is_constant = self._constants()

    @classmethod
    def of(cls, graph: Graph) -> NodeFacts:
        """Return the facts that are kept with a graph."""
        if "node facts" not in graph.memo:
            graph.memo["node facts"] = cls(graph)
        return graph.memo["node facts"]

    def _is_rounded(self, i: int) -> bool:
        """Return whether a node computes in float32 and rounds to bfloat16, which XLA does not do twice."""
        is_arithmetic = self.kinds[i] == Kind.CHEAP and self.primitives[i] not in (*_MOVES, "select_n")
        return is_arithmetic and self.dtypes[self.starts[i]] == "bfloat16"

    def in_float32(self, v: int) -> int:
        """Return the bytes of a value in float32, 0 where it is none of a narrower kind."""
        return 4 * self.sizes[v] if self.dtypes[v] in NARROW else 0

    def _expansions(self) -> Iterator[tuple[int, Expansion]]:
        """Yield the nodes that XLA writes as several kernels.

        Random bits come out of a loop over two arrays of 32-bit words, a new pair of which it makes in each step.
        Cumulative sums are taken of pieces of a copy. The gradient of max-pooling reduces windows of the operand
        together with its indices, one array for each dimension, and scatters into zeros by the indices that it finds.
        """
        for i, p in enumerate(self.primitives):
            out = self.starts[i]
            words = 4 * self.sizes[out] if out < len(self.sizes) else 0
            if p == "random_bits" and any(self.dtypes[v] == "key<fry>" for v in self.reads[i]):
                yield i, Expansion((Stage(words, 2, (OPERANDS,)), Stage(words, 2, (0,))), (1,))
            elif p in _CUMULATIVE:
                n_bytes = words if self.is_in_float32[i] else self.n_bytes[out]
                yield i, Expansion((Stage(n_bytes, 1, (OPERANDS,)), Stage(n_bytes, 1, (0,))), (1,))
            elif self._is_pool_gradient(i):
                rank, found = len(self.shapes[out]), 4 * self.sizes[self.operands[i][0]]
                n_padded = self._n_padded(i)
                indices, windows = Stage(4 * n_padded, rank, ()), Stage(found, rank + 1, (0, SECOND))
                zeros = Stage(self.n_bytes[out] // max(self.sizes[out], 1) * n_padded, 1, ())
                joined = Stage(rank * found, 1, (1,))
                yield i, Expansion((indices, windows, joined, zeros), (3, 2, FIRST))

    def _ends_in_loop(self, i: int) -> bool:
        """Return whether a node that XLA writes as several kernels ends in a loop over what the last stage makes."""
        return not self._is_pool_gradient(i) or self._n_padded(i) != self.sizes[self.starts[i]]

    def _is_pool_gradient(self, i: int) -> bool:
        return self.primitives[i] == _POOL_GRADIENT and len(self.operands[i]) == 2 and min(self.operands[i]) >= 0

    def _n_padded(self, i: int) -> int:
        """Return how many elements the operand of a pooling's gradient has with the edge that windows reach over."""
        how = int(self.graph.relaid_operands[self.graph.operand_start[i] + 1])
        return how - COPIED if how else self.sizes[self.starts[i]]

    def _pools_by_slice(self) -> Iterator[tuple[int, Expansion]]:
        """Yield the gradients of max-pooling that planned gradients run slice by slice (`integration/jax/pooling`)."""
        for i in range(self.graph.n_nodes):
            if not self._is_pool_gradient(i):
                continue
            out = self.starts[i]
            shape, n_found = self.shapes[out], self.sizes[self.operands[i][0]]
            n = next((a for a, b in zip(shape, self.shapes[self.operands[i][0]], strict=True) if a == b > 1), 0)
            if n:
                n_words = (len(shape) + 2) * self._n_padded(i) + (len(shape) + 1) * n_found
                zeros, slices = Stage(self.n_bytes[out], 1, ()), Stage(4 * n_words // n, 1, (OPERANDS,))
                yield i, Expansion((zeros, slices), (0, 1, OPERANDS))

    def _waits(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the nodes that reverse a loop, with what there must be before room is made for their gradients."""
        for n in self.graph.nested:
            saved = self.starts[n.forward_node + 1] - 2
            if n.kind == "scan" and saved in self.operands[n.backward_node]:
                first = self.operands[n.backward_node].index(saved)
                yield n.backward_node, [v for v in self.operands[n.backward_node][first:] if v >= 0]

    def _constants(self) -> list[bool]:
        """Return which forward nodes read nothing but what such nodes make: XLA merges them with their first run.

        Small ones are left out; they tell nothing apart.
        """
        n_bytes, found = self.graph.node_bytes.tolist(), [False] * self.graph.n_nodes
        for i in range(self.graph.n_forward):
            makers = (self.makers[v] for v in self.reads[i])
            found[i] = n_bytes[i] > _SMALL_BYTES and all(m >= 0 and found[m] for m in makers)
        return found

    def _primitive(self, i: int) -> str:
        """Return the primitive of a node, `mul` for a dot that sums nothing: XLA multiplies instead."""
        primitive, out = self.graph.primitives[i], self.starts[i]
        sums_nothing = primitive == "dot_general" and self.graph.flops[i] == 2 * self.sizes[out] > 0
        return "mul" if sums_nothing else primitive

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
        kind = _KINDS.get(self.primitives[i], Kind.KERNEL)
        if self.starts[i] == self.starts[i + 1]:
            return kind
        first = next(iter(self.reads[i]), None)
        return Kind.ALIAS if first is not None and self._is_alias(i, first, self.starts[i]) else self._divided(i, kind)

    def _is_alias(self, i: int, operand: int, out: int) -> bool:
        """Return whether a node that could do more only relabels its operand, or XLA folds it into a dot."""
        primitive = self.primitives[i]
        if primitive == "broadcast_in_dim" or (_KINDS.get(primitive) == Kind.REDUCTION and primitive[:3] != "arg"):
            return self.sizes[operand] == self.sizes[out]
        if primitive == "convert_element_type":
            return self.dtypes[operand] == self.dtypes[out]
        if primitive != "transpose":
            return False
        if i in self.cancelled:
            return True
        before, after = ([d for d in self.shapes[v] if d != 1] for v in (operand, out))
        if before == after and len(set(before)) == len(before):
            return True
        if len(self.shapes[out]) != 2:
            return False
        maker = self.makers[operand]
        is_of_dot = maker >= 0 and self.primitives[maker] == "dot_general" and len(self.readers[operand]) == 1
        readers = self.readers[out]
        return is_of_dot or (bool(readers) and all(self.primitives[r] == "dot_general" for r in readers))

    def _divided(self, i: int, kind: Kind) -> Kind:
        """Return the kind of a division: expensive by an array of full size, else as cheap as a multiplication."""
        if self.primitives[i] != "div":
            return kind
        divisor = self.operands[i][1]
        is_full = divisor != LITERAL and self.sizes[divisor] >= self.sizes[self.starts[i]]
        return Kind.EXPENSIVE if is_full else Kind.CHEAP

    def _reciprocals(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the divisions for which XLA computes 1 / x of a smaller array first, with the divisor and that array.

        Not those by what depends on literals alone, which XLA computes while it compiles, nor those of integers.
        """
        for i, p in enumerate(self.primitives):
            if p != "div" or self.kinds[i] != Kind.CHEAP or "float" not in self.dtypes[self.starts[i]]:
                continue
            divisor = v = self.operands[i][1]
            while v >= 0 and self.is_broadcast[v]:
                v = next(iter(self.reads[self.makers[v]]), LITERAL)
            if v >= 0 and divisor != self.operands[i][0]:
                yield i, (divisor, v)

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

    def _literals(self, numbers: list[int]) -> dict[int, int]:
        """Return the nodes that scale or shift by a literal that another one shares, with the literal's number.

        Left out are literals of which no user can be inside a reduction or a softmax: nothing else needs the array.
        """
        users: dict[tuple[int, tuple[int, ...], str], list[int]] = {}
        for i, p in enumerate(self.primitives):
            if p in _SCALES and self.kinds[i] == Kind.CHEAP and LITERAL in self.operands[i] and len(self.reads[i]) == 1:
                out = self.starts[i]
                number = numbers[self.graph.operand_start[i] + self.operands[i].index(LITERAL)]
                if number and self.sizes[out] > 1:
                    users.setdefault((number, self.shapes[out], self.dtypes[out]), []).append(i)
        groups = (g for g in users.items() if any(map(self._is_reduced, g[1])))
        return {i: number for (number, *_), nodes in groups for i in nodes}

    def _is_reduced(self, i: int) -> bool:
        """Return whether a node is scaled or shifted on the way into a reduction that alone reads it, or a softmax."""
        while self.kinds[i] < Kind.REDUCTION:
            readers = self.readers[self.starts[i]]
            if len(readers) == 2 and any(self.primitives[r] == "reduce_max" for r in readers):
                return True
            if len(readers) != 1:
                return False
            i = readers[0]
        return self.kinds[i] == Kind.REDUCTION

    def _shared_exponentials(self) -> list[bool]:
        """Return which nodes are exp(-x * x) beside an erfc(x)."""
        primitives = self.primitives
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
