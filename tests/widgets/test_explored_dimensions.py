"""The explorer of a gradient with symbolic dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop
from tests.widgets.explored import ARGS, Page, loss
from tiny_backprop import (
    Plan,
    PlanError,
    plan_blocks,
    plan_budget,
    plan_height_compressed,
    plan_save_everything,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import PlanExplorer


def symbolic_args(names="batch", **kwargs):
    *sizes, width = jax.export.symbolic_shape(f"{names}, 4", **kwargs)
    return jnp.ones((4, 4)), jax.ShapeDtypeStruct((*sizes, width), jnp.float32)


def traced(*sizes):
    return tiny_backprop.capture_gradient(loss, ARGS[0], jax.ShapeDtypeStruct((*sizes, 4), jnp.float32))


def assert_all_show(ui, graph):
    """Assert that every view, and what is around them, is about a plan for this graph."""
    assert ui.plan.graph.fingerprint == ui.graph.fingerprint == graph.fingerprint
    assert ui.plan.graph.to_data() == graph.to_data()
    for view in (ui.frontier, ui.tensors, ui.dag):
        assert view.plan == ui.plan
    value_bytes = np.frombuffer(ui.frontier._value_bytes, "<f8")
    assert value_bytes.tolist() == graph.value_bytes.tolist()
    plain = plan_save_everything(graph)
    baseline = np.frombuffer(ui.frontier._baseline_bytes, "<f8")
    assert baseline.tolist() == plain.materialized.live_bytes.tolist()
    rows = Page(ui._price.value).rows
    assert [row[1] for row in rows[1:]] == [format_bytes(p.peak_bytes) for p in (ui.plan, plain)]
    assert f"[{graph.value_shapes[-1][0]}" in "".join(ui.frontier._strings)


def test_a_symbolic_dimension_has_a_slider_that_replans_before_the_assignment_returns():
    ui = PlanExplorer(loss, *symbolic_args())
    assert list(ui.dimensions) == ["batch"]
    assert ui.dimensions["batch"].value == 32
    for batch in (64, 7, 1, 32):
        ui.dimensions["batch"].value = batch
        assert_all_show(ui, traced(batch))
        assert ui.plan == plan_blocks(ui.graph, ui.block_size.value)
    assert f"capture_symbolic_gradient(loss, *args).at(batch={32})" in ui.code()
    assert not ui.errors


def test_sizes_hold_for_every_strategy():
    ui = PlanExplorer(loss, *symbolic_args())
    ui.levels.value = 2
    ui.dimensions["batch"].value = 128
    assert ui.plan == plan_height_compressed(traced(128), levels=2, block_size=ui.block_size.value)
    ui.budget.value = 0.5
    ui.dimensions["batch"].value = 256
    assert ui.plan == plan_budget(traced(256), 0.5)
    assert ui.budget.range_bytes[1] == plan_save_everything(traced(256)).peak_bytes
    assert not ui.errors


def test_a_budget_that_was_never_chosen_follows_the_sizes_and_one_that_was_stays():
    ui = PlanExplorer(loss, *symbolic_args())
    ui.dimensions["batch"].value = 64
    assert ui.budget.value == plan_save_everything(traced(64)).peak_bytes
    assert ui.strategy.value == "block size"
    ui.budget.value = ui.plan.peak_bytes
    before, plan = ui.budget.value, ui.plan
    ui.dimensions["batch"].value = 1024
    assert ui.budget.value == before
    assert ui.budget_error is not None  # what fitted at 64 does not at 1,024: told in place, and the last plan stays
    assert ui.plan == plan
    assert ui.graph.fingerprint == traced(64).fingerprint
    assert "batch=64" in ui.code()
    ui.strategy.value = "block size"
    assert_all_show(ui, traced(1024))


def test_boxes_of_the_graph_stay_in_place():
    ui = PlanExplorer(loss, *symbolic_args())
    ui.dag.expand_all()
    places, opened, texts = ui.dag._places, ui.dag.expanded, ui.dag._boxes
    ui.dimensions["batch"].value = 64
    assert (ui.dag._places, ui.dag.expanded) == (places, opened)
    assert ui.dag._boxes != texts  # they tell shapes and bytes
    ui.dag.value = ui.graph.n_forward
    chosen = ui.frontier.value
    ui.dimensions["batch"].value = 16
    assert ui.frontier.value == chosen is not None


def test_several_dimensions_and_their_constraints():
    def pooled(w, x):
        return loss(w, x.reshape(x.shape[0] // 8, 8, *x.shape[1:]).mean((1, 2)))

    args = symbolic_args("batch, tokens", constraints=["mod(batch, 8) == 0", "tokens <= 64"])
    ui = PlanExplorer(pooled, *args)
    batch, tokens = ui.dimensions["batch"], ui.dimensions["tokens"]
    assert all(n % 8 == 0 for n in batch._stops.tolist())
    assert {8, 16, 32, 1024} <= set(batch._stops.tolist())
    assert max(tokens._stops) == 64
    before = ui.plan
    for slider, size in ((batch, 12), (tokens, 65), (batch, 0), (batch, 2.5), (tokens, None)):
        with pytest.raises(tiny_backprop.CaptureError):
            slider.value = size
    assert ui.plan == before
    batch._field.value = 12  # as typed in the browser: told in place
    assert "mod(batch, 8)" in ui._guarded.message.value
    assert (batch.value, batch._field.value) == (32, 32)
    tokens.value = 3
    assert ui.graph.value_shapes[1] == (32, 3, 4)
    assert not ui.errors


def test_range_of_a_dimension_can_be_set():
    ui = PlanExplorer(loss, *symbolic_args())
    slider = ui.dimensions["batch"]
    assert slider.range == (1, 4096)
    slider.range = (100, 100_000)
    assert (slider._stops[0], slider._stops[-1]) == (100, 100_000)
    assert slider.value == 32  # it stays, wherever the slider begins
    slider._slider.index = len(slider._stops) - 1
    assert ui.graph.fingerprint == traced(100_000).fingerprint
    for bad in ((0, 4), (5, 4), (1, 2.5)):
        with pytest.raises(PlanError):
            slider.range = bad
    assert slider.range == (100, 100_000)


def test_verify_trade_off_and_export_are_of_the_current_sizes(tmp_path):
    ui = PlanExplorer(loss, *symbolic_args())
    assert ui.trade_off(3).save_everything.peak_bytes == plan_save_everything(traced(32)).peak_bytes
    ui.dimensions["batch"].value = 64
    assert ui.trade_off_view is None  # that of 32 is none of 64
    assert ui.verify().peak_bytes > 0
    assert ui.measurement.argument_bytes == 4 * (16 + 64 * 4)
    ui.export(tmp_path)
    saved = Plan.from_json((tmp_path / "plan.json").read_text(), traced(64))
    assert saved == ui.plan
    ui.dimensions["batch"].value = 128
    assert ui.measurement is None


def test_a_function_that_symbolic_dimensions_do_not_fit_raises():
    def branches(w, x):
        return loss(w, x) if x.shape[0] > 16 else loss(w, 2 * x)

    with pytest.raises(tiny_backprop.CaptureError, match="wants a size as a number"):
        PlanExplorer(branches, *symbolic_args())


def test_a_report_tells_the_sizes_of_symbolic_dimensions(tmp_path):
    ui = PlanExplorer(loss, *symbolic_args())
    ui.dimensions["batch"].value = 48
    assert not ui.errors
    ui.export(tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert f"<p>At batch = 48: {ui.graph.n_forward:,} forward and " in report
    assert Plan.from_json((tmp_path / "plan.json").read_text(), traced(48)) == ui.plan
