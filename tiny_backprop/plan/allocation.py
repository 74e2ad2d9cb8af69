"""Plans by what XLA is predicted to allocate: the budget is for temporaries and outputs, not for plain liveness.

`integration/jax/verify.py` does the same with XLA itself in place of the model of `materialized`, which takes seconds
for each plan where the model takes milliseconds.
"""

from __future__ import annotations

from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import check_gradient
from tiny_backprop.plan.budget import BudgetPlanner, budget_meta, parse_budget
from tiny_backprop.plan.ladder import no_plan, try_plans
from tiny_backprop.plan.plan import Plan

_MOST_PLANS = 9


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
    tried = try_plans(_planner(graph), budget_bytes, meta, lambda plan: plan.materialized.peak_bytes, _MOST_PLANS)
    fitting = [c for c in tried if c.n_bytes <= budget_bytes]
    if not fitting:
        raise no_plan(graph, budget_bytes, tried, "that XLA is predicted to fit", "predicted")
    return min(fitting, key=lambda c: (c.plan.meta.get("recompute_percent", c.plan.recompute_flops), c.n_bytes)).plan


def _planner(graph: Graph) -> BudgetPlanner:
    """Return the planner for temporaries that is kept with a graph."""
    if "planner for temporaries" not in graph.memo:
        graph.memo["planner for temporaries"] = BudgetPlanner.of(graph, "seconds").for_temporaries()
    return graph.memo["planner for temporaries"]
