"""Plans by byte budget: the cheapest gradient found whose peak, at every step of both phases, stays within it.

What is nested in the graph, its loops and branches, is planned together with it: of the points on their path from the
cheapest to the smallest (`path`), the planner is asked for schedules of the graph around them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import Any

import numpy as np

from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.blocks import check_gradient
from tiny_backprop.plan.cost import Cost, CostModel, least_cost, node_costs
from tiny_backprop.plan.loops import LoopChoice
from tiny_backprop.plan.nested import by_choice, keeping_everything, nested_plans, with_nested
from tiny_backprop.plan.path import path
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.planner import Candidate, Planner
from tiny_backprop.plan.schedule import schedule
from tiny_backprop.units import format_bytes, parse_bytes

_ROUNDING = 1e-9  # costs this close are the same, added up in another order
_MOST_WORSE = 2  # points of the path in a row that are dearer than the best, before the search ends


def plan_budget(
    graph: Graph,
    budget: int | float | str,
    *,
    cost: Cost = "seconds",
    search_seconds: float = 0.0,
    loops: LoopChoice | None = None,
) -> Plan:
    """Return the cheapest gradient found whose peak is within a byte budget.

    The budget holds for what the referee counts: every value alive at any step of the forward and backward phase,
    gradients and other outputs included, arguments not. Loops are planned together with what is around them. Blocks,
    cuts and menus are kept with the graph, so that another budget takes a fraction of the first one's time; so are
    plans found before, which are taken where they fit.

    Args:
      graph: A gradient graph, forward and backward phase.
      budget: Bytes as an int or as text such as `"2GiB"`, or a float above 0 and at most 1, a fraction of the peak when
        everything is saved.
      cost: What is minimised: `"seconds"` by the default `CostModel` of FLOPs and bytes moved, `"flops"`, or a
        `CostModel`.
      search_seconds: How long to search on for a cheaper plan, by integer programming (see `plan_exact`) and then by
        local search; less where a plan is proven optimal. A few seconds bring graphs of up to a few thousand nodes to
        or near the optimum.
      loops: How loops are reversed, where the planner is not to choose.

    Returns:
      The plan; `plan.peak_bytes` is at most the budget, and `plan.certificate` says how much cheaper another could be.

    Raises:
      BudgetError: No plan was found that fits; the error names the smallest peak that can be reached.
      PlanError: The graph has no backward phase, or an argument is not as described.

    Example:
      >>> import jax, jax.numpy as jnp, tiny_backprop as tb
      >>> def net(x):
      ...     for _ in range(16):
      ...         x = jnp.tanh(x)
      ...     return jnp.sum(x)
      >>> plan = plan_budget(tb.capture_gradient(net, jax.ShapeDtypeStruct((1000,), "float32")), 0.5)
      >>> plan.peak_bytes <= 0.5 * tb.plan_save_everything(plan.graph).peak_bytes
      True
    """
    check_gradient(graph)
    budget_bytes = parse_budget(graph, budget)
    if isinstance(search_seconds, bool) or not isinstance(search_seconds, numbers.Real) or not search_seconds >= 0:
        raise PlanError(f"search_seconds must be a number of at least 0; found {search_seconds!r}")
    planner = BudgetPlanner.of(graph, cost, loops)
    found = planner.best(budget_bytes)
    if search_seconds:
        found = planner.search(budget_bytes, float(search_seconds), found)
    if found is None:
        raise planner.no_plan(budget_bytes)
    return planner.plan(found, budget_meta(budget, budget_bytes, cost))


def budget_meta(budget: int | float | str, budget_bytes: int, cost: Cost) -> dict[str, Any]:
    """Return what a plan's `meta` says of the budget: as it was asked for, in bytes, and what was minimised."""
    return {
        "strategy": "byte budget",
        "budget": budget if isinstance(budget, str) else float(budget) if isinstance(budget, float) else int(budget),
        "budget_bytes": budget_bytes,
        "cost": dataclasses.asdict(cost) if isinstance(cost, CostModel) else cost,
    }


def parse_budget(graph: Graph, budget: Any) -> int:
    """Return a budget in bytes; see `plan_budget`.

    Raises:
      PlanError: It is no number of bytes and no fraction.
    """
    wanted = "a budget is bytes (an int, or text such as '2GiB') or a fraction of the save-everything peak (a float)"
    if isinstance(budget, str):
        try:
            return parse_bytes(budget)
        except ValueError as e:
            raise PlanError(f"{wanted}: {e}") from None
    is_whole = isinstance(budget, numbers.Integral)
    if is_whole and not isinstance(budget, bool) and int(budget) >= 0:
        return int(budget)
    if isinstance(budget, numbers.Real) and not is_whole and 0 < float(budget) <= 1:
        return int(float(budget) * frontier(keeping_everything(graph)).max(initial=0))
    hint = ". For bytes, pass an int" if isinstance(budget, float) and budget > 1 else ""
    raise PlanError(f"{wanted}; found {budget!r}{hint}")


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A schedule with the graph that it is for.

    Attributes:
      planner: The planner of that graph, what is nested in it planned.
      candidate: The schedule and its price, nodes numbered as in `planner.graph`.
    """

    planner: Planner
    candidate: Candidate

    @property
    def rank(self) -> tuple[float, int]:
        """Cost and then bytes: the less the better."""
        return self.candidate.cost, self.candidate.peak_bytes

    @property
    def steps(self) -> np.ndarray:
        """The order in which the nodes of the program's own graph run."""
        return self.planner.order[self.candidate.steps]


class BudgetPlanner:
    """Makes plans for one graph, what is nested in it included, and one cost; keeps what it found.

    Attributes:
      original: The graph that plans are for.
      cost: What is minimised.
      points: The graph, perhaps with other bytes, for different plans of what is nested in it; see `path`.
    """

    def __init__(self, original: Graph, points: list[Graph], cost: Cost):
        self.original, self.points, self.cost = original, points, cost
        self._found: dict[int, Found | None] = {}

    @classmethod
    def of(cls, graph: Graph, cost: Cost, loops: LoopChoice | None = None) -> BudgetPlanner:
        """Return the planner that is kept with a graph."""
        key = ("budget", repr(cost), loops)
        if key not in graph.memo:
            points = path(graph, cost) if loops is None else [by_choice(graph, loops)]
            graph.memo[key] = cls(graph, points, cost)
        return graph.memo[key]

    def for_temporaries(self) -> BudgetPlanner:
        """Return a new planner that counts as XLA allocates: what the program returns has buffers of its own all along.

        It has kept no plans: what it answers depends on what it alone was asked.
        """
        outputs = self.original.outputs[self.original.outputs >= 0]
        points = []
        for graph in self.points:
            n_bytes = graph.value_bytes.copy()
            n_bytes[outputs] = 0
            points.append(dataclasses.replace(graph, value_bytes=n_bytes))
        return BudgetPlanner(self.original, points, self.cost)

    def plan(self, found: Found, meta: dict[str, Any]) -> Plan:
        """Return the plan of what was found; `meta` is told what the recomputation costs."""
        graph = with_nested(self.original, nested_plans(found.planner.original))
        least, spent = least_cost(graph, self.cost), float(node_costs(graph, self.cost)[found.steps].sum())
        share = 100 * (spent / least - 1) if least else 0.0
        return schedule(graph, found.steps, {**meta, "recompute_percent": round(max(share, 0.0), 4)})

    @property
    def most_bytes(self) -> int:
        """The peak where nothing runs again."""
        return self._planner(0).most_bytes

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The schedule with the smallest peak that the planner can reach."""
        return self._planner(len(self.points) - 1).smallest

    def best(self, budget_bytes: int) -> Found | None:
        """Return the cheapest schedule found within the budget; what was found for other budgets is asked, too."""
        everything = self._planner(0)
        if everything.plain.peak_bytes <= budget_bytes:
            return Found(everything, everything.plain)
        if budget_bytes not in self._found:
            self._found[budget_bytes] = self._find(budget_bytes)
        own = self._found[budget_bytes]
        most = math.inf if own is None else own.candidate.cost * (1 - _ROUNDING)
        known = [f for f in self._found.values() if f is not None and f.candidate.peak_bytes <= budget_bytes]
        return min((f for f in known if f.candidate.cost < most), key=lambda f: f.candidate.cost, default=own)

    def search(self, budget_bytes: int, search_seconds: float, start: Found | None) -> Found | None:
        """Search on from what was found, for so long; what is found is remembered."""
        planner = self._planner(len(self.points) - 1) if start is None else start.planner
        candidate = planner.search(budget_bytes, search_seconds)
        if candidate is not None:
            self._found[budget_bytes] = Found(planner, candidate)
        return self.best(budget_bytes)

    def tightest(self, memory_bytes: int) -> Found | None:
        """Return what to try for a memory that no peak by the referee's count need fit; see `Planner.tightest`."""
        if memory_bytes >= self.smallest.peak_bytes:
            return self.best(memory_bytes)
        planner = self._planner(len(self.points) - 1)
        candidate = planner.tightest(memory_bytes)
        return None if candidate is None else Found(planner, candidate)

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

    def _at(self, i: int, budget_bytes: int) -> Found | None:
        planner = self._planner(i)
        candidate = planner.best(budget_bytes)
        return None if candidate is None else Found(planner, candidate)

    def _find(self, budget_bytes: int) -> Found | None:
        """Return the best along the path: from its first point that fits on, until the next ones are dearer."""
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
