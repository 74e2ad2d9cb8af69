"""The whole trade-off of a gradient between peak bytes and recompute cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tiny_backprop.display import curve_svg, guarded, table
from tiny_backprop.door import POINTS, door
from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.budget import plan_budget
from tiny_backprop.plan.checks import check_count, check_gradient
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.policies import POLICIES, plan_policy
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.strategies.budget import budget_range_bytes
from tiny_backprop.record import Record
from tiny_backprop.schedule.cost import COST, Cost, cost_unit, least_cost, node_costs
from tiny_backprop.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Pareto(Record):
    """Plans of one gradient, none of which has both a smaller peak and a lower cost than another; all predicted.

    Attributes:
      graph: The gradient graph.
      plans: From the cheapest to the smallest peak that the planner can reach: peaks fall, costs rise. The first
        recomputes nothing; its peak is below that of `save_everything` where another order is better.
      save_everything: The program as it is, which ratios refer to.
      references: What `jax.checkpoint` around the whole function would do, by the name of the policy.
      cost: What is minimised; see `plan_budget`.
    """

    graph: Graph
    plans: tuple[Plan, ...]
    save_everything: Plan
    references: Mapping[str, Plan]
    cost: Cost

    @property
    def unit(self) -> str:
        """Unit of the cost, `"seconds"` or `"flops"`."""
        return cost_unit(self.cost)

    @functools.cached_property
    def least_cost(self) -> float:
        """Cost of every node once, no step of a loop running again."""
        return least_cost(self.graph, self.cost)

    @functools.cached_property
    def peak_bytes(self) -> np.ndarray:
        """Peak of each plan, falling; int64 of shape (n_plans,)."""
        return np.array([p.peak_bytes for p in self.plans], np.int64)

    @functools.cached_property
    def recompute_costs(self) -> np.ndarray:
        """Recompute cost of each plan, rising; float64 of shape (n_plans,)."""
        return np.array([self.recompute_cost(p) for p in self.plans])

    def recompute_cost(self, plan: Plan) -> float:
        """Return what the steps of a plan cost beyond every node once."""
        return float(node_costs(plan.graph, self.cost)[plan.timeline.steps].sum()) - self.least_cost

    @functools.cached_property
    def knee(self) -> Plan:
        """The plan after which less memory becomes costly: farthest below the line from the first plan to the last.

        Both axes are scaled to what the curve spans (Satopää et al. 2011, "Finding a kneedle in a haystack",
        doi:10.1109/ICDCSW.2011.20).
        """
        x, y = self.peak_bytes.astype(float), self.recompute_costs
        x = (x - x.min()) / (np.ptp(x) or 1.0)
        y = (y - y.min()) / (np.ptp(y) or 1.0)
        return self.plans[int((x + y).argmin())]

    @functools.cached_property
    def bound(self) -> tuple[int, str]:
        """Bytes that no plan needs less than, and in words what they are.

        What was captured needs its outputs at least, whose memory XLA takes all along. By liveness, which is how graphs
        made by hand are counted, it is the working-set bound in this order of the backward phase.
        """
        if self.graph.backend:
            return self.graph.new_output_bytes, "outputs alone"
        least = self.plans[-1]
        return working_set_bound(least.graph, least.backward_order), "bound in this order"

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per plan and reference: predicted peak, cost, their ratios to saving everything, the knee."""
        import pandas as pd

        top, least = self.save_everything.peak_bytes, self.least_cost
        rows = []
        named = [("plan", p) for p in self.plans] + [(f"jax.checkpoint, {k}", p) for k, p in self.references.items()]
        for name, p in named:
            cost = self.recompute_cost(p)
            rows.append(
                {
                    "kind": name,
                    "predicted_peak_bytes": p.peak_bytes,
                    "peak_ratio": p.peak_bytes / top if top else 1.0,
                    f"predicted_recompute_{self.unit}": cost,
                    "recompute_ratio": cost / least if least else 0.0,
                    "predicted_saved_bytes": p.saved_bytes,
                    "is_knee": p is self.knee,
                }
            )
        return pd.DataFrame(rows)

    def __len__(self) -> int:
        return len(self.plans)

    def __repr__(self) -> str:
        low, high = self.plans[-1], self.plans[0]
        return (
            f"Pareto({len(self)} plans, predicted peaks from {format_bytes(high.peak_bytes)} to "
            f"{format_bytes(low.peak_bytes)} at +{self._percent(low)}; knee {format_bytes(self.knee.peak_bytes)} at "
            f"+{self._percent(self.knee)} {self.unit})"
        )

    def _percent(self, plan: Plan) -> str:
        return f"{self.recompute_cost(plan) / self.least_cost if self.least_cost else 0.0:.1%}"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        chosen = np.unique(np.linspace(0, len(self) - 1, 8).round().astype(int)).tolist()
        shown = [p for i, p in enumerate(self.plans) if i in chosen or p is self.knee]
        rows = [self._row("knee" if p is self.knee else "", p) for p in shown]
        rows += [self._row(f"jax.checkpoint, {name}", p) for name, p in self.references.items()]
        picture = curve_svg(
            self.peak_bytes,
            self.recompute_costs,
            self.plans.index(self.knee),
            [(p.peak_bytes, self.recompute_cost(p), name) for name, p in self.references.items()],
        )
        header = ("", "peak (predicted)", "of save everything", f"recompute {self.unit} (predicted)")
        title = f"<b>{len(self)} plans</b> by peak bytes and recompute {self.unit}"
        return f"<div>{title}<br>{picture}{table(rows, header)}</div>"

    def _row(self, name: str, p: Plan) -> tuple[str, ...]:
        return (
            name,
            format_bytes(p.peak_bytes),
            f"{p.peak_bytes / max(self.save_everything.peak_bytes, 1):.0%}",
            f"+{self._percent(p)}",
        )


@door(PlanError, graph=GRAPH, cost=COST, n_points=POINTS)
def pareto(graph: Graph, *, cost: Cost = "seconds", n_points: int = 40) -> Pareto:
    """Return the trade-off between peak bytes and recompute cost, from no recomputation to the smallest peak.

    Args:
      graph: A gradient graph.
      cost: What is minimised; see `plan_budget`.
      n_points: How many budgets to plan for, 2 or more, in equal ratios between the two ends. Budgets with the same
        plan make one point; a graph with little to choose has fewer.

    Returns:
      The plans that no other one beats, with the policies of `jax.checkpoint` as reference points.

    Raises:
      PlanError: The graph has no backward phase, or an argument is not as described.
    """
    steps = pareto_steps(graph, cost=cost, n_points=n_points)
    while True:
        try:
            next(steps)
        except StopIteration as e:
            return e.value


def pareto_steps(graph: Graph, *, cost: Cost = "seconds", n_points: int = 40) -> Generator[None, None, Pareto]:
    """Work a trade-off out a plan at a time, for whoever has other things to do in between; see `pareto`.

    Returns:
      What yields after the range of budgets has been found, and after each plan, and then returns the trade-off.
    """
    check_gradient(graph)
    n_points = max(2, check_count("n_points", n_points))
    least, most = budget_range_bytes(graph, cost)
    yield
    everything = plan_save_everything(graph)
    found = [everything]
    budgets = np.geomspace(max(most, 1), max(least, 1), n_points).round().astype(np.int64).tolist()
    for budget in [*(max(b, least) for b in budgets), least]:
        with contextlib.suppress(BudgetError):  # the smallest peak was reached by another way than this budget's
            found.append(plan_budget(graph, budget, cost=cost))
            found[-1].materialized  # noqa: B018 (predicted here, a plan at a time)
        yield
    spent = [float(node_costs(p.graph, cost)[p.timeline.steps].sum()) for p in found]
    priced = sorted((s, p.peak_bytes, i, p) for i, (s, p) in enumerate(zip(spent, found, strict=True)))
    plans: list[Plan] = []
    for _, peak, _, p in priced:
        if not plans or peak < plans[-1].peak_bytes:
            plans.append(p)
    references: dict[str, Plan] = {}
    for policy in POLICIES:
        references[policy] = plan_policy(graph, policy)
        references[policy].materialized  # noqa: B018
        yield
    return Pareto(graph, tuple(plans), everything, references, cost)
