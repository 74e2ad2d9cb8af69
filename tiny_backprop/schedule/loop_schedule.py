"""Schedules that reverse a loop of many steps with few saved carries.

The steps are taken in blocks. Forward, the carry is saved at the start of some blocks; backward, blocks come last to
first: the nearest saved carry is taken and advanced to the block, further carries being saved on the way where slots
are free, and the block's steps run once more, keeping what their backward steps read. Where to save is chosen by the
binomial schedule of Griewank & Walther 2000 (Revolve, doi:10.1145/347837.347846), which advances the fewest blocks that
any schedule with as many slots does.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from tiny_backprop.errors import PlanError


@dataclasses.dataclass(frozen=True)
class LoopSchedule:
    """How a loop is reversed.

    Attributes:
      length: Steps of the loop, 0 or more.
      block_size: Steps that are reversed together, 1 or more; the last block may have fewer.
      n_slots: Carries that are saved at once, the first among them, 1 or more.
      reruns: Whether steps run again; if not, the forward phase keeps what every backward step reads.
    """

    length: int
    block_size: int
    n_slots: int
    reruns: bool = True

    def __post_init__(self):
        for name, least in (("length", 0), ("block_size", 1), ("n_slots", 1)):
            if getattr(self, name) < least:
                raise PlanError(f"{name} of a loop must be at least {least}; found {getattr(self, name)}")

    @classmethod
    def keeping_all(cls, length: int) -> LoopSchedule:
        """Return the schedule that runs no step again."""
        return cls(length, max(length, 1), 1, reruns=False)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.length // self.block_size)

    @property
    def n_saved(self) -> int:
        """Slots that are ever used."""
        return max(1, min(self.n_slots, self.n_blocks))

    @property
    def n_again(self) -> int:
        """Steps that run again, all together: to advance saved carries, and for the backward steps."""
        if not self.reruns:
            return 0
        # No carry is advanced over the last block, which may be shorter.
        return self.length + self.block_size * (blocks_run_again(self.n_blocks, self.n_slots) - self.n_blocks)

    @functools.cached_property
    def forward(self) -> np.ndarray:
        """Where the forward phase saves carries, by time: int32 rows (slot, step at whose start it is saved)."""
        return np.array([(slot, start) for slot, (start, _) in enumerate(self._first())], np.int32).reshape(-1, 2)

    @functools.cached_property
    def backward(self) -> np.ndarray:
        """What the backward phase does: int32 rows (slot to take, its step, step to advance to, slot to save in, end).

        Where the last two tell: the carry is saved unless the slots are the same, and the steps from there to the end
        are reversed, none where the end is that step.
        """
        return np.array(list(self._rows()), np.int32).reshape(-1, 5)

    def _step(self, block: int) -> int:
        return min(block * self.block_size, self.length)

    def _first(self) -> list[tuple[int, int]]:
        """Return the runs of blocks that the forward phase leaves, each as the step and the block of its start."""
        runs, start, n = [], 0, self.n_blocks
        for free in range(self.n_slots - 1, -1, -1):
            runs.append((self._step(start), start))
            if not free or n - start <= 1:
                break
            start += split(n - start, free + 1)
        return runs

    def _rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        if not self.n_blocks:
            return
        starts = [start for _, start in self._first()]
        runs = [(a, b, slot) for slot, (a, b) in enumerate(zip(starts, [*starts[1:], self.n_blocks], strict=True))]
        free = list(range(self.n_slots - 1, len(runs) - 1, -1))
        while runs:
            start, end, slot = runs.pop()
            if end - start > 1 and free:
                middle = start + split(end - start, len(free) + 1)
                target = free.pop()
                yield slot, self._step(start), self._step(middle), target, self._step(middle)
                runs += [(start, middle, slot), (middle, end, target)]
                continue
            yield slot, self._step(start), self._step(end - 1), slot, self._step(end)
            if end - start > 1:
                runs.append((start, end - 1, slot))
            else:
                free.append(slot)


def split(n: int, n_slots: int) -> int:
    """Return after how many of n blocks to save the next carry, where the first is in one of `n_slots` slots.

    Any number between the bounds is best (Griewank & Walther 2000, proposition 1); this is the largest.
    """
    repeats = _repeats(n, n_slots)
    return max(1, min(_reach(n_slots, repeats - 1), n - _reach(n_slots - 1, repeats - 1), n - 1))


def _reach(n_slots: int, repeats: int) -> int:
    """Return how many blocks can be reversed if none is advanced over more than `repeats` times."""
    return math.comb(n_slots + repeats, n_slots) if repeats >= 0 else 0


@functools.lru_cache(100_000)
def _repeats(n: int, n_slots: int) -> int:
    """Return how often some block must be advanced over, at most, to reverse n blocks."""
    if n_slots == 1:
        return n - 1
    high = 1
    while _reach(n_slots, high) < n:
        high *= 2
    return bisect.bisect_left(range(high), n, key=lambda repeats: _reach(n_slots, repeats))


def least_slots(n: int, repeats: int) -> int:
    """Return the fewest slots with which no step of n blocks runs more than `repeats` times more."""
    # The forward phase has run to the end by then: of what can be reversed without that, one block less.
    return 1 + bisect.bisect_right(range(1, max(n, 1)), n, key=lambda slots: _reach(slots, repeats))


@functools.lru_cache(100_000)
def blocks_run_again(n: int, n_slots: int) -> int:
    """Return how many blocks run again for n blocks: to advance carries, and for the backward steps.

    What Griewank & Walther's schedule advances over, its first sweep apart, which is the forward phase; that leaves the
    last run of blocks without a carry at its end.
    """
    left, slots = n, n_slots
    while slots > 1 and left > slots:
        repeats = _repeats(left, slots)
        if left == _reach(slots, repeats):  # then so are all further runs, with one slot less each
            left, slots = repeats + 1, 1
        else:
            left, slots = left - split(left, slots), slots - 1
    return _advanced(n, n_slots) + (left if slots == 1 else min(left, 1))


def _advanced(n: int, n_slots: int) -> int:
    """Return over how many blocks the binomial schedule advances, a forward phase of its own included."""
    if n <= 1:
        return 0
    repeats = _repeats(n, n_slots)
    return repeats * n - _reach(n_slots + 1, repeats - 1)
