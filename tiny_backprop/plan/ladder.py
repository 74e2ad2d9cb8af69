"""A byte budget for something other than the referee's count: what XLA allocates, or is predicted to.

The planner is asked for temporaries, on a ladder of memories, and a bisection of its rungs finds the most memory whose
plan fits by the other count. Which rung is tried next depends on what was counted, not on the budget by itself: two
budgets part ways at a plan that fits one of them alone. So the largest count that fits is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

from tiny_backprop.errors import BudgetError
from tiny_backprop.plan.budget_planner import BudgetPlanner, Found
from tiny_backprop.plan.cost import node_costs
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes

_FUSED_SHARE = 0.4  # of the smallest peak by the referee's count: less than XLA's fusion has been seen to come to


@dataclasses.dataclass(frozen=True)
class Counted:
    """A schedule that was tried, with its bytes by the other count."""

    found: Found
    n_bytes: int


class Ladder:
    """Schedules for one graph, each counted once.

    Attributes:
      planner: A planner for temporaries; see `BudgetPlanner.for_temporaries`.
      n_rungs: How many memories there are, a power of two.
    """

    def __init__(
        self,
        planner: BudgetPlanner,
        count: Callable[[Found], int],
        n_rungs: int,
        more_plans: Callable[[], Iterable[Plan]],
        are_more_tried: bool,
    ):
        """Make the ladder.

        Args:
          planner: See `Ladder`.
          count: Returns the bytes of a schedule by the other count.
          n_rungs: See `Ladder`.
          more_plans: Makes other plans of the graph.
          are_more_tried: Whether they are tried for every budget that is too small for the program as it is; else only
            for one that nothing else fits into.
        """
        self.planner, self.n_rungs, self._count = planner, n_rungs, count
        self._more_plans, self._are_more_tried = more_plans, are_more_tried
        self._rungs: dict[int, Counted | None] = {}

    @functools.cached_property
    def everything(self) -> Counted:
        """The program as it is."""
        found = self.planner.everything
        return Counted(found, self._count(found))

    def try_for(self, budget_bytes: int) -> list[Counted]:
        """Return what is tried: the program as it is, then a bisection until the budget is met closely, then others."""
        tried = [self.everything]
        above, below = 0, self.n_rungs  # the lowest rung that needs too much, the highest that fits or has no plan
        while below - above > 1 and self.everything.n_bytes > budget_bytes:
            rung = (above + below) // 2
            counted = self.rung(rung)
            if counted is not None:
                tried.append(counted)
            if counted is None or counted.n_bytes <= budget_bytes:
                below = rung
            else:
                above = rung
        is_tight = self.everything.n_bytes > budget_bytes
        if is_tight and (self._are_more_tried or all(c.n_bytes > budget_bytes for c in tried)):
            tried += self._others
        return tried

    @functools.cached_property
    def _others(self) -> list[Counted]:
        counted = []
        for plan in self._more_plans():
            steps = plan.timeline.steps
            cost = float(node_costs(plan.graph, self.planner.cost)[steps].sum())
            found = Found(plan.graph, steps, cost, plan.liveness_peak_bytes)
            counted.append(Counted(found, self._count(found)))
        return counted

    def rung(self, i: int) -> Counted | None:
        """Return the schedule of a rung, from 1 to n_rungs - 1, and its bytes; None where there is none."""
        if i not in self._rungs:
            found = self.planner.tightest(self.memory_bytes(i))
            self._rungs[i] = None if found is None else Counted(found, self._count(found))
        return self._rungs[i]

    def memory_bytes(self, rung: int) -> int:
        """Return the memory of a rung: from all, by equal ratios, to less than any plan needs."""
        least, most = max(1.0, _FUSED_SHARE * self.planner.smallest.peak_bytes), self.planner.most_bytes
        return round(most * (least / max(least, most)) ** (rung / self.n_rungs))

    def no_plan(self, budget_bytes: int, that_fits: str, counted: str) -> BudgetError:
        """Return the error that says that nothing that is tried fits.

        Args:
          budget_bytes: The budget.
          that_fits: What was looked for, such as `"that XLA fits"`.
          counted: How bytes were counted, such as `"measured"`.
        """
        tried, graph = self.try_for(budget_bytes), self.planner.original
        least, outputs = min(c.n_bytes for c in tried), graph.output_bytes
        return BudgetError(
            f"found no plan for a gradient of {graph.name!r} {that_fits} into {format_bytes(budget_bytes)} "
            f"({budget_bytes} bytes): of {len(tried)} plans the smallest takes {format_bytes(least)} ({least} bytes) "
            f"of temporaries and outputs, {counted}; the outputs alone take {format_bytes(outputs)}.",
            budget_bytes,
            least,
            outputs,
        )
