"""The cheapest plan within a byte budget, proven: the relaxation with few moments, and more where its plan fails.

Delayed generation of constraints: the programme of `relaxation` counts memory at one moment, the peak of the plan that
saves everything. Its solution says what is alive then; recomputing the rest on demand makes a plan. Where that plan
takes more than the budget, another moment is added and the programme solved again. As soon as the plan fits, it is
optimal, since the programme asks less than any plan that fits must do.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import best_plan
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.relaxation import Phases, Relaxation
from tiny_backprop.schedule.cost import Cost, CostModel, node_costs
from tiny_backprop.schedule.schedule import schedule
from tiny_backprop.schedule.simulate import Op

CLOSED = 2e-5
"""A bound this close to a plan, in proportion to the cost of every node once, proves it optimal."""

_MOMENTS_PER_ROUND = 3


def plan_exact(
    graph: Graph,
    budget_bytes: int,
    *,
    cost: Cost = "seconds",
    time_limit_seconds: float = 60.0,
    start: Plan | None = None,
) -> Plan:
    """Find the cheapest plan within a byte budget, and say whether it is proven to be that.

    Optimal among all plans with this order of the backward phase: the forward phase in any order, nodes re-run as often
    as it takes. Loops are reversed as they are in the graph: `plan_budget(graph, budget).graph` has them planned for a
    budget. Solves a few integer programmes with HiGHS (after Jain et al. 2020, arXiv:1910.02653); a fraction of a
    second for a hundred nodes and, where memory does not force nested recomputation, seconds for a few thousand.

    Args:
      graph: A gradient graph.
      budget_bytes: Largest allowed `liveness_peak_bytes`.
      cost: What a re-run costs: `"seconds"`, `"flops"` or a `CostModel`.
      time_limit_seconds: Stop after about so many seconds with the best plan found.
      start: A plan to beat; the backward phase keeps its order. By default the program's order.

    Returns:
      A plan with `liveness_peak_bytes <= budget_bytes`. `meta["proven"]` says whether no plan costs less (to 0.002 % of
      the cost of every node once), `meta["gap_percent"]` how much cheaper one could be at most.

    Raises:
      PlanError: The graph has no backward phase, `start` belongs to another graph, or `cost` is unknown.
      BudgetError: No plan fits, or none was found in time; the message says which.
    """
    if not graph.n_backward:
        raise PlanError("an exact plan needs the backward phase of a graph: capture_gradient(fun, *args) has it")
    if start is not None and start.graph.fingerprint != graph.fingerprint:
        raise PlanError("the plan to start from was made for another graph")
    costs = node_costs(graph, cost)
    phases = Phases.of(graph, None if start is None else backward_order(start))
    least = working_set_bound(graph, phases.backward)
    found = (
        Tightened(np.inf) if budget_bytes < least else tighten(phases, budget_bytes, costs, time_limit_seconds, start)
    )
    if found.plan is None:
        raise _refusal(graph, budget_bytes, least, found, start)
    total = float(costs.sum())
    spent = recompute_cost(found.plan, costs)
    meta = {
        "strategy": "exact",
        "budget_bytes": int(budget_bytes),
        "cost": dataclasses.asdict(cost) if isinstance(cost, CostModel) else cost,
        "proven": found.is_closed,
        "gap_percent": 100 * max(spent - found.bound, 0.0) / (total + found.bound) if total else 0.0,
    }
    return Plan.from_actions(graph, found.plan.ops, found.plan.targets, meta)


def backward_order(plan: Plan) -> np.ndarray:
    """Return the backward nodes of a plan in the order in which they run."""
    return plan.timeline.steps[plan.timeline.ops == Op.BACKWARD]


def recompute_cost(plan: Plan, costs: np.ndarray) -> float:
    """Return what the re-runs of a plan cost."""
    return float(costs[plan.timeline.steps[plan.timeline.ops == Op.RECOMPUTE]].sum())


@dataclasses.dataclass
class Tightened:
    """What `tighten` came to.

    Attributes:
      bound: No plan within the budget has less recompute cost; infinite where there is none.
      plan: The cheapest plan found that fits, or None.
      is_closed: Whether the bound proves the plan optimal.
      is_integral: Whether the bound comes from an integer programme.
    """

    bound: float = 0.0
    plan: Plan | None = None
    is_closed: bool = False
    is_integral: bool = False


def tighten(
    phases: Phases, budget_bytes: int, costs: np.ndarray, seconds: float, start: Plan | None = None
) -> Tightened:
    """Raise the bound and look for plans until both meet, the time is up, or no moment is left to add."""
    deadline = time.monotonic() + seconds
    slack = CLOSED * float(costs.sum())
    found = Tightened(plan=start if start is not None and start.liveness_peak_bytes <= budget_bytes else None)
    refine = _Refinement(phases, budget_bytes)
    while not found.is_closed and time.monotonic() < deadline:
        programme = refine.programme(costs)
        solution = programme.solve(max((deadline - time.monotonic()) / 2, seconds / 8))
        if not refine.is_reserving:
            found.bound, found.is_integral = max(found.bound, solution.bound), True
        if solution.keep is None:
            break
        plan = realise(phases, programme.moments, solution.keep)
        fits = plan.liveness_peak_bytes <= budget_bytes
        if fits and (found.plan is None or recompute_cost(plan, costs) < recompute_cost(found.plan, costs)):
            found.plan = plan
        found.is_closed = found.plan is not None and recompute_cost(found.plan, costs) <= found.bound + slack
        if fits:
            break
        refine.learn(plan)
    return found


class _Refinement:
    """Where memory is counted: moments, stages looked into, and bytes reserved where looking does not help."""

    def __init__(self, phases: Phases, budget_bytes: int):
        self._phases, self._budget = phases, budget_bytes
        self.moments = {phases.plain_peak}
        self.inner: set[int] = set()
        self.reserved = np.zeros(phases.end + 1, np.int64)

    @property
    def is_reserving(self) -> bool:
        """Whether the programme asks more than a plan must do, so that it gives plans but no bounds."""
        return bool(self.reserved.any())

    def programme(self, costs: np.ndarray) -> Relaxation:
        return Relaxation(self._phases, self.moments, self._budget - self.reserved, costs, self.inner)

    def learn(self, plan: Plan) -> None:
        """Count memory where a plan exceeds the budget: at a position, else during a stage, else by a reserve."""
        steps, live = plan.timeline.steps, plan.timeline.live_bytes
        position = self._phases.position[steps]
        # A recomputation belongs to the stage that ends with the next backward node.
        ahead = np.minimum.accumulate(np.where(position >= 0, position, self._phases.end)[::-1])[::-1]
        worst = np.zeros(self._phases.end + 1, np.int64)
        np.maximum.at(worst, ahead, live)
        over = [t for t in np.argsort(-worst, kind="stable").tolist() if worst[t] > self._budget]
        new = [t for t in over if t not in self.moments and t < self._phases.end]
        if new:
            self._add_moments(new)
        elif unseen := [t for t in over if t > 0 and t not in self.inner]:
            t = unseen[0]
            self.inner.add(t)
            self.moments.add(t - 1)
        else:
            t = min(over[0], self._phases.end - 1)
            self.reserved[t] += worst[over[0]] - self._budget

    def _add_moments(self, positions: list[int]) -> None:
        # Spread over where the plan fails: neighbours tell much the same.
        apart, chosen = max(2, len(positions) // 6), []
        for t in positions:
            if len(chosen) < _MOMENTS_PER_ROUND and all(abs(t - u) > apart for u in chosen):
                chosen.append(t)
        self.moments.update(chosen)


def realise(phases: Phases, moments: list[int], keep: list[np.ndarray]) -> Plan:
    """Return the plan that has the given values alive at each moment and makes others when they are read."""
    maker = _Maker(phases.graph)
    for i in np.flatnonzero(phases.due == 0).tolist():
        maker.run(i)
    stages = iter(zip(moments, keep, strict=True))
    moment, kept = next(stages, (-1, None))
    for t, i in enumerate(phases.backward.tolist()):
        if t == moment and kept is not None:
            values = np.flatnonzero(kept).tolist()
            maker.make(values)
            maker.make(phases.graph.read_lists[i])
            maker.alive.intersection_update(values)
            moment, kept = next(stages, (-1, None))
        else:
            maker.make(phases.graph.read_lists[i])
        maker.steps.append(i)
    maker.make(phases.returned.tolist())
    return schedule(phases.graph, np.array(maker.steps), {})


class _Maker:
    """Writes the steps of a plan: runs forward nodes when a value is missing."""

    def __init__(self, graph: Graph):
        self._reads, self._first_backward = graph.read_lists, int(graph.output_start[graph.n_forward])
        self._node, self._starts = graph.value_node.tolist(), graph.output_start.tolist()
        self.steps: list[int] = []
        self.alive: set[int] = set()

    def make(self, values: list[int]) -> None:
        """Have the forward values among `values` alive."""
        for v in values:
            if v < self._first_backward and v not in self.alive:
                self.run(self._node[v])

    def run(self, node: int) -> None:
        """Run a node, and before it whatever makes its operands, unless all its outputs are alive."""
        stack = [(node, False)]
        while stack:
            i, is_ready = stack.pop()
            outputs = range(self._starts[i], self._starts[i + 1])
            if outputs and all(v in self.alive for v in outputs):
                continue
            if is_ready:
                self.steps.append(i)
                self.alive.update(outputs)
            else:
                stack.append((i, True))
                stack.extend((self._node[v], False) for v in self._reads[i] if v not in self.alive)


def _refusal(graph: Graph, budget_bytes: int, least: int, found: Tightened, start: Plan | None) -> BudgetError:
    """Return the error that says why there is no plan."""
    known = [best_plan(graph, levels) for levels in (1, 2, 3)] + ([start] if start is not None else [])
    smallest = min(plan.liveness_peak_bytes for plan in known)
    if np.isfinite(found.bound):
        why = "none was found in time; it may be that none fits"
    else:
        why = "no plan fits, whatever it recomputes, with this order of the backward phase"
    if graph.nested and smallest < least:  # of a plan whose loops are reversed otherwise
        known_text = (
            f"with its loops reversed as they are in this graph, a plan needs at least {least} bytes; reversed "
            f"otherwise, {smallest} are known to do. Loops are planned by plan_budget(graph, budget), whose graph may "
            "be given here"
        )
    else:
        known_text = f"the smallest peak known is {smallest} bytes; no plan needs less than {least}"
    return BudgetError(
        f"a budget of {budget_bytes} bytes was asked for: {why}; {known_text}.",
        int(budget_bytes),
        smallest,
        least,
    )
