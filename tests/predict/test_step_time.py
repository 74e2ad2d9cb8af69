"""Predicted step times: what kernels do against XLA's own cost analysis, and what a cost model makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import truth
from benchmarks.models import small
from tests.graphs import chain
from tiny_backprop import (
    CostModel,
    Graph,
    LoopChoice,
    Op,
    Plan,
    PlanError,
    capture_gradient,
    compare,
    jit,
    plan_blocks,
    plan_budget,
    plan_save_everything,
)
from tiny_backprop.predict import materialized
from tiny_backprop.predict.nested import nested_plans
from tiny_backprop.schedule.cost import CLASSES, PRESETS, node_classes, node_costs

FREE = CostModel(flops_per_second=1e300, bytes_per_second=1e300)
"""A machine on which nothing takes time."""
X = jax.ShapeDtypeStruct((128, 256), "float32")


def only(**fields):
    return dataclasses.replace(FREE, **fields)


def classes_of(fun, *args):
    graph = capture_gradient(fun, *args)
    return {p: CLASSES[c] for p, c in zip(graph.primitives, node_classes(graph).tolist(), strict=True)}


def mlp(w, x):
    for _ in range(4):
        x = x + jnp.tanh(x @ w) @ w.T
    return jnp.mean(x**2)


W = jax.ShapeDtypeStruct((256, 256), "float32")


@pytest.mark.parametrize("name", ["mixer", "moe", "vit"])
def test_kernels_do_what_xla_counts_in_the_compiled_program(name):
    """Fused instructions are computed again in each kernel, and copies in other orders read memory, as XLA has it."""
    loss, args = truth.MODELS[name]()
    found = {}
    for case in truth.cases(loss, args):
        found[case.name] = case
        if len(found) == 2:
            break
    for case in found.values():
        counted = jit(case.gradient).lower(*args).compile().cost_analysis()
        work = case.plan.materialized.program.work
        assert work.flops.sum() == pytest.approx(counted["flops"], rel=0.02), case.name
        assert work.bytes_moved.sum() == pytest.approx(counted["bytes accessed"], rel=0.12), case.name
        assert len(work.nodes) == len(case.plan.materialized.live_bytes)


def test_what_was_fused_for_the_memory_is_not_fused_again_for_the_time(monkeypatch):
    fused = []
    fuse = materialized.fuse
    monkeypatch.setattr(materialized, "fuse", lambda i, rules: fused.append(i) or fuse(i, rules))
    graph = capture_gradient(mlp, *(jax.ShapeDtypeStruct((64, 64), "float32"),) * 2)
    plans = [plan_save_everything(graph), *(plan_blocks(graph, size) for size in (2, 3, 4, 5))]
    assert all(plan.peak_bytes > 0 for plan in plans)
    assert len(fused) == len(plans)
    assert plans[-1].step_seconds() > 0
    assert len(fused) == len(plans)
    assert len(graph.memo["latest fusions"]) == 3  # of five: one has gone for a later one, one has served
    assert plans[0].step_seconds() > 0
    assert len(fused) == len(plans) + 1


def test_each_kernel_takes_time_to_start():
    plan = plan_blocks(capture_gradient(mlp, W, X), 4)
    n_kernels = len(plan.materialized.live_bytes)
    assert plan.step_seconds(only(seconds_per_kernel=1.0)) == pytest.approx(n_kernels)
    assert plan.step_seconds(FREE) < 1e-200


def test_what_runs_again_takes_time_again():
    graph = capture_gradient(mlp, W, X)
    model = only(by_class={"matmul": (1e9, 1e300)})
    plain, planned = plan_save_everything(graph), plan_blocks(graph, 8)
    again = planned.timeline.steps[planned.timeline.n_forward_steps :].tolist()
    n_again = sum(graph.primitives[i] == "dot_general" for i in again if i < graph.n_forward)
    assert n_again >= 3
    dot_seconds = 2 * 128 * 256 * 256 / 1e9
    n_dots = graph.primitives.count("dot_general")
    assert plain.step_seconds(model) == pytest.approx(n_dots * dot_seconds)
    assert planned.step_seconds(model) == pytest.approx((n_dots + n_again) * dot_seconds)


def test_what_is_fused_into_a_slow_kernel_is_slow_but_for_contractions():
    """A copy into another order computes x * x + 1 for each element as slowly as it goes through memory."""

    def fused(x):
        return jnp.sum(((x * x + 1) * 3).T @ x)

    plan = plan_save_everything(capture_gradient(fused, X))
    fast = only(by_class={"matmul": (1e9, 1e300)})
    slow = only(by_class={"matmul": (1e9, 1e300), "transpose": (1e9, 1e300)})
    dots = plan.step_seconds(fast)
    is_dot = np.array(plan.graph.primitives) == "dot_general"
    assert dots == pytest.approx(plan.graph.flops[is_dot].sum() / 1e9)
    work = plan.materialized.program.work
    in_copies = work.flops[work.classes == CLASSES.index("transpose")].sum()
    assert in_copies > 0
    assert plan.step_seconds(slow) == pytest.approx(dots + in_copies / 1e9)


def test_large_memory_is_mapped_anew_in_every_run():
    plan = plan_save_everything(capture_gradient(mlp, W, X))
    temp_bytes = plan.peak_bytes - plan.graph.output_bytes
    model = only(seconds_per_fresh_byte=1.0, least_fresh_bytes=temp_bytes)
    assert temp_bytes > 256 * 256 * 4
    assert plan.step_seconds(model) == temp_bytes
    assert plan.step_seconds(only(seconds_per_fresh_byte=1.0)) == plan.peak_bytes
    assert plan.step_seconds(dataclasses.replace(model, least_fresh_bytes=temp_bytes + 1)) < 1e-200


@pytest.mark.parametrize("choice", [LoopChoice(block_size=1), LoopChoice(block_size=8), LoopChoice(levels=2)])
def test_steps_of_loops_take_time_as_often_as_they_run(choice):
    def loss(w, h):
        return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=64)[0])

    plan = plan_blocks(capture_gradient(loss, W, X), 100, loops=choice)
    (nested,) = nested_plans(plan.graph)
    dot_seconds = 2 * 128 * 256 * 256 / 1e9
    n_again = nested.n_again
    assert n_again >= 56
    assert plan.step_seconds(only(by_class={"matmul": (1e9, 1e300)})) == pytest.approx((3 * 64 + n_again) * dot_seconds)
    n_bodies = (
        2 * 64 + n_again - (64 if choice.block_size == 1 else 0)
    )  # a step that runs again in the body is no other
    assert plan.step_seconds(only(seconds_per_loop_step=1.0)) == pytest.approx(n_bodies)


def test_a_graph_made_by_hand_is_priced_node_by_node():
    plan = plan_blocks(chain(20), 4)
    model = CostModel(flops_per_second=4.0, bytes_per_second=1.0)
    assert plan.step_seconds(model) == node_costs(plan.graph, model)[plan.timeline.steps].sum()


def test_planned_loops_and_branches_are_priced():
    for loss, args in (small.lstm(), small.neural_ode()):
        graph = capture_gradient(loss, *args)
        plain, planned = plan_save_everything(graph), plan_blocks(graph)
        assert 1 < planned.step_seconds() / plain.step_seconds() < 2


def test_compare_predicts_step_times_where_a_cost_model_says_how():
    table = compare(mlp, W, X, stock_policies=["dots_saveable"], cost_model=CostModel())
    plans = table.predicted_step_seconds[:-1]
    assert (plans > 0).all()
    assert np.isnan(table.predicted_step_seconds.iloc[-1])
    assert plans.iloc[0] == plan_save_everything(capture_gradient(mlp, W, X)).step_seconds()


# ---- classes and cost models ----


@pytest.mark.parametrize("name", ["gpt", "moe", "lstm", "densenet"])
def test_primitives_of_real_models_have_a_class(name):
    loss, args = truth.MODELS[name]()
    with jax.numpy_rank_promotion("allow"):
        graph = capture_gradient(loss, *args)
    other = {p for p, c in zip(graph.primitives, node_classes(graph), strict=True) if CLASSES[c] == "other"}
    assert other <= {"nested", "nested_gradient", "stop_gradient", "sort", "top_k", "scan"}


def test_the_gradient_by_a_kernel_is_a_class_of_its_own():
    def loss(kernel, x):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.sin(y))

    kernel, x = jax.ShapeDtypeStruct((3, 3, 8, 16), "float32"), jax.ShapeDtypeStruct((2, 12, 12, 8), "float32")
    graph = capture_gradient(loss, kernel, x, argnums=(0, 1))
    classes = [CLASSES[c] for c in node_classes(graph).tolist()]
    found = [
        (graph.value_shapes[graph.output_start[i]], classes[i])
        for i, p in enumerate(graph.primitives)
        if p == "conv_general_dilated"
    ]
    assert dict(found) == {
        (2, 12, 12, 16): "convolution",
        (3, 3, 8, 16): "kernel_gradient",
        (2, 12, 12, 8): "convolution",
    }


def test_a_class_that_is_slow_is_not_run_again():
    """One of two values must go, and both have as many FLOPs: that of the slower class is kept."""
    nodes = [
        dict(name="sine", primitive="sin", bytes=10, flops=1e9, reads=["x"]),
        dict(name="product", primitive="dot_general", bytes=10, flops=1e9, reads=["x"]),
        dict(name="sums", bytes=1, reads=["sine", "product"]),
        dict(name="wide", bytes=10, reads=["sums"]),
        dict(name="end", bytes=1, reads=["wide"]),
        dict(name="grad", bytes=1, reads=["end", "sine", "product"], is_backward=True),
    ]
    graph = Graph.from_nodes(nodes, inputs={"x": 1}, outputs=["grad"])
    for slow, again in (("special", "dot_general"), ("matmul", "sin")):
        model = CostModel(by_class={slow: (1e9, 1e10)})
        plan = plan_budget(graph, 22, cost=model)
        assert [graph.primitives[i] for i in plan.targets[plan.ops == Op.RECOMPUTE]] == [again]
        assert plan.meta["cost"]["by_class"] == {slow: (1e9, 1e10)}
        assert Plan.from_json(plan.to_json(), graph) == plan
        assert plan.certificate.recompute_cost == 1e9 / 1e11


def test_presets_are_cost_models_by_name():
    assert CostModel.preset("TPU_v5p") is PRESETS["tpu v5p"]
    plan = plan_blocks(capture_gradient(mlp, W, X), 4)
    assert plan.step_seconds("h100") == plan.step_seconds(PRESETS["h100"])
    assert plan.step_seconds("h100") < plan.step_seconds("tpu v5e") < plan.step_seconds()
    with pytest.raises(PlanError, match="'h300' is no preset; there are a100, h100, h200, tpu v4, tpu v5e, tpu v5p"):
        CostModel.preset("h300")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(flops_per_second=0), "flops_per_second must be a number above 0; found 0"),
        (dict(bytes_per_second=True), "bytes_per_second must be a number above 0; found True"),
        (dict(seconds_per_kernel=-1), "seconds_per_kernel must be a number, 0 or more; found -1"),
        (dict(by_class={"dots": (1, 1)}), "'dots' is no class of primitives; there are matmul, convolution"),
        (dict(by_class={"matmul": 3}), r"by_class\['matmul'\] must be \(FLOPs per second, bytes per second\); found 3"),
        (dict(by_class={"matmul": (1, 0)}), "bytes per second of 'matmul' must be a number above 0; found 0"),
        (dict(by_class=[1]), r"by_class must map classes to pairs of speeds; found \[1\]"),
    ],
)
def test_a_cost_model_says_what_is_wrong_with_it(fields, message):
    with pytest.raises(PlanError, match=message):
        CostModel(**fields)


def test_seconds_cannot_be_told_in_flops():
    with pytest.raises(PlanError, match=r"cost must be 'seconds', 'flops', a preset .* found 'flops'"):
        plan_blocks(chain(5), 2).step_seconds("flops")
