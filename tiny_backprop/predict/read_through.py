"""What instructions read when they are computed, through those that are computed inside them."""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.arrays import distinct, starts_of
from tiny_backprop.schedule.simulate import ranges

_DOUBLINGS = 4  # how often what is computed inside others is continued, each time twice as far


def sources_of(
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
