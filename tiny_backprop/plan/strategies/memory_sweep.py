"""A byte budget for something other than the referee's count: what XLA allocates, or is predicted to.

The planner is asked for temporaries, for a sweep of memory limits in equal ratios, and the schedule with the most
memory is looked for whose bytes fit by the other count. Where a count is cheap, every third limit is a coarse one:
these are gone down until one fits, and the limits between those that fit, or nearly, are tried, too. All trials are
kept, so that another budget costs a few plans. What is tried depends on the budget alone. A plan that was chosen for
one budget is tried again for every smaller one that it fits, unless it counts less than the coarse limit after it by
more than the slack: so a budget as large as the peak of a plan gets no costlier plan. Where each count takes seconds,
the limits are bisected. Which one is tried next then depends on what was counted, not on the budget by itself, and two
budgets part ways at a plan that fits one of them alone, so that the largest count that fits is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from tiny_backprop.errors import BudgetError
from tiny_backprop.plan.strategies.budget_planner import BudgetPlanner, PricedSchedule
from tiny_backprop.schedule.cost import node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.units import format_bytes

_ROUNDING = 1e-9  # costs this close are the same, added up in another order
_STRIDE = 3  # limits from one coarse limit to the next


@dataclasses.dataclass(frozen=True)
class Trial:
    """A schedule that was tried, with its bytes by the other count."""

    schedule: PricedSchedule
    n_bytes: int


class MemorySweep:
    """Schedules for one graph, each counted once.

    Attributes:
      planner: A planner for temporaries; see `BudgetPlanner.for_temporaries`.
      n_limits: How many memory limits there are.
      least_bytes: The smallest of them; the others follow in equal ratios, up to what the program as it is takes.
      is_coarse_to_fine: Whether coarse limits are gone down first; limits are bisected else.
      slack: Where the trial of a coarse limit counts no more than so many budgets, what lies before it is tried.
      n_ahead: Coarse limits among so many are tried in the first search, whatever it is for, so that later ones find
        them.
      costly: Where what is found costs more, other schedules are tried, too.
    """

    def __init__(
        self,
        planner: BudgetPlanner,
        count: Callable[[PricedSchedule], int],
        more_plans: Callable[[], Sequence[Callable[[], Schedule]]],
        *,
        n_limits: int,
        least_bytes: float,
        is_coarse_to_fine: bool,
        slack: float = 1.0,
        n_ahead: int = 0,
        costly: float = math.inf,
    ):
        """Make the sweep.

        Args:
          planner: See `MemorySweep`.
          count: Returns the bytes of a schedule by the other count.
          more_plans: Returns what makes other plans of the graph, to be tried where those that fit are costly, or none
            does.
          n_limits: See `MemorySweep`.
          least_bytes: See `MemorySweep`.
          is_coarse_to_fine: See `MemorySweep`.
          slack: See `MemorySweep`.
          n_ahead: See `MemorySweep`.
          costly: See `MemorySweep`.
        """
        self.planner, self.n_limits, self.costly = planner, n_limits, costly
        self.is_coarse_to_fine, self.slack, self.n_ahead = is_coarse_to_fine, slack, n_ahead
        self.least_bytes, self._count, self._more_plans = least_bytes, count, more_plans
        self._trials: dict[int, Trial | None] = {}
        self._others: list[Trial] = []  # as many as were counted so far

    @functools.cached_property
    def everything(self) -> Trial:
        """The program as it is."""
        found = self.planner.everything
        return Trial(found, self._count(found))

    def fitting(self, budget_bytes: int) -> list[Trial]:
        """Return schedules that fit: the program as it is, or those of a search over the limits, and others."""
        if self.everything.n_bytes <= budget_bytes:
            return [self.everything]
        fitting = [c for c in self._search(budget_bytes) if c.n_bytes <= budget_bytes]
        if not fitting or min(c.schedule.cost for c in fitting) > self.costly:
            fitting += [c for c in self.others if c.n_bytes <= budget_bytes]
        return fitting

    @property
    def counted(self) -> list[Trial]:
        """Everything that was counted so far."""
        return [self.everything, *(c for c in self._trials.values() if c is not None), *self._others]

    def least_counted_bytes(self, is_searched: bool) -> int:
        """Return the smallest count of the other plans and, where they are searched for that, of the limits."""
        return min(c.n_bytes for c in [self.everything, *self.others, *(self._search(0) if is_searched else ())])

    def count_ahead(self, least_bytes: int) -> Iterator[None]:
        """Count, one at a time, the limits that a walk down to any budget of at least so many bytes may ask for."""
        gone: list[int] = []
        for i in range(_STRIDE, self.n_limits, _STRIDE):
            gone.append(i)
            coarse = self.trial(i)
            yield
            if coarse is None or (coarse.n_bytes <= least_bytes and i >= self.n_ahead):
                break
        for i in gone:
            for k in self._before(i):
                self.trial(k)
                yield

    def _search(self, budget_bytes: int) -> list[Trial]:
        """Return the trials for a budget, which do not depend on what was asked before."""
        return self._walk(budget_bytes) if self.is_coarse_to_fine else self._bisect(budget_bytes)

    def _walk(self, budget_bytes: int) -> list[Trial]:
        """Return the trials of coarse limits down to the first that fits, and of those before what nearly fits."""
        tried: list[Trial | None] = []
        for i in self._coarse_limits(budget_bytes):
            coarse = self.trial(i)
            if coarse is None or coarse.n_bytes <= self.slack * budget_bytes:
                tried += [self.trial(k) for k in self._before(i)]
            tried.append(coarse)
        return [c for c in tried if c is not None]

    def _before(self, i: int) -> range:
        """Return the limits between a coarse one and the one above it; none where nothing runs again there."""
        coarse = self.trial(i)
        is_free = coarse is not None and coarse.schedule.cost <= self.everything.schedule.cost * (1 + _ROUNDING)
        return range(0) if is_free else range(i - _STRIDE + 1, i)

    def _coarse_limits(self, budget_bytes: int) -> list[int]:
        """Return the coarse limits down to the first that fits or has no plan; those ahead of it are tried, too."""
        limits = range(_STRIDE, self.n_limits, _STRIDE)
        for n, i in enumerate(limits):
            coarse = self.trial(i)
            if coarse is None or coarse.n_bytes <= budget_bytes:
                all(self.trial(k) for k in limits[n:] if k <= self.n_ahead)  # up to the first without a plan
                return list(limits[: n + 1])
        return list(limits)

    def _bisect(self, budget_bytes: int) -> list[Trial]:
        tried: list[Trial] = []
        above, below = 0, self.n_limits  # the last limit that needs too much, the first that fits or has no plan
        while below - above > 1:
            limit = (above + below) // 2
            counted = self.trial(limit)
            tried += [counted] if counted else []
            is_below = counted is None or counted.n_bytes <= budget_bytes
            above, below = (above, limit) if is_below else (limit, below)
        return tried

    @property
    def others(self) -> list[Trial]:
        """Other plans than those of the limits."""
        for _ in self.count_others():
            pass
        return self._others

    def count_others(self) -> Iterator[None]:
        """Make and count the other plans, one at a time."""
        while len(self._others) < len(self._ways):
            made = self._ways[len(self._others)]()
            cost = float(node_costs(made.graph, self.planner.cost)[made.steps].sum())
            found = PricedSchedule(made.graph, made.steps, cost, made.liveness_peak_bytes)
            self._others.append(Trial(found, self._count(found)))
            yield

    @functools.cached_property
    def _ways(self) -> Sequence[Callable[[], Schedule]]:
        """What makes each of the other plans."""
        return self._more_plans()

    def trial(self, i: int) -> Trial | None:
        """Return the schedule for a limit, from 1 to n_limits - 1, and its bytes; None where there is none."""
        if i not in self._trials:
            # Below what the planner can reach by its own count, other plans are as good, and take less time to find.
            ask = self.planner.best if self.is_coarse_to_fine else self.planner.tightest
            found = ask(self.memory_bytes(i))
            self._trials[i] = None if found is None else Trial(found, self._count(found))
        return self._trials[i]

    def memory_bytes(self, limit: int) -> int:
        """Return the memory of a limit."""
        most = max(self.planner.most_bytes, 1)
        return max(1, round(most * min(self.least_bytes / most, 1.0) ** (limit / self.n_limits)))

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
