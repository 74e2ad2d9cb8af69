"""What corresponds in a plan and in the program that carries it out: kernels and positions, tensors and buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from benchmarks.models import gpt
from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.xla.correspondence import kernels_of_positions, pair_buffers
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap

CONFIG = gpt.GPTConfig(n_layers=2, width=32, n_heads=2, n_tokens=16, n_vocabulary=64, n_batch=2)
LOSS, GPT_ARGS = gpt.example(CONFIG)
HLO_DTYPES = {"float32": "f32", "int32": "s32", "bool": "pred"}


def array(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def planned(fun, plan, *args):
    """Return a plan and the memory map of the gradient that carries it out."""
    return plan, tb.measure(tb.height_compressed_value_and_grad(fun, plan=plan), *args).memory_map


@pytest.fixture(scope="module")
def gpt_plans():
    with jax.numpy_rank_promotion("allow"):  # the GPT's own
        graph = tb.capture_gradient(LOSS, *GPT_ARGS)
        plans = {"save everything": tb.plan_save_everything(graph), "blocks": tb.plan_blocks(graph, 20)}
        return {name: planned(LOSS, plan, *GPT_ARGS) for name, plan in plans.items()}


@pytest.mark.parametrize("name", ["save everything", "blocks"])
def test_positions_find_their_kernels(gpt_plans, name):
    """Kernels of the backward phase are found after those of the forward phase, and most phases agree."""
    plan, memory_map = gpt_plans[name]
    edges, n_matched = kernels_of_positions(plan, memory_map)
    schedule = memory_map.schedule
    assert n_matched > 0.2 * sum(bool(p.source) for p in schedule)
    assert (edges[0], edges[-1]) == (0, len(plan.materialized.live_bytes))
    assert (np.diff(edges) >= 0).all()
    border = plan.materialized.n_forward_kernels
    wrong = [
        e
        for e, p in zip(edges, schedule, strict=False)
        if p.phase == "gradient" and p.opcode == "dot" and e < border - 5
    ]
    assert not wrong


def test_a_schedule_of_something_else_is_stretched_evenly(gpt_plans):
    plan, _ = gpt_plans["blocks"]
    other = tb.measure(lambda x: jnp.tanh(x @ x) @ x, array(64, 64)).memory_map
    edges, n_matched = kernels_of_positions(plan, other)
    assert n_matched == 0
    np.testing.assert_allclose(np.diff(edges), len(plan.materialized.live_bytes) / len(other.schedule))


@pytest.mark.parametrize("name", ["save everything", "blocks"])
def test_most_of_the_memory_finds_tensors_of_its_own_type(gpt_plans, name):
    """Types and dimensions play no part in the pairing, so that they can tell whether it is right."""
    plan, memory_map = gpt_plans[name]
    pairs, graph = pair_buffers(plan, memory_map), plan.graph
    weights = {True: 0, False: 0}
    n_same = []
    for i, b in enumerate(memory_map.buffers):
        if b.memory not in ("temp", "output"):
            assert pairs.value_of(i) is None
            continue
        value = pairs.value_of(i)
        weights[value is not None] += b.bytes * (b.freed_at - b.first_use)
        if value is not None and "the only one" in pairs.tell_buffer(i):
            dtype, _, dims = b.shape.rstrip("]").partition("[")
            assert dtype == HLO_DTYPES[graph.value_dtypes[value]]
            n_same.append(sorted(dims.split(",")) == sorted(map(str, graph.value_shapes[value])))
            assert i in pairs.buffers_of(value)
            assert b.instruction in pairs.tell_value(value)
    assert weights[True] > 0.8 * sum(weights.values())
    assert np.mean(n_same) > 0.6  # others are bitcast


@pytest.mark.parametrize("name", ["save everything", "blocks"])
def test_a_copy_goes_with_what_it_copies(gpt_plans, name):
    plan, memory_map = gpt_plans[name]
    pairs, buffers = pair_buffers(plan, memory_map), memory_map.buffers
    assert pairs.originals
    for copy, original in pairs.originals.items():
        assert pairs.value_of(copy) == pairs.value_of(original)
        assert buffers[copy].op_name == buffers[original].op_name
        assert buffers[original].first_use < buffers[copy].first_use  # it is there when it is copied
        assert pairs.tell_buffer(copy).startswith(f"a copy of {buffers[original].instruction}; ")
    copy, original = next((c, o) for c, o in pairs.originals.items() if pairs.value_of(o) is not None)
    assert {copy, original} <= set(pairs.buffers_of(pairs.value_of(copy)))
    assert f"copied into {buffers[copy].instruction}" in pairs.tell_value(pairs.value_of(copy))


def mlp(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return (x**2).sum()


def test_alike_tensors_are_paired_in_the_order_in_which_they_are_made():
    """What is made first is read last in the backward phase, which the pairing does not look at."""
    args = [array(48, 48)] * 5, array(80, 48)
    graph = tb.capture_gradient(mlp, *args)
    plan, memory_map = planned(mlp, tb.plan_save_everything(graph), *args)
    pairs = pair_buffers(plan, memory_map)
    tanhs = [int(graph.output_start[i]) for i in range(graph.n_forward) if graph.primitives[i] == "tanh"]
    found = [pairs.buffers_of(value) for value in tanhs]
    assert [len(buffers) for buffers in found] == [1] * 5
    last = [memory_map.buffers[buffers[0]].last_use for buffers in found]
    assert last == sorted(last, reverse=True)
    assert len(set(last)) == 5
    told = pairs.tell_value(tanhs[0])
    assert "one of 5 alike, paired in the order in which they are made (by phase, scope, source line, operation" in told


def test_what_is_recomputed_has_a_buffer_for_each_time():
    args = [array(48, 48)] * 6, array(80, 48)
    graph = tb.capture_gradient(mlp, *args)
    plan, memory_map = planned(mlp, tb.plan_blocks(graph, 4), *args)
    pairs = pair_buffers(plan, memory_map)
    steps = plan.timeline.steps.tolist()
    twice = [i for i in range(graph.n_forward) if graph.primitives[i] == "tanh" and steps.count(i) == 2]
    kinds = [{memory_map.buffers[i].kind for i in pairs.buffers_of(int(graph.output_start[node]))} for node in twice]
    assert kinds
    assert any("recomputed" in kind and len(kind) == 2 for kind in kinds), kinds


def test_what_has_no_match_says_why():
    def fun(w, x):
        y = jnp.exp(jnp.sin(x @ w) + 1.0)
        y = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), y, None, length=7)[0]
        return (y**2).sum()

    args = array(64, 64), array(96, 64)
    graph = tb.capture_gradient(fun, *args)
    plan, memory_map = planned(fun, tb.plan_save_everything(graph), *args)
    pairs = pair_buffers(plan, memory_map)
    (add,) = [i for i in range(graph.n_forward) if graph.primitives[i] == "add" and graph.node_bytes[i]]
    fused = int(graph.output_start[add])
    assert pairs.buffers_of(fused) == []
    assert pairs.tell_value(fused) == "none, as predicted: it is computed where it is read, or is never made"
    assert pairs.tell_value(0) == "none: an argument is the caller's"
    inside = [
        i for i, b in enumerate(memory_map.buffers) if b.loop and b.memory == "temp" and pairs.value_of(i) is None
    ]
    assert inside
    told = pairs.tell_buffer(inside[0])
    assert told.startswith(f"made inside {memory_map.buffers[inside[0]].loop}, of which the plan has no single tensors")


def test_the_program_of_another_function_has_no_tensor_of_the_plan(gpt_plans):
    plan, _ = gpt_plans["blocks"]
    other = tb.measure(lambda x: jnp.tanh(x @ x) @ x, array(64, 64)).memory_map
    pairs = pair_buffers(plan, other)
    assert pairs.groups == ()
    assert {pairs.value_of(i) for i in range(len(other.buffers))} == {None}
    value = int(plan.materialized.values.max())
    assert pairs.tell_value(value) == "none: XLA fused it away, or keeps it under the name of another equation"
    missing = MemoryMap("f", 1, 1, 1, missing="it rained")
    with pytest.raises(MeasureError, match="it rained"):
        pair_buffers(plan, missing)
