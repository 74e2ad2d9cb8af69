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
import numbers
from collections.abc import Iterator

import numpy as np

from tiny_backprop.errors import PlanError

_SIZES = 200  # block sizes to try, in equal ratios


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
        return self.length + self.block_size * (_again(self.n_blocks, self.n_slots) - self.n_blocks)

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


@dataclasses.dataclass(frozen=True, repr=False)
class LoopChoice:
    """How the loops of a program are to be reversed: one of four ways of asking; `block_size` goes with two of them.

    Attributes:
      block_size: Steps that are reversed together. By itself, a carry is saved for each block.
      levels: How often a step may run again, at most; what is saved is as small as that allows.
      saved_carries: Carries that may be saved at once, the first among them; as few steps run again as that allows, by
        the binomial schedule. By default of blocks of one step.
      memory_bytes: Bytes that saved carries and the steps of one block may take; as few steps run again as that allows.

    Raises:
      PlanError: No way of asking is given, or several, or a number is below 1.
    """

    block_size: int | None = None
    levels: int | None = None
    saved_carries: int | None = None
    memory_bytes: int | None = None

    def __repr__(self) -> str:
        return f"LoopChoice({', '.join(f'{k}={v}' for k, v in vars(self).items() if v is not None)})"

    def __post_init__(self):
        given = {k: v for k, v in vars(self).items() if v is not None}
        ways = [k for k in given if k != "block_size"]
        if not given or len(ways) > 1 or (self.memory_bytes is not None and self.block_size is not None):
            raise PlanError(
                "a LoopChoice needs one of block_size, levels, saved_carries and memory_bytes; block_size may go with "
                f"levels or saved_carries. Found {given or 'none'}"
            )
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise PlanError(f"{name} of a LoopChoice must be a whole number of at least 1; found {value!r}")

    def schedule(self, length: int, carry_bytes: int, step_bytes: int) -> LoopSchedule | None:
        """Return the schedule of a loop, or None where too few bytes are given for any.

        Args:
          length: Steps of the loop.
          carry_bytes: Bytes of a saved carry.
          step_bytes: Bytes that a step keeps for its backward step.
        """
        if self.saved_carries is not None:
            return LoopSchedule(length, self.block_size or 1, self.saved_carries)
        if self.block_size is not None and self.levels is None:
            return LoopSchedule(length, self.block_size, max(1, -(-length // self.block_size)))
        sizes = np.unique(np.geomspace(1, max(length, 1), _SIZES).round().astype(int)).tolist()
        if self.block_size is not None:
            sizes = [self.block_size]
        found = []
        for size in sizes:
            n = -(-length // size)
            n_slots = self._slots(n, carry_bytes, step_bytes * size)
            if n_slots >= 1:
                n_bytes = n_slots * carry_bytes + size * step_bytes
                n_again = size * _again(n, n_slots)
                rank = (n_bytes, n_again) if self.memory_bytes is None else (n_again, n_bytes)
                found.append((*rank, -size, n_slots))
        if not found:
            return None
        *_, size, n_slots = min(found)
        return LoopSchedule(length, -size, n_slots)

    def _slots(self, n: int, carry_bytes: int, block_bytes: int) -> int:
        if self.memory_bytes is None:
            return _least_slots(n, self.levels or 1)
        return min(max(n, 1), (self.memory_bytes - block_bytes) // max(carry_bytes, 1))


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


def _least_slots(n: int, repeats: int) -> int:
    """Return the fewest slots with which no step of n blocks runs more than `repeats` times more."""
    # The forward phase has run to the end by then: of what can be reversed without that, one block less.
    return 1 + bisect.bisect_right(range(1, max(n, 1)), n, key=lambda slots: _reach(slots, repeats))


@functools.lru_cache(100_000)
def _again(n: int, n_slots: int) -> int:
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
