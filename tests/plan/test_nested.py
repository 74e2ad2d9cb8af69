"""Loops and branches as programs of their own: plans of every kind run, and are priced as they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from benchmarks.models.gpt import GPTConfig, example
from tests.loop_programs import H, W, many, many_arguments, rnn, wide
from tests.programs import assert_close
from tiny_backprop import (
    BudgetError,
    Graph,
    LoopChoice,
    Plan,
    PlanError,
    analyze_graph,
    capture_gradient,
    height_compressed_grad,
    height_compressed_value_and_grad,
    measure,
    plan_blocks,
    plan_budget,
    plan_exact,
    plan_save_everything,
)
from tiny_backprop.analysis import loop_reports
from tiny_backprop.plan.loops.front import front, options
from tiny_backprop.plan.loops.frontier import loop_frontier
from tiny_backprop.plan.strategies.budget_planner import BudgetPlanner
from tiny_backprop.predict.nested import with_choices, with_nested


def in_order(graph):
    """Return the plan that runs every node of a graph once, its loops planned as they are in it."""
    return Plan.from_steps(graph, np.arange(graph.n_nodes), {})


def spread(items, n):
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, n).round().astype(int))]


def test_every_kind_of_plan_of_a_loop_gives_the_same_gradient():
    params, xs, key = many_arguments(13)

    def loss(params, a):
        return many(params, {**xs, "a": a}, key, length=13, reverse=True)

    args = params, xs["a"]
    graph = capture_gradient(loss, *args, argnums=(0, 1))
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(*args)
    menu = options(graph.nested[0], "seconds")
    kinds = [(len(o.parts), o.parts[0].step.keeps_nothing, o.parts[0].schedule.reruns) for o in menu]
    assert {(1, False, False), (2, False, False)} < set(kinds)
    for option in dict(zip(kinds, menu, strict=True)).values():
        plan = in_order(with_nested(graph, [option]))
        assert Plan.from_json(plan.to_json(), Graph.from_json(graph.to_json())) == plan
        planned = height_compressed_grad(loss, argnums=(0, 1), plan=plan, on_error="raise")
        assert_close(planned(*args), expected)


def test_menus_and_fronts_fall_in_bytes_and_rise_in_cost():
    loss, args = wide(300)
    graph = capture_gradient(loss, *args)
    for cost in ("seconds", "flops"):
        menu = options(graph.nested[0], cost)
        assert np.all(np.diff([o.footprint_bytes for o in menu]) < 0)
        assert np.all(np.diff([o.cost(cost) for o in menu]) >= 0)
        points = front(graph, cost)
        assert len(points) == len(menu)
        assert points[-1].nested[0].choice == menu[-1].choice()
    assert front(graph, "flops") is front(graph, "flops")


def test_one_budget_is_shared_by_several_loops():
    def loss(w, h):
        for length in (40, 10, 160):
            h = jnp.sin(rnn(w, h, length))
        return jnp.sum(h**2)

    w, h = jnp.eye(64), jnp.ones((256, 64))
    graph = capture_gradient(loss, w, h)
    everything = plan_save_everything(graph)
    peaks, flops = [], []
    for share in (0.9, 0.5, 0.2, 0.1, 0.06):
        plan = plan_budget(graph, share)
        assert plan.peak_bytes <= plan.meta["budget_bytes"] == int(share * everything.peak_bytes)
        peaks.append(plan.peak_bytes)
        flops.append(plan.recompute_flops)
    assert flops == sorted(flops)
    again = [n.n_again for n in plan_budget(graph, 0.5).nested]
    assert 0 in again or len({n.choice()["parts"][0]["schedule"]["reruns"] for n in plan.nested}) == 1
    planned = height_compressed_value_and_grad(loss, budget=0.1, on_error="raise")
    assert_close(planned(w, h), jax.value_and_grad(loss)(w, h), n_ulps=512)
    m = measure(planned, w, h)
    assert m.peak_bytes <= 1.1 * planned.plan(w, h).peak_bytes


def test_loops_may_follow_each_other_with_nothing_between():
    def loss(h):
        return jnp.sum(rnn(W, rnn(W, rnn(W, h, 5), 7), 6))

    graph = capture_gradient(loss, H)
    assert [n.length for n in graph.nested] == [5, 7, 6]
    expected = jax.jit(jax.grad(loss))(H)
    for how in ({"levels": 2}, {"budget": 1.0}, {"loops": LoopChoice(saved_carries=2)}):
        assert_close(height_compressed_grad(loss, on_error="raise", **how)(H), expected)


@pytest.mark.parametrize("how", [{"levels": 2}, {"budget": 0.28}], ids=str)
def test_a_loop_that_runs_again_makes_its_room_no_earlier(how):
    def loss(w, h):
        return jnp.sum(rnn(w, jnp.sin(rnn(w, h, 30)), 50) ** 2)

    args = jnp.eye(32), jnp.ones((512, 32))
    planned = height_compressed_grad(loss, argnums=(0, 1), on_error="raise", **how)
    plan = planned.plan(*args)
    steps, n_forward = plan.timeline.steps, plan.timeline.n_forward_steps
    assert plan.nested[0].nested.forward_node in steps[n_forward:]
    assert measure(planned, *args).peak_bytes <= 1.1 * plan.peak_bytes  # XLA leaves room for half a carry unused


BRANCHES = {
    "taken": lambda w, h: lax.cond(h.sum() > -1e3, lambda h: rnn(w, h, 30), lambda h: jnp.sin(h @ w), h),
    "not taken": lambda w, h: lax.cond(h.sum() > 1e3, lambda h: rnn(w, h, 30), lambda h: jnp.sin(h @ w), h),
    "three": lambda w, h: lax.switch(
        jnp.int32(1), [lambda h: h, lambda h: rnn(w, h, 21), lambda h: rnn(w, jnp.cos(h), 34)], h
    ),
    "in a scan": lambda w, h: lax.scan(
        lambda h, i: (lax.cond(i % 2 == 0, lambda h: rnn(w, h, 9), lambda h: h * 0.5, h), None), h, jnp.arange(8)
    )[0],
}


@pytest.mark.parametrize("of", BRANCHES.values(), ids=BRANCHES)
def test_loops_in_branches_are_planned(of):
    def loss(w, h):
        return jnp.sum(of(w, h) ** 2)

    graph = capture_gradient(loss, W, H, argnums=(0, 1))
    kinds = {n.kind for n in graph.nested} | {n.kind for top in graph.nested for b in top.bodies for n in b.nested}
    assert kinds == {"cond", "scan"}
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, H)
    everything = plan_save_everything(graph).peak_bytes
    for how in ({"levels": 2}, {"block_size": 4}, {"budget": 0.5}):
        planned = height_compressed_grad(loss, argnums=(0, 1), on_error="raise", **how)
        assert_close(planned(W, H), expected)
        assert planned.last_executor.checkpoint_plan.peak_bytes < everything
    assert_close(
        jax.jit(jax.vmap(planned, (None, 0)))(W, jnp.stack([H, -H])),
        jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0))(W, jnp.stack([H, -H])),
    )


def test_a_loop_in_a_branch_takes_less_memory():
    def loss(w, h):
        return jnp.sum(lax.cond(h.sum() > 0, lambda h: rnn(w, h, 400), lambda h: h, h) ** 2)

    args = jnp.eye(64), jnp.ones((256, 64))
    plain = measure(jax.value_and_grad(loss), *args)
    planned = height_compressed_value_and_grad(loss, levels=1, on_error="raise")
    assert measure(planned, *args).temp_bytes < 0.2 * plain.temp_bytes


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_as_many_carries_are_saved_as_asked_for(n):
    loss, args = wide(200)
    planned = height_compressed_value_and_grad(loss, loops=LoopChoice(saved_carries=n), on_error="raise")
    plan = planned.plan(*args)
    (loop,) = plan.nested
    assert loop.saved_bytes == n * args[1].nbytes
    assert measure(planned, *args).peak_bytes <= 1.05 * plan.peak_bytes
    expected = 1 + plan.recompute_fraction
    assert measure(planned, *args).flops / measure(jax.value_and_grad(loss), *args).flops == pytest.approx(
        expected, rel=0.05
    )


def test_a_choice_of_loops_is_for_the_doors_and_the_planners():
    graph = capture_gradient(lambda w, h: jnp.sum(rnn(w, h, 50) ** 2), W, H)
    assert plan_blocks(graph, 10).nested[0].parts[0].schedule.block_size == 10
    assert (
        plan_blocks(graph, 3, loops=LoopChoice(levels=2)).nested
        == plan_blocks(graph, loops=LoopChoice(levels=2)).nested
    )
    within = plan_budget(graph, 0.9, loops=LoopChoice(saved_carries=3))
    assert within.nested[0].saved_bytes == 3 * H.nbytes
    with pytest.raises(PlanError, match="needs one of block_size, levels, saved_carries and memory_bytes"):
        LoopChoice()
    with pytest.raises(PlanError, match="saved_carries of a LoopChoice must be a whole number of at least 1; found 0"):
        LoopChoice(saved_carries=0)
    with pytest.raises(PlanError, match=r"loops must be a tiny_backprop\.LoopChoice; found int"):
        height_compressed_grad(jnp.sum, loops=3)
    assert repr(LoopChoice(levels=2)) == "LoopChoice(levels=2)"


def test_an_exact_plan_takes_loops_as_they_are():
    graph = capture_gradient(lambda w, h: jnp.sum(rnn(W, rnn(w, h, 7), 9) ** 2), W, H)
    by_budget = plan_budget(graph, 0.5)
    with pytest.raises(BudgetError, match=r"with its loops reversed as they are in this graph.*plan_budget"):
        plan_exact(graph, by_budget.liveness_peak_bytes)
    exact = plan_exact(by_budget.graph, by_budget.liveness_peak_bytes, time_limit_seconds=5.0)
    assert exact.nested[0].choice() == by_budget.nested[0].choice()
    assert exact.liveness_peak_bytes <= by_budget.liveness_peak_bytes


def test_a_plan_for_another_loop_is_refused():
    def loss(n):
        return lambda h: jnp.sum(rnn(W, h, n) ** 2)

    graph, other = (capture_gradient(loss(n), H) for n in (30, 31))
    plan = plan_budget(graph, 0.5)
    for refused in (lambda: plan.on(other), lambda: Plan.from_json(plan.to_json(), other)):
        with pytest.raises(PlanError, match="a scan of 31 steps is to be reversed; the plan is for another number"):
            refused()
    damaged = dict(graph.nested[0].choice)
    damaged["parts"] = [{"schedule": {}, "kept": [0], "backward": None, "nested": []}]
    with pytest.raises(PlanError, match="how a scan is to be reversed is damaged"):
        with_choices(graph, [damaged])


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(0, 200))
def test_the_frontier_of_a_loop_peaks_at_its_footprint(length, at):
    graph = capture_gradient(lambda h: jnp.sum(rnn(W, h, length) ** 2), H)
    menu = options(graph.nested[0], "flops")
    plan = menu[at % len(menu)]
    inside = loop_frontier(plan)
    assert len(inside.steps) == len(inside.live_bytes)
    assert inside.steps[: inside.n_forward_steps].tolist() == list(range(length))
    n_runs = np.bincount(inside.steps[inside.n_forward_steps :], minlength=length)
    assert n_runs.min() >= 1
    assert (
        inside.live_bytes.max()
        <= max(plan.footprint_bytes, plan.saved_bytes + plan.forward_scratch_bytes) * 1.01 + 8 * H.nbytes
    )


def test_the_report_shows_what_is_inside():
    graph = capture_gradient(
        lambda w, h: jnp.sum(lax.scan(lambda h, _: (rnn(w, h, 7), None), h, None, length=9)[0]), W, H
    )
    (loop,) = analyze_graph(graph).loops
    assert loop.title.startswith("scan of 9 steps: saves")
    assert "test_nested.py" in loop.source
    (inner,) = loop.bodies[0].loops
    assert "scan of 7 steps" in inner.title
    text = analyze_graph(graph)._repr_html_()
    assert text.count("<details>") == 2
    assert "over its steps" in text
    planned = plan_budget(graph, 0.4)
    assert loop_reports(planned.graph)[0].plan.saved_bytes < loop.plan.saved_bytes


def test_a_stack_of_layers_and_a_scan_over_them_have_one_verdict():
    """24 layers unrolled, and as one scan over stacked weights: the same peak at the same price, to 15 %.

    Temporaries are compared: the scan makes its gradients all at once, where the layers make theirs one by one; XLA
    gives both buffers of their own for the whole run. A step of the scan is counted as XLA allocates it, the layers by
    plain liveness.
    """
    planners, reports = [], []
    for is_scanned in (False, True):
        config = GPTConfig(
            n_layers=24, width=64, n_heads=2, n_tokens=64, n_batch=4, n_vocabulary=100, is_scanned=is_scanned
        )
        loss, args = example(config)
        with jax.numpy_rank_promotion("allow"):  # the model broadcasts positions and biases
            graph = capture_gradient(loss, *args)
        reports.append(analyze_graph(graph).compressibility)
        planners.append(BudgetPlanner.of(graph, "flops").for_temporaries())
    unrolled, scanned = planners
    assert reports[0].is_height_compressible == reports[1].is_height_compressible
    assert reports[0].fraction == pytest.approx(reports[1].fraction, abs=0.1)
    for share in (0.5, 0.35, 0.25, 0.15, 0.1):
        of_unrolled = unrolled.best(int(share * unrolled.most_bytes))
        of_scanned = scanned.best(int(1.15 * of_unrolled.peak_bytes))
        assert of_scanned.cost <= 1.01 * of_unrolled.cost
