"""Which buffers share memory: temporaries in that of outputs, and results in that of what they read last.

The largest temporaries come first; each goes into the smallest output that holds it and is free until it is done, of
equal ones into the last. What is left may be overwritten by the loop, or the scatter, that reads it last.

Sets of temporaries are integers with a bit for each, the largest temporary first. Filling one output after the other
gives what placing one temporary after the other does: where one goes depends on the larger ones in that output alone.
A set for each kernel is kept, so that memory grows with the square of a program: 8 MB for 10,000 nodes.
"""

from __future__ import annotations

import itertools
import operator

import numpy as np

from tiny_backprop.plan.fusion import Fusion

_LEAST_LENT_BYTES = 1024


def share(fusion: Fusion, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which instructions are outputs and which temporaries are in the memory of one; shorten other lives.

    Args:
      fusion: The instructions and what they read.
      first: The kernel that writes each.
      last: The last kernel that reads it; where another one is written into its memory, one less afterwards.
    """
    of = fusion.instructions
    is_output = np.zeros(len(of), bool)
    is_output[list(fusion.returned)] = True
    reader, source = fusion.readers, fusion.sources
    may = (fusion.is_same_place | fusion.is_in_place[reader]) & (of.n_bytes[reader] == of.n_bytes[source])
    may &= (of.shapes[reader] == of.shapes[source]) & (of.values[reader] >= 0) & (of.values[source] >= 0)
    reader, source = reader[may], source[may]
    is_lent = _lend(fusion, first, last, is_output, (reader, source))
    is_own = ~(is_output | is_lent)
    own = is_own[reader] & is_own[source]
    _overwrite(fusion, first, last, reader[own], source[own])
    return is_output, is_lent


def _lend(
    fusion: Fusion,
    first: np.ndarray,
    last: np.ndarray,
    is_output: np.ndarray,
    overwrites: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return which temporaries are in the memory of an output, given which pairs (reader, source) may share."""
    n_bytes = fusion.instructions.n_bytes
    is_lent = np.zeros(len(n_bytes), bool)
    places = {i: k for i, k in fusion.returned.items() if first[i] >= 0}
    outputs = sorted(places, key=lambda i: (n_bytes[i], -places[i]))
    temporaries = np.flatnonzero(fusion.has_buffer & ~is_output & (n_bytes >= _LEAST_LENT_BYTES))
    temporaries = temporaries[_may_be_lent(n_bytes[temporaries], last[temporaries], n_bytes[outputs], first[outputs])]
    temporaries = temporaries[np.argsort(-n_bytes[temporaries], kind="stable")]
    if not len(temporaries):
        return is_lent
    too_large = np.searchsorted(-n_bytes[temporaries], -n_bytes[outputs]).tolist()
    lives = _Lives(temporaries, first, last, overwrites)
    waiting = (1 << len(temporaries)) - 1
    lent: list[int] = []
    for i, n_larger in zip(outputs, too_large, strict=True):
        fitting = waiting & lives.done_before(i) & (-1 << n_larger)
        while fitting:
            bit = fitting & -fitting
            t = bit.bit_length() - 1
            lent.append(t)
            waiting ^= bit
            fitting &= lives.apart_from(t)
    is_lent[temporaries[lent]] = True
    return is_lent


class _Lives:
    """When temporaries are alive, as sets of them."""

    def __init__(
        self, temporaries: np.ndarray, first: np.ndarray, last: np.ndarray, overwrites: tuple[np.ndarray, np.ndarray]
    ):
        self.written, self.starts, self.ends = first, first[temporaries].tolist(), last[temporaries].tolist()
        n_kernels = int(last.max()) + 1
        self.to_come = _running_sets(self.starts, n_kernels, (1 << len(temporaries)) - 1)
        self.done = _running_sets(self.ends, n_kernels, 0)
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
                while bits:
                    s = (bits & -bits).bit_length() - 1
                    self.neighbours[s] = self.neighbours.get(s, 0) | 1 << t
                    bits &= bits - 1

    def done_before(self, output: int) -> int:
        """Return which temporaries are done when an output is written, those that it is written into among them."""
        return self.done[self.written[output]] | self.touching.get(output, 0)

    def apart_from(self, t: int) -> int:
        """Return which temporaries can share memory with one."""
        return self.done[self.starts[t]] | self.to_come[self.ends[t] + 1] | self.neighbours.get(t, 0)


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
    """End lives one kernel earlier where another instruction is written into the memory, one source for each."""
    starts, ends = first.tolist(), last.tolist()
    pairs = zip(readers.tolist(), sources.tolist(), strict=True)
    for i, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        done = [o for _, o in group if ends[o] == starts[i] > starts[o]]
        if done:
            ends[done[0] if len(done) == 1 else fusion.first_source(i, done)] -= 1
    last[:] = ends
