"""plan_allocation: the budget is for what XLA is predicted to allocate, and comes close to what it does."""

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
    plan_allocation,
    plan_save_everything,
)


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
    plan = plan_allocation(GRAPH, budget)
    assert plan.materialized.peak_bytes <= budget
    gradient = height_compressed_value_and_grad(loss, plan=plan)
    assert measure(gradient, WS, X).peak_bytes == pytest.approx(plan.materialized.peak_bytes, rel=0.1)
    assert_close(gradient(WS, X), jax.value_and_grad(loss)(WS, X))
    assert plan.meta["budget"] == budget
    assert plan.meta["strategy"] == "allocation budget"


def test_a_larger_budget_costs_no_more():
    flops = [plan_allocation(GRAPH, int(share * PLAIN_BYTES)).recompute_flops for share in (0.5, 0.7, 1.1)]
    assert flops[0] > flops[1] > flops[2] == 0


def test_what_fits_anyway_is_saved():
    assert plan_allocation(GRAPH, "1GiB") == plan_save_everything(GRAPH)


def test_too_little():
    with pytest.raises(BudgetError, match=r"XLA is predicted to fit into 1 MiB \(1048576 bytes\): of \d plans the sm"):
        plan_allocation(GRAPH, "1MiB")
    with pytest.raises(PlanError, match="budget"):
        plan_allocation(GRAPH, "much")


def test_graphs_made_by_hand_have_an_allocation_too():
    plan = plan_allocation(chain(20, 4096), 0.6)
    assert plan.materialized.peak_bytes <= plan.meta["budget_bytes"]
