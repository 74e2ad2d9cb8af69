"""Plans by byte budget: the cheapest gradient found that XLA is predicted to fit into so many bytes."""

from __future__ import annotations

from tiny_backprop.door import AMOUNT, door
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.plan.loops.choice import LOOPS, LoopChoice
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.budget import schedule_within
from tiny_backprop.schedule.cost import COST, Cost


@door(PlanError, graph=GRAPH, cost=COST, search_seconds=AMOUNT, loops=LOOPS, margin=AMOUNT)
def plan_budget(
    graph: Graph,
    budget: int | float | str,
    *,
    cost: Cost = "seconds",
    search_seconds: float = 0.0,
    loops: LoopChoice | None = None,
    margin: float = 0.0,
) -> Plan:
    """Return the cheapest gradient found whose peak is within a byte budget.

    The budget holds for `plan.peak_bytes`: temporaries and outputs as XLA is predicted to allocate them, gradients
    included, arguments not; see `materialize` for how well. `verify=True` at the doors asks XLA itself. Loops are
    planned together with what is around them. Blocks, cuts and menus are kept with the graph, so that another budget
    takes a fraction of the first one's time. For what was captured, the plan depends on the budget alone; for a graph
    made by hand, plans found before are taken where they fit.

    Args:
      graph: A gradient graph, forward and backward phase.
      budget: Bytes as an int or as text such as `"2GiB"`, or a float above 0 and at most 1, a fraction of the predicted
        peak when everything is saved.
      cost: What is minimised: `"seconds"` by the default `CostModel` of FLOPs and bytes moved, `"flops"`, or a
        `CostModel`.
      search_seconds: How long to search on for a cheaper plan, by integer programming (see `plan_exact`) and then by
        local search; less where a plan is proven optimal. A few seconds bring graphs of up to a few thousand nodes to
        or near the optimum.
      loops: How loops are reversed, where the planner is not to choose.
      margin: By which share of its prediction the plan may take more than predicted and still keep the budget: the
        predicted peak is at most budget / (1 + margin). `recorded_margin(graph, bytes)` is what the record of
        predictions asks for; the doors that run a plan take it where they do not verify.

    Returns:
      The plan; `plan.peak_bytes` is at most the budget, and `plan.certificate` says how much cheaper another could be.

    Raises:
      BudgetError: No plan was found that fits; the error names the smallest peak that can be reached.
      PlanError: The graph has no backward phase, or an argument is not as described.

    Example:
      >>> import jax, jax.numpy as jnp, tiny_backprop as tb
      >>> def loss(ws, x):
      ...     for w in ws:
      ...         x = jnp.tanh(x @ w)
      ...     return jnp.sum(x)
      >>> shapes = [jax.ShapeDtypeStruct((64, 64), "float32")] * 12, jax.ShapeDtypeStruct((512, 64), "float32")
      >>> plan = plan_budget(tb.capture_gradient(loss, *shapes), "1.5MiB")
      >>> plan.peak_bytes <= 1.5 * 2**20
      True
    """
    way = {"cost": cost, "search_seconds": search_seconds, "loops": loops, "margin": margin}
    return Plan.of(schedule_within(graph, budget, **way))
