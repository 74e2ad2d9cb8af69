"""Which plans of loops and branches there are to choose from, and the front on which a byte budget finds its own.

The plans of one loop are a menu: how its steps are reversed, what they keep, and of these any two neighbours mixed, the
first steps in one way and the last in another. The front goes from the cheapest plans of all loops to the smallest: at
each point of it the next byte is taken where it costs least, which is the greedy solution of the multiple-choice
knapsack problem (Sinha & Zoltners 1979, doi:10.1287/opre.27.3.503).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from tiny_backprop.graph import LITERAL, Graph, Nested
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.loops.nested import cheap, keeping, rerunning, step_plans
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.planner import Planner
from tiny_backprop.predict.nested import NestedPlan, Part, with_nested
from tiny_backprop.predict.step_plan import StepPlan
from tiny_backprop.schedule.cost import Cost
from tiny_backprop.schedule.loop_schedule import LoopSchedule

_MEMORY_STEP = 2**0.25  # from one amount of memory to the next, where schedules are chosen from
_MOST_INNER = 6  # plans of what is nested in a step that are tried for the step
_SLOT_COUNTS = 24  # numbers of saved carries that are tried where a step is planned by itself
_PLANS_KEEPING_NOTHING = 3  # of a step that is planned by itself
_MIXES = 15  # plans between two that are neighbours on the hull


def options(nested: Nested, cost: Cost) -> list[NestedPlan]:
    """Return plans of a loop or of branches, from the cheapest to the smallest: bytes fall, costs rise.

    Args:
      nested: The loop or the branches.
      cost: What is minimised; see `plan_budget`.
    """
    return _best(_loop_options(nested, cost) if nested.kind == "scan" else _branch_options(nested, cost), cost)


def _best(found: Sequence[NestedPlan], cost: Cost) -> list[NestedPlan]:
    """Return, from the cheapest on, the plans that no other one beats in both bytes and cost."""
    best: list[NestedPlan] = []
    for plan in sorted(found, key=lambda p: (p.cost(cost), p.footprint_bytes)):
        if not best or plan.footprint_bytes < best[-1].footprint_bytes:
            best.append(plan)
    return best


def _loop_options(nested: Nested, cost: Cost) -> list[NestedPlan]:
    parts = []
    for graph in _few(front(nested.bodies[0], cost), _MOST_INNER):
        plans = step_plans(graph, nested)
        rematerialized = _keeping_nothing(graph, nested, plans[0].liveness_bytes)
        parts += [Part(p, LoopSchedule.keeping_all(nested.length)) for p in [*plans, *rematerialized]]
        parts += [rerunning(plans, s) for s in _schedules(nested, cheap(plans).kept_bytes)]
        n_slots = np.unique(np.geomspace(1, nested.length, _SLOT_COUNTS).round().astype(int)).tolist()
        parts += [Part(step, LoopSchedule(nested.length, 1, n)) for step in rematerialized for n in n_slots]
    menu = _best([NestedPlan(nested, (p,)) for p in parts], cost)
    hull = _hull(menu, cost)
    return [*menu, *(p for a, b in itertools.pairwise(hull) for p in _mixed(a, b))]


def _schedules(nested: Nested, kept_bytes: int) -> list[LoopSchedule]:
    """Return schedules of a loop for less and less memory, the last with one carry saved."""
    length, carry_bytes = nested.length, nested.carry_bytes
    step_bytes = kept_bytes + carry_bytes
    memory, most = float(max(carry_bytes + step_bytes, 1)), (length + 1) * carry_bytes + step_bytes
    schedules = dict.fromkeys([LoopSchedule(length, 1, 1)])
    while memory < most * _MEMORY_STEP:
        schedule = LoopChoice(memory_bytes=int(memory)).schedule(length, carry_bytes, step_bytes)
        schedules |= {schedule: None} if schedule is not None else {}
        memory *= _MEMORY_STEP
    return list(schedules)


def _keeping_nothing(graph: Graph, nested: Nested, most_bytes: int) -> list[StepPlan]:
    """Return plans of a step that keep nothing and run things again to need less than a step that keeps everything."""
    least = Planner.of(_without_results(graph), "seconds").smallest.peak_bytes
    budgets = np.geomspace(max(least, 1), max(most_bytes, 1), _PLANS_KEEPING_NOTHING + 1).astype(np.int64)
    found = [_within(graph, nested, max(n_bytes, least)) for n_bytes in np.unique(budgets)[:-1].tolist()]
    return [p for p in found if p is not None and p.liveness_bytes < most_bytes]


def _mixed(larger: NestedPlan, smaller: NestedPlan) -> list[NestedPlan]:
    """Return plans of a loop whose first steps are reversed in one way and its last steps in another.

    The first are reversed last, when what the last ones have saved is free: they are those that save less.
    """
    length, (a,), (b,) = larger.nested.length, larger.parts, smaller.parts
    counts = np.unique(np.linspace(0, length, _MIXES + 2).round().astype(int))[1:-1].tolist()
    return [NestedPlan(larger.nested, (b.of_length(n), a.of_length(length - n))) for n in counts if n < length]


def _branch_options(nested: Nested, cost: Cost) -> list[NestedPlan]:
    """Return plans of branches: each branch's plans, from what keeps most to what keeps least, side by side."""
    menus_of_branches = []
    for body in nested.bodies:
        plans = [p for graph in _few(front(body, cost), _MOST_INNER) for p in step_plans(graph, nested)]
        menus_of_branches.append(sorted(plans, key=lambda p: -p.kept_bytes))
    n = max(map(len, menus_of_branches))
    at = [np.linspace(0, len(m) - 1, n).round().astype(int).tolist() for m in menus_of_branches]
    rows = [[m[i] for m, i in zip(menus_of_branches, row, strict=True)] for row in zip(*at, strict=True)]
    return [keeping(nested, row) for row in rows]


def _few(graphs: Sequence[Graph], n: int) -> list[Graph]:
    at = np.unique(np.linspace(0, len(graphs) - 1, n).round().astype(int))
    return [graphs[i] for i in at.tolist()]


def front(graph: Graph, cost: Cost) -> list[Graph]:
    """Return the graph for different plans of what is nested in it, from the cheapest to the smallest.

    From one to the next, one loop is planned smaller, where a byte costs least. Of several loops, only those plans are
    on the front that are best for some price of a byte.

    Args:
      graph: Any graph; one without loops and branches is its own front.
      cost: What is minimised; see `plan_budget`.
    """
    key = "front", repr(cost)
    if key not in graph.memo:
        menus_of_loops = [options(n, cost) for n in graph.nested]
        if len(menus_of_loops) > 1:
            menus_of_loops = [_hull(menu, cost) for menu in menus_of_loops]
        moves = [
            (_slope(a, b, cost), which, i + 1)
            for which, menu in enumerate(menus_of_loops)
            for i, (a, b) in enumerate(itertools.pairwise(menu))
        ]
        at = [0] * len(menus_of_loops)
        points = [[menu[0] for menu in menus_of_loops]]
        for _, which, i in sorted(moves) if len(at) > 1 else moves:
            at[which] = max(at[which], i)
            points.append([menu[k] for menu, k in zip(menus_of_loops, at, strict=True)])
        graph.memo[key] = [with_nested(graph, plans) for plans in points]
    return graph.memo[key]


def lower_bound_bytes(graph: Graph) -> int:
    """Return the bytes that no plan needs less than, with this order of the backward phase; kept with the graph.

    See `working_set_bound`; what is nested in the graph is planned as small as anything on the front.
    """
    if "lower bound" not in graph.memo:
        graph.memo["lower bound"] = working_set_bound(front(graph, "seconds")[-1] if graph.n_backward else graph)
    return graph.memo["lower bound"]


def _hull(menu: Sequence[NestedPlan], cost: Cost) -> list[NestedPlan]:
    """Return the plans on the lower convex hull of bytes and costs."""
    hull: list[NestedPlan] = []
    for plan in menu:
        while len(hull) > 1 and _slope(hull[-2], hull[-1], cost) > _slope(hull[-1], plan, cost) * (1 + 1e-9):
            hull.pop()
        hull.append(plan)
    return hull


def _slope(a: NestedPlan, b: NestedPlan, cost: Cost) -> float:
    """Return what a byte less costs from one plan of a menu to the next."""
    return (b.cost(cost) - a.cost(cost)) / (a.footprint_bytes - b.footprint_bytes)


def _within(graph: Graph, nested: Nested, memory_bytes: int) -> StepPlan | None:
    """Plan a step that keeps nothing, its backward part within so many bytes, or return None where none is found."""
    planner = Planner.of(_without_results(graph), "seconds")
    found = planner.best(memory_bytes)
    if found is None:
        return None
    wanted, backward = set(graph.outputs[graph.n_primal_outputs :].tolist()), []
    for node in reversed(planner.order[found.steps].tolist()):
        made = range(graph.output_start[node], graph.output_start[node + 1])
        if node >= graph.n_forward or not wanted.isdisjoint(made):
            backward.append(node)
            wanted.difference_update(made)
            wanted.update(graph.read_lists[node])
    return StepPlan.of(graph, nested, (), backward[::-1])


def _without_results(graph: Graph) -> Graph:
    """Return the gradient graph of a step as its backward part needs it: of its outputs, the gradients alone."""
    if "without results" not in graph.memo:
        outputs = graph.outputs.copy()
        outputs[: graph.n_primal_outputs] = LITERAL
        graph.memo["without results"] = dataclasses.replace(graph, outputs=outputs)
    return graph.memo["without results"]
