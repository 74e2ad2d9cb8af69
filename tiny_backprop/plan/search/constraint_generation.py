"""The cheapest schedule within a byte budget, proven: the relaxation with few moments, and more where it fails.

Delayed generation of constraints: the programme of `relaxation` counts memory at one moment, the peak where everything
is saved. Its solution says what is alive then; recomputing the rest on demand makes a schedule. Where that takes more
than the budget, another moment is added and the programme solved again. As soon as the schedule fits, it is optimal,
since the programme asks less than any schedule that fits must do.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.plan.search.relaxation import Phases, Relaxation
from tiny_backprop.schedule.schedule import Schedule

CLOSED = 2e-5
"""A bound this close to a schedule, in proportion to the cost of every node once, proves it optimal."""

_MOMENTS_PER_ROUND = 3


@dataclasses.dataclass
class Tightened:
    """What `tighten` came to.

    Attributes:
      bound: No plan within the budget has less recompute cost; infinite where there is none.
      schedule: The cheapest schedule found that fits, or None.
      is_closed: Whether the bound proves the schedule optimal.
      is_integral: Whether the bound comes from an integer programme.
    """

    bound: float = 0.0
    schedule: Schedule | None = None
    is_closed: bool = False
    is_integral: bool = False


def tighten(
    phases: Phases, budget_bytes: int, costs: np.ndarray, seconds: float, start: Schedule | None = None
) -> Tightened:
    """Raise the bound and look for schedules until both meet, the time is up, or no moment is left to add."""
    deadline = time.monotonic() + seconds
    slack = CLOSED * float(costs.sum())
    found = Tightened(schedule=start if start is not None and start.liveness_peak_bytes <= budget_bytes else None)
    refine = _Refinement(phases, budget_bytes)
    while not found.is_closed and time.monotonic() < deadline:
        programme = refine.programme(costs)
        solution = programme.solve(max((deadline - time.monotonic()) / 2, seconds / 8))
        if not refine.is_reserving:
            found.bound, found.is_integral = max(found.bound, solution.bound), True
        if solution.keep is None:
            break
        made = realise(phases, programme.moments, solution.keep)
        fits = made.liveness_peak_bytes <= budget_bytes
        if fits and (found.schedule is None or made.recompute_cost(costs) < found.schedule.recompute_cost(costs)):
            found.schedule = made
        found.is_closed = found.schedule is not None and found.schedule.recompute_cost(costs) <= found.bound + slack
        if fits:
            break
        refine.learn(made)
    return found


class _Refinement:
    """Where memory is counted: moments, stages looked into, and bytes reserved where looking does not help."""

    def __init__(self, phases: Phases, budget_bytes: int):
        self._phases, self._budget = phases, budget_bytes
        self.moments = {phases.plain_peak}
        self.inner: set[int] = set()
        self.reserved = np.zeros(phases.end + 1, np.int64)

    @property
    def is_reserving(self) -> bool:
        """Whether the programme asks more than a plan must do, so that it gives plans but no bounds."""
        return bool(self.reserved.any())

    def programme(self, costs: np.ndarray) -> Relaxation:
        return Relaxation(self._phases, self.moments, self._budget - self.reserved, costs, self.inner)

    def learn(self, made: Schedule) -> None:
        """Count memory where a schedule exceeds the budget: at a position, else during a stage, else by a reserve."""
        steps, live = made.timeline.steps, made.timeline.live_bytes
        position = self._phases.position[steps]
        # A recomputation belongs to the stage that ends with the next backward node.
        ahead = np.minimum.accumulate(np.where(position >= 0, position, self._phases.end)[::-1])[::-1]
        worst = np.zeros(self._phases.end + 1, np.int64)
        np.maximum.at(worst, ahead, live)
        over = [t for t in np.argsort(-worst, kind="stable").tolist() if worst[t] > self._budget]
        new = [t for t in over if t not in self.moments and t < self._phases.end]
        if new:
            self._add_moments(new)
        elif unseen := [t for t in over if t > 0 and t not in self.inner]:
            t = unseen[0]
            self.inner.add(t)
            self.moments.add(t - 1)
        else:
            t = min(over[0], self._phases.end - 1)
            self.reserved[t] += worst[over[0]] - self._budget

    def _add_moments(self, positions: list[int]) -> None:
        # Spread over where the plan fails: neighbours tell much the same.
        apart, chosen = max(2, len(positions) // 6), []
        for t in positions:
            if len(chosen) < _MOMENTS_PER_ROUND and all(abs(t - u) > apart for u in chosen):
                chosen.append(t)
        self.moments.update(chosen)


def realise(phases: Phases, moments: list[int], keep: list[np.ndarray]) -> Schedule:
    """Return the schedule that has the given values alive at each moment and makes others when they are read."""
    maker = _Maker(phases.graph)
    for i in np.flatnonzero(phases.due == 0).tolist():
        maker.run(i)
    stages = iter(zip(moments, keep, strict=True))
    moment, kept = next(stages, (-1, None))
    for t, i in enumerate(phases.backward.tolist()):
        if t == moment and kept is not None:
            values = np.flatnonzero(kept).tolist()
            maker.make(values)
            maker.make(phases.graph.read_lists[i])
            maker.alive.intersection_update(values)
            moment, kept = next(stages, (-1, None))
        else:
            maker.make(phases.graph.read_lists[i])
        maker.steps.append(i)
    maker.make(phases.returned.tolist())
    return Schedule.from_steps(phases.graph, np.array(maker.steps), {})


class _Maker:
    """Writes the steps of a schedule: runs forward nodes when a value is missing."""

    def __init__(self, graph: Graph):
        self._reads, self._first_backward = graph.read_lists, int(graph.output_start[graph.n_forward])
        self._node, self._starts = graph.value_node.tolist(), graph.output_start.tolist()
        self.steps: list[int] = []
        self.alive: set[int] = set()

    def make(self, values: list[int]) -> None:
        """Have the forward values among `values` alive."""
        for v in values:
            if v < self._first_backward and v not in self.alive:
                self.run(self._node[v])

    def run(self, node: int) -> None:
        """Run a node, and before it whatever makes its operands, unless all its outputs are alive."""
        stack = [(node, False)]
        while stack:
            i, is_ready = stack.pop()
            outputs = range(self._starts[i], self._starts[i + 1])
            if outputs and all(v in self.alive for v in outputs):
                continue
            if is_ready:
                self.steps.append(i)
                self.alive.update(outputs)
            else:
                stack.append((i, True))
                stack.extend((self._node[v], False) for v in self._reads[i] if v not in self.alive)
