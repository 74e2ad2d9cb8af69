"""The exact planner against brute force, and against an optimum known by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from test_bounds import budgets, tiny_graphs

from tests.graphs import chain
from tests.oracle import Oracle
from tiny_backprop import Graph, Op, PlanError, plan_blocks, plan_save_everything
from tiny_backprop.errors import BudgetError
from tiny_backprop.plan.certificate import certify
from tiny_backprop.plan.exact import plan_exact
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.cost import CostModel

n_plans, n_proven = 0, 0


@settings(max_examples=80)
@given(tiny_graphs())
def check_against_brute_force(graph):
    global n_plans, n_proven
    oracle = Oracle(graph)
    low = oracle.smallest_peak()
    for budget in budgets(graph, low):
        n_plans += 1
        best = oracle.cheapest(budget)
        assert best is not None
        try:
            plan = plan_exact(graph, budget, cost="flops", time_limit_seconds=1)
        except BudgetError as e:
            if "no plan fits" in str(e):  # which is wrong: brute force found one
                raise
            continue
        assert plan.peak_bytes <= budget
        assert plan.recompute_flops >= best.recompute_flops
        percent = 100 * (plan.recompute_flops - best.recompute_flops) / max(best.flops, 1)
        assert plan.meta["gap_percent"] >= percent - 1e-6
        if plan.meta["proven"]:
            n_proven += 1
            assert plan.recompute_flops == best.recompute_flops
    if low:
        with pytest.raises(BudgetError, match=f"a budget of {low - 1} bytes was asked for"):
            plan_exact(graph, low - 1, time_limit_seconds=1)


def test_what_is_called_proven_is_optimal_and_most_tiny_plans_are():
    check_against_brute_force()
    assert n_plans > 100
    # The others mostly fail in the forward phase, which has large values here and runs in the program's order.
    assert n_proven > 0.5 * n_plans


def u_net(depth: int = 4) -> Graph:
    """Return a gradient with skip connections: values of the way down are read on the way up and by the backward."""
    forward = [dict(name="f0", bytes=64, flops=8)]
    names = ["f0"]
    for k in range(1, depth):
        forward.append(dict(name=f"f{k}", bytes=64 >> k, flops=8 >> min(k, 3), reads=[names[-1]]))
        names.append(f"f{k}")
    for k in reversed(range(depth - 1)):
        forward.append(dict(name=f"u{k}", bytes=96 >> k, flops=4, reads=[names[-1], f"f{k}"]))
        names.append(f"u{k}")
    forward.append(dict(name="loss", bytes=1, flops=1, reads=[names[-1]]))
    backward, gradient = [], []
    for node in reversed(forward):
        reads = [*node.get("reads", []), *([node["name"]] if node["name"] != "loss" else []), *gradient[-1:]]
        backward.append(dict(name="d" + node["name"], bytes=node["bytes"], flops=9, reads=reads, is_backward=True))
        gradient.append(backward[-1]["name"])
    return Graph.from_nodes([*forward, *backward], outputs=["loss"])


@pytest.mark.parametrize("fraction", [0.6, 0.75, 0.9])
def test_more_than_one_moment_where_the_peak_alone_does_not_tell(fraction):
    graph = u_net()
    budget = int(fraction * plan_save_everything(graph).peak_bytes)
    try:
        plan = plan_exact(graph, budget, cost="flops")
    except BudgetError:
        assert Oracle(graph).smallest_peak() > budget
        return
    best = Oracle(graph).cheapest(budget)
    assert best is not None
    assert plan.meta["proven"]
    assert plan.recompute_flops == best.recompute_flops > 0


def test_chain_keeps_what_fits():
    graph = chain(30)
    plan = plan_exact(graph, 14, cost="flops")
    # When the first backward node runs, the loss and its gradient leave room for 12 of the 29 values read later.
    assert plan.meta["proven"]
    assert plan.recompute_flops == 29 - 12
    assert plan.peak_bytes <= 14
    assert certify(plan).is_optimal
    assert plan.meta["budget_bytes"] == 14
    assert plan.meta["strategy"] == "exact"


def test_a_start_is_returned_where_nothing_beats_it_and_beaten_where_something_does():
    graph = chain(24)
    best = plan_exact(graph, 10, cost="flops")
    assert plan_exact(graph, 10, cost="flops", start=best) == best
    steps = best.timeline.steps
    again = int(np.flatnonzero(graph.is_backward[steps])[-1])
    wasteful = Plan.from_steps(graph, np.insert(steps, again, 0), {})
    assert wasteful.recompute_flops == best.recompute_flops + 1
    assert plan_exact(graph, 10, cost="flops", start=wasteful).recompute_flops == best.recompute_flops


def test_an_impossible_budget_names_the_smallest_peak_and_the_bound():
    graph = chain(40, n_bytes=10)
    with pytest.raises(BudgetError, match="no plan fits, whatever it recomputes") as caught:
        plan_exact(graph, 25)
    assert caught.value.budget_bytes == 25
    assert caught.value.bound_bytes == 30
    assert caught.value.smallest_peak_bytes <= plan_blocks(graph).peak_bytes


def test_bad_arguments_are_named():
    graph = chain(6)
    with pytest.raises(PlanError, match="the plan to start from was made for another graph"):
        plan_exact(graph, 100, start=plan_blocks(chain(7), 2))
    with pytest.raises(PlanError, match="needs the backward phase"):
        plan_exact(Graph.from_nodes([dict(name="a", bytes=1)], outputs=["a"]), 100)
    with pytest.raises(PlanError, match="cost of plan_exact must be"):
        plan_exact(graph, 100, cost="minutes")


@pytest.mark.parametrize(("cost", "again"), [("flops", 0), ("seconds", 1), (CostModel(1.0, 1e9), 0)])
def test_the_cost_model_decides_and_is_remembered(cost, again):
    """One of two values must go while `wide` runs: node 0 has few FLOPs, node 1 moves few bytes."""
    nodes = [
        dict(name="slow", bytes=8, flops=1, bytes_moved=900),
        dict(name="quick", bytes=8, flops=50, bytes_moved=1),
        dict(name="loss", bytes=1, reads=["slow", "quick"]),
        dict(name="wide", bytes=20, reads=["loss"], is_backward=True),
        dict(name="d", bytes=1, reads=["wide"], is_backward=True),
        dict(name="e", bytes=1, reads=["d", "slow", "quick"], is_backward=True),
    ]
    plan = plan_exact(Graph.from_nodes(nodes, outputs=["loss", "e"]), 30, cost=cost)
    assert plan.timeline.steps[plan.timeline.ops == Op.RECOMPUTE].tolist() == [again]
    assert plan.meta["proven"]
    assert plan.certificate.unit == ("flops" if cost == "flops" else "seconds")
    assert plan.certificate.is_optimal
    assert plan.certificate.recompute_cost_bound > 0
