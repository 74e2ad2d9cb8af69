"""plan_budget: the budget is for what XLA is predicted to allocate, and comes close to what it does."""

import jax
import jax.numpy as jnp
import pytest

from tests.graphs import chain
from tests.programs import assert_close
from tiny_backprop import (
    BudgetError,
    PlanError,
    capture_gradient,
    height_compressed_value_and_grad,
    measure,
    plan_budget,
    plan_save_everything,
    simulate,
)
from tiny_backprop.plan.strategies.budget import budget_range_bytes


def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w) @ w.T
    return jnp.mean(x**2)


WS = [0.1 * jax.random.normal(jax.random.key(i), (64, 256)) for i in range(12)]
X = jax.random.normal(jax.random.key(99), (512, 64))
GRAPH = capture_gradient(loss, WS, X)
PLAIN_BYTES = measure(jax.value_and_grad(loss), WS, X).peak_bytes


@pytest.mark.parametrize("share", [0.8, 0.6, 0.5])
def test_xla_takes_what_was_budgeted(share):
    budget = int(share * PLAIN_BYTES)
    plan = plan_budget(GRAPH, budget)
    assert plan.peak_bytes <= budget
    gradient = height_compressed_value_and_grad(loss, plan=plan)
    assert measure(gradient, WS, X).peak_bytes == pytest.approx(plan.peak_bytes, rel=0.1)
    assert_close(gradient(WS, X), jax.value_and_grad(loss)(WS, X))
    assert plan.meta["budget"] == budget


def test_a_larger_budget_costs_no_more():
    flops = [plan_budget(GRAPH, int(share * PLAIN_BYTES)).recompute_flops for share in (0.5, 0.7, 1.1)]
    assert flops[0] > flops[1] > flops[2] == 0


def test_what_fits_anyway_is_saved():
    assert plan_budget(GRAPH, "1GiB") == plan_save_everything(GRAPH)


def test_too_little():
    with pytest.raises(BudgetError, match=r"XLA is predicted to fit into 1 MiB \(1048576 bytes\): of \d+ plans the sm"):
        plan_budget(GRAPH, "1MiB")
    with pytest.raises(PlanError, match="budget"):
        plan_budget(GRAPH, "much")


def test_ranges_are_those_of_plans():
    least, most = budget_range_bytes(GRAPH)
    assert plan_budget(GRAPH, least).peak_bytes <= least
    assert most == plan_save_everything(GRAPH).peak_bytes
    with pytest.raises(BudgetError) as e:
        plan_budget(GRAPH, 1)
    assert e.value.smallest_peak_bytes == least


def test_searching_on_keeps_the_budget_and_costs_no_more():
    budget = int(0.6 * PLAIN_BYTES)
    plain, searched = plan_budget(GRAPH, budget), plan_budget(GRAPH, budget, search_seconds=1)
    assert searched.peak_bytes <= budget
    assert searched.meta["recompute_percent"] <= plain.meta["recompute_percent"]


def test_graphs_made_by_hand_are_counted_by_liveness():
    graph = chain(20, 4096)
    plan = plan_budget(graph, 0.6)
    assert plan.peak_bytes == plan.liveness_peak_bytes == simulate(graph, plan.ops, plan.targets).peak_bytes
    assert plan.peak_bytes <= plan.meta["budget_bytes"]
    assert budget_range_bytes(graph)[1] == plan_save_everything(graph).peak_bytes
    m = plan.materialized
    assert [int(m.n_bytes[m.alive_at(k)].sum()) for k in range(len(m.live_bytes))] == m.live_bytes.tolist()
