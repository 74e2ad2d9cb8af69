"""Which instructions XLA:CPU gives memory: a model of its fusion, rule by rule.

1. A `CHEAP` or `EXPENSIVE` instruction that only loops read is computed inside them and takes no memory.
2. It takes memory where a kernel, a hold or a reduction reads it, or the program returns it.
3. An `EXPENSIVE` one also does where several instructions read it, or one that repeats its elements (a broadcast).
4. A `CHEAP` one with memory of its own is still computed again by the loops that read it, if it is *unary*: this costs
   them no further operand. Another one is computed again only where all that lies between it and its readers is fused.
5. An `ALIAS` shares its operand's memory where that has some, and is otherwise a `CHEAP` unary instruction.
6. A reduction takes in the chain of element-wise instructions that it alone reads. What enters that chain takes memory.
7. The softmax of rows, x - max(x) and its exponential, is one reduction kernel, and takes in the dot before it that
   nothing else reads. So is its gradient from 4,096 rows on: that dot takes no memory unless something else reads it,
   but what multiplies it does.
8. A scatter into zeros that is only added to another array scatters into that array.
9. The exponential inside `erfc(x)` is shared with an exp(-x * x) of the program, and so takes memory.
10. What is concatenated along the last dimension, into rows of 64 bytes or more, takes memory, and so do more than
    eight arrays along any; the result is computed in the loop that reads it.
11. A dot that sums nothing is a multiplication.
12. Division by what a broadcast repeats is multiplication by the reciprocal of what it repeats, which takes memory.
13. A literal that two instructions of one shape scale or shift by is an array that both read: it takes memory where one
    of them is inside a reduction.
14. A pad or a concatenation takes memory where loops would compute it more than once, and anything where one loop would
    do so more than 15 times: once for each way of finding its elements.
15. Dots, convolutions and scatters of 16-bit floats read copies in float32 and round what they make; what rounds to
    bfloat16 is `EXPENSIVE`, and no softmax of such floats is one kernel. A dot into float32 reads bfloat16 as it is.

`tests/test_materialized.py` holds each rule against XLA.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np

from tiny_backprop.predict.node_facts import Kind, names
from tiny_backprop.predict.unrolled import Instructions, distinct, starts_of
from tiny_backprop.schedule.simulate import ranges

_ABSORBED = names(
    "reshape squeeze expand_dims broadcast_in_dim iota convert_element_type add sub mul div max min neg abs sign floor "
    "ceil round square integer_pow pow sqrt rsqrt exp expm1 log log1p tanh logistic erf add_any stop_gradient "
    "one_minus_square log2"
)
_IN_PLACE = ("scatter", "dynamic_update", "select_and_scatter_add", "triangular_solve")
_SCALED = ("add", "mul", "div")
_BRANCHES = names("pad concatenate stack")
_JOINS = names("concatenate stack")
_MOST_JOINED, _LEAST_ROW_BYTES, _LEAST_JOINED_BYTES = 8, 64, 2048
_MOST_BETWEEN = 5  # instructions between a reduction of rows and where it is subtracted
_LEAST_ROWS_BYTES = 16384
_MOST_TIMES = 15
_DOUBLINGS = 4  # how often what is computed inside others is continued, each time twice as far
_ALIAS, _CHEAP, _EXPENSIVE, _REDUCTION, _KERNEL = (  # as plain numbers, which compare faster
    int(k) for k in (Kind.ALIAS, Kind.CHEAP, Kind.EXPENSIVE, Kind.REDUCTION, Kind.KERNEL)
)


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
    """What becomes of each instruction.

    Attributes:
      instructions: The instructions.
      has_buffer: Whether it takes memory.
      is_in_place: Whether it is a scatter or the like, which writes into its operand.
      returned: The instructions whose memory the program returns, each with its first place among the outputs.
      readers: Instructions with memory, each with one whose memory it reads when it is computed; sorted, by pairs.
      sources: The other one of each pair.
      is_same_place: Whether an element is read for the element in the same place alone, so that it may be overwritten.
      is_read_through: Of each of `instructions.operands`, whether it is computed inside the one that reads it.
      donated_readers: Instructions with memory, each with a donated input that it reads when it is computed.
      donated: The other one of each pair.
      is_donated_same_place: `is_same_place` of these pairs.
    """

    instructions: Instructions
    has_buffer: np.ndarray
    is_in_place: np.ndarray
    returned: dict[int, int]
    readers: np.ndarray
    sources: np.ndarray
    is_same_place: np.ndarray
    is_read_through: np.ndarray
    donated_readers: np.ndarray
    donated: np.ndarray
    is_donated_same_place: np.ndarray

    def first_source(self, i: int, among: Collection[int]) -> int:
        """Return the one of some sources of an instruction that it comes to first, operand by operand."""
        bounds, operands, is_read_through = self._lists
        waiting, seen = [(i, -1)], set[int]()
        while waiting:
            instruction, e = waiting.pop()
            if e >= 0 and not is_read_through[e]:
                if instruction in among:
                    return instruction
            elif instruction not in seen:
                seen.add(instruction)
                entries = range(bounds[instruction + 1] - 1, bounds[instruction] - 1, -1)
                waiting += [(operands[e], e) for e in entries]
        return min(among)  # copies of donated inputs, which are no operands

    @functools.cached_property
    def _lists(self) -> tuple[list[int], list[int], list[bool]]:
        """Where each instruction's operands start, these, and `is_read_through`, as lists, which are faster to walk."""
        of = self.instructions
        return of.operand_start.tolist(), of.operands.tolist(), self.is_read_through.tolist()


def fuse(instructions: Instructions) -> Fusion:
    """Decide which instructions take memory; see the module's text. About linear in their number."""
    return _Fuser(instructions).run()


class _Fuser:
    def __init__(self, instructions: Instructions):
        self.of, self.n = instructions, len(instructions)
        self.kinds, self.n_bytes = instructions.kinds.copy(), instructions.n_bytes
        self.names, self.primitives = instructions.primitive_names, instructions.primitives
        self.edge_reader, self.edge_operand = instructions.readers, instructions.operands
        self.n_operands = np.diff(instructions.operand_start)
        self.n_readers = np.bincount(self.edge_operand, minlength=self.n)
        self.read_by = self.edge_reader[np.argsort(self.edge_operand, kind="stable")]
        self.read_by_start = np.cumsum(np.append(0, self.n_readers))
        # The first operand and the first reader of each; an instruction itself where it has none.
        self.operand, self.reader = np.arange(self.n), np.arange(self.n)
        self.operand[self.edge_reader[::-1]] = self.edge_operand[::-1]
        self.reader[self.edge_operand[::-1]] = self.edge_reader[::-1]
        self.returned = dict(instructions.returned)
        self.is_returned = np.zeros(self.n, bool)
        self.is_returned[list(self.returned)] = True
        self.taken_in: set[int] = set()  # by a softmax
        self.replaced: set[int] = set()  # scatters into zeros, and the zeros
        self.is_in_place = self._is_named(lambda p: p.startswith(_IN_PLACE))

    def run(self) -> Fusion:
        self._find_patterns()
        self._decide()
        self._merge_aliases()
        of, is_loop = self.of, (self.kinds < _REDUCTION) & ~self.in_reduction & ~self._joins_rows
        is_read_through = ~self.has_buffer[self.edge_operand]
        is_read_through |= self.is_inlined[self.edge_operand] & is_loop[self.edge_reader]
        is_same_place = (of.kinds < _REDUCTION) & ~of.moves
        # Donated inputs are read like instructions with memory, and numbered after them.
        readers = np.append(self.edge_reader, of.donated_readers)
        operands = np.append(self.edge_operand, self.n + of.donated)
        goes_on = np.append(is_read_through, np.zeros(len(of.donated), bool))
        pairs = _sources((readers, operands, goes_on), self.has_buffer, is_same_place)
        is_donated = pairs[1] >= self.n
        reader, source, same_place = (a[~is_donated] for a in pairs)
        of_donated = [a[is_donated] for a in pairs]
        of_donated[1] -= self.n
        return Fusion(
            of,
            self.has_buffer,
            self.is_in_place,
            self.returned,
            reader,
            source,
            same_place,
            is_read_through,
            *of_donated,
        )

    def _is_named(self, test: Callable[[str], bool]) -> np.ndarray:
        """Return which instructions have a primitive that passes a test."""
        return np.array([test(p) for p in self.names], bool)[self.primitives]

    def _name(self, i: int) -> str:
        return self.names[self.primitives[i]]

    def _operands(self, i: int) -> list[int]:
        start = self.of.operand_start
        return self.edge_operand[start[i] : start[i + 1]].tolist()

    def _readers(self, i: int) -> list[int]:
        return self.read_by[self.read_by_start[i] : self.read_by_start[i + 1]].tolist()

    # ---- patterns ----

    def _find_patterns(self) -> None:
        """Mark softmaxes, their gradients and scatters into zeros, in the order of the program."""
        is_pair, second = self.n_operands == 2, np.arange(self.n)
        second[self.edge_reader] = self.edge_operand  # the last operand
        is_chain = (self.n_operands == 1) & (self.kinds < _REDUCTION)
        is_sum = self._is_named(lambda p: p == "reduce_sum") & ~self.of.is_narrow & (self.n_bytes >= _LEAST_ROWS_BYTES)
        is_max = self._is_named(lambda p: p == "reduce_max")
        is_rows = self._is_named(lambda p: p == "sub") & ~self.of.is_narrow & is_max[self._end(is_chain)[second]]
        end = self._end(is_chain & (self.n_readers == 1))
        is_gradient = is_sum[end[self.operand]] | is_sum[end[second]]
        is_scatter = self._is_named(lambda p: p.startswith("scatter"))
        is_scattered = is_scatter[self.operand] | is_scatter[second]
        is_add = self._is_named(lambda p: p in ("add", "add_any"))
        for i in np.flatnonzero(is_pair & (is_rows | (is_add & (is_gradient | is_scattered)))).tolist():
            if is_rows[i]:
                self._find_softmax(i)
            else:
                self._find_scatter(i)
                self._find_softmax_gradient(i)

    def _end(self, is_chain: np.ndarray) -> np.ndarray:
        """Return where a chain of operands from each instruction ends, or is left."""
        end = step = np.where(is_chain, self.operand, np.arange(self.n))
        for _ in range(_MOST_BETWEEN - 2):
            end = step[end]
        return end

    def _find_softmax(self, sub: int) -> None:
        """Mark x - max(x), and its exponential, as one kernel, with what it alone reads (rule 7)."""
        x, below = self._operands(sub)
        between = [below]
        while self.kinds[between[-1]] < _REDUCTION and len(between) < _MOST_BETWEEN:
            operands = self._operands(between[-1])
            if len(operands) != 1:
                return
            between.append(operands[0])
        if self._name(between[-1]) != "reduce_max" or self._operands(between[-1]) != [x]:
            return
        root = sub
        if self.n_readers[sub] == 1 and self._name(self.reader[sub]) == "exp":
            root = int(self.reader[sub])
        self.kinds[root] = _REDUCTION
        if all(self.n_readers[i] == 1 and i not in self.returned for i in between):
            self.taken_in.update(between)
            if root != sub:
                self.taken_in.add(sub)
        if self.n_readers[x] == 2 and x not in self.returned:
            self._take_in_dot(x)

    def _take_in_dot(self, x: int) -> None:
        """Mark a dot that only scaling and adding lies after, down to `x`."""
        chain = [x]
        while self.kinds[chain[-1]] < _REDUCTION and self._name(chain[-1]) in _SCALED:
            i = chain[-1]
            full = [o for o in self._operands(i) if self.n_bytes[o] == self.n_bytes[i] and not self._is_broadcast(o)]
            if len(full) != 1 or self.n_readers[full[0]] != 1:
                return
            chain.append(full[0])
        if self._name(chain[-1]) == "dot_general":
            self.taken_in.update(chain)

    def _find_softmax_gradient(self, add: int) -> None:
        """Mark d * a - sum(d * b) and what is made of it alone, d a dot, as one kernel (rule 7)."""
        operands = self._operands(add)
        for product, repeated in (operands, operands[::-1]):
            between = [repeated]
            while self.kinds[between[-1]] < _REDUCTION and len(between) < _MOST_BETWEEN:
                if self.n_operands[between[-1]] != 1 or self.n_readers[between[-1]] != 1:
                    break
                between.append(int(self.operand[between[-1]]))
            total = between[-1]
            if self._name(total) != "reduce_sum" or self.n_bytes[total] < _LEAST_ROWS_BYTES:
                continue
            inside = {*between, *self._scaled(product), *self._scaled(int(self.operand[total]))}
            dots = [i for i in inside if self._name(i) == "dot_general"]
            if len(dots) != 1 or inside & self.returned.keys():
                continue
            inside = self._read_within(inside, add)
            if inside.issuperset(between):
                self._take_in_gradient(inside, add)
                return

    def _read_within(self, inside: set[int], root: int) -> set[int]:
        """Return those of some instructions that nothing but these and a root reads."""
        while True:
            within = {i for i in inside if inside.issuperset(r for r in self._readers(i) if r != root)}
            if within == inside:
                return within
            inside = within

    def _take_in_gradient(self, inside: set[int], root: int) -> None:
        """Mark the kernel of a softmax's gradient, down to the last element-wise instruction that it alone feeds."""
        while self.n_readers[root] == 1 and root not in self.returned:
            reader = int(self.reader[root])
            if self._name(reader) not in _ABSORBED or self.kinds[reader] >= _REDUCTION:
                break
            inside.add(root)
            root = reader
        self.taken_in.update(inside)
        self.kinds[root] = _REDUCTION

    def _scaled(self, i: int) -> list[int]:
        """Return the instructions from one down to the dot that it multiplies or divides, empty where there is none."""
        if self._name(i) == "dot_general":
            return [i]
        if self._name(i) in ("mul", "div") and self.kinds[i] < _REDUCTION:
            for o in self._operands(i):
                below = self._scaled(o) if self.n_bytes[o] == self.n_bytes[i] else []
                if below:
                    return [i, *below]
        return []

    def _is_broadcast(self, i: int) -> bool:
        return self._name(i) in ("broadcast_in_dim", "iota")

    def _find_scatter(self, add: int) -> None:
        """Mark scatter(zeros) + y as a scatter into y (rule 8)."""
        for i in self._operands(add):
            if not self._name(i).startswith("scatter") or self.n_readers[i] != 1 or i in self.returned:
                continue
            zeros = [
                o
                for o in self._operands(i)
                if self._name(o) == "broadcast_in_dim" and not self.n_operands[o] and self.n_readers[o] == 1
            ]
            if zeros and self.n_bytes[zeros[0]] == self.n_bytes[i] == self.n_bytes[add]:
                self.replaced |= {i, zeros[0]}
                self.kinds[add], self.is_in_place[add] = _KERNEL, True
                return

    # ---- rules ----

    def _kept(self) -> np.ndarray:
        """Return the cheap instructions, not unary, that XLA does not compute again for each reader (rule 4).

        It does so only where all that lies between one and its readers can be computed there as well.
        """
        is_shared = (self.kinds <= _CHEAP) & ~self.of.is_unary & (self.n_readers > 1)
        kept = is_shared & self._any_reader(self.kinds >= _REDUCTION)
        last_reader = np.arange(self.n)
        last_reader[self.edge_operand] = self.edge_reader
        # Only the instructions from an open one to its last reader matter.
        is_open = is_shared & ~kept
        sources = np.flatnonzero(is_open)
        depth = np.zeros(self.n + 1, np.int64)
        depth[sources] = 1
        np.add.at(depth, last_reader[sources], -1)
        is_between = np.cumsum(depth)[:-1] > 0
        edges = np.flatnonzero(is_between[self.edge_operand])
        is_stop = (self.kinds > _EXPENSIVE) | ((self.kinds == _EXPENSIVE) & (self.n_readers > 1))
        # For each instruction a bit for each source that it depends on, and for each that it does through a stop.
        bit = {o: 1 << k for k, o in enumerate(sources.tolist())}
        below: dict[int, int] = {}
        behind: dict[int, int] = {}
        reach = (self.edge_reader[edges], self.edge_operand[edges], is_stop[self.edge_operand[edges]])
        for i, o, stops in zip(*(a.tolist() for a in reach), strict=True):
            through = below.get(o, 0)
            own = bit.get(o, 0)
            if through or own:
                below[i] = below.get(i, 0) | through | own
                behind[i] = behind.get(i, 0) | (through if stops else behind.get(o, 0))
        for o in sources.tolist():
            kept[o] = any(behind.get(r, 0) & bit[o] for r in self._readers(o))
        return kept

    def _any_reader(self, test: np.ndarray) -> np.ndarray:
        """Return which instructions have a reader that passes a test."""
        found = np.zeros(self.n, bool)
        found[self.edge_operand[test[self.edge_reader]]] = True
        return found

    def _decide(self) -> None:
        """Decide which instructions take memory, and which are computed inside their readers (rules 1 to 6, 9)."""
        taken_in, replaced = _mask(self.taken_in, self.n), _mask(self.replaced, self.n)
        is_special = taken_in | replaced | (self.kinds >= _REDUCTION)
        has_one_reader = (self.n_readers == 1) & ~self.is_returned
        is_absorbed = has_one_reader & ~is_special & self._is_named(_ABSORBED.__contains__)
        starts_reduction = (taken_in | (self.kinds == _REDUCTION)) & ~replaced
        root = follow(np.where(is_absorbed, self.reader, np.arange(self.n)))
        self.in_reduction = starts_reduction[root]
        is_chained = is_absorbed & self.in_reduction
        needed = self.is_returned | self._any_reader((self.kinds >= _KERNEL) | self.in_reduction | self._joins_rows)
        is_expensive = self.kinds == _EXPENSIVE
        needed |= is_expensive & ((self.n_readers > 1) | self.of.is_shared_exp | self._is_repeated())
        needed |= ~is_expensive & ~self.of.is_unary & self._kept()
        is_plain = ~is_special & ~is_chained
        has_readers = self.n_readers > 0
        self._add_repeated_pads(needed, is_plain & (has_readers | self.is_returned))
        self.has_buffer = np.where(is_plain, np.where(has_readers, needed, self.is_returned), False)
        self.has_buffer |= (self.kinds >= _REDUCTION) & ~taken_in & ~replaced
        self.is_inlined = taken_in | replaced | is_chained
        self.is_inlined |= is_plain & has_readers & (~needed | (~is_expensive & self.of.is_unary))

    def _add_repeated_pads(self, needed: np.ndarray, is_plain: np.ndarray) -> None:
        """Give memory to pads and concatenations computed more than once, and to all that is often (rule 14).

        A loop computes an instruction once for each way of finding its elements: readers that keep the place share
        one, each of the others has its own, for each way of its own.

        Args:
          needed: Which instructions have memory; changed in place.
          is_plain: Which can be computed inside loops.
        """
        is_inner, of = is_plain & ~needed, self.of
        is_pad = is_inner & self._is_named(_BRANCHES.__contains__)
        if not is_pad.any():
            return
        is_copied = is_plain & needed & (self.kinds < _EXPENSIVE) & of.is_unary
        passes, ways, counts = is_inner | is_copied, dict[int, set[int]](), dict[int, Counter[int]]()

        def root(i: int) -> set[int]:
            counts[i + self.n] = Counter({i: 1})
            return {i + self.n}

        is_sliced = is_inner & self._any_reader(of.moves) & (self.n_readers > 1)
        for i in self._region(is_pad | is_sliced, passes):
            ways[i] = set() if is_inner[i] else root(i)
            for r in self._readers(i):
                if not is_plain[r]:
                    continue
                of_reader = ways[r] if passes[r] else root(r)
                if not of.moves[r] and of.shapes[r] == of.shapes[i]:
                    ways[i] |= of_reader
                else:
                    counts[r] = sum((counts[w] for w in of_reader), Counter[int]())
                    ways[i].add(r)
            n_times = sum((counts[w] for w in ways[i]), Counter[int]())
            if (is_pad[i] and n_times.total() > 1) or max(n_times.values(), default=0) > _MOST_TIMES:
                needed[i], ways[i] = True, root(i)

    def _region(self, is_start: np.ndarray, passes: np.ndarray) -> list[int]:
        """Return some instructions and what reads them through others that are computed inside, last ones first."""
        waiting = np.flatnonzero(is_start).tolist()
        region, inside = set(waiting), passes.tolist()
        while waiting:
            further = {r for r in self._readers(waiting.pop()) if inside[r]} - region
            region |= further
            waiting += further
        return sorted(region, reverse=True)

    @functools.cached_property
    def _joins_rows(self) -> np.ndarray:
        """Which instructions concatenate along the last dimension, or more than a few arrays (rule 10)."""
        joins, shapes, values = np.zeros(self.n, bool), self.of.graph.value_shapes, self.of.values
        for i in np.flatnonzero(self._is_named(_JOINS.__contains__) & (self.n_operands > 0)).tolist():
            operand, out = shapes[values[self.operand[i]]], shapes[values[i]]
            is_last = len(operand) == len(out) > 1 and operand[-1] != out[-1]
            row_bytes = self.n_bytes[i] // max(math.prod(out[:-1]), 1)
            joins[i] = is_last and row_bytes >= _LEAST_ROW_BYTES and self.n_bytes[i] >= _LEAST_JOINED_BYTES
            joins[i] |= self.n_operands[i] > _MOST_JOINED
        return joins

    def _is_repeated(self) -> np.ndarray:
        """Return which instructions a loop over a larger array reads."""
        reader, operand = self.edge_reader, self.edge_operand
        is_repeated = np.zeros(self.n, bool)
        is_larger = (self.n_bytes[reader] > self.n_bytes[operand]) & (self.kinds[reader] < _REDUCTION)
        is_repeated[operand[is_larger]] = True
        return is_repeated

    def _merge_aliases(self) -> None:
        """Let aliases share the memory of what they stand for (rule 5)."""
        is_alias = self.kinds == _ALIAS
        aliases = np.flatnonzero(is_alias & self.has_buffer)
        # Where the nearest instruction with memory, or no alias, is.
        bare = follow(np.where(is_alias & ~self.has_buffer, self.operand, np.arange(self.n)))
        nearest: list[int] = bare[self.operand[aliases]].tolist()
        merged: dict[int, int] = {}
        for i, o in zip(aliases.tolist(), nearest, strict=True):
            o = merged.get(o, o)
            if self.has_buffer[o] and (not self.is_inlined[o] or self.in_reduction[i]):
                merged[i] = o
                self.has_buffer[i], self.is_inlined[i] = False, True
                if i in self.returned:
                    place = self.returned.pop(i)
                    self.returned[o] = min(place, self.returned.get(o, place))


def _mask(chosen: set[int], n: int) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[list(chosen)] = True
    return mask


def follow(links: np.ndarray) -> np.ndarray:
    """Return where links, each from an instruction to one or to itself, lead in the end."""
    while not np.array_equal(links, further := links[links]):
        links = further
    return links


def _sources(
    read: tuple[np.ndarray, np.ndarray, np.ndarray], has_buffer: np.ndarray, is_same_place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of `Fusion.readers` and `sources`: reads, continued through what is computed inside.

    A read is a number: the bits of reader and operand, whether it is continued, whether it keeps the place. Of equal
    ones that which keeps no place stands for both. In the first rounds what the reads are continued by is continued,
    too, so that long chains take few rounds.

    Args:
      read: Readers, operands, and whether each operand is computed inside the reader; ones with numbers beyond those of
        instructions are none, but are read like one with memory.
      has_buffer: Which instructions take memory.
      is_same_place: Which instructions keep the place of what they read.
    """
    readers, operands, is_read_through = read
    n = int(operands.max(initial=len(has_buffer))) + 1
    bits = n.bit_length()
    reads = (readers << bits | operands) << 2 | is_read_through << 1 | is_same_place[readers]
    is_inside = np.zeros(n, bool)
    is_inside[operands[is_read_through]] = True
    inner, waiting = distinct(reads[is_inside[readers]], 2), reads[has_buffer[readers]]
    found, n_rounds = [], 0
    while len(waiting):
        found.append(waiting[waiting & 2 == 0])
        starts = starts_of(inner >> bits + 2, n)
        waiting = _continued(waiting, inner, starts, bits)
        if n_rounds < _DOUBLINGS:
            inner = distinct(np.append(inner[inner & 2 == 0], _continued(inner, inner, starts, bits)), 2)
        n_rounds += 1
    pairs = distinct(np.concatenate(found), 2) if found else reads[:0]
    return pairs >> bits + 2, pairs >> 2 & (1 << bits) - 1, pairs & 1 == 1


def _continued(reads: np.ndarray, inner: np.ndarray, starts: np.ndarray, bits: int) -> np.ndarray:
    """Return, instead of each read that is to be continued, those of the instruction that is read; see `_sources`."""
    reads = distinct(reads[reads & 2 > 0], 2)
    operands = reads >> 2 & (1 << bits) - 1
    n_further = starts[operands + 1] - starts[operands]
    further = inner[ranges(starts[operands], n_further)] & (1 << bits + 2) - 1
    further &= np.repeat(reads & 1 | -2, n_further)
    return np.repeat(reads >> bits + 2, n_further) << bits + 2 | further
