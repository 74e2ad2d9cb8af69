"""A byte budget that holds in truth: compile, ask XLA, and plan again until temporaries and outputs fit.

The referee counts every value as if nothing were fused and no scratch space were taken; XLA needs less or more. And XLA
gives what the program returns buffers of its own for the whole run. So temporaries are planned for, on a ladder of
memories (`tiny_backprop.plan.ladder`), and of the gradients that fit the one that takes most is returned: the measured
peak is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tiny_backprop.graph import Graph
from tiny_backprop.plan import Plan
from tiny_backprop.plan.budget import BudgetPlanner, budget_meta, parse_budget
from tiny_backprop.plan.ladder import no_plan, try_plans
from tiny_backprop.plan.loops import LoopChoice

_MOST_COMPILATIONS = 6  # the plain gradient, and a bisection


def plan_verified(
    graph: Graph,
    budget: int | float | str,
    measured_bytes: Callable[[Plan], int],
    loops: LoopChoice | None = None,
) -> Plan:
    """Return the cheapest plan found whose gradient, as XLA allocates it, is within a byte budget.

    Up to six plans are compiled. Which ones depends on the graph, the budget and XLA alone. The measured peak of the
    plan returned is monotone in the budget.

    Args:
      graph: A gradient graph.
      budget: See `plan_budget`.
      measured_bytes: Compiles the gradient of a plan and returns XLA's temporary and output bytes.
      loops: How loops are reversed, where the planner is not to choose.

    Returns:
      The plan; its `meta` has `measured_peak_bytes` and `n_compiled`. Its predicted peak may be above the budget.

    Raises:
      BudgetError: None of the compiled gradients fits; the error names the smallest.
      PlanError: See `plan_budget`.
    """
    budget_bytes = parse_budget(graph, budget)
    planner = BudgetPlanner.of(graph, "seconds", loops).for_temporaries()
    meta = budget_meta(budget, budget_bytes, "seconds")
    tried = try_plans(planner, budget_bytes, meta, measured_bytes, _MOST_COMPILATIONS)
    fitting = [c for c in tried if c.n_bytes <= budget_bytes]
    if not fitting:
        raise no_plan(graph, budget_bytes, tried, "that XLA fits", "measured")
    best = max(fitting, key=lambda c: (c.n_bytes, -c.plan.recompute_flops))
    known = {"measured_peak_bytes": best.n_bytes, "n_compiled": len(tried)}
    return dataclasses.replace(best.plan, meta={**best.plan.meta, **known})
