"""How far a plan is from the best possible one: bounds that no plan within its budget can beat."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from tiny_backprop.display import guarded, table
from tiny_backprop.door import AMOUNT, BYTES, Kind, door
from tiny_backprop.errors import PlanError
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.constraint_generation import CLOSED, tighten
from tiny_backprop.plan.search.relaxation import Phases, Relaxation
from tiny_backprop.schedule.cost import COST, Cost, cost_unit, node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.units import format_bytes, format_flops

_SCOPE = (
    "by liveness, for this order of the backward phase and this cost model; whatever the order of the forward phase, "
    "and however often nodes run again"
)
_LOOPS = "; loops and branches planned as they are here"
_MOST_NODES = 30_000
_MOST_VARIABLES = 8_000


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What no plan within a byte budget can beat, beside what one plan costs; everything is predicted, by liveness.

    Attributes:
      budget_bytes: The budget.
      working_set_bytes: No plan has a smaller peak.
      recompute_cost: What the re-runs of the plan cost.
      recompute_cost_bound: No plan within the budget has cheaper re-runs; infinite where no plan fits.
      least_cost: Cost of every node once.
      unit: Unit of the costs, `"seconds"` or `"flops"`.
      method: `"integer programme"`, `"linear programme"`, `"working set"` (the budget is below it), `"trivial"` (the
        plan recomputes nothing), or `"none"` where no bound was computed: it is then 0 and says nothing.
      fits: Whether the plan's own peak by liveness is within the budget.
      scope: Which plans the bounds speak of, in words.
      margin_percent: By how much of its prediction the plan may take more and still keep what was asked for; the budget
        here is less by that.
    """

    budget_bytes: int
    working_set_bytes: int
    recompute_cost: float
    recompute_cost_bound: float
    least_cost: float
    unit: str
    method: str
    fits: bool
    scope: str = _SCOPE
    margin_percent: float = 0.0

    @property
    def gap_percent(self) -> float:
        """By how many per cent the whole plan may cost more than the best one; NaN where it does not fit."""
        best = self.least_cost + self.recompute_cost_bound
        if not math.isfinite(best) or not self.fits:
            return math.nan
        return 100 * max(self.recompute_cost - self.recompute_cost_bound, 0.0) / best if best else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether the plan is proven to be the cheapest, to 0.002 %; False where it does not fit."""
        return self.gap_percent <= 100 * CLOSED

    @property
    def verdict(self) -> str:
        """What is certain, in one sentence."""
        budget = format_bytes(self.budget_bytes)
        if not math.isfinite(self.recompute_cost_bound):
            return f"no plan fits into {budget} {self.scope}"
        if self.method == "none":
            return f"no bound was computed: the graph has no backward phase, or more than {_MOST_NODES} nodes"
        if not self.fits:
            least = f"{self._cost(self.recompute_cost_bound)} of recomputation"
            return f"the plan needs more than {budget}; one that fits has at least {least}, {self.scope}"
        if self.is_optimal:
            return f"no plan within {budget} is cheaper, {self.scope}"
        return f"at most {self.gap_percent:.2g} % above the cheapest plan within {budget}, {self.scope}"

    def _cost(self, cost: float) -> str:
        return format_flops(cost) if self.unit == "flops" else f"{cost:.4g} s"

    @property
    def _margin(self) -> str:
        return f", asked less a margin of {self.margin_percent:.2g} %" if self.margin_percent else ""

    def __repr__(self) -> str:
        return f"Certificate({self.verdict}{self._margin}; by {self.method})"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        rows = [
            ("budget", f"{format_bytes(self.budget_bytes)}{self._margin}"),
            ("no plan needs less than", format_bytes(self.working_set_bytes)),
            ("recompute (predicted)", self._cost(self.recompute_cost)),
            ("no plan recomputes less than", f"{self._cost(self.recompute_cost_bound)}, by {self.method}"),
            ("every node once", self._cost(self.least_cost)),
            ("verdict", self.verdict),
        ]
        return f"<div><b>Certificate</b>{table(rows)}</div>"


@door(
    PlanError,
    plan=Kind("a Plan", lambda x: isinstance(x, Schedule)),
    budget_bytes=BYTES.or_none(),
    cost=COST.or_none(),
    seconds=AMOUNT,
)
def certify(
    plan: Schedule, budget_bytes: int | None = None, cost: Cost | None = None, seconds: float = 2.0
) -> Certificate:
    """Return how far a plan is from the best possible one.

    First a linear programme with one moment, then, for graphs of up to a few thousand nodes, integer programmes with
    more, for as long as the time lasts: the bound may rise a little on a faster machine. See
    `tiny_backprop.plan.search.relaxation`.

    Args:
      plan: Any plan.
      budget_bytes: The budget; by default the one that the plan was made for, or the plan's own peak by liveness
        where that is larger.
      cost: What re-runs cost; by default what the plan was made for, else `"seconds"`.
      seconds: How long to look for better bounds.

    Returns:
      The certificate.

    Raises:
      PlanError: `cost` is unknown.
    """
    # A budget is for XLA's bytes, and the plan's peak by liveness may be above it.
    margin_percent = float(plan.meta.get("margin_percent", 0.0)) if budget_bytes is None else 0.0
    asked_bytes = int(plan.meta.get("budget_bytes", 0) / (1 + margin_percent / 100))
    own = max(asked_bytes, plan.liveness_peak_bytes)
    budget = own if budget_bytes is None else int(budget_bytes)
    price: Cost = plan.meta.get("cost", "seconds") if cost is None else cost
    costs = node_costs(plan.graph, price)
    phases = Phases.of(plan.graph, plan.backward_order)
    spent = plan.recompute_cost(costs)
    working_set = working_set_bound(plan.graph, phases.backward)
    if budget < working_set:
        bound, method = math.inf, "working set"
    elif spent == 0 and plan.liveness_peak_bytes <= budget:
        bound, method = 0.0, "trivial"
    else:
        bound, method = _bound(phases, budget, costs, plan, seconds)
    total, fits = float(costs.sum()), plan.liveness_peak_bytes <= budget
    scope = _SCOPE + (_LOOPS if plan.graph.nested else "")
    return Certificate(budget, working_set, spent, bound, total, cost_unit(price), method, fits, scope, margin_percent)


def _bound(phases: Phases, budget_bytes: int, costs: np.ndarray, plan: Schedule, seconds: float) -> tuple[float, str]:
    """Return the best bound on recompute cost found, and the method that found it."""
    if not phases.end or phases.graph.n_nodes > _MOST_NODES:
        return 0.0, "none"
    deadline = time.monotonic() + seconds
    programme = Relaxation(phases, [phases.plain_peak], budget_bytes, costs)
    bound = programme.linear_bound()
    if not math.isfinite(bound) or programme.n_variables > _MOST_VARIABLES:
        return bound, "linear programme"
    found = tighten(phases, budget_bytes, costs, deadline - time.monotonic(), plan)
    return (found.bound, "integer programme") if found.bound > bound else (bound, "linear programme")
