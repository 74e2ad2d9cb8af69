"""A byte budget that holds in truth: compile, ask XLA, and plan again until temporaries and outputs fit.

The referee counts every value as if nothing were fused and no scratch space were taken; XLA needs less or more. And XLA
gives what the program returns buffers of its own for the whole run. So temporaries are planned for, on a ladder of
memories, and a bisection of its rungs finds the most memory whose gradient fits. Which rung is tried next depends on
what was measured, not on the budget by itself: two budgets part ways at a gradient that fits one of them alone, and of
those that fit the one that takes most is returned. The measured peak is therefore monotone in the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.plan import Plan, plan_save_everything
from tiny_backprop.plan.budget import BudgetPlanner, budget_meta, parse_budget
from tiny_backprop.plan.loops import LoopChoice
from tiny_backprop.units import format_bytes

_MOST_COMPILATIONS = 6  # the plain gradient, and a bisection
_LOWEST = 1 << (_MOST_COMPILATIONS - 1)
_FUSED_SHARE = 0.4  # of the smallest peak by the referee's count: less than XLA's fusion has been seen to come to


@dataclasses.dataclass(frozen=True)
class _Measured:
    plan: Plan
    n_bytes: int


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
    plan = dataclasses.replace(everything := plan_save_everything(graph), meta={**everything.meta, **meta})
    tried = [_Measured(plan, measured_bytes(plan))]
    above, below = 0, _LOWEST  # the lowest rung that needs too much, the highest that fits or has no plan
    while below - above > 1 and tried[0].n_bytes > budget_bytes:
        rung = (above + below) // 2
        found = planner.tightest(_memory_bytes(planner, rung))
        if found is not None:
            plan = planner.plan(found, meta)
            tried.append(_Measured(plan, measured_bytes(plan)))
        if found is None or tried[-1].n_bytes <= budget_bytes:
            below = rung
        else:
            above = rung
    fitting = [m for m in tried if m.n_bytes <= budget_bytes]
    if not fitting:
        raise _no_plan(graph, budget_bytes, [m.n_bytes for m in tried])
    best = max(fitting, key=lambda m: (m.n_bytes, -m.plan.recompute_flops))
    known = {"measured_peak_bytes": best.n_bytes, "n_compiled": len(tried)}
    return dataclasses.replace(best.plan, meta={**best.plan.meta, **known})


def _memory_bytes(planner: BudgetPlanner, rung: int) -> int:
    """Return the memory to plan for on a rung: from all, by equal ratios, to less than any plan needs."""
    least = max(1.0, _FUSED_SHARE * planner.smallest.peak_bytes)
    return round(planner.most_bytes * (least / max(least, planner.most_bytes)) ** (rung / _LOWEST))


def _no_plan(graph: Graph, budget_bytes: int, measured: list[int]) -> BudgetError:
    outputs = graph.output_bytes
    least = min(measured, default=outputs)
    return BudgetError(
        f"found no plan for a gradient of {graph.name!r} that XLA fits into {format_bytes(budget_bytes)} "
        f"({budget_bytes} bytes): of {len(measured)} compiled plans the smallest takes {format_bytes(least)} ({least} "
        f"bytes) of temporaries and outputs, measured; the outputs alone take {format_bytes(outputs)}.",
        budget_bytes,
        least,
        outputs,
    )
