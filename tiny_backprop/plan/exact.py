"""The cheapest plan within a byte budget, proven."""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.door import AMOUNT, BYTES, door, instance
from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.constraint_generation import Tightened, tighten
from tiny_backprop.plan.search.relaxation import Phases
from tiny_backprop.plan.strategies.tree import best_tree
from tiny_backprop.schedule.cost import COST, Cost, CostModel, node_costs
from tiny_backprop.schedule.schedule import Schedule


@door(PlanError, graph=GRAPH, budget_bytes=BYTES, cost=COST, time_limit_seconds=AMOUNT, start=instance(Plan).or_none())
def plan_exact(
    graph: Graph,
    budget_bytes: int,
    *,
    cost: Cost = "seconds",
    time_limit_seconds: float = 60.0,
    start: Plan | None = None,
) -> Plan:
    """Find the cheapest plan within a byte budget, and say whether it is proven to be that.

    Optimal among all plans with this order of the backward phase: the forward phase in any order, nodes re-run as often
    as it takes. Loops are reversed as they are in the graph: `plan_budget(graph, budget).graph` has them planned for a
    budget. Solves a few integer programmes with HiGHS (after Jain et al. 2020, arXiv:1910.02653); a fraction of a
    second for a hundred nodes and, where memory does not force nested recomputation, seconds for a few thousand.

    Args:
      graph: A gradient graph.
      budget_bytes: Largest allowed `liveness_peak_bytes`.
      cost: What a re-run costs: `"seconds"`, `"flops"` or a `CostModel`.
      time_limit_seconds: Stop after about so many seconds with the best plan found.
      start: A plan to beat; the backward phase keeps its order. By default the program's order.

    Returns:
      A plan with `liveness_peak_bytes <= budget_bytes`. `meta["proven"]` says whether no plan costs less (to 0.002 % of
      the cost of every node once), `meta["gap_percent"]` how much cheaper one could be at most.

    Raises:
      PlanError: The graph has no backward phase, `start` belongs to another graph, or `cost` is unknown.
      BudgetError: No plan fits, or none was found in time; the message says which.
    """
    if not graph.n_backward:
        raise PlanError("an exact plan needs the backward phase of a graph: capture_gradient(fun, *args) has it")
    if start is not None and start.graph.fingerprint != graph.fingerprint:
        raise PlanError("the plan to start from was made for another graph")
    costs = node_costs(graph, cost)
    phases = Phases.of(graph, None if start is None else start.backward_order)
    least = working_set_bound(graph, phases.backward)
    found = (
        Tightened(np.inf) if budget_bytes < least else tighten(phases, budget_bytes, costs, time_limit_seconds, start)
    )
    if found.schedule is None:
        raise _refusal(graph, budget_bytes, least, found, start)
    total = float(costs.sum())
    spent = found.schedule.recompute_cost(costs)
    meta = {
        "strategy": "exact",
        "budget_bytes": int(budget_bytes),
        "cost": dataclasses.asdict(cost) if isinstance(cost, CostModel) else cost,
        "proven": found.is_closed,
        "gap_percent": 100 * max(spent - found.bound, 0.0) / (total + found.bound) if total else 0.0,
    }
    return Plan.from_actions(graph, found.schedule.ops, found.schedule.targets, meta)


def _refusal(graph: Graph, budget_bytes: int, least: int, found: Tightened, start: Plan | None) -> BudgetError:
    """Return the error that says why there is no plan."""
    known: list[Schedule] = [best_tree(graph, levels) for levels in (1, 2, 3)] + ([start] if start is not None else [])
    smallest = min(x.liveness_peak_bytes for x in known)
    if np.isfinite(found.bound):
        why = "none was found in time; it may be that none fits"
    else:
        why = "no plan fits, whatever it recomputes, with this order of the backward phase"
    if graph.nested and smallest < least:  # of a plan whose loops are reversed otherwise
        known_text = (
            f"with its loops reversed as they are in this graph, a plan needs at least {least} bytes; reversed "
            f"otherwise, {smallest} are known to do. Loops are planned by plan_budget(graph, budget), whose graph may "
            "be given here"
        )
    else:
        known_text = f"the smallest peak known is {smallest} bytes; no plan needs less than {least}"
    return BudgetError(
        f"a budget of {budget_bytes} bytes was asked for: {why}; {known_text}.",
        int(budget_bytes),
        smallest,
        least,
    )
