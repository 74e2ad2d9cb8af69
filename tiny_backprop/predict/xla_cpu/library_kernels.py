"""Patterns that XLA:CPU makes one kernel of.

7. The softmax of rows, x - max(x) and its exponential, is one reduction kernel, and takes in the dot before it that
   nothing else reads. So is its gradient from 4,096 rows on: that dot takes no memory unless something else reads it,
   but what multiplies it does.
8. A scatter into zeros that is only added to another array scatters into that array, unless they are added in float32
   and rounded.

The numbers are those of `fusion`'s rules.
"""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.fusion import LibraryKernels
from tiny_backprop.predict.instructions import PREDICATE
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.predict.uses import Uses
from tiny_backprop.predict.xla_cpu.facts import NARROW

_SCALED = ("add", "mul", "div")
_MOST_BETWEEN = 5  # instructions between a reduction of rows and where it is subtracted
_LEAST_ROWS_BYTES = 16384
_REDUCTION, _KERNEL = int(Kind.REDUCTION), int(Kind.KERNEL)  # as plain numbers, which compare faster


def find_library_kernels(uses: Uses) -> LibraryKernels:
    """Return softmaxes, their gradients and scatters into zeros that a program has.

    Args:
      uses: Who reads what.
    """
    finder = _Finder(uses)
    finder.find()
    return LibraryKernels(finder.kinds, finder.taken_in, finder.replaced, finder.in_place)


class _Finder:
    def __init__(self, uses: Uses):
        self.uses, self.kinds, self.returned = uses, uses.of.kinds.copy(), uses.of.returned
        self.taken_in: set[int] = set()
        self.replaced: set[int] = set()
        self.in_place: set[int] = set()

    def find(self) -> None:
        """Mark softmaxes, their gradients and scatters into zeros, in the order of the program."""
        uses = self.uses
        is_narrow = _is_narrow(uses)
        is_pair, second = uses.n_operands == 2, np.arange(uses.n)
        second[uses.edge_reader] = uses.edge_operand  # the last operand
        is_chain = (uses.n_operands == 1) & (self.kinds < _REDUCTION)
        is_sum = uses.is_named(lambda p: p == "reduce_sum") & ~is_narrow & (uses.n_bytes >= _LEAST_ROWS_BYTES)
        is_max = uses.is_named(lambda p: p == "reduce_max") & (self.kinds == _REDUCTION)
        is_rows = uses.is_named(lambda p: p == "sub") & ~is_narrow & is_max[self._end(is_chain)[second]]
        end = self._end(is_chain & (uses.n_readers == 1))
        is_gradient = is_sum[end[uses.operand]] | is_sum[end[second]]
        is_scatter = uses.is_named(lambda p: p.startswith("scatter"))
        is_scattered = (is_scatter[uses.operand] | is_scatter[second]) & ~is_narrow
        is_add = uses.is_named(lambda p: p in ("add", "add_any"))
        for i in np.flatnonzero(is_pair & (is_rows | (is_add & (is_gradient | is_scattered)))).tolist():
            if is_rows[i]:
                self._find_softmax(i)
            else:
                self._find_scatter(i)
                self._find_softmax_gradient(i)

    def _end(self, is_chain: np.ndarray) -> np.ndarray:
        """Return where a chain of operands from each instruction ends, or is left."""
        end = step = np.where(is_chain, self.uses.operand, np.arange(self.uses.n))
        for _ in range(_MOST_BETWEEN - 2):
            end = step[end]
        return end

    def _find_softmax(self, sub: int) -> None:
        """Mark x - max(x), and its exponential, as one kernel, with what it alone reads (rule 7)."""
        uses = self.uses
        x, below = uses.operands(sub)
        between = [below]
        while self.kinds[between[-1]] < _REDUCTION and len(between) < _MOST_BETWEEN:
            operands = uses.operands(between[-1])
            if len(operands) != 1:
                return
            between.append(operands[0])
        if uses.name(between[-1]) != "reduce_max" or uses.operands(between[-1]) != [x]:
            return
        root = sub
        if uses.n_readers[sub] == 1 and uses.name(uses.reader[sub]) == "exp":
            root = int(uses.reader[sub])
        self.kinds[root] = _REDUCTION
        if all(uses.n_readers[i] == 1 and i not in self.returned for i in between):
            self.taken_in.update(between)
            if root != sub:
                self.taken_in.add(sub)
        if uses.n_readers[x] == 2 and x not in self.returned:
            self._take_in_dot(x)

    def _take_in_dot(self, x: int) -> None:
        """Mark a dot that only scaling and adding lies after, down to `x`."""
        uses = self.uses
        chain = [x]
        while self.kinds[chain[-1]] < _REDUCTION and uses.name(chain[-1]) in _SCALED:
            i = chain[-1]
            full = [o for o in uses.operands(i) if uses.n_bytes[o] == uses.n_bytes[i] and not self._is_broadcast(o)]
            if len(full) != 1 or uses.n_readers[full[0]] != 1:
                return
            chain.append(full[0])
        if uses.name(chain[-1]) == "dot_general":
            self.taken_in.update(chain)

    def _find_softmax_gradient(self, add: int) -> None:
        """Mark d * a - sum(d * b) and what is made of it alone, d a dot, as one kernel (rule 7)."""
        uses = self.uses
        operands = uses.operands(add)
        for product, repeated in (operands, operands[::-1]):
            between = [repeated]
            while self.kinds[between[-1]] < _REDUCTION and len(between) < _MOST_BETWEEN:
                if uses.n_operands[between[-1]] != 1 or uses.n_readers[between[-1]] != 1:
                    break
                between.append(int(uses.operand[between[-1]]))
            total = between[-1]
            if uses.name(total) != "reduce_sum" or uses.n_bytes[total] < _LEAST_ROWS_BYTES:
                continue
            inside = {*between, *self._scaled(product), *self._scaled(int(uses.operand[total]))}
            dots = [i for i in inside if uses.name(i) == "dot_general"]
            if len(dots) != 1 or inside & self.returned.keys():
                continue
            inside = self._read_within(inside, add)
            if inside.issuperset(between):
                self._take_in_gradient(inside, add)
                return

    def _read_within(self, inside: set[int], root: int) -> set[int]:
        """Return those of some instructions that nothing but these and a root reads."""
        while True:
            within = {i for i in inside if inside.issuperset(r for r in self.uses.readers(i) if r != root)}
            if within == inside:
                return within
            inside = within

    def _take_in_gradient(self, inside: set[int], root: int) -> None:
        """Mark the kernel of a softmax's gradient, down to the last element-wise instruction that it alone feeds."""
        uses = self.uses
        while uses.n_readers[root] == 1 and root not in self.returned:
            reader = int(uses.reader[root])
            if not uses.of.is_absorbed[reader] or self.kinds[reader] >= _REDUCTION:
                break
            inside.add(root)
            root = reader
        self.taken_in.update(inside)
        self.kinds[root] = _REDUCTION

    def _scaled(self, i: int) -> list[int]:
        """Return the instructions from one down to the dot that it multiplies or divides, empty where there is none."""
        uses = self.uses
        if uses.name(i) == "dot_general":
            return [i]
        if uses.name(i) in ("mul", "div") and self.kinds[i] < _REDUCTION:
            for o in uses.operands(i):
                below = self._scaled(o) if uses.n_bytes[o] == uses.n_bytes[i] else []
                if below:
                    return [i, *below]
        return []

    def _is_broadcast(self, i: int) -> bool:
        return self.uses.name(i) in ("broadcast_in_dim", "iota")

    def _find_scatter(self, add: int) -> None:
        """Mark scatter(zeros) + y as a scatter into y (rule 8)."""
        uses = self.uses
        for i in uses.operands(add):
            if not uses.name(i).startswith("scatter") or uses.n_readers[i] != 1 or i in self.returned:
                continue
            zeros = [
                o
                for o in uses.operands(i)
                if uses.name(o) == "broadcast_in_dim" and not uses.n_operands[o] and self._is_read_by_one(o)
            ]
            if zeros and uses.n_bytes[zeros[0]] == uses.n_bytes[i] == uses.n_bytes[add]:
                self.replaced |= {i, zeros[0]}
                self.kinds[add] = _KERNEL
                self.in_place.add(add)
                return

    def _is_read_by_one(self, constant: int) -> bool:
        """Return whether one instruction reads a constant; nothing waits for it."""
        return sum(self.uses.of.nodes[r] != PREDICATE for r in self.uses.readers(constant)) == 1


def _is_narrow(uses: Uses) -> np.ndarray:
    """Return which instructions stand for a float of 16 bits."""
    graph = uses.of.graph
    if "is narrow" not in graph.memo:
        graph.memo["is narrow"] = np.append([d in NARROW for d in graph.value_dtypes], False)
    return graph.memo["is narrow"][uses.of.values]
