"""The trade-off: monotone, from save-everything down, with jax.checkpoint's policies beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.ad_checkpoint import print_saved_residuals

from benchmarks.models import gpt, small
from tests.graphs import chain, training_graphs
from tiny_backprop import Graph, PlanError, capture_gradient, pareto, plan_budget, plan_policy, plan_save_everything
from tiny_backprop.plan.pareto import pareto_steps
from tiny_backprop.plan.policies import POLICIES
from tiny_backprop.plan.search.planner import Planner
from tiny_backprop.predict.allocation import predict_allocation


def net(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.sum(x**2)


@pytest.fixture(scope="module")
def graph() -> Graph:
    ws = [jax.ShapeDtypeStruct((16, 16), "float32")] * 24
    return capture_gradient(net, ws, jax.ShapeDtypeStruct((64, 16), "float32"))


def test_it_spans_save_everything_to_the_smallest_peak(graph):
    p = pareto(graph)
    assert len(p) >= 20
    assert p.plans[0].peak_bytes <= plan_save_everything(graph).peak_bytes == p.save_everything.peak_bytes
    assert p.recompute_costs[0] == 0
    planner = Planner.of(graph, "seconds")
    by_liveness = predict_allocation(graph, planner.order[planner.smallest.steps])
    assert p.plans[-1].peak_bytes < by_liveness.peak_bytes, "the smallest by liveness is not the smallest in truth"


def test_what_was_captured_needs_its_outputs(graph):
    """Fused values take no memory, so that a bound by liveness is none of what XLA allocates."""
    p = pareto(graph)
    assert p.bound == (graph.output_bytes, "outputs alone")
    assert p.bound[0] < p.peak_bytes.min()


@settings(max_examples=40)
@given(training_graphs(max_forward=10, in_order=True))
def test_it_can_be_worked_out_a_plan_at_a_time(graph):
    steps, n_steps = pareto_steps(graph, n_points=6), 0
    while True:
        try:
            next(steps)
        except StopIteration as e:
            found = e.value
            break
        n_steps += 1
    assert n_steps == 1 + 6 + 1 + len(POLICIES)
    assert found.plans == pareto(graph, n_points=6).plans


def test_it_is_monotone(graph):
    p = pareto(graph, cost="flops", n_points=6)
    assert np.all(np.diff(p.peak_bytes) < 0)
    assert np.all(np.diff(p.recompute_costs) >= 0)
    assert p.knee in p.plans


def test_the_knee_is_below_the_line_between_the_ends(graph):
    p = pareto(graph)
    x = (p.peak_bytes - p.peak_bytes[-1]) / (p.peak_bytes[0] - p.peak_bytes[-1])
    y = p.recompute_costs / p.recompute_costs[-1]
    i = p.plans.index(p.knee)
    assert x[i] + y[i] < 0.7
    assert x[i] + y[i] == min(x + y)


def test_costs_are_in_the_unit_asked_for(graph):
    p = pareto(graph, cost="flops", n_points=4)
    assert p.unit == "flops"
    assert p.recompute_costs[-1] == pytest.approx(p.plans[-1].recompute_flops)
    table = p.to_pandas()
    assert list(table.kind[:1]) == ["plan"]
    assert table.is_knee.sum() == 1
    assert table.predicted_recompute_flops.tolist()[: len(p)] == p.recompute_costs.tolist()
    assert len(table) == len(p) + 3


@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"])
def test_policies_save_what_jax_checkpoint_saves(graph, policy, capsys):
    ws, x = [jnp.ones((16, 16))] * 24, jnp.ones((64, 16))
    checkpointed = jax.checkpoint(net, policy=getattr(jax.checkpoint_policies, policy))
    print_saved_residuals(checkpointed, ws, x)
    residuals = [line for line in capsys.readouterr().out.splitlines() if line.strip() and "argument" not in line]
    plan = plan_policy(graph, policy)
    assert len(residuals) == len([v for v in plan.saved.tolist() if v not in graph.outputs])
    assert plan.recompute_flops > 0


def test_batched_contractions_are_told_from_their_sizes():
    def attention(q, k):
        scores = jnp.einsum("bqd,bkd->bqk", q, k)
        return jnp.sum(jnp.tanh(jnp.tanh(scores) @ jnp.ones((7, 5))))

    shapes = jax.ShapeDtypeStruct((3, 6, 4), "float32"), jax.ShapeDtypeStruct((3, 7, 4), "float32")
    graph = capture_gradient(attention, *shapes, argnums=(0, 1))
    saved = plan_policy(graph, "dots_with_no_batch_dims_saveable").saved.tolist()
    shapes_saved = {graph.value_shapes[v] for v in saved}
    assert (3, 6, 7) not in shapes_saved
    assert (3, 6, 7) in {graph.value_shapes[v] for v in plan_policy(graph, "dots_saveable").saved.tolist()}


def test_bad_arguments_are_named(graph):
    with pytest.raises(PlanError, match="policy must be one of 'nothing_saveable'"):
        plan_policy(graph, "everything")
    with pytest.raises(PlanError, match="n_points of pareto must be a whole number"):
        pareto(graph, n_points=0)
    with pytest.raises(PlanError, match="cost of pareto must be"):
        pareto(graph, cost="money")


def test_displays(graph):
    p = pareto(graph, n_points=5)
    assert "predicted peaks from" in repr(p)
    assert "knee" in repr(p)
    page = p._repr_html_()
    assert "<svg" in page
    assert "jax.checkpoint, dots_saveable" in page
    assert "(predicted)" in page


def test_a_graph_with_nothing_to_choose_has_one_point():
    p = pareto(chain(1))
    assert len(p) == 1
    assert p.knee is p.plans[0]
    assert "<svg" in p._repr_html_()


@pytest.mark.parametrize(
    "example",
    [lambda: gpt.example(gpt.GPTConfig(n_layers=2, width=64, n_tokens=64, n_batch=4)), small.mixer, small.lstm],
    ids=["gpt", "mixer", "lstm"],
)
def test_a_budget_as_large_as_a_point_takes_gets_a_plan_no_costlier(example):
    """On another copy of the graph: what was planned before, and in which order, has no part in it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        loss, args = example()
        graph = capture_gradient(loss, *args)
    p, other = pareto(graph), Graph.from_json(graph.to_json())
    for point in reversed(p.plans):
        plan = plan_budget(other, int(point.peak_bytes))
        assert plan.peak_bytes <= point.peak_bytes
        assert p.recompute_cost(plan) <= p.recompute_cost(point) + 1e-9 * p.least_cost
        assert np.array_equal(plan.timeline.steps, plan_budget(graph, int(point.peak_bytes)).timeline.steps)
