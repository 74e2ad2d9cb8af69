"""What XLA:CPU makes of single nodes, beside what every XLA compiler does.

9. The exponential inside `erfc(x)` is shared with an exp(-x * x) of the program, and so takes memory (see `versions`).
11. A dot that sums nothing is a multiplication.
12. Division by what a broadcast repeats is multiplication by the reciprocal of what it repeats, which takes memory.
13. A literal that two instructions of one shape scale or shift by is an array that both read: it takes memory where one
    of them is inside a reduction.
15. Dots, convolutions and scatters of 16-bit floats read copies in float32 and round what they make; what rounds to
    bfloat16 is `EXPENSIVE`, and no softmax of such floats is one kernel. A dot into float32 reads bfloat16 as it
    is, and newer versions more: see `versions`.
    A higher power of such a float begins with its square, and 1 - x * x with 1 + x: these are merged with others.
    Older versions slice what loops read step by step out of a copy in float32, which is made before the loop.
16. Only sums, maxima and minima of floats, of 4,096 elements or more, are the library's, and it takes in only what has
    as many and is made of such floats, and broadcasts. Others are loops that compute what they read, or from windows of
    32 on two of them, of which the first reads from memory (XLA's `TreeReductionRewriter`).

The numbers are those of `fusion`'s rules.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiny_backprop.graph import LITERAL, ONE, TRANSPOSED, Graph
from tiny_backprop.predict.kinds import CONTRACTIONS, REDUCTIONS, Kind, names
from tiny_backprop.predict.node_facts import NodeFacts
from tiny_backprop.predict.xla_cpu.expansions import (
    CUMULATIVE,
    ends_in_loop,
    expansions,
    pools_by_slice,
    sums_rows,
)
from tiny_backprop.predict.xla_cpu.versions import Version

NARROW = ("bfloat16", "float16")
"""Floats that XLA:CPU computes with in float32."""
_EXPENSIVE = names(
    "exp exp2 expm1 log log1p log2 tanh rsqrt sqrt cbrt erf erfc erf_inv logistic pow atan2 lgamma digamma asin acos "
    "atan sinh cosh asinh acosh atanh rem gather"
)
_EXPENSIVE_IF_COMPLEX = names("sin cos tan abs sign")
_LIBRARY_REDUCTIONS = names("reduce_sum reduce_max reduce_min")
_LIBRARY_FLOATS = names("float64 float32 bfloat16 int8 uint8")  # of element-wise operations
_OF_ANY_SIZE = names("reshape squeeze expand_dims broadcast_in_dim iota stop_gradient")
_LEAST_ELEMENTS = 4096
_SCALES = names("add sub mul div")
_RAGGED_DOT = "ragged_dot_general"
_IN_FLOAT32 = (*CONTRACTIONS, _RAGGED_DOT, "scatter-add", *CUMULATIVE)


class CpuFacts(NodeFacts):
    """What the rules need to know of each node for XLA:CPU.

    Attributes:
      is_in_float32: Which nodes compute in float32 and make 16-bit floats.
      expansions: Nodes that are written as several kernels.
      planned_expansions: Those of them that planned gradients run otherwise.
      reciprocals: Divisions for which 1 / x is computed first, each with the divisor and x.
      copied_for_loops: For each loop, what it reads out of copies in float32, with their bytes: those that are there
        together with what is copied, and those that come when it is gone.
      begins_with: Nodes of 16-bit floats that begin with an operation that others may be, with what tells it.
      is_first: Nodes that are such an operation.
      literals: Nodes that scale or shift by a literal that another one shares, with the literal's number.
    """

    def __init__(self, graph: Graph, version: Version):
        super().__init__(graph)
        self.is_absorbed = [p in version.absorbed and self._is_of_library(i) for i, p in enumerate(self.primitives)]
        self.is_in_float32 = [
            p in _IN_FLOAT32 and self.dtypes[self.starts[i]] in NARROW and not self._reads_bfloat16(i, version)
            for i, p in enumerate(self.primitives)
        ]
        self.expansions = dict(expansions(self, self.is_in_float32))
        self.planned_expansions = dict(pools_by_slice(self))
        for i in range(graph.n_nodes):
            if i in self.expansions and self.kinds[i] == Kind.KERNEL and ends_in_loop(self, i):
                self.kinds[i] = Kind.CHEAP
            elif self.kinds[i] == Kind.CHEAP and self._is_expensive(i):
                self.kinds[i] = Kind.EXPENSIVE
        self.copied_for_loops = {} if version.slices_bfloat16 else dict(self._copied_for_loops())
        for i, waited in self.waits_for.items():  # what is copied is gone by then
            waited[:] = [v for v in waited if v not in self.copied_for_loops.get(i, {})]
        self.begins_with: dict[int, str] = {}
        self.is_first: dict[int, str] = {}
        for i, p in enumerate(self.primitives):
            if self.starts[i] < len(self.dtypes) and self.dtypes[self.starts[i]] in NARROW:
                self._find_first(i, p)
        self.reciprocals = dict(self._reciprocals())
        self.literals = self._literals(graph.relaid_operands.tolist())
        if version.shares_exponentials:
            self.is_shared = self._shared_exponentials()

    def _copied_for_loops(self) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        """Yield loops with the stacked 16-bit floats that they read, and the bytes of copies in float32."""
        for n in self.graph.nested:
            if n.kind != "scan":
                continue
            (body,), saved = n.bodies, self.starts[n.forward_node + 1] - 2
            stacked = self.operands[n.forward_node][n.first_carry + len(n.carries) :]
            found = {v: (self.in_float32(v), 0) for v in stacked if v >= 0 and self.in_float32(v)}
            yield n.forward_node, found
            kept = [*body.residuals, *range(n.first_carry, n.first_carry + len(n.carries))]
            narrow = [int(body.value_bytes[v]) for v in kept if body.value_dtypes[v] in NARROW]
            a_byte = self.n_bytes[saved] / max(sum(int(body.value_bytes[v]) for v in kept), 1)
            operands = self.operands[n.backward_node]
            after = operands.index(saved) + 1 if saved in operands else len(operands)
            carried = {operand for operand, _ in n.overwrites[1]}
            cotangents = [v for k, v in enumerate(operands) if k >= after and k not in carried and v >= 0]
            found = {v: (self.in_float32(v), 0) for v in (*found, *cotangents) if self.in_float32(v)}
            if narrow:  # arrays that are copied one after the other
                together, later = sum(narrow) + max(narrow), sum(narrow) - max(narrow)
                found[saved] = int(a_byte * together), int(a_byte * later)
            yield n.backward_node, found

    def _find_first(self, i: int, primitive: str) -> None:
        """Find out whether a node of 16-bit floats is an operation that others begin with, or begins with one."""
        first = self.graph.operand_start[i]
        literals = [r for v, r in zip(self.operands[i], self.graph.relaid_operands[first:], strict=False) if v < 0]
        if primitive == "integer_pow":
            n_products = self.graph.flops[i] / max(self.sizes[self.starts[i]], 1)
            (self.is_first if n_products == 1 else self.begins_with)[i] = "square"
        elif primitive == "one_minus_square":
            self.begins_with[i] = "1 + x"
        elif primitive == "add" and literals == [ONE] and len(self.reads[i]) == 1:
            self.is_first[i] = "1 + x"
        self.is_merged[i] |= i in self.is_first

    def _kind(self, i: int) -> Kind:
        kind = super()._kind(i)
        return Kind.EXPENSIVE if kind == Kind.REDUCTION and not self._is_of_library(i) else kind

    def _is_of_library(self, i: int) -> bool:
        """Return whether the library has a kernel for what an element-wise node or a reduction does (rule 16)."""
        primitive, values = self.primitives[i], [*self.reads[i], *range(self.starts[i], self.starts[i + 1])]
        if primitive in _OF_ANY_SIZE:
            return True
        if primitive in REDUCTIONS:
            has_kernel = primitive in _LIBRARY_REDUCTIONS and all("float" in self.dtypes[v] for v in values)
        else:
            has_kernel = all(self.dtypes[v] in _LIBRARY_FLOATS for v in values)
        return has_kernel and max((self.sizes[v] for v in values), default=0) >= _LEAST_ELEMENTS

    def _reads_bfloat16(self, i: int, version: Version) -> bool:
        """Return whether a node that makes 16-bit floats reads and makes bfloat16 as it is."""
        p, out = self.primitives[i], self.starts[i]
        is_ragged = p == _RAGGED_DOT
        if ("dot_general" if is_ragged else p) not in version.reads_bfloat16 or any(
            self.dtypes[v] == "float16" for v in (out, *self.reads[i])
        ):
            return False
        if is_ragged:
            return not sums_rows(self, i)
        return p != "dot_general" or self._is_row_major(i)

    def _is_row_major(self, i: int) -> bool:
        """Return whether a dot is one of matrices, the left one contracted by its last dimension, none a transpose."""
        operands = self.operands[i]
        if any(v == LITERAL or len(self.shapes[v]) < 2 for v in operands):
            return False
        makers = [self.makers[v] for v in operands]
        is_folded = any(m >= 0 and self.primitives[m] == "transpose" and m not in self.cancelled for m in makers)
        return not is_folded and self.graph.relaid_operands[self.graph.operand_start[i]] != TRANSPOSED

    def in_float32(self, v: int) -> int:
        """Return the bytes of a value in float32, 0 where it is none of a narrower kind."""
        return 4 * self.sizes[v] if self.dtypes[v] in NARROW else 0

    def _primitive(self, i: int) -> str:
        """Return the primitive of a node, `mul` for a dot that sums nothing: XLA multiplies instead."""
        primitive, out = self.graph.primitives[i], self.starts[i]
        sums_nothing = primitive == "dot_general" and self.graph.flops[i] == 2 * self.sizes[out] > 0
        return "mul" if sums_nothing else primitive

    def _is_alias(self, i: int, operand: int, out: int) -> bool:
        return super()._is_alias(i, operand, out) or self._is_folded(i, operand, out)

    def _is_folded(self, i: int, operand: int, out: int) -> bool:
        """Return whether a node transposes a matrix for dots alone, or what a dot made for it alone."""
        if self.primitives[i] != "transpose" or len(self.shapes[out]) != 2:
            return False
        maker = self.makers[operand]
        is_of_dot = maker >= 0 and self.primitives[maker] == "dot_general" and len(self.readers[operand]) == 1
        readers = self.readers[out]
        return is_of_dot or (bool(readers) and all(self.primitives[r] == "dot_general" for r in readers))

    def _is_expensive(self, i: int) -> bool:
        """Return whether an element-wise node is computed once; one that rounds to bfloat16 is not rounded twice."""
        p = self.primitives[i]
        if p in _EXPENSIVE or (p == "div" and self._is_by_array(i)):
            return True
        if p in _EXPENSIVE_IF_COMPLEX and self.dtypes[self.starts[i]].startswith("complex"):
            return True
        is_arithmetic = not self.moves[i] and p != "select_n"
        return is_arithmetic and self.dtypes[self.starts[i]] == "bfloat16"

    def _is_by_array(self, i: int) -> bool:
        """Return whether a division is by an array of full size; by others it is as cheap as a multiplication."""
        divisor = self.operands[i][1]
        is_full = divisor != LITERAL and self.sizes[divisor] >= self.sizes[self.starts[i]]
        return is_full and not self.is_broadcast[divisor]  # XLA multiplies by the reciprocal of what was broadcast

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
