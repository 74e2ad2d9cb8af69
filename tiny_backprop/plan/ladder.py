"""A byte budget for something other than the referee's count: what XLA allocates, or is predicted to.

The planner is asked for temporaries, on a ladder of memories, for the most memory whose plan fits by the other count.
Where a count is cheap, every third rung is a landmark: they are gone down until one fits, and what lies before those
that fit, or nearly, is tried, too. All are kept, so that another budget costs a few plans. What is tried depends on the
budget alone. A plan that was chosen for one budget is tried again for every smaller one that it fits, unless it counts
less than the landmark after it by more than the slack: so a budget as large as the peak of a plan gets no dearer plan.
Where each count takes seconds, the rungs are bisected. Which one is tried next then depends on what was counted, not on
the budget by itself, and two budgets part ways at a plan that fits one of them alone, so that the largest count that
fits is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from tiny_backprop.errors import BudgetError
from tiny_backprop.plan.budget_planner import BudgetPlanner, Found
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.cost import node_costs
from tiny_backprop.units import format_bytes

_ROUNDING = 1e-9  # costs this close are the same, added up in another order
_STRIDE = 3  # rungs from one landmark to the next


@dataclasses.dataclass(frozen=True)
class Counted:
    """A schedule that was tried, with its bytes by the other count."""

    found: Found
    n_bytes: int


class Ladder:
    """Schedules for one graph, each counted once.

    Attributes:
      planner: A planner for temporaries; see `BudgetPlanner.for_temporaries`.
      n_rungs: How many memories there are.
      least_bytes: The smallest of them; the others follow in equal ratios, up to what the program as it is takes.
      is_walked: Whether landmarks are gone down; rungs are bisected else.
      slack: Where a landmark counts no more than so many budgets, what lies before it is tried.
      n_ahead: Landmarks on so many rungs are counted in the first search, whatever it is for, so that later ones find
        them.
      dear_cost: Where what is found costs more, other plans are tried, too.
    """

    def __init__(
        self,
        planner: BudgetPlanner,
        count: Callable[[Found], int],
        more_plans: Callable[[], Sequence[Callable[[], Plan]]],
        *,
        n_rungs: int,
        least_bytes: float,
        is_walked: bool,
        slack: float = 1.0,
        n_ahead: int = 0,
        dear_cost: float = math.inf,
    ):
        """Make the ladder.

        Args:
          planner: See `Ladder`.
          count: Returns the bytes of a schedule by the other count.
          more_plans: Returns what makes other plans of the graph, to be tried where those that fit are dear, or none
            does.
          n_rungs: See `Ladder`.
          least_bytes: See `Ladder`.
          is_walked: See `Ladder`.
          slack: See `Ladder`.
          n_ahead: See `Ladder`.
          dear_cost: See `Ladder`.
        """
        self.planner, self.n_rungs, self.dear_cost = planner, n_rungs, dear_cost
        self.is_walked, self.slack, self.n_ahead = is_walked, slack, n_ahead
        self.least_bytes, self._count, self._more_plans = least_bytes, count, more_plans
        self._rungs: dict[int, Counted | None] = {}
        self._others: list[Counted] = []  # as many as were counted so far

    @functools.cached_property
    def everything(self) -> Counted:
        """The program as it is."""
        found = self.planner.everything
        return Counted(found, self._count(found))

    def fitting(self, budget_bytes: int) -> list[Counted]:
        """Return schedules that fit: the program as it is, or those on a search of the rungs, and others."""
        if self.everything.n_bytes <= budget_bytes:
            return [self.everything]
        fitting = [c for c in self._search(budget_bytes) if c.n_bytes <= budget_bytes]
        if not fitting or min(c.found.cost for c in fitting) > self.dear_cost:
            fitting += [c for c in self.others if c.n_bytes <= budget_bytes]
        return fitting

    @property
    def counted(self) -> list[Counted]:
        """Everything that was counted so far."""
        return [self.everything, *(c for c in self._rungs.values() if c is not None), *self._others]

    def least_counted_bytes(self, is_searched: bool) -> int:
        """Return the smallest count of the other plans and, where they are searched for that, of the rungs."""
        return min(c.n_bytes for c in [self.everything, *self.others, *(self._search(0) if is_searched else ())])

    def count_ahead(self, least_bytes: int) -> Iterator[None]:
        """Count, one at a time, the rungs that a walk down to any budget of at least so many bytes may ask for."""
        gone: list[int] = []
        for i in range(_STRIDE, self.n_rungs, _STRIDE):
            gone.append(i)
            landmark = self.rung(i)
            yield
            if landmark is None or (landmark.n_bytes <= least_bytes and i >= self.n_ahead):
                break
        for i in gone:
            for k in self._before(i):
                self.rung(k)
                yield

    def _search(self, budget_bytes: int) -> list[Counted]:
        """Return the rungs tried for a budget, which do not depend on what was asked before."""
        return self._walk(budget_bytes) if self.is_walked else self._bisect(budget_bytes)

    def _walk(self, budget_bytes: int) -> list[Counted]:
        """Return the landmarks down to the first that fits, and the rungs before those that fit or nearly do."""
        tried: list[Counted | None] = []
        for i in self._landmarks(budget_bytes):
            landmark = self.rung(i)
            if landmark is None or landmark.n_bytes <= self.slack * budget_bytes:
                tried += [self.rung(k) for k in self._before(i)]
            tried.append(landmark)
        return [c for c in tried if c is not None]

    def _before(self, i: int) -> range:
        """Return the rungs between a landmark and the one above it; none where nothing runs again at the landmark."""
        landmark = self.rung(i)
        is_free = landmark is not None and landmark.found.cost <= self.everything.found.cost * (1 + _ROUNDING)
        return range(0) if is_free else range(i - _STRIDE + 1, i)

    def _landmarks(self, budget_bytes: int) -> list[int]:
        """Return the landmarks down to the first that fits or has no plan; those ahead of it are counted, too."""
        landmarks = range(_STRIDE, self.n_rungs, _STRIDE)
        for n, i in enumerate(landmarks):
            landmark = self.rung(i)
            if landmark is None or landmark.n_bytes <= budget_bytes:
                all(self.rung(k) for k in landmarks[n:] if k <= self.n_ahead)  # up to the first without a plan
                return list(landmarks[: n + 1])
        return list(landmarks)

    def _bisect(self, budget_bytes: int) -> list[Counted]:
        tried: list[Counted] = []
        above, below = 0, self.n_rungs  # the lowest rung that needs too much, the highest that fits or has no plan
        while below - above > 1:
            rung = (above + below) // 2
            counted = self.rung(rung)
            tried += [counted] if counted else []
            is_below = counted is None or counted.n_bytes <= budget_bytes
            above, below = (above, rung) if is_below else (rung, below)
        return tried

    @property
    def others(self) -> list[Counted]:
        """Other plans than those of the rungs."""
        for _ in self.count_others():
            pass
        return self._others

    def count_others(self) -> Iterator[None]:
        """Make and count the other plans, one at a time."""
        while len(self._others) < len(self._ways):
            plan = self._ways[len(self._others)]()
            steps = plan.timeline.steps
            cost = float(node_costs(plan.graph, self.planner.cost)[steps].sum())
            found = Found(plan.graph, steps, cost, plan.liveness_peak_bytes)
            self._others.append(Counted(found, self._count(found)))
            yield

    @functools.cached_property
    def _ways(self) -> Sequence[Callable[[], Plan]]:
        """What makes each of the other plans."""
        return self._more_plans()

    def rung(self, i: int) -> Counted | None:
        """Return the schedule of a rung, from 1 to n_rungs - 1, and its bytes; None where there is none."""
        if i not in self._rungs:
            # Below what the planner can reach by its own count, other plans are as good, and take less time to find.
            ask = self.planner.best if self.is_walked else self.planner.tightest
            found = ask(self.memory_bytes(i))
            self._rungs[i] = None if found is None else Counted(found, self._count(found))
        return self._rungs[i]

    def memory_bytes(self, rung: int) -> int:
        """Return the memory of a rung."""
        most = max(self.planner.most_bytes, 1)
        return max(1, round(most * min(self.least_bytes / most, 1.0) ** (rung / self.n_rungs)))

    def no_plan(self, budget_bytes: int, that_fits: str, counted: str) -> BudgetError:
        """Return the error that says that nothing that was tried fits.

        Args:
          budget_bytes: The budget.
          that_fits: What was looked for, such as `"that XLA fits"`.
          counted: How bytes were counted, such as `"measured"`.
        """
        tried, graph = self.counted, self.planner.original
        least, outputs = min(c.n_bytes for c in tried), graph.new_output_bytes
        return BudgetError(
            f"found no plan for a gradient of {graph.name!r} {that_fits} into {format_bytes(budget_bytes)} "
            f"({budget_bytes} bytes): of {len(tried)} plans the smallest takes {format_bytes(least)} ({least} bytes) "
            f"of temporaries and outputs, {counted}; the outputs alone take {format_bytes(outputs)}.",
            budget_bytes,
            least,
            outputs,
        )
