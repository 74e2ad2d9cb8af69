"""A byte budget that holds in truth: compile, ask XLA, and plan again until temporaries and outputs fit.

The referee counts every value as if nothing were fused and no scratch space were taken; XLA needs less or more. And XLA
gives what the program returns buffers of its own for the whole run. So temporaries are planned for, and the memory for
them goes up and down a ladder, in steps of about 9 %, until what XLA allocates is as near below the budget as a few
compilations come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.plan import Plan, plan_save_everything
from tiny_backprop.plan.budget import Planner, budget_meta, parse_budget
from tiny_backprop.units import format_bytes

_RUNGS_PER_OCTAVE = 8
_MOST_COMPILATIONS = 6
_LOWEST = 12 * _RUNGS_PER_OCTAVE  # a four-thousandth of what saving everything takes


@dataclasses.dataclass(frozen=True)
class _Rung:
    plan: Plan
    measured_bytes: int


def plan_verified(graph: Graph, budget: int | float | str, measured_bytes: Callable[[Plan], int]) -> Plan:
    """Return the cheapest plan found whose gradient, as XLA allocates it, is within a byte budget.

    Up to six plans are compiled. Which ones depends on the graph, the budget and XLA alone.

    Args:
      graph: A gradient graph.
      budget: See `plan_budget`.
      measured_bytes: Compiles the gradient of a plan and returns XLA's temporary and output bytes.

    Returns:
      The plan; its `meta` has `measured_peak_bytes` and `n_compiled`. Its predicted peak may be above the budget.

    Raises:
      BudgetError: None of the compiled gradients fits; the error names the smallest.
      PlanError: See `plan_budget`.
    """
    budget_bytes = parse_budget(graph, budget)
    planner, outputs = Planner.of(graph, "seconds").temporaries, graph.output_bytes
    meta = budget_meta(budget, budget_bytes, "seconds")
    tried: dict[int, _Rung] = {}
    above, below = -1, _LOWEST  # the lowest rung that needs too much, the highest that fits
    rung = min(max(0, math.ceil(_rungs(planner.most_bytes, budget_bytes - outputs))), below - 1)
    while len(tried) < _MOST_COMPILATIONS and above < rung < below:
        plan = _plan_on(graph, planner, rung, meta)
        if plan is None:  # so low there is no plan
            below = rung
            rung = above + 1 if not tried else (above + rung) // 2
            continue
        tried[rung] = _Rung(plan, measured_bytes(plan))
        away = _rungs(tried[rung].measured_bytes - outputs, budget_bytes - outputs)
        if away <= 0:
            below = rung
            rung = max(above + 1, rung + math.ceil(away))
        else:
            above = rung
            rung = min(rung + max(1, math.ceil(away)), below - 1)
    fitting = [r for r in tried.values() if r.measured_bytes <= budget_bytes]
    if not fitting:
        raise _no_plan(graph, budget_bytes, [r.measured_bytes for r in tried.values()])
    best = min(fitting, key=lambda r: (r.plan.recompute_flops, r.measured_bytes))
    known = {"measured_peak_bytes": best.measured_bytes, "n_compiled": len(tried)}
    return dataclasses.replace(best.plan, meta={**best.plan.meta, **known})


def _rungs(n_bytes: int, budget_bytes: int) -> float:
    """Return how many rungs a number of bytes of temporaries is above the budget for them."""
    return _RUNGS_PER_OCTAVE * math.log2(max(n_bytes, 1) / max(budget_bytes, 1))


def _plan_on(graph: Graph, planner: Planner, rung: int, meta: dict) -> Plan | None:
    """Return the plan for the memory of a rung; the highest saves everything."""
    if rung == 0:
        return dataclasses.replace(everything := plan_save_everything(graph), meta={**everything.meta, **meta})
    steps = planner.tightest(round(planner.most_bytes * 2 ** (-rung / _RUNGS_PER_OCTAVE)))
    return None if steps is None else planner.plan(graph, steps, meta)


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
