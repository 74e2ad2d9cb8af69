"""Bounds and certificates against brute force: what no plan can beat, no plan beats."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tests.oracle import Oracle
from tiny_backprop import Graph, PlanError, plan_blocks, plan_save_everything
from tiny_backprop.plan.certificate import certify
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.relaxation import Phases, Relaxation
from tiny_backprop.schedule.cost import CostModel


@st.composite
def tiny_graphs(draw: st.DrawFn) -> Graph:
    """Draw a training graph of at most ten nodes; some of its nodes have several outputs, some none."""
    graph = draw(training_graphs(max_forward=5))
    return merged(graph, draw(st.integers(0, 2**graph.n_forward - 1)))


def merged(graph: Graph, second: int) -> Graph:
    """Give each forward node whose bit is set a second output, which the backward phase reads instead."""
    n_outputs = np.array([2 if second >> i & 1 else 1 for i in range(graph.n_nodes)])
    starts = graph.n_inputs + np.r_[0, np.cumsum(n_outputs)]
    number = np.r_[np.arange(graph.n_inputs), starts[:-1]]
    operands = number[graph.operands]
    late = (graph.operand_node >= graph.n_forward) & (graph.operands >= graph.n_inputs)
    made_by = graph.value_node[graph.operands]
    operands[late] += n_outputs[made_by[late]] - 1
    n_bytes = np.zeros(starts[-1], np.int64)
    n_bytes[number] = graph.value_bytes
    n_bytes[starts[1:] - 1] = graph.value_bytes[graph.n_inputs :]
    return dataclasses.replace(
        graph,
        operands=operands,
        output_start=starts,
        value_shapes=tuple((int(b),) for b in n_bytes),
        value_dtypes=("uint8",) * len(n_bytes),
        value_bytes=n_bytes,
        relaid_values=np.zeros(len(n_bytes), bool),
        outputs=number[graph.outputs],
    )


def budgets(graph: Graph, low: int) -> set[int]:
    full = plan_save_everything(graph).peak_bytes
    return {low, (low + full) // 2, (low + 3 * full) // 4}


@settings(max_examples=300)
@given(tiny_graphs(), st.integers(1, 5))
def test_the_oracle_obeys_the_referee_and_no_planner_beats_it(graph, block_size):
    oracle = Oracle(graph)
    low = oracle.smallest_peak()
    assert oracle.cheapest(low - 1) is None
    for plan in (plan_save_everything(graph), plan_blocks(graph, block_size)):
        best = oracle.cheapest(plan.peak_bytes)
        assert best is not None
        assert best.peak_bytes <= plan.peak_bytes
        assert best.recompute_flops <= plan.recompute_flops
        assert plan.peak_bytes >= low


@settings(max_examples=300)
@given(tiny_graphs())
def test_no_plan_needs_less_than_the_working_set(graph):
    assert working_set_bound(graph) <= Oracle(graph).smallest_peak()


@settings(max_examples=150)
@given(tiny_graphs(), st.data())
def test_no_plan_is_cheaper_than_the_bounds(graph, data):
    """Any moments, any stages looked into: the programmes ask no more than what the cheapest plan does."""
    oracle, phases = Oracle(graph), Phases.of(graph)
    moments = data.draw(st.sets(st.integers(0, phases.end - 1), min_size=1))
    inner = [t for t in moments if t - 1 in moments]
    for budget in budgets(graph, oracle.smallest_peak()):
        best = oracle.cheapest(budget)
        assert best is not None
        most = best.recompute_flops + 1e-6 * graph.flops.sum()
        for stages in [(), inner] if inner else [()]:
            programme = Relaxation(phases, moments, budget, graph.flops, stages)
            assert programme.linear_bound() <= most
            solution = programme.solve(10)
            assert solution.is_optimal
            assert solution.bound <= most


@settings(max_examples=60)
@given(tiny_graphs())
def test_certificates_hold_and_every_budget_below_the_smallest_peak_is_not_promised(graph):
    oracle = Oracle(graph)
    low = oracle.smallest_peak()
    plan = plan_save_everything(graph)
    for budget in budgets(graph, low):
        certificate = certify(plan, budget, "flops", seconds=1)
        best = oracle.cheapest(budget)
        assert best is not None
        assert certificate.recompute_cost_bound <= best.recompute_flops + 1e-6 * graph.flops.sum()
        assert certificate.working_set_bytes <= low
        assert certify(best, budget, "flops", seconds=1).gap_percent >= 0


def test_save_everything_is_certified_optimal_within_its_own_peak():
    certificate = plan_save_everything(chain(20)).certificate
    assert certificate.recompute_cost_bound == 0
    assert certificate.gap_percent == 0
    assert certificate.is_optimal
    assert certificate.method == "trivial"


def test_uniform_chain_pays_for_what_it_cannot_keep():
    """At the border two cotangents and one value read leave room for nine of 35 values: the others run again."""
    plan = plan_blocks(chain(36), 6)
    assert plan.peak_bytes == 12
    certificate = certify(plan, cost="flops")
    assert certificate.recompute_cost_bound == pytest.approx(25, abs=1e-3)
    assert certificate.is_optimal == (plan.recompute_flops == 25)


def test_the_order_of_the_backward_phase_is_the_plans_own():
    """Two nodes read a large value: run one after the other they need it once, run apart they need it again."""
    nodes = [
        dict(name="big", bytes=10, flops=7),
        dict(name="small", bytes=8, flops=1),
        dict(name="g0", bytes=1, reads=["big"], is_backward=True),
        dict(name="g1", bytes=1, reads=["small"], is_backward=True),
        dict(name="g2", bytes=1, reads=["big"], is_backward=True),
        dict(name="g3", bytes=1, reads=["g0", "g1", "g2"], is_backward=True),
    ]
    graph = Graph.from_nodes(nodes, outputs=["g3"])
    straight, swapped = (
        Plan.from_steps(graph, np.arange(6), {}),
        Plan.from_steps(graph, np.array([0, 2, 4, 1, 3, 5]), {}),
    )
    budget = 15
    assert certify(straight, budget, "flops").recompute_cost_bound == pytest.approx(7, abs=1e-3)
    assert certify(swapped, budget, "flops").recompute_cost_bound == 0


def test_results_of_effects_are_never_made_again():
    nodes = [
        dict(name="log", bytes=10, flops=1, has_effect=True),
        dict(name="loss", bytes=1, flops=1, reads=["log"]),
        dict(name="d0", bytes=20, reads=["loss"], is_backward=True),
        dict(name="d1", bytes=1, reads=["log", "d0"], is_backward=True),
    ]
    graph = Graph.from_nodes(nodes, outputs=["loss", "d1"])
    assert working_set_bound(graph) == Oracle(graph).smallest_peak() == 31


def test_a_budget_that_cannot_hold_one_node_is_said_to_be_impossible():
    plan = plan_blocks(chain(20, n_bytes=1024), 5)
    certificate = certify(plan, 1000)
    assert math.isinf(certificate.recompute_cost_bound)
    assert math.isnan(certificate.gap_percent)
    assert not certificate.is_optimal
    assert certificate.method == "working set"
    assert "no plan fits into 1000 B" in repr(certificate)


def test_a_budget_where_even_recomputation_does_not_help_is_infeasible():
    """Two values of effects are needed late; no single node needs as much as both with the gradients between."""
    graph = chain(6)
    phases = Phases.of(graph)
    assert math.isinf(Relaxation(phases, [2], 2, graph.flops).linear_bound())
    assert math.isinf(Relaxation(phases, [2], 2, graph.flops).solve(5).bound)


def test_what_is_minimised_is_taken_from_the_plan():
    graph = chain(12)
    steps = plan_blocks(graph, 4).timeline.steps
    model = CostModel(flops_per_second=2.0, bytes_per_second=1e9)
    plan = Plan.from_steps(graph, steps, {"budget_bytes": 9, "cost": dataclasses.asdict(model)})
    assert plan.certificate.unit == "seconds"
    assert plan.certificate.budget_bytes == 9
    assert plan.certificate.least_cost == graph.flops.sum() / 2
    in_flops = Plan.from_steps(graph, steps, {"cost": "flops"}).certificate
    assert in_flops.unit == "flops"
    assert in_flops.budget_bytes == plan.peak_bytes
    assert in_flops.recompute_cost == plan.recompute_flops
    with pytest.raises(PlanError, match="cost of certify must be"):
        certify(plan, cost="minutes")


def test_a_forward_graph_has_no_bound_on_cost():
    graph = Graph.from_nodes([dict(name="a", bytes=3), dict(name="b", bytes=2, reads=["a"])], outputs=["b"])
    plan = Plan.from_steps(graph, np.array([0, 1]), {})
    assert certify(plan).working_set_bytes == 5
    again = certify(plan, 5, dict(flops_per_second=1.0, bytes_per_second=1.0))
    assert again.recompute_cost_bound == 0


def test_displays():
    certificate = certify(plan_blocks(chain(30, n_bytes=1024), 5), cost="flops")
    assert "\n" not in repr(certificate)
    assert "for this order of the backward phase and this cost model" in repr(certificate)
    assert "no plan recomputes less than" in certificate._repr_html_()
