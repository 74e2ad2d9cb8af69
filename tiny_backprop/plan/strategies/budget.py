"""Schedules by byte budget: the cheapest gradient found that XLA is predicted to fit into so many bytes.

For what was captured, the budget is for `Plan.peak_bytes`, which follows what XLA fuses, copies and keeps. Planners
count by plain liveness; so a sweep of memory limits (`memory_sweep`) is asked for the most memory whose schedule fits
in truth, as far as it can be predicted. Graphs made by hand are planned by plain liveness alone.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import threading
from collections.abc import Iterator
from typing import Any

from tiny_backprop.door import BYTES, found
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.checks import check_gradient
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.strategies.budget_planner import BudgetPlanner, PricedSchedule
from tiny_backprop.plan.strategies.memory_sweep import MemorySweep, Trial
from tiny_backprop.plan.strategies.tree import save_everything, tree_makers
from tiny_backprop.predict.allocation import predict_allocation, predicted_peak_bytes
from tiny_backprop.predict.nested import nested_plans, with_nested
from tiny_backprop.schedule.cost import Cost, CostModel
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.units import parse_bytes

_OCTAVES, _LIMITS_PER_OCTAVE = 12, 16  # of the sweep of memory limits
_SLACK, _SMALL_SLACK = 1.2, 1.04  # what a limit was seen to count less than one below it, by a large array; many layers
_AHEAD = 54  # limits, down to a tenth of the memory, whose coarse ones the first plan of a large graph tries
_LEVELS = (1, 2, 3)
_COSTLY = 1.1  # cost, in proportion to every node once, from which on plans in blocks are often better
_MIDDLING = 3000  # nodes up to which they are tried for that; with more, only where nothing else fits
_ONE_AT_A_TIME = threading.RLock()  # what is kept with a graph changes while it is planned


def schedule_within(
    graph: Graph,
    budget: int | float | str,
    *,
    cost: Cost = "seconds",
    search_seconds: float = 0.0,
    loops: LoopChoice | None = None,
    margin: float = 0.0,
) -> Schedule:
    """Return the cheapest schedule found whose peak is within a byte budget; see `plan_budget` for all of it."""
    check_gradient(graph)
    asked_bytes = parse_budget(graph, budget)
    budget_bytes = int(asked_bytes / (1 + margin))
    if isinstance(search_seconds, bool) or not isinstance(search_seconds, numbers.Real) or not search_seconds >= 0:
        raise PlanError(f"search_seconds must be a number of at least 0; found {search_seconds!r}")
    meta = budget_meta(budget, asked_bytes, cost)
    if margin:
        meta["margin_percent"] = 100 * float(margin)
    with _ONE_AT_A_TIME:
        if graph.backend:
            return _within_allocation(graph, budget_bytes, float(search_seconds), sweep_of(graph, cost, loops), meta)
        planner = BudgetPlanner.of(graph, cost, loops)
        found = planner.best(budget_bytes)
        if search_seconds:
            found = planner.search(budget_bytes, float(search_seconds), found)
        if found is None:
            raise planner.no_plan(budget_bytes)
        return planner.schedule(found, meta)


def budget_range_bytes(graph: Graph, cost: Cost = "seconds") -> tuple[int, int]:
    """Return the smallest budget that a plan is found for, and the peak of the program as it is.

    Where a graph is large, plans in blocks alone are asked, so that somewhat smaller budgets may be possible.

    Args:
      graph: A gradient graph.
      cost: See `plan_budget`.

    Raises:
      PlanError: The graph has no backward phase, or `cost` is unknown.
    """
    check_gradient(graph)
    with _ONE_AT_A_TIME:
        if graph.backend:
            sweep = sweep_of(graph, cost)
            return sweep.least_counted_bytes(graph.n_nodes <= _MIDDLING), sweep.everything.n_bytes
        planner = BudgetPlanner.of(graph, cost)
        return planner.smallest.peak_bytes, planner.everything.peak_bytes


def count_budgets_ahead(graph: Graph, cost: Cost = "seconds") -> Iterator[None]:
    """Find, a step at a time, what plans by budget are chosen from, for whoever has idle time; no plan changes by it.

    Then `budget_range_bytes` answers at once, and `plan_budget` takes a fraction of the time. Nothing is done for
    graphs made by hand, whose plans would change. Other threads may plan between two steps.

    Args:
      graph: A gradient graph.
      cost: See `plan_budget`.

    Raises:
      PlanError: The graph has no backward phase, or `cost` is unknown.
    """
    check_gradient(graph)
    steps = _counted_ahead(graph, cost) if graph.backend else iter(())
    while True:
        with _ONE_AT_A_TIME:
            try:
                next(steps)
            except StopIteration:
                return
        yield


def _counted_ahead(graph: Graph, cost: Cost) -> Iterator[None]:
    sweep = sweep_of(graph, cost)
    yield from sweep.count_others()
    yield from sweep.count_ahead(0 if graph.n_nodes <= _MIDDLING else sweep.least_counted_bytes(False))


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
    if BYTES.accepts(budget):
        return int(budget)
    if isinstance(budget, numbers.Real) and not is_whole and 0 < float(budget) <= 1:
        return int(float(budget) * predicted_peak_bytes(save_everything(graph)))
    hint = ". For bytes, pass an int" if isinstance(budget, float) and budget > 1 else ""
    raise PlanError(f"{wanted}; found {found(budget)}{hint}")


def sweep_of(graph: Graph, cost: Cost, loops: LoopChoice | None = None) -> MemorySweep:
    """Return the sweep by predicted allocation that is kept with a captured graph."""
    key = ("sweep", repr(cost), loops)
    if key not in graph.memo:
        planner = BudgetPlanner.of(graph, cost, loops).for_temporaries()
        graph.memo[key] = MemorySweep(
            planner,
            lambda found: _predicted_bytes(graph, found),
            lambda: [make for levels in _LEVELS for make in tree_makers(graph, levels, loops=loops)],
            n_limits=_OCTAVES * _LIMITS_PER_OCTAVE,
            least_bytes=planner.most_bytes / 2**_OCTAVES,
            is_coarse_to_fine=True,
            slack=_SLACK if graph.n_nodes <= _MIDDLING else _SMALL_SLACK,
            n_ahead=_AHEAD if graph.n_nodes > _MIDDLING else 0,
            costly=_COSTLY * planner.everything.cost if graph.n_nodes <= _MIDDLING else math.inf,
        )
    return graph.memo[key]


def _predicted_bytes(graph: Graph, found: PricedSchedule) -> int:
    """Return what XLA is predicted to allocate for a schedule; see `Plan.materialized`."""
    return predict_allocation(with_nested(graph, nested_plans(found.graph)), found.steps).peak_bytes


def _within_allocation(
    graph: Graph, budget_bytes: int, search_seconds: float, sweep: MemorySweep, meta: dict[str, Any]
) -> Schedule:
    fitting = sweep.fitting(budget_bytes)
    if not fitting:
        raise sweep.no_plan(budget_bytes, "that XLA is predicted to fit", "predicted")
    best = min(fitting, key=_rank)
    if search_seconds:
        found = sweep.planner.search(best.schedule.peak_bytes, search_seconds, best.schedule)
        searched = best if found is None else Trial(found, _predicted_bytes(graph, found))
        best = min((c for c in (best, searched) if c.n_bytes <= budget_bytes), key=_rank)
    return sweep.planner.schedule(best.schedule, meta)


def _rank(trial: Trial) -> tuple[float, int]:
    return trial.schedule.cost, trial.n_bytes
