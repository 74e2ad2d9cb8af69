"""Which instructions get memory: a model of fusion, rule by rule.

1. A `CHEAP` or `EXPENSIVE` instruction that only loops read is computed inside them and takes no memory.
2. It takes memory where a kernel, a hold or a reduction reads it, or the program returns it.
3. An `EXPENSIVE` one also does where several instructions read it, directly or through others that each of them
   computes for itself, or one that repeats its elements (a broadcast).
4. A `CHEAP` one with memory of its own is still computed again by the loops that read it, if it is *unary*: this costs
   them no further operand. Of another one the compiler's own rule says whether it is.
5. An `ALIAS` shares its operand's memory where that has some, and is otherwise a `CHEAP` unary instruction.
6. A reduction takes in the chain of element-wise instructions that it alone reads. What enters that chain takes memory.

The rules from 7 on are one compiler's: see `xla_cpu`. `tests/predict/test_materialized.py` holds each against XLA.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection

import numpy as np

from tiny_backprop.predict.arrays import follow
from tiny_backprop.predict.instructions import Instructions
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.predict.read_through import sources_of
from tiny_backprop.predict.uses import Uses

_IN_PLACE = ("scatter", "bcoo_dot_general", "dynamic_update", "select_and_scatter_add", "triangular_solve")
_ALIAS, _EXPENSIVE, _REDUCTION, _KERNEL = (  # as plain numbers, which compare faster
    int(k) for k in (Kind.ALIAS, Kind.EXPENSIVE, Kind.REDUCTION, Kind.KERNEL)
)


@dataclasses.dataclass(frozen=True, eq=False)
class LibraryKernels:
    """Patterns that a compiler makes kernels of.

    Attributes:
      kinds: `Kind` of each instruction from then on.
      taken_in: Instructions that are computed inside such a kernel.
      replaced: Instructions that are there no more.
      in_place: Instructions that write into their operand, as others do not.
    """

    kinds: np.ndarray
    taken_in: set[int]
    replaced: set[int]
    in_place: set[int]


@dataclasses.dataclass(frozen=True)
class FusionRules:
    """What fusion is told of a compiler.

    Attributes:
      find_library_kernels: Returns the patterns that it makes kernels of.
      reads_memory: Returns which instructions read from memory even where they are computed inside loops.
      kept: Returns, given the kinds, which cheap instructions are not computed again for each reader (rule 4).
      add_repeated: Marks, given the kinds, what would be computed too often as needed; last, which instructions can be
        computed inside loops.
    """

    find_library_kernels: Callable[[Uses], LibraryKernels]
    reads_memory: Callable[[Uses], np.ndarray]
    kept: Callable[[Uses, np.ndarray], np.ndarray]
    add_repeated: Callable[[Uses, np.ndarray, np.ndarray, np.ndarray], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
    """What becomes of each instruction.

    Attributes:
      instructions: The instructions.
      has_buffer: Whether it takes memory.
      is_in_place: Whether it is a scatter or the like, which writes into its operand.
      is_scatter: Whether it is a scatter, and nothing like it.
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
    is_scatter: np.ndarray
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


def fuse(instructions: Instructions, rules: FusionRules) -> Fusion:
    """Decide which instructions take memory; see the module's text. About linear in their number."""
    return _Fuser(instructions, rules).run()


class _Fuser:
    def __init__(self, instructions: Instructions, rules: FusionRules):
        self.uses, self.rules = Uses(instructions), rules
        self.returned = dict(instructions.returned)
        library = rules.find_library_kernels(self.uses)
        self.kinds, self.taken_in, self.replaced = library.kinds, library.taken_in, library.replaced
        self.merged_scatters = library.in_place
        self.is_in_place = self.uses.is_named(lambda p: p.startswith(_IN_PLACE)) | _mask(library.in_place, self.uses.n)
        self.reads_memory = rules.reads_memory(self.uses)

    def run(self) -> Fusion:
        self._decide()
        self._merge_aliases()
        uses = self.uses
        of, is_loop = uses.of, (self.kinds < _REDUCTION) & ~self.in_reduction & ~self.reads_memory
        is_read_through = ~self.has_buffer[uses.edge_operand]
        is_read_through |= self.is_inlined[uses.edge_operand] & is_loop[uses.edge_reader]
        is_same_place = (of.kinds < _REDUCTION) & ~of.moves
        # Donated inputs are read like instructions with memory, and numbered after them.
        readers = np.append(uses.edge_reader, of.donated_readers)
        operands = np.append(uses.edge_operand, uses.n + of.donated)
        goes_on = np.append(is_read_through, np.zeros(len(of.donated), bool))
        pairs = sources_of((readers, operands, goes_on), self.has_buffer, is_same_place)
        is_donated = pairs[1] >= uses.n
        reader, source, same_place = (a[~is_donated] for a in pairs)
        of_donated = [a[is_donated] for a in pairs]
        of_donated[1] -= uses.n
        return Fusion(
            of,
            self.has_buffer,
            self.is_in_place,
            uses.is_named(lambda p: p.startswith("scatter")) | _mask(self.merged_scatters, uses.n),
            self.returned,
            reader,
            source,
            same_place,
            is_read_through,
            *of_donated,
        )

    def _decide(self) -> None:
        """Decide which instructions take memory, and which are computed inside their readers (rules 1 to 6)."""
        uses = self.uses
        taken_in, replaced = _mask(self.taken_in, uses.n), _mask(self.replaced, uses.n)
        is_special = taken_in | replaced | (self.kinds >= _REDUCTION)
        has_one_reader = (uses.n_readers == 1) & ~uses.is_returned
        is_absorbed = has_one_reader & ~is_special & uses.of.is_absorbed
        starts_reduction = (taken_in | (self.kinds == _REDUCTION)) & ~replaced
        root = follow(np.where(is_absorbed, uses.reader, np.arange(uses.n)))
        self.in_reduction = starts_reduction[root]
        is_chained = is_absorbed & self.in_reduction
        needed = uses.is_returned | uses.any_reader((self.kinds >= _KERNEL) | self.in_reduction | self.reads_memory)
        is_expensive = self.kinds == _EXPENSIVE
        needed |= is_expensive & ((uses.n_readers > 1) | uses.of.is_shared | self._is_repeated())
        needed |= ~is_expensive & ~uses.of.is_unary & self.rules.kept(uses, self.kinds)
        is_plain = ~is_special & ~is_chained
        has_readers = uses.n_readers > 0
        self._keep_what_several_compute(needed, is_expensive, is_plain & has_readers)
        self.rules.add_repeated(uses, self.kinds, needed, is_plain & (has_readers | uses.is_returned))
        self.has_buffer = np.where(is_plain, np.where(has_readers, needed, uses.is_returned), False)
        self.has_buffer |= (self.kinds >= _REDUCTION) & ~taken_in & ~replaced
        self.is_inlined = taken_in | replaced | is_chained
        self.is_inlined |= is_plain & has_readers & (~needed | (~is_expensive & uses.of.is_unary))

    def _is_repeated(self) -> np.ndarray:
        """Return which instructions a loop over a larger array reads."""
        uses = self.uses
        reader, operand = uses.edge_reader, uses.edge_operand
        is_repeated = np.zeros(uses.n, bool)
        is_larger = (uses.n_bytes[reader] > uses.n_bytes[operand]) & (self.kinds[reader] < _REDUCTION)
        is_repeated[operand[is_larger]] = True
        return is_repeated

    def _keep_what_several_compute(self, needed: np.ndarray, is_expensive: np.ndarray, is_plain: np.ndarray) -> None:
        """Give memory to what is expensive and would be computed in several loops, inside others (rule 3).

        Args:
          needed: Which instructions have memory; changed in place.
          is_expensive: Which are `EXPENSIVE`.
          is_plain: Which can be computed inside loops, and are read.
        """
        uses = self.uses
        goes_on = is_plain & (~needed | (~is_expensive & uses.of.is_unary))
        is_copied = goes_on & ((uses.n_readers > 1) | needed)
        above = is_copied.copy()  # what is computed inside what is computed in several places
        waiting = np.flatnonzero(is_copied)
        edges = np.flatnonzero(goes_on[uses.edge_operand] & goes_on[uses.edge_reader])
        reader, operand = uses.edge_reader[edges], uses.edge_operand[edges]
        while len(waiting):
            found = operand[above[reader] & ~above[operand]]
            above[found] = True
            waiting = found
        if not (above & is_expensive).any():
            return
        loops: dict[int, set[int]] = {}
        reads_memory = (self.kinds >= _REDUCTION) | self.in_reduction | self.reads_memory

        def loops_of(i: int) -> set[int]:
            """Return the loops in which an instruction is computed."""
            if not goes_on[i]:
                return {i}
            if i not in loops:
                readers = (r for r in uses.readers(i) if not (needed[i] and reads_memory[r]))
                loops[i] = set().union(*map(loops_of, readers), {i} if needed[i] else set())
            return loops[i]

        for i in np.flatnonzero(above)[::-1].tolist():
            if is_expensive[i] and not needed[i] and len(loops_of(i)) > 1:
                needed[i], goes_on[i] = True, False
                loops[i] = {i}

    def _merge_aliases(self) -> None:
        """Let aliases share the memory of what they stand for (rule 5)."""
        uses = self.uses
        is_alias = self.kinds == _ALIAS
        aliases = np.flatnonzero(is_alias & self.has_buffer)
        # Where the nearest instruction with memory, or no alias, is.
        bare = follow(np.where(is_alias & ~self.has_buffer, uses.operand, np.arange(uses.n)))
        nearest: list[int] = bare[uses.operand[aliases]].tolist()
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
