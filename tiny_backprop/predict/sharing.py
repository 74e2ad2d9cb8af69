"""Which buffers share memory: temporaries in that of outputs, and results in that of what they read last.

The largest temporaries come first; each goes into the smallest output that holds it and is free until it is done, of
equal ones into the last. What is left may be overwritten by the loop, or the scatter, that reads it last. What passes
through a `scan` or a `while` is neither lent memory nor overwritten, but for carries, by those after the last step.

Sets of temporaries are integers with a bit for each, the largest temporary first. Filling one output after the other
gives what placing one temporary after the other does: where one goes depends on the larger ones in that output alone.
A set for each kernel is kept, so that memory grows with the square of a program: 8 MB for 10,000 nodes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.predict.donation import free_after
from tiny_backprop.predict.fusion import Fusion
from tiny_backprop.predict.instructions import PREDICATE

_LEAST_LENT_BYTES = 1024
_LOOPS = ("scan", "while")


def share(fusion: Fusion, first: np.ndarray, last: np.ndarray, lends: bool) -> np.ndarray:
    """Return the output in whose memory each instruction lies, -1 for memory of its own; shorten lives.

    An output lies in its own.

    Args:
      fusion: The instructions and what they read.
      first: The kernel that writes each.
      last: The last kernel that reads it; where another one is written into its memory, one less afterwards.
      lends: Whether outputs lend their memory; else they may be written into what they read last.
    """
    of = fusion.instructions
    is_output = np.zeros(len(of), bool)
    is_output[list(fusion.returned)] = True
    reader, source = fusion.readers, fusion.sources
    may = (fusion.is_same_place | fusion.is_in_place[reader]) & (of.n_bytes[reader] == of.n_bytes[source])
    may &= (of.shapes[reader] == of.shapes[source]) & (of.values[reader] >= 0) & (of.values[source] >= 0)
    is_loop = np.array([p in _LOOPS for p in of.primitive_names], bool)[of.primitives]
    passes = is_loop.copy()
    if is_loop.any():
        by_loop = is_loop[reader]
        passes[source[by_loop]] = True
        may = np.where(by_loop, _overwritten(of.graph)[of.values[reader]] == of.values[source], may)
    reader, source = reader[may], source[may]
    place = np.where(is_output, np.arange(len(of)), -1)
    if lends:
        written = _first_written(fusion, first, is_loop)
        _lend(fusion, first, last, place, (reader, source), passes, written)
    is_own = place < 0
    own = is_own[source] & (is_own[reader] | (not lends)) & (is_loop[reader] | ~passes[source])
    _overwrite(fusion, first, last, reader[own], source[own])
    return place


def _first_written(fusion: Fusion, first: np.ndarray, is_loop: np.ndarray) -> np.ndarray:
    """Return the kernel that first writes into each: before a loop, as soon as it is told to, it makes room."""
    written = first.copy()
    told = is_loop[fusion.readers] & (fusion.instructions.nodes[fusion.sources] == PREDICATE)
    np.minimum.at(written, fusion.readers[told], first[fusion.sources[told]])
    return written


def _overwritten(graph: Graph) -> np.ndarray:
    """Return, for each value that is a carry at the end of a loop, what it is at the start; -2 for others."""
    if "overwritten" not in graph.memo:
        found = np.full(graph.n_values + 1, -2)
        for nested in graph.nested:
            for node, pairs in zip((nested.forward_node, nested.backward_node), nested.overwrites, strict=True):
                for operand, out in pairs:
                    found[graph.output_start[node] + out] = graph.operands[graph.operand_start[node] + operand]
        graph.memo["overwritten"] = found
    return graph.memo["overwritten"]


def _lend(
    fusion: Fusion,
    first: np.ndarray,
    last: np.ndarray,
    place: np.ndarray,
    overwrites: tuple[np.ndarray, np.ndarray],
    passes: np.ndarray,
    first_written: np.ndarray,
) -> None:
    """Give temporaries a place in the memory of outputs; end lives where something there is written over them.

    Args:
      fusion: See `share`.
      first: See `share`.
      last: See `share`.
      place: See `share`; the places of temporaries are written here.
      overwrites: Readers and sources that may share memory.
      passes: What passes through loops.
      first_written: See `_first_written`.
    """
    n_bytes = fusion.instructions.n_bytes
    places = {i: k for i, k in fusion.returned.items() if first[i] >= 0}
    outputs = sorted(places, key=lambda i: (n_bytes[i], -places[i]))
    temporaries = np.flatnonzero(fusion.has_buffer & (place < 0) & (n_bytes >= _LEAST_LENT_BYTES))
    temporaries = temporaries[_may_be_lent(n_bytes[temporaries], last[temporaries], n_bytes[outputs], first[outputs])]
    temporaries = temporaries[np.argsort(-n_bytes[temporaries], kind="stable")]
    if not len(temporaries):
        return
    too_large = np.searchsorted(-n_bytes[temporaries], -n_bytes[outputs]).tolist()
    lives = _Lives(temporaries, first, last, overwrites)
    free = int.from_bytes(np.packbits(~passes[temporaries], bitorder="little").tobytes(), "little")
    waiting = (1 << len(temporaries)) - 1
    donated_until = free_after(fusion, first)
    for i, n_larger in zip(outputs, too_large, strict=True):
        done = (lives.done[first_written[i]] & free) | lives.touching.get(i, 0)
        if i in donated_until:
            done &= lives.to_come[donated_until[i] + 1]
        fitting = waiting & done & (-1 << n_larger)
        held = 0  # what this output is lent to
        while fitting:
            bit = fitting & -fitting
            t = bit.bit_length() - 1
            place[temporaries[t]] = i
            held |= bit
            waiting ^= bit
            fitting &= lives.apart_from(t)
        lives.end_where_overwritten(i, held, last)


class _Lives:
    """When temporaries are alive, as sets of them."""

    def __init__(
        self, temporaries: np.ndarray, first: np.ndarray, last: np.ndarray, overwrites: tuple[np.ndarray, np.ndarray]
    ):
        self.starts, self.ends = first[temporaries].tolist(), last[temporaries].tolist()
        n_kernels = int(last.max()) + 1
        self.to_come = _running_sets(self.starts, n_kernels, (1 << len(temporaries)) - 1)
        self.done = _running_sets(self.ends, n_kernels, 0)
        self.temporaries = temporaries.tolist()
        number = np.full(len(first), -1)
        number[temporaries] = np.arange(len(temporaries))
        # Which others need memory only up to, or from, the kernel in which the one is written into the other.
        self.touching: dict[int, int] = {}
        reader, source = overwrites
        touch = (last[source] == first[reader]) & (first[source] < first[reader]) & (number[source] >= 0)
        for r, s in zip(reader[touch].tolist(), number[source[touch]].tolist(), strict=True):
            self.touching[r] = self.touching.get(r, 0) | 1 << s
        self.neighbours: dict[int, int] = {}
        for r, bits in self.touching.items():
            if number[r] >= 0:
                t = int(number[r])
                self.neighbours[t] = self.neighbours.get(t, 0) | bits
                for s in _members(bits):
                    self.neighbours[s] = self.neighbours.get(s, 0) | 1 << t

    def end_where_overwritten(self, output: int, held: int, last: np.ndarray) -> None:
        """Shorten lives in an output's memory by one kernel where it, or another one there, is written over them.

        Args:
          output: The output.
          held: The set of temporaries in its memory.
          last: See `share`.
        """
        for writer in (output, *(self.temporaries[t] for t in _members(held))):
            for t in _members(held & self.touching.get(writer, 0)):
                last[self.temporaries[t]] = self.ends[t] - 1

    def apart_from(self, t: int) -> int:
        """Return which temporaries can share memory with one."""
        return self.done[self.starts[t]] | self.to_come[self.ends[t] + 1] | self.neighbours.get(t, 0)


def _members(bits: int) -> Iterator[int]:
    """Yield the members of a set, the smallest first."""
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _may_be_lent(n_bytes: np.ndarray, last: np.ndarray, output_bytes: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Return which temporaries are done when some output that is large enough, in order of size, is written."""
    latest = np.append(np.maximum.accumulate(written[::-1])[::-1], -1)
    return last <= latest[np.searchsorted(output_bytes, n_bytes)]


def _running_sets(kernels: list[int], n_kernels: int, start: int) -> list[int]:
    """Return, for each kernel and the end, a set in which each temporary is changed after its own kernel."""
    changes = [0] * (n_kernels + 1)
    changes[0] = start
    bit = 1
    for kernel in kernels:
        changes[kernel + 1] ^= bit
        bit <<= 1
    return list(itertools.accumulate(changes, operator.xor))


def _overwrite(fusion: Fusion, first: np.ndarray, last: np.ndarray, readers: np.ndarray, sources: np.ndarray) -> None:
    """End lives one kernel earlier where another instruction is written into the memory, one source for each.

    What a scatter is then written into takes over no memory itself: for XLA both are one buffer from the start.
    """
    is_last = (last[sources] == first[readers]) & (first[sources] < first[readers])
    is_scattered = np.zeros(len(first), bool)
    is_scattered[sources[is_last & fusion.is_scatter[readers]]] = True
    is_last &= ~is_scattered[readers]
    pairs, taken = zip(readers[is_last].tolist(), sources[is_last].tolist(), strict=True), set[int]()
    for i, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        free = [o for _, o in group if o not in taken]
        if free:
            taken.add(free[0] if len(free) == 1 else fusion.first_source(i, free))
    last[list(taken)] -= 1
