"""Schedules that reverse a loop of many steps with few saved carries.

The steps are taken in blocks. Forward, the carry is saved at the start of some blocks; backward, blocks come last to
first: the nearest saved carry is taken and advanced to the block, further carries being saved on the way where slots
are free, and the block's steps run once more, keeping what their backward steps read. Where to save is chosen by the
binomial schedule of Griewank & Walther 2000 (Revolve, doi:10.1145/347837.347846), which advances the fewest blocks that
any schedule with as many slots does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import LITERAL, Graph
from tiny_backprop.plan.cost import node_costs
from tiny_backprop.plan.menu import menus
from tiny_backprop.plan.schedule import Rerun, peak_bytes
from tiny_backprop.plan.segments import Segments

_CHEAP = 0.03  # of the FLOPs of a step: recomputation that is worth any byte


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
        starts, stops = self.backward[:, 1], self.backward[:, 2]
        return self.length + int((stops - starts).sum())

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


@dataclasses.dataclass(frozen=True)
class LoopChoice:
    """How the loops of a program are to be reversed: one of three ways of asking.

    Attributes:
      block_size: Steps that are reversed together; a carry is saved for each block.
      levels: How often a step may run again, at most; what is saved is as small as that allows.
      memory_bytes: Bytes that saved carries and the steps of one block may take; as few steps run again as that allows.
    """

    block_size: int | None = None
    levels: int | None = None
    memory_bytes: int | None = None

    def schedule(self, length: int, carry_bytes: int, step_bytes: int) -> LoopSchedule | None:
        """Return the schedule of a loop, or None where too few bytes are given for any.

        Args:
          length: Steps of the loop.
          carry_bytes: Bytes of a saved carry.
          step_bytes: Bytes that a step keeps for its backward step.
        """
        if self.block_size is not None and self.levels is None:
            return LoopSchedule(length, self.block_size, max(1, -(-length // self.block_size)))
        sizes = np.unique(np.geomspace(1, max(length, 1), 200).round().astype(int)).tolist()
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


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
    """A plan of one step of a loop. Unlike in a `Plan`, the backward step may begin with recomputation.

    Attributes:
      graph: The gradient graph of the step.
      steps: Its nodes in the order in which they run.
      n_forward_steps: How many of them belong to the forward step.
      carried: Values that are carries of the next step.
    """

    graph: Graph
    steps: list[int]
    n_forward_steps: int
    carried: frozenset[int]

    @functools.cached_property
    def saved(self) -> list[int]:
        """The values that the forward step makes and the backward step reads."""
        graph, there, saved = self.graph, set[int](), dict[int, None]()
        for node in self.steps[: self.n_forward_steps]:
            there.update(range(graph.output_start[node], graph.output_start[node + 1]))
        for node in self.steps[self.n_forward_steps :]:
            saved.update((v, None) for v in graph.read_lists[node] if v in there)
            there.difference_update(range(graph.output_start[node], graph.output_start[node + 1]))
        return list(saved)

    @property
    def again(self) -> list[int]:
        """The forward nodes that the backward step runs."""
        return [i for i in self.steps[self.n_forward_steps :] if i < self.graph.n_forward]

    @functools.cached_property
    def again_flops(self) -> float:
        """FLOPs of the forward nodes that the backward step runs."""
        return float(self.graph.flops[self.again].sum())

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Bytes that the step keeps for its backward step beside the carries."""
        return int(sum(self.graph.value_bytes[v] for v in self.saved if v not in self.carried))

    @functools.cached_property
    def peak_bytes(self) -> int:
        """Predicted peak of the step, forward and backward."""
        return peak_bytes(self.graph, np.array(self.steps, np.int64))


def step_plans(graph: Graph, carries: Sequence[int]) -> list[StepPlan]:
    """Plan one step of a loop, from what keeps most for its backward step to what keeps least, by minimum cuts.

    Args:
      graph: The gradient graph of the step.
      carries: Which of the function's outputs are carries: they are kept anyway.
    """
    outputs = graph.outputs.copy()
    primal = outputs[: graph.n_primal_outputs]
    primal[[i for i in range(len(primal)) if i not in carries]] = LITERAL
    segments = Segments(dataclasses.replace(graph, outputs=outputs), np.zeros(1, np.int64))
    (menu,) = menus(segments, node_costs(graph, "flops"))
    first = int(graph.output_start[0])
    returned = [v for v in graph.outputs[: graph.n_primal_outputs].tolist() if v >= first]
    carried = frozenset(v for v in primal.tolist() if v >= first)
    plans = []
    for keep in dict.fromkeys(o.keep for o in sorted(menu.leaf, key=lambda o: -o.keep_bytes)):
        kept = [first + v for v in keep]
        rerun = Rerun(graph)
        steps = rerun.make([*returned, *kept])
        for v in set(returned).difference(kept, carried):
            rerun.there[v] = 0
        n_forward_steps = len(steps)
        steps += rerun.make(v for v in segments.required_values[0] if not rerun.there[v])
        plans.append(StepPlan(graph, [*steps, *range(graph.n_forward, graph.n_nodes)], n_forward_steps, carried))
    return plans


def plan_loop(
    length: int, carry_bytes: int, plans: Sequence[StepPlan], choice: LoopChoice
) -> tuple[StepPlan, LoopSchedule]:
    """Return how a loop is reversed, and the plan of its steps.

    Where steps run again, they keep as few bytes as they can at next to no recomputation. Within so many bytes, what
    every step keeps may also wait from the forward phase on: whichever has the fewest FLOPs.

    Args:
      length: Steps of the loop.
      carry_bytes: Bytes of a carry.
      plans: Plans of a step to choose from; see `step_plans`.
      choice: How it is to be reversed.
    """
    forward_flops = float(plans[0].graph.flops[: plans[0].graph.n_forward].sum())
    most = _CHEAP * float(plans[0].graph.flops.sum())
    cheap = min((p for p in plans if p.again_flops <= most), key=lambda p: (p.kept_bytes, p.again_flops))
    schedule = choice.schedule(length, carry_bytes, cheap.kept_bytes + carry_bytes)
    found = [] if schedule is None else [(cheap, schedule)]
    if choice.memory_bytes is not None:
        for plan in plans:
            if (length + 1) * carry_bytes + length * plan.kept_bytes <= choice.memory_bytes:
                found.append((plan, LoopSchedule.keeping_all(length)))
    if not found:
        return cheap, LoopSchedule(length, 1, 1)
    return min(found, key=lambda pair: pair[1].n_again * forward_flops + length * pair[0].again_flops)


def split(n: int, n_slots: int) -> int:
    """Return after how many of n blocks to save the next carry, where the first is in one of `n_slots` slots.

    Any number between the bounds is best (Griewank & Walther 2000, proposition 1); this is the largest.
    """
    repeats = next(r for r in range(n) if n <= _reach(n_slots, r)) if n_slots > 1 else n - 1
    return max(1, min(_reach(n_slots, repeats - 1), n - _reach(n_slots - 1, repeats - 1), n - 1))


def _reach(n_slots: int, repeats: int) -> int:
    """Return how many blocks can be reversed if none is advanced over more than `repeats` times."""
    return math.comb(n_slots + repeats, n_slots) if repeats >= 0 else 0


def _least_slots(n: int, repeats: int) -> int:
    """Return the fewest slots with which no step of n blocks runs more than `repeats` times more."""
    # The forward phase has run to the end by then: of what can be reversed without that, one block less.
    return next(s for s in range(1, max(n, 1) + 1) if n < _reach(s, repeats))


def _again(n: int, n_slots: int) -> int:
    """Return how many blocks run again for n blocks: to advance carries, and for the backward steps."""
    total, left, slots = n, n, n_slots
    while slots > 1 and left > 1:  # what the forward phase leaves: runs of blocks, each with the slots that are free
        first = split(left, slots)
        total += _advanced(first, slots)
        left, slots = left - first, slots - 1
    return total + left * (left - 1) // 2


@functools.cache
def _advanced(n: int, n_slots: int) -> int:
    """Return over how many blocks the binomial schedule advances, a forward phase of its own included."""
    if n <= 1:
        return 0
    repeats = next(r for r in itertools.count() if n <= _reach(n_slots, r)) if n_slots > 1 else n - 1
    return repeats * n - _reach(n_slots + 1, repeats - 1)
