"""A byte budget for something other than the referee's count: what XLA allocates, or is predicted to.

The planner is asked for temporaries, on a ladder of memories, for the most memory whose plan fits by the other count.
Where a count is cheap, the next rung is guessed from what was counted before. Where each takes seconds, the rungs are
bisected: which one is tried next then depends on what was counted, not on the budget by itself, and two budgets part
ways at a plan that fits one of them alone, so that the largest count that fits is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

from tiny_backprop.errors import BudgetError
from tiny_backprop.plan.budget_planner import BudgetPlanner, Found
from tiny_backprop.plan.cost import node_costs
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes

_CLOSE = 0.96  # of the budget: no further rung is counted


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
      is_guessed: Whether the next rung is guessed; they are bisected else.
      dear_cost: Where what is found costs more, other plans are tried, too.
    """

    def __init__(
        self,
        planner: BudgetPlanner,
        count: Callable[[Found], int],
        more_plans: Callable[[], Iterable[Plan]],
        *,
        n_rungs: int,
        least_bytes: float,
        is_guessed: bool,
        dear_cost: float = math.inf,
    ):
        """Make the ladder.

        Args:
          planner: See `Ladder`.
          count: Returns the bytes of a schedule by the other count.
          more_plans: Makes other plans of the graph, to be tried where those that fit are dear, or none does.
          n_rungs: See `Ladder`.
          least_bytes: See `Ladder`.
          is_guessed: See `Ladder`.
          dear_cost: See `Ladder`.
        """
        self.planner, self.n_rungs, self.is_guessed, self.dear_cost = planner, n_rungs, is_guessed, dear_cost
        self.least_bytes, self._count, self._more_plans = least_bytes, count, more_plans
        self._rungs: dict[int, Counted | None] = {}

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
        others = self.__dict__.get("others", [])
        return [self.everything, *(c for c in self._rungs.values() if c is not None), *others]

    def _search(self, budget_bytes: int) -> list[Counted]:
        """Return the rungs tried until the budget is met closely, which do not depend on what was asked before."""
        tried: list[Counted] = []
        above, below = 0, self.n_rungs  # the lowest rung that needs too much, the highest that fits or has no plan
        best: Counted | None = None
        while below - above > 1 and not (self.is_guessed and best and best.n_bytes >= _CLOSE * budget_bytes):
            rung = self._guess(above, below, budget_bytes) if self.is_guessed else (above + below) // 2
            counted = self.rung(rung)
            tried += [counted] if counted else []
            if counted is None or counted.n_bytes <= budget_bytes:
                below, best = rung, counted
            else:
                above = rung
        return tried

    def _guess(self, above: int, below: int, budget_bytes: int) -> int:
        """Return a rung between two: where a line through their counts meets the budget, on a logarithmic scale."""
        high = ((above and self._rungs[above]) or self.everything).n_bytes
        # Where there is no plan below, as if counts were in proportion to memories.
        low = self._rungs[below] if below < self.n_rungs else None
        ratio = high / max(low.n_bytes, 1) if low else self.memory_bytes(above) / self.memory_bytes(below)
        share = math.log(high / max(budget_bytes, 1)) / math.log(ratio) if ratio > 1 else 0.5
        share = share if 0 < share < 1 else 0.5
        return min(max(round(above + share * (below - above)), above + 1), below - 1)

    @functools.cached_property
    def others(self) -> list[Counted]:
        """Other plans than those of the rungs."""
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
            # Below what the planner can reach by its own count, other plans are as good, and take less time to find.
            ask = self.planner.best if self.is_guessed else self.planner.tightest
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
        least, outputs = min(c.n_bytes for c in tried), graph.output_bytes
        return BudgetError(
            f"found no plan for a gradient of {graph.name!r} {that_fits} into {format_bytes(budget_bytes)} "
            f"({budget_bytes} bytes): of {len(tried)} plans the smallest takes {format_bytes(least)} ({least} bytes) "
            f"of temporaries and outputs, {counted}; the outputs alone take {format_bytes(outputs)}.",
            budget_bytes,
            least,
            outputs,
        )
