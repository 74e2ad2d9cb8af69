"""How the loops of a program are asked to be reversed."""

from __future__ import annotations

import dataclasses
import numbers

import numpy as np

from tiny_backprop.door import instance
from tiny_backprop.errors import PlanError
from tiny_backprop.schedule.loop_schedule import LoopSchedule, blocks_run_again, least_slots

_SIZES = 200  # block sizes to try, in equal ratios


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
                n_again = size * blocks_run_again(n, n_slots)
                rank = (n_bytes, n_again) if self.memory_bytes is None else (n_again, n_bytes)
                found.append((*rank, -size, n_slots))
        if not found:
            return None
        *_, size, n_slots = min(found)
        return LoopSchedule(length, -size, n_slots)

    def _slots(self, n: int, carry_bytes: int, block_bytes: int) -> int:
        if self.memory_bytes is None:
            return least_slots(n, self.levels or 1)
        return min(max(n, 1), (self.memory_bytes - block_bytes) // max(carry_bytes, 1))


LOOPS = instance(LoopChoice).or_none()
