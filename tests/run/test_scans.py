"""Planned scans: gradients as of `jax.grad`, as many steps as planned, memory that grows as a root of the length."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import tiny_backprop as tb
from tests.loop_programs import H, W, many, many_arguments, rnn, wide
from tests.programs import assert_close
from tiny_backprop import (
    BudgetError,
    capture_gradient,
    checkpoint,
    height_compressed_grad,
    height_compressed_value_and_grad,
    measure,
    plan_save_everything,
)
from tiny_backprop.integration.jax.run import gradient
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.predict.nested import nested_plans
from tiny_backprop.units import format_bytes


@settings(max_examples=12)
@given(st.integers(1, 50), st.integers(1, 6), st.booleans())
def test_gradients_of_scans_of_any_length(length, levels, reverse):
    f = functools.partial(many, length=length, reverse=reverse)
    args = many_arguments(length)
    expected = jax.jit(jax.grad(f))(*args)
    planned = height_compressed_grad(f, levels=levels, on_error="raise")
    assert_close(planned(*args), expected)
    assert [n.kind for n in planned.last_executor.graph.nested] == ["scan"]


@pytest.mark.parametrize("how", [{"block_size": 4}, {"levels": 2, "block_size": 3}, {"budget": 0.6}, {}], ids=str)
@pytest.mark.parametrize("length", [13, 16])
def test_every_door_and_every_argument(length, how):
    f = functools.partial(many, length=length, reverse=False)

    def loss(params, a):
        return f(params, {**xs, "a": a}, key)

    params, xs, key = many_arguments(length)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs["a"])
    assert_close(height_compressed_grad(loss, argnums=(0, 1), **how)(params, xs["a"]), expected)
    assert_close(jax.jit(jax.grad(checkpoint(loss, **how), argnums=(0, 1)))(params, xs["a"]), expected)


def test_zero_steps_and_one_step():
    for length in (0, 1):
        f = functools.partial(lambda w, h, n: jnp.sum(rnn(w, h, n) ** 2), n=length)
        assert_close(height_compressed_grad(f, levels=1)(W, H), jax.grad(f)(W, H))


def test_a_scan_in_a_scan():
    def loss(w, h):
        return jnp.sum(lax.scan(lambda h, _: (rnn(w, jnp.sin(h), 7), h.mean()), h, None, length=11)[0] ** 2)

    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, H)
    for how in ({"levels": 1}, {"levels": 3}, {"block_size": 2}, {"budget": 0.5}):
        assert_close(height_compressed_grad(loss, argnums=(0, 1), **how)(W, H), expected)


def test_under_vmap_and_jit():
    def loss(w, h):
        return jnp.sum(rnn(w, h, 10, reverse=True) ** 2)

    planned = height_compressed_value_and_grad(loss, levels=2, on_error="raise")
    hs = jnp.stack([H, -H, 2 * H])
    expected = jax.vmap(jax.value_and_grad(loss), (None, 0))(W, hs)
    assert_close(jax.vmap(planned, (None, 0))(W, hs), expected)
    assert_close(jax.jit(jax.vmap(planned, (None, -1)))(W, jnp.moveaxis(hs, 0, -1)), expected)


def test_higher_derivatives_are_those_of_jax():
    def loss(h):
        return jnp.sum(rnn(W, h, 6) ** 2)

    v = jnp.cos(H)
    for of in (lambda g: jax.jvp(g, (H,), (v,))[1], lambda g: jax.grad(lambda h: jnp.vdot(g(h), v))(H)):
        assert_close(of(height_compressed_grad(loss, levels=1)), of(jax.grad(loss)))


LOOPS = {
    "fori_loop": lambda w, h: lax.fori_loop(0, 9, lambda i, h: jnp.tanh(h @ w) * (1 + i).astype(h.dtype), h),
    "map": lambda w, h: lax.map(lambda r: jnp.sin(r @ w), jnp.concatenate([h] * 4)),
    "map in batches": lambda w, h: lax.map(lambda r: jnp.sin(r @ w), jnp.concatenate([h] * 4), batch_size=5),
    "associative_scan": lambda w, h: lax.associative_scan(jnp.multiply, jnp.cos(jnp.concatenate([h @ w] * 3))),
    "unroll": lambda w, h: lax.scan(lambda h, _: (jnp.tanh(h @ w), h), h, None, length=10, unroll=3)[1],
    "in cond": lambda w, h: lax.cond(h.sum() > 1e3, lambda h: h, lambda h: rnn(w, h, 5), h),
    "while beside it": lambda w, h: (
        rnn(w, h, 5) * lax.while_loop(lambda i: i < 5, lambda i: i + 2, jnp.int32(1)).astype(h.dtype)
    ),
    "custom rule inside": lambda w, h: lax.scan(lambda h, _: (jax.nn.relu(h @ w) + h, None), h, None, length=5)[0],
    "checkpoint inside": lambda w, h: lax.scan(
        lambda h, _: (jax.checkpoint(lambda h: jnp.sin(jnp.sin(h @ w)))(h), None), h, None, length=5
    )[0],
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_other_loops(loop):
    def loss(w, h):
        return jnp.sum(loop(w, h) ** 2)

    for how in ({"levels": 2}, {"block_size": 3}):
        planned = height_compressed_grad(loss, argnums=(0, 1), on_error="raise", **how)
        assert_close(planned(W, H), jax.jit(jax.grad(loss, argnums=(0, 1)))(W, H))


def test_a_scan_that_names_a_mapped_axis_is_left_to_jax():
    def f(h):
        return lax.scan(lambda h, _: (jnp.sin(h) + lax.pmean(h, "i"), None), h, None, length=4)[0]

    xs = jnp.arange(3.0)
    expected = jax.vmap(jax.grad(f), axis_name="i")(xs)
    assert_close(jax.vmap(height_compressed_grad(f, levels=1), axis_name="i")(xs), expected)


def test_what_is_left_to_jax_is_not_said_to_be_planned():
    body = jax.custom_jvp(lambda h: rnn(W, h, 20))
    body.defjvp(lambda p, t: jax.jvp(lambda h: rnn(W, h, 20), p, t))
    plan = height_compressed_grad(lambda h: jnp.sum(body(h)), levels=1).plan(H)
    assert not plan.graph.nested
    looped = height_compressed_grad(lambda h: jnp.sum(rnn(W, h, 20)), levels=1).plan(H)
    graph = capture_gradient(lambda h: jnp.sum(rnn(W, h, 20)), H)
    everything = plan_save_everything(looped.graph)
    assert looped.nested[0].n_again == 20
    assert everything == plan_save_everything(graph)
    assert everything.peak_bytes > looped.peak_bytes
    assert format_bytes(everything.peak_bytes) in looped._repr_html_()


def test_steps_with_effects_run_once(capfd):
    def loss(w, h):
        def step(h, i):
            jax.debug.print("step {}", i)
            return jnp.tanh(h @ w), None

        return jnp.sum(lax.scan(step, h, jnp.arange(4))[0])

    assert_close(height_compressed_grad(loss, levels=2)(W, H), jax.grad(lambda w, h: jnp.sum(rnn(w, h, 4)))(W, H))
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert [printed.count(f"step {i}") for i in range(4)] == [1] * 4


@pytest.mark.parametrize("choice", [LoopChoice(block_size=5), LoopChoice(levels=2), LoopChoice(levels=5)], ids=str)
def test_as_many_steps_run_as_the_schedule_says(choice):
    """Counted on the host: the carry needs the callback's value, but no backward step does by itself."""
    runs = []

    def count(x):
        runs.append(1)
        return np.zeros_like(x)

    def step(h, _):
        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), h.dtype), lax.stop_gradient(h[0, 0]))
        return jnp.tanh(h @ W + lax.stop_gradient(zero)), None

    def loss(h):
        return jnp.sum(lax.scan(step, h, None, length=23)[0])

    how = {k: v for k, v in vars(choice).items() if v is not None}
    planned = height_compressed_grad(loss, on_error="raise", **how)
    (nested,) = nested_plans(planned.plan(H).graph)
    runs.clear()
    assert_close(planned(H), jax.grad(lambda h: jnp.sum(rnn(W, h, 23)))(H))
    jax.effects_barrier()
    (part,) = nested.parts
    assert len(runs) == 23 + part.schedule.n_again


def test_temporaries_grow_as_a_root_of_the_length_and_the_program_does_not():
    carry_bytes = 256 * 64 * 4
    for levels, exponent in ((1, 0.55), (2, 0.40)):
        temp_bytes, n_lines = [], []
        for length in (64, 4096):
            loss, args = wide(length)
            planned = height_compressed_value_and_grad(loss, levels=levels)
            compiled = jax.jit(planned).lower(*args).compile()
            temp_bytes.append(measure(compiled).temp_bytes)
            n_lines.append(len(compiled.as_text().splitlines()))
        assert np.log(temp_bytes[1] / temp_bytes[0]) / np.log(64) <= exponent
        assert n_lines[1] <= 1.02 * n_lines[0]
        assert temp_bytes[1] < 0.05 * 4096 * carry_bytes


@pytest.mark.parametrize("how", [{"block_size": 32}, {"levels": 2}, {"budget": "4MiB"}, {"budget": "3MiB"}], ids=str)
def test_predicted_and_measured_agree(how):
    loss, args = wide(1000)
    planned = height_compressed_value_and_grad(loss, on_error="raise", **how)
    plan, plain = planned.plan(*args), measure(jax.value_and_grad(loss), *args)
    measured = measure(planned, *args)
    assert 0.75 * plan.peak_bytes <= measured.peak_bytes <= 1.05 * plan.peak_bytes
    assert measured.flops / plain.flops == pytest.approx(1 + plan.recompute_fraction, rel=0.02)
    if "budget" in how:
        assert plan.peak_bytes <= plan.meta["budget_bytes"]
    again = height_compressed_value_and_grad(loss, plan=plan, on_error="raise")
    assert again.plan(*args).graph.fingerprint == plan.graph.fingerprint
    assert_close(again(*args), planned(*args))


def test_with_memory_to_spare_no_step_runs_again_and_with_some_the_cheap_parts_do():
    def step(h, p):
        h = h + jnp.tanh(jnp.sin(h @ p["up"])) @ p["down"]
        return h, h.mean()

    def loss(params, h):
        h, means = lax.scan(step, h, params)
        return jnp.sum(h**2) + jnp.sum(means**2)

    keys = jax.random.split(jax.random.key(0), 2)
    params = {"up": jax.random.normal(keys[0], (24, 16, 64)), "down": 0.1 * jax.random.normal(keys[1], (24, 64, 16))}
    h = jnp.ones((256, 16))
    expected, peaks, flops = jax.grad(loss)(params, h), [], []
    for budget in (0.95, 0.3, 0.15):
        planned = height_compressed_grad(loss, budget=budget, on_error="raise")
        plan = planned.plan(params, h)
        assert_close(planned(params, h), expected, n_ulps=512)
        assert plan.peak_bytes <= plan.meta["budget_bytes"]
        peaks.append(plan.peak_bytes)
        flops.append(plan.recompute_fraction)
    assert flops[0] < 0.02 < flops[1] < 0.3 < flops[2]
    assert peaks == sorted(peaks, reverse=True)


def test_a_budget_that_cannot_be_met_and_one_that_is_verified():
    loss, args = wide(500)
    with pytest.raises(BudgetError, match=r"predicted to fit into 100 KiB .* of \d+ plans the smallest takes"):
        height_compressed_grad(loss, budget="100KiB")(*args)
    planned = height_compressed_value_and_grad(loss, budget="2.5MiB", verify=True)
    with mock.patch.object(gradient, "compiled_bytes", wraps=gradient.compiled_bytes) as compiled_bytes:
        plan = planned.plan(*args)
    assert plan.meta["n_compiled"] == compiled_bytes.call_count <= 6
    assert measure(planned, *args).peak_bytes == plan.meta["measured_peak_bytes"] <= 2.5 * 2**20


@pytest.mark.parametrize("way", [{"levels": 2}, {"block_size": 2}, {"budget": 0.5}], ids=str)
def test_vmap_of_a_loop_that_counts(way):
    """The counter begins at a literal, which reaches the loop's rule for vmap as a number."""

    def f(x):
        return jnp.sum(lax.fori_loop(0, 5, lambda i, c: jnp.sin(c) * (i + 1), x))

    xs = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    found = jax.vmap(height_compressed_grad(f, **way))(xs)
    np.testing.assert_allclose(found, jax.vmap(jax.grad(f))(xs), rtol=1e-5)


def test_what_no_result_needs_of_a_loop_is_not_saved():
    """A carry that only itself reads, with a loop of its own, as in metrics that nobody returns."""

    def loss(w, x):
        def step(carry, _):
            h, unused = carry
            unused = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), unused + h, None, length=8)[0]
            return (jnp.tanh(h @ w), unused), jnp.sin(unused)

        return jnp.mean(lax.scan(step, (x, x), None, length=8)[0][0] ** 2)

    w, x = jnp.eye(32) * 0.9, jnp.ones((256, 32))
    planned = tb.height_compressed_grad(loss, levels=1)
    assert_close(planned(w, x), jax.jit(jax.grad(loss))(w, x))
    (nested,) = planned.plan(w, x).graph.nested
    assert not nested.bodies[0].nested
    assert len(nested.carries) == 1
    assert tb.measure(planned, w, x).peak_bytes <= tb.measure(jax.grad(loss), w, x).peak_bytes
