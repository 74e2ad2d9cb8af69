"""No gradient that nobody asked to be planned in some way takes more memory than JAX's own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from tests.programs import assert_close
from tiny_backprop import NoGainWarning

W = jnp.eye(32) * 0.9
XS = jnp.ones((64, 8, 32))


def written_in_a_carry(w, xs):
    """Write an array step by step in a carry and read it back: JAX's own loop updates it in place."""

    def body(ys, i):
        before = ys[jnp.maximum(i - 1, 0)] @ w + 0.1 * ys[i // 2]
        return lax.dynamic_update_index_in_dim(ys, jnp.tanh(xs[i] + before), i, 0), None

    return jnp.sum(lax.scan(body, jnp.zeros_like(xs), jnp.arange(len(xs)))[0] ** 2)


def layers(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w) + x
    return jnp.mean(x**2)


LAYERS = ([jnp.eye(64)] * 8, jnp.ones((256, 64)))


def peak(fun, *args):
    return tb.measure(fun, *args).peak_bytes


def test_without_a_wish_jaxs_own_gradient_runs_where_no_plan_takes_less():
    planned = tb.height_compressed_value_and_grad(written_in_a_carry)
    words = r"no plan that was tried for written_in_a_carry .* jax.grad runs as it is"
    with pytest.warns(NoGainWarning, match=words) as caught:
        value, gradient = planned(W, XS)
    assert caught[0].filename == __file__
    expected = jax.jit(jax.value_and_grad(written_in_a_carry))(W, XS)
    assert_close((value, gradient), expected)
    assert planned.last_executor.is_jax_gradient
    plan = planned.last_executor.checkpoint_plan
    assert plan.meta["strategy"] == "jax.grad"
    plain_bytes = peak(jax.value_and_grad(written_in_a_carry), W, XS)
    assert peak(planned, W, XS) == plain_bytes
    assert plan.peak_bytes == pytest.approx(plain_bytes, rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(W, XS)  # said once


def test_a_checkpointed_function_runs_as_it_is_where_no_plan_takes_less():
    checkpointed = tb.checkpoint(written_in_a_carry)
    with pytest.warns(NoGainWarning):
        gradient = jax.grad(checkpointed)(W, XS)
    assert_close(gradient, jax.grad(written_in_a_carry)(W, XS))
    assert peak(jax.grad(checkpointed), W, XS) == peak(jax.grad(written_in_a_carry), W, XS)
    assert checkpointed.plan(W, XS).is_jax_gradient
    assert_close(
        jax.hessian(checkpointed)(W[:2, :2], XS[:3, :2, :2]), jax.hessian(written_in_a_carry)(W[:2, :2], XS[:3, :2, :2])
    )


def test_an_explicit_wish_runs_with_a_warning():
    planned = tb.height_compressed_grad(written_in_a_carry, block_size=1)
    with pytest.warns(NoGainWarning, match="the plan that was asked for .* more than jax.grad's"):
        gradient = planned(W, XS)
    assert_close(gradient, jax.grad(written_in_a_carry)(W, XS))
    assert not planned.last_executor.is_jax_gradient
    assert planned.last_executor.checkpoint_plan.meta["block_size"] == 1


@pytest.mark.parametrize("verify", [False, True])
def test_a_budget_that_jaxs_own_gradient_keeps_takes_no_more(verify):
    plain_bytes = peak(jax.value_and_grad(written_in_a_carry), W, XS)
    planned = tb.height_compressed_value_and_grad(written_in_a_carry, budget=2 * plain_bytes, verify=verify)
    assert peak(planned, W, XS) <= plain_bytes
    assert planned.plan(W, XS).is_jax_gradient


def test_what_gains_is_planned_and_nothing_is_said():
    planned = tb.height_compressed_value_and_grad(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(*LAYERS)
    assert not planned.last_executor.is_jax_gradient
    assert peak(planned, *LAYERS) < peak(jax.value_and_grad(layers), *LAYERS)


def test_a_plan_of_jaxs_own_gradient_is_saved_and_used_again():
    planned = tb.height_compressed_grad(written_in_a_carry)
    with pytest.warns(NoGainWarning):
        plan = planned.plan(W, XS)
    again = tb.Plan.from_json(plan.to_json(), tb.capture_gradient(written_in_a_carry, W, XS))
    assert again.is_jax_gradient
    assert again.peak_bytes == plan.peak_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(tb.height_compressed_grad(written_in_a_carry, plan=again)(W, XS), planned(W, XS))


def test_the_users_own_checkpoints_run_where_jaxs_own_gradient_does():
    """In a loop, where every XLA keeps them."""

    def step(c, x):
        return jnp.tanh(jnp.sin(jnp.cos(c * x))) + c, None

    def loss(c, xs):
        return jnp.sum(lax.scan(jax.checkpoint(step), c, xs)[0])

    c, xs = jnp.ones(4096), jnp.ones((64, 4096))
    plan = tb.plan_save_everything(tb.capture_gradient(loss, c, xs))
    plain = type(plan).from_actions(plan.graph, plan.ops, plan.targets, {"strategy": "jax.grad"})
    planned = tb.height_compressed_grad(loss, plan=plain)
    np.testing.assert_array_equal(planned(c, xs), jax.jit(jax.grad(loss))(c, xs))
    assert peak(planned, c, xs) <= peak(jax.grad(loss), c, xs)


def test_compare_marks_what_takes_more():
    table = tb.compare(written_in_a_carry, W, XS, stock_policies=())
    assert not table.is_worse.iloc[0]
    assert table.is_worse.iloc[1:].all()
    assert not tb.compare(layers, *LAYERS, stock_policies=()).is_worse.any()


def test_a_budget_in_bytes_leaves_the_margin_that_the_record_asks_for(monkeypatch):
    graph = tb.capture_gradient(layers, *LAYERS)
    budget = int(0.7 * tb.plan_save_everything(graph).peak_bytes)
    monkeypatch.setattr("tiny_backprop.integration.jax.run.planned.recorded_margin", lambda *_: 0.25)
    plan = tb.height_compressed_grad(layers, budget=budget).plan(*LAYERS)
    assert plan.peak_bytes * 1.25 <= budget
    assert plan.meta["budget_bytes"] == budget
    assert plan.certificate.margin_percent == 25
    assert plan.certificate.budget_bytes == int(budget / 1.25)
    assert "asked less a margin of 25 %" in repr(plan.certificate)
    share = tb.height_compressed_grad(layers, budget=0.7).plan(*LAYERS)  # of a prediction itself
    assert "margin_percent" not in share.meta
    smallest = tb.plan_budget(graph, 1.0).peak_bytes
    try:
        tb.plan_budget(graph, 1)
    except tb.BudgetError as e:
        smallest = e.smallest_peak_bytes
    tight = tb.height_compressed_grad(layers, budget=smallest).plan(*LAYERS)
    assert tight.peak_bytes <= smallest  # no plan leaves the margin, and this one fits
    assert tight.certificate.margin_percent == 0


def test_the_margin_is_a_large_value_or_a_share():
    graph, n_bytes = tb.capture_gradient(layers, *LAYERS), 256 * 64 * 4  # that of a layer's output
    of_many, of_few = (tb.recorded_margin(graph, n * n_bytes) for n in (100, 2))
    assert 0.01 < of_many < 0.02
    assert 0.1 < of_few < 0.3
    assert tb.recorded_margin(tb.Graph.from_nodes([{"name": "h", "bytes": 8}]), 10) == 0
