"""A byte budget for something other than the referee's count: what XLA allocates, or is predicted to.

The planner is asked for temporaries, on a ladder of memories, and a bisection of its rungs finds the most memory whose
plan fits by the other count. Which rung is tried next depends on what was counted, not on the budget by itself: two
budgets part ways at a plan that fits one of them alone. So the largest count that fits is monotone in the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.budget import BudgetPlanner
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes

_FUSED_SHARE = 0.4  # of the smallest peak by the referee's count: less than XLA's fusion has been seen to come to


@dataclasses.dataclass(frozen=True)
class Counted:
    """A plan that was tried, with its bytes by the other count."""

    plan: Plan
    n_bytes: int


def try_plans(
    planner: BudgetPlanner, budget_bytes: int, meta: Mapping[str, Any], count: Callable[[Plan], int], n_plans: int
) -> list[Counted]:
    """Return the plans that were tried: that which saves everything, then a bisection until the budget is met closely.

    Args:
      planner: A planner for temporaries; see `BudgetPlanner.for_temporaries`.
      budget_bytes: The budget.
      meta: The plans' `meta`.
      count: Returns the bytes of a plan by the other count.
      n_plans: Most plans to try.
    """
    everything = plan_save_everything(planner.original)
    plan = dataclasses.replace(everything, meta={**everything.meta, **meta})
    tried = [Counted(plan, count(plan))]
    above, below = 0, 1 << (n_plans - 1)  # the lowest rung that needs too much, the highest that fits or has no plan
    n_rungs = below
    while below - above > 1 and tried[0].n_bytes > budget_bytes:
        rung = (above + below) // 2
        found = planner.tightest(_memory_bytes(planner, rung / n_rungs))
        if found is not None:
            plan = planner.plan(found, dict(meta))
            tried.append(Counted(plan, count(plan)))
        if found is None or tried[-1].n_bytes <= budget_bytes:
            below = rung
        else:
            above = rung
    return tried


def no_plan(graph: Graph, budget_bytes: int, tried: list[Counted], that_fits: str, counted: str) -> BudgetError:
    """Return the error that says that none of the plans fits.

    Args:
      graph: The graph.
      budget_bytes: The budget.
      tried: What was tried.
      that_fits: What was looked for, such as `"that XLA fits"`.
      counted: How bytes were counted, such as `"measured"`.
    """
    least, outputs = min(c.n_bytes for c in tried), graph.output_bytes
    return BudgetError(
        f"found no plan for a gradient of {graph.name!r} {that_fits} into {format_bytes(budget_bytes)} "
        f"({budget_bytes} bytes): of {len(tried)} plans the smallest takes {format_bytes(least)} ({least} bytes) of "
        f"temporaries and outputs, {counted}; the outputs alone take {format_bytes(outputs)}.",
        budget_bytes,
        least,
        outputs,
    )


def _memory_bytes(planner: BudgetPlanner, share: float) -> int:
    """Return the memory at a share of the ladder: from all, by equal ratios, to less than any plan needs."""
    least = max(1.0, _FUSED_SHARE * planner.smallest.peak_bytes)
    return round(planner.most_bytes * (least / max(least, planner.most_bytes)) ** share)
