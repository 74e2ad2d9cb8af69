"""Plans by what XLA is predicted to allocate: the budget is for temporaries and outputs, not for plain liveness.

The planner plans for temporaries, on a ladder of memories, and a bisection of its rungs finds the most memory whose
plan fits by the model of `materialized`. `integration/jax/verify.py` does the same with XLA itself in place of the
model, which takes seconds for each plan where the model takes milliseconds.
"""

from __future__ import annotations

from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import check_gradient, plan_save_everything
from tiny_backprop.plan.budget import Planner, budget_meta, parse_budget
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes

_LOWEST = 1 << 8  # rungs, of which a bisection tries eight
_FUSED_SHARE = 0.4  # of the smallest peak by the referee's count: less than XLA's fusion has been seen to come to


def plan_allocation(graph: Graph, budget: int | float | str) -> Plan:
    """Return the cheapest gradient found that XLA:CPU is predicted to fit into a byte budget.

    Where `plan_budget` keeps what the referee counts within the budget, this keeps `plan.materialized.peak_bytes`
    within it: what XLA allocates for temporaries and outputs, predicted (see `materialize` for how well). Nine plans
    are tried; a planner and its menus are kept with the graph.

    Args:
      graph: A captured gradient graph, forward and backward phase.
      budget: See `plan_budget`; a fraction is one of the peak by the referee's count when everything is saved.

    Returns:
      The plan; `plan.materialized.peak_bytes` is at most the budget.

    Raises:
      BudgetError: No plan was found that fits; the error names the smallest predicted allocation.
      PlanError: The graph has no backward phase, or the budget is not as described.

    Example:
      >>> import jax, jax.numpy as jnp, tiny_backprop as tb
      >>> def loss(ws, x):
      ...     for w in ws:
      ...         x = jnp.tanh(x @ w)
      ...     return jnp.sum(x)
      >>> shapes = [jax.ShapeDtypeStruct((64, 64), "float32")] * 12, jax.ShapeDtypeStruct((512, 64), "float32")
      >>> plan = plan_allocation(tb.capture_gradient(loss, *shapes), "1.5MiB")
      >>> plan.materialized.peak_bytes <= 1.5 * 2**20
      True
    """
    check_gradient(graph)
    budget_bytes = parse_budget(graph, budget)
    meta = {**budget_meta(budget, budget_bytes, "seconds"), "strategy": "allocation budget"}
    everything = plan_save_everything(graph)
    tried = [Plan(graph, everything.ops, everything.targets, {**everything.meta, **meta}, everything.timeline)]
    if tried[0].materialized.peak_bytes <= budget_bytes:
        return tried[0]
    planner = _planner(graph)
    above, below = 0, _LOWEST  # the lowest rung that needs too much, the highest that fits or has no plan
    while below - above > 1:
        rung = (above + below) // 2
        steps = planner.tightest(_memory_bytes(planner, rung))
        if steps is not None:
            tried.append(planner.plan(graph, steps, meta))
        if steps is None or tried[-1].materialized.peak_bytes <= budget_bytes:
            below = rung
        else:
            above = rung
    fitting = [p for p in tried if p.materialized.peak_bytes <= budget_bytes]
    if not fitting:
        least = min(p.materialized.peak_bytes for p in tried)
        raise BudgetError(
            f"found no plan for a gradient of {graph.name!r} that XLA is predicted to fit into "
            f"{format_bytes(budget_bytes)} ({budget_bytes} bytes): of {len(tried)} plans the smallest takes "
            f"{format_bytes(least)} ({least} bytes) of temporaries and outputs; the outputs alone take "
            f"{format_bytes(graph.output_bytes)}.",
            budget_bytes,
            least,
            graph.output_bytes,
        )
    return min(fitting, key=lambda p: (p.meta.get("recompute_percent", p.recompute_flops), p.materialized.peak_bytes))


def _planner(graph: Graph) -> Planner:
    """Return the planner for temporaries that is kept with a graph."""
    if "planner for temporaries" not in graph.memo:
        graph.memo["planner for temporaries"] = Planner.of(graph, "seconds").for_temporaries()
    return graph.memo["planner for temporaries"]


def _memory_bytes(planner: Planner, rung: int) -> int:
    """Return the memory to plan for on a rung: from all, by equal ratios, to less than any plan needs."""
    least = max(1.0, _FUSED_SHARE * planner.smallest.peak_bytes)
    return round(planner.most_bytes * (least / max(least, planner.most_bytes)) ** (rung / _LOWEST))
