"""A byte budget that holds in truth: compile, ask XLA, and plan again until temporaries and outputs fit.

Predictions are off by some per cent. So the sweep of memory limits by which `plan_budget` looks for a plan whose
predicted allocation fits (`tiny_backprop.plan.strategies.memory_sweep`) is made with XLA itself, over fewer limits, and
of the gradients that fit the one that takes most is returned: the measured peak is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import plan_jax_gradient
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.budget import budget_meta, parse_budget
from tiny_backprop.plan.strategies.budget_planner import BudgetPlanner, PricedSchedule
from tiny_backprop.plan.strategies.memory_sweep import MemorySweep
from tiny_backprop.plan.strategies.tree import best_tree

_FUSED_SHARE = 0.4  # of the smallest peak by liveness: less than XLA's fusion has been seen to come to
_N_LIMITS = 32  # the plain gradient and a bisection: six compilations


def plan_verified(
    graph: Graph,
    budget: int | float | str,
    measured_bytes: Callable[[Plan], int],
    loops: LoopChoice | None = None,
) -> Plan:
    """Return the cheapest plan found whose gradient, as XLA allocates it, is within a byte budget.

    Six plans are compiled, and where none of them fits, two in blocks. Which ones depends on the graph, the budget and
    XLA alone. The measured peak of the plan returned is monotone in the budget.

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

    def plan_of(found: PricedSchedule, meta: dict[str, Any]) -> Plan:
        """Return the plan of what was found: the program as it is runs as JAX has it."""
        if found is planner.everything:
            plain = plan_jax_gradient(graph)
            return dataclasses.replace(plain, meta={**meta, **plain.meta})
        return Plan.of(planner.schedule(found, meta))

    def count(found: PricedSchedule) -> int:
        return measured_bytes(plan_of(found, meta))

    sweep = MemorySweep(
        planner,
        count,
        lambda: [functools.partial(best_tree, graph, levels, loops=loops) for levels in (1, 2)],
        n_limits=_N_LIMITS,
        least_bytes=_FUSED_SHARE * planner.smallest.peak_bytes,
        is_coarse_to_fine=False,
    )
    fitting = sweep.fitting(budget_bytes)
    if not fitting:
        raise sweep.no_plan(budget_bytes, "that XLA fits", "measured")
    best = max(fitting, key=lambda c: (c.n_bytes, -c.schedule.cost))
    measured = {"measured_peak_bytes": best.n_bytes, "n_compiled": len(sweep.counted)}
    return plan_of(best.schedule, {**meta, **measured})
