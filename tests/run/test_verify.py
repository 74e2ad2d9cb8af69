"""budget= at every door, and verify=True: what XLA allocates is within the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.graphs import chain
from tests.programs import assert_close
from tiny_backprop import (
    BudgetError,
    MeasureError,
    PlanError,
    checkpoint,
    height_compressed_grad,
    height_compressed_value_and_grad,
    measure,
    plan_blocks,
    plan_save_everything,
)
from tiny_backprop.integration.jax.run.verify import plan_verified
from tiny_backprop.integration.jax.xla.measure import compiled_bytes


def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w) @ w.T
    return jnp.mean(x**2)


KEYS = jax.random.split(jax.random.key(0), 13)
WS = [0.1 * jax.random.normal(k, (64, 256)) for k in KEYS[1:]]
X = jax.random.normal(KEYS[0], (512, 64))
PLAIN_BYTES = measure(jax.value_and_grad(loss), WS, X).peak_bytes
OUTPUT_BYTES = measure(jax.value_and_grad(loss), WS, X).output_bytes


@pytest.mark.parametrize("budget", [0.5, "4MiB", 4 << 20])
def test_doors_take_a_budget(budget):
    expected = jax.grad(loss)(WS, X)
    grad = height_compressed_grad(loss, budget=budget)
    assert_close(grad(WS, X), expected)
    plan = grad.last_executor.checkpoint_plan
    assert plan.meta["budget"] == budget
    assert plan.peak_bytes <= plan.meta["budget_bytes"]
    value, gradient = height_compressed_value_and_grad(loss, budget=budget)(WS, X)
    assert value == loss(WS, X)
    assert_close(gradient, expected)
    assert_close(jax.grad(checkpoint(loss, budget=budget))(WS, X), expected)
    assert_close(jax.jit(jax.grad(checkpoint(budget=budget)(loss)))(WS, X), expected)
    assert checkpoint(loss, budget=budget).plan(WS, X).peak_bytes <= plan.meta["budget_bytes"] or budget == 0.5


def test_a_smaller_budget_takes_less():
    taken = [
        measure(height_compressed_value_and_grad(loss, budget=fraction), WS, X).temp_bytes
        for fraction in (1.0, 0.6, 0.35)
    ]
    assert taken[0] > 1.2 * taken[1]
    assert taken[1] > 1.2 * taken[2]


def test_an_impossible_budget_is_refused_at_the_call_not_replaced_by_jax_grad():
    grad = height_compressed_grad(loss, budget="1KiB")
    with pytest.raises(BudgetError, match=r"predicted to fit into 1 KiB .* of \d+ plans the smallest takes"):
        grad(WS, X)
    assert grad.last_executor is None


def test_one_way_to_plan_at_a_time(recwarn):
    for door in (height_compressed_grad, height_compressed_value_and_grad, checkpoint):
        with pytest.raises(PlanError, match="give either budget or plan"):
            door(loss, budget=0.5, block_size=3)
        with pytest.raises(PlanError, match="give either budget or plan"):
            door(loss, budget=0.5, plan=plan_blocks(chain(3), 1))
    with pytest.raises(PlanError, match="verify=True holds XLA's bytes against a budget; give one"):
        height_compressed_grad(loss, verify=True)


def test_verified_budgets_hold_and_the_measured_peak_follows_them():
    fractions = (1.0, 0.75, 0.6, 0.5, 0.45, 0.4)
    measured = []
    for fraction in fractions:
        budget = int(OUTPUT_BYTES + fraction * (PLAIN_BYTES - OUTPUT_BYTES))
        grad = height_compressed_value_and_grad(loss, budget=budget, verify=True)
        m = measure(grad, WS, X)
        plan = grad.last_executor.checkpoint_plan
        assert m.peak_bytes <= budget
        assert plan.meta["measured_peak_bytes"] == m.peak_bytes
        assert 1 <= plan.meta["n_compiled"] <= 6
        measured.append(m.peak_bytes)
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 0.8 * measured[0]
    assert_close(grad(WS, X)[1], jax.grad(loss)(WS, X))


def test_a_budget_below_what_xla_needs_names_what_was_measured():
    grad = height_compressed_grad(loss, budget=OUTPUT_BYTES, verify=True)
    with pytest.raises(BudgetError, match=r"of \d plans the smallest takes .* measured") as e:
        grad(WS, X)
    assert e.value.smallest_peak_bytes > e.value.budget_bytes == OUTPUT_BYTES


def test_a_plan_for_more_is_taken_where_xla_needs_less_and_for_less_where_it_needs_more():
    """A compiler that needs three times, or a third of, what is predicted."""
    graph = chain(200, n_bytes=1000)
    for factor in (3.0, 1.0, 1 / 3):
        plan = plan_verified(graph, 60_000, lambda p, factor=factor: round(factor * p.peak_bytes))
        assert factor * plan.peak_bytes <= 60_000 + 1
        assert factor * plan.peak_bytes >= 0.75 * 60_000
        assert plan.meta["measured_peak_bytes"] == round(factor * plan.peak_bytes)


def test_the_measured_peak_is_monotone_in_the_budget_though_xla_is_not_in_the_plan():
    """A compiler that needs up to a fifth more or less than predicted, as if by chance."""
    graph = chain(60, n_bytes=1000)

    def measured_bytes(plan):
        return round(plan.peak_bytes * (0.8 + 0.4 * (plan.peak_bytes * 7919 % 997) / 997))

    most = plan_save_everything(graph).peak_bytes
    peaks = []
    for budget in range(int(0.4 * most), int(1.3 * most), 2000):
        plan = plan_verified(graph, budget, measured_bytes)
        peaks.append(plan.meta["measured_peak_bytes"])
        assert peaks[-1] == measured_bytes(plan) <= budget
        assert plan.meta["n_compiled"] <= 6
    assert peaks == sorted(peaks)
    assert len(set(peaks)) >= 6


def test_the_same_budget_gives_the_same_plan():
    graph = chain(150, n_bytes=1000)
    plans = [plan_verified(graph, 50_000, lambda p: round(1.2 * p.peak_bytes)) for _ in range(2)]
    assert plans[0] == plans[1]


def test_what_cannot_be_compiled_by_itself_says_so():
    def needs_an_axis(x):
        return jax.lax.psum(x, "devices")

    with pytest.raises(MeasureError, match="plan without verify=True"):
        compiled_bytes(jax.jit(needs_an_axis), np.float32(1))
