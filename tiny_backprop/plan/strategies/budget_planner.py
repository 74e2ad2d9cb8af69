"""Schedules by byte budget of a graph with what is nested in it, its loops and branches.

They are planned together: of the points on their front from the cheapest to the smallest (`front`), the planner is
asked for schedules of the graph around them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.loops.front import front
from tiny_backprop.plan.loops.nested import by_choice
from tiny_backprop.plan.search.planner import Candidate, Planner
from tiny_backprop.predict.nested import nested_plans, with_nested
from tiny_backprop.schedule.cost import Cost, least_cost, node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.schedule.steps import peak_bytes
from tiny_backprop.units import format_bytes

_ROUNDING = 1e-9  # costs this close are the same, added up in another order
_MOST_WORSE = 2  # points of the front in a row that are costlier than the best, before the search ends


@dataclasses.dataclass(frozen=True, eq=False)
class PricedSchedule:
    """A schedule with the graph that it is for.

    Attributes:
      graph: The graph, what is nested in it planned; its bytes may be those of temporaries alone.
      steps: The order in which its nodes run.
      cost: Cost of all steps.
      peak_bytes: Peak by the referee's count.
    """

    graph: Graph
    steps: np.ndarray
    cost: float
    peak_bytes: int

    @classmethod
    def of(cls, planner: Planner, candidate: Candidate) -> PricedSchedule:
        """Return what a planner has found, which numbers nodes in an order of its own."""
        return cls(planner.original, planner.order[candidate.steps], candidate.cost, candidate.peak_bytes)

    @property
    def rank(self) -> tuple[float, int]:
        """Cost and then bytes: the less the better."""
        return self.cost, self.peak_bytes


class BudgetPlanner:
    """Makes plans for one graph, what is nested in it included, and one cost; keeps what it found.

    Attributes:
      original: The graph that plans are for.
      cost: What is minimised.
      points: The graph, perhaps with other bytes, for different plans of what is nested in it; see `front`.
      takes_known: Whether what was found for other budgets is taken where it is cheaper; else answers depend on what is
        asked alone, so that another planner gives the same.
    """

    def __init__(self, original: Graph, points: list[Graph], cost: Cost, takes_known: bool = True):
        self.original, self.points, self.cost, self.takes_known = original, points, cost, takes_known
        self._found: dict[int, PricedSchedule | None] = {}

    @classmethod
    def of(cls, graph: Graph, cost: Cost, loops: LoopChoice | None = None) -> BudgetPlanner:
        """Return the planner that is kept with a graph; it counts by plain liveness."""
        key = ("budget", repr(cost), loops)
        if key not in graph.memo:
            points = front(graph, cost) if loops is None else [by_choice(graph, loops)]
            graph.memo[key] = cls(graph, points, cost)
        return graph.memo[key]

    def for_temporaries(self) -> BudgetPlanner:
        """Return a new planner that counts as XLA allocates: what the program returns has buffers of its own all along.

        What it answers depends on what is asked alone.
        """
        outputs = self.original.outputs[self.original.outputs >= 0]
        points = []
        for graph in self.points:
            n_bytes = graph.value_bytes.copy()
            n_bytes[outputs] = 0
            points.append(dataclasses.replace(graph, value_bytes=n_bytes))
        return BudgetPlanner(self.original, points, self.cost, takes_known=False)

    def schedule(self, found: PricedSchedule, meta: dict[str, Any]) -> Schedule:
        """Return what was found with its actions; `meta` is told what the recomputation costs."""
        graph = with_nested(self.original, nested_plans(found.graph))
        least, spent = least_cost(graph, self.cost), float(node_costs(graph, self.cost)[found.steps].sum())
        share = 100 * (spent / least - 1) if least else 0.0
        return Schedule.from_steps(graph, found.steps, {**meta, "recompute_percent": round(max(share, 0.0), 4)})

    @functools.cached_property
    def everything(self) -> PricedSchedule:
        """The program as it is, but for what is nested in it, planned as at the first of the points."""
        graph, steps = self.points[0], np.arange(self.original.n_nodes)
        return PricedSchedule(graph, steps, self._planner(0).least_cost, peak_bytes(graph, steps))

    @property
    def most_bytes(self) -> int:
        """The peak where nothing runs again."""
        return self._planner(0).most_bytes

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The schedule with the smallest peak that the planner can reach."""
        return self._planner(len(self.points) - 1).smallest

    def best(self, budget_bytes: int) -> PricedSchedule | None:
        """Return the cheapest schedule found within the budget; what was found for other budgets is asked, too."""
        everything = self._planner(0)
        if everything.plain.peak_bytes <= budget_bytes:
            return PricedSchedule.of(everything, everything.plain)
        if budget_bytes not in self._found:
            self._found[budget_bytes] = self._find(budget_bytes)
        own = self._found[budget_bytes]
        if not self.takes_known:
            return own
        most = math.inf if own is None else own.cost * (1 - _ROUNDING)
        known = [f for f in self._found.values() if f is not None and f.peak_bytes <= budget_bytes]
        return min((f for f in known if f.cost < most), key=lambda f: f.cost, default=own)

    def search(self, budget_bytes: int, search_seconds: float, start: PricedSchedule | None) -> PricedSchedule | None:
        """Search on from what was found, for so long; what is found is remembered."""
        planner = self._planner(len(self.points) - 1) if start is None else Planner.of(start.graph, self.cost)
        candidate = planner.search(budget_bytes, search_seconds)
        if candidate is not None:
            self._found[budget_bytes] = PricedSchedule.of(planner, candidate)
        return self.best(budget_bytes)

    def tightest(self, memory_bytes: int) -> PricedSchedule | None:
        """Return what to try for a memory that no peak by the referee's count need fit; see `Planner.tightest`."""
        found = self.best(memory_bytes)
        if found is not None:
            return found
        planner = self._planner(len(self.points) - 1)
        candidate = planner.tightest(memory_bytes)
        return None if candidate is None else PricedSchedule.of(planner, candidate)

    def no_plan(self, budget_bytes: int) -> BudgetError:
        """Return the error that says why there is no plan."""
        least, bound = self.smallest.peak_bytes, self._planner(len(self.points) - 1).bound_bytes
        asked = f"a gradient of {self.original.name!r} within {format_bytes(budget_bytes)} ({budget_bytes} bytes)"
        least_text = f"the smallest peak that the planner can reach is {format_bytes(least)} ({least} bytes)"
        step = f"one step alone takes {format_bytes(bound)} ({bound} bytes)"
        if budget_bytes < bound:
            message = f"{asked} is impossible: in this order of the backward phase, {step}; {least_text}"
        else:
            message = f"found no plan for {asked}; {least_text}, and in this order {step}"
        return BudgetError(message + ".", budget_bytes, least, bound)

    def _planner(self, i: int) -> Planner:
        return Planner.of(self.points[i], self.cost)

    def _at(self, i: int, budget_bytes: int) -> PricedSchedule | None:
        planner = self._planner(i)
        candidate = planner.best(budget_bytes) if self.takes_known else planner.own(budget_bytes)
        return None if candidate is None else PricedSchedule.of(planner, candidate)

    def _find(self, budget_bytes: int) -> PricedSchedule | None:
        """Return the best along the front: from its first point that fits on, until the next ones are costlier."""
        low, high = -1, len(self.points) - 1
        best = self._at(high, budget_bytes)
        if best is None:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            found = self._at(middle, budget_bytes)
            low, high = (middle, high) if found is None else (low, middle)
            best = best if found is None else min(best, found, key=lambda f: f.rank)
        n_worse = 0
        for i in range(high + 1, len(self.points)):
            found = self._at(i, budget_bytes)
            n_worse += 1
            if found is not None and found.rank < best.rank:
                best, n_worse = found, 0
            if n_worse == _MOST_WORSE:
                break
        return best
