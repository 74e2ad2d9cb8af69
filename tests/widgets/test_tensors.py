"""What is told of a plan's tensors adds up to what the plan predicts."""

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tests.widgets.viewed import GRAPH, PLAN, evil_graph
from tiny_backprop import (
    Op,
    capture_gradient,
    plan_blocks,
    plan_height_compressed,
    plan_save_everything,
)
from tiny_backprop.display import plain_scope
from tiny_backprop_widgets.content.tensor_text import source_html, tensor_html
from tiny_backprop_widgets.content.tensors import (
    FATES,
    GRADIENT,
    RECOMPUTED,
    SAVED,
    AtPeak,
    alive_at_peak,
    fates,
    lives,
)


@hypothesis.given(training_graphs(), st.integers(1, 6), st.integers(1, 3))
def test_the_lives_of_values_add_up_to_the_live_bytes_of_every_step(graph, size, levels):
    plan = plan_height_compressed(graph, levels, size)
    table, n_bytes = lives(plan)
    value, first, last = table.T
    assert n_bytes.tolist() == graph.value_bytes[value].tolist()
    counted = [n_bytes[(first <= s) & (s <= last)].sum() for s in range(len(plan.timeline.steps))]
    assert counted == plan.timeline.live_bytes.tolist()


@hypothesis.given(training_graphs(), st.integers(1, 6))
def test_what_is_alive_at_the_peak_adds_up(graph, size):
    plan = plan_blocks(graph, size)
    at_peak = AtPeak.of(plan)
    assert (at_peak.n_bytes.sum(), at_peak.to_come_bytes) == (plan.peak_bytes, 0)
    assert np.all(np.diff(at_peak.n_bytes) <= 0)


LONG = chain(100, n_bytes=2**20)
PLANS = [plan_blocks(LONG, 7), plan_height_compressed(LONG, 3, 2), plan_save_everything(LONG)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.meta["strategy"])
def test_the_table_of_what_is_alive_at_the_peak_adds_up_to_the_peak(plan):
    table = alive_at_peak(plan)
    assert table.bytes.sum() == plan.peak_bytes - AtPeak.of(plan).to_come_bytes
    assert table.value[~table.is_copy].is_unique


@pytest.mark.parametrize("donate_argnums", [(), 0])
@pytest.mark.parametrize("planner", [plan_blocks, plan_save_everything])
def test_buffers_and_outputs_to_come_add_up_to_the_live_bytes_of_every_kernel(planner, donate_argnums):
    """Also where an output is written over a temporary that was lent its memory."""

    def loss(ws, x):
        for w in ws:
            x = x + jnp.tanh(x @ w) @ w.T
        return jnp.sum(x**2)

    shapes = [jax.ShapeDtypeStruct((32, 64), "float32")] * 8, jax.ShapeDtypeStruct((128, 32), "float32")
    plan = planner(capture_gradient(loss, *shapes, donate_argnums=donate_argnums))
    assert plan.materialized.is_in_argument.any() == bool(plan.graph.donated)
    assert_adds_up(plan)


@pytest.mark.parametrize("planner", [plan_blocks, plan_save_everything])
def test_buffers_on_the_way_to_a_value_count_by_their_own_bytes(planner):
    """The gradient of max-pooling has several, and dots in bfloat16 copies in float32."""

    def loss(w, x):
        x = jax.lax.reduce_window(x * 2, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        x = x.reshape(x.shape[0], -1).astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    shapes = jax.ShapeDtypeStruct((32 * 32 * 8, 64), "bfloat16"), jax.ShapeDtypeStruct((4, 64, 64, 8), "float32")
    plan = planner(capture_gradient(loss, *shapes, argnums=(0, 1)))
    table, n_bytes = lives(plan)
    assert (n_bytes != plan.graph.value_bytes[table[:, 0]]).any()
    assert_adds_up(plan)


def assert_adds_up(plan):
    m, graph = plan.materialized, plan.graph
    table, n_bytes = lives(plan)
    _, first, last = table.T
    is_output, is_lent = m.is_output & ~m.is_in_argument, m.is_lent & ~m.is_in_argument
    made = [m.n_bytes[is_output & (m.first <= k)].sum() for k in range(len(m.live_bytes))]
    counted = [n_bytes[(first <= k) & (k <= last)].sum() for k in range(len(m.live_bytes))]
    lent = [m.n_bytes[is_lent & (m.first <= k) & (m.last >= k)].sum() for k in range(len(m.live_bytes))]
    to_come = graph.new_output_bytes - np.array(made) - lent
    assert np.all(to_come >= 0)
    predicates = [((m.values < 0) & (m.first <= k) & (m.last >= k)).sum() for k in range(len(m.live_bytes))]
    assert (np.array(counted) + to_come + predicates).tolist() == m.live_bytes.tolist()
    at_peak = AtPeak.of(plan)
    assert at_peak.to_come_bytes == to_come[m.peak_kernel] + predicates[m.peak_kernel]


def test_fates_are_what_the_actions_do():
    fate = fates(PLAN)
    saved = {a.target for a in PLAN.actions if a.op == Op.SAVE}
    again = {a.target for a in PLAN.actions if a.op == Op.RECOMPUTE}
    for v in range(GRAPH.n_inputs, GRAPH.n_values):
        node = int(GRAPH.value_node[v])
        if node >= GRAPH.n_forward:
            assert fate[v] == GRADIENT
        elif v in saved:
            assert fate[v] == SAVED
        elif node in again:
            assert fate[v] == RECOMPUTED
    assert {SAVED, RECOMPUTED, GRADIENT} <= set(fate.tolist())


@pytest.mark.parametrize(
    ("scope", "plain"),
    [
        ("jvp(layer0)/attention", "layer0/attention"),
        ("transpose(jvp(layer0))/attention", "layer0/attention"),
        ("jvp()", ""),
        ("transpose(jvp())", ""),
        ("jvp(a)/jvp(b(c))", "a/b(c)"),
        ("jvp(unclosed", "jvp(unclosed"),
        ("layer", "layer"),
    ],
)
def test_scopes_lose_what_differentiation_adds(scope, plain):
    assert plain_scope(scope) == plain


def test_a_tensor_is_described_with_its_lives_and_escaped():
    plan = plan_blocks(evil_graph(), 1)
    text = tensor_html(plan, 0)
    assert "<img" not in text
    assert "&lt;img" in text
    value = int(PLAN.saved[0])
    spans = [f"{a} to {b}" for v, a, b in lives(PLAN)[0].tolist() if v == value]
    assert ", ".join(spans) in tensor_html(PLAN, value)
    assert FATES[SAVED] in tensor_html(PLAN, value)
    assert "input" in tensor_html(PLAN, 0)


def test_the_lines_around_a_source_line_are_shown(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("".join(f"line{i} = '<b>'\n" for i in range(1, 21)))
    text = source_html(f"{path}:9 (f)")
    assert re.findall(r"line(\d+)", text) == [str(i) for i in range(6, 13)]
    assert re.search(r"<mark>    9 line9 = &#x27;&lt;b&gt;&#x27;</mark>", text)
    assert source_html("") == source_html("nowhere.py:3 (f)") == source_html("no line") == ""
