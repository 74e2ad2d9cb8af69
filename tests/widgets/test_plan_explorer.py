"""The explorer without a browser: what plans, what it shows, what it refuses."""

import base64
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop
from tests.widgets.explored import ARGS, CHAIN, GRAPH, Page, loss
from tiny_backprop import (
    CostModel,
    Graph,
    PlanError,
    TinyBackpropError,
    capture_graph_jaxpr,
    plan_blocks,
    plan_budget,
    plan_height_compressed,
    plan_save_everything,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import PlanExplorer
from tiny_backprop_widgets.content.tensors import value_type
from tiny_backprop_widgets.explorer import plan_explorer
from tiny_backprop_widgets.views import stand_in


def test_assigning_a_block_size_replans_before_it_returns():
    ui = PlanExplorer(GRAPH)
    for size in (1, 64, 37, 100, np.int64(5)):
        ui.block_size.value = size
        assert ui.plan == plan_blocks(GRAPH, int(size))
        assert ui.plan.meta["block_size"] == size
    ui.block_size.value = 1000
    assert ui.plan.meta["n_blocks"] == 1
    assert ui.errors == []


def test_levels_choose_the_planner():
    ui = PlanExplorer(GRAPH)
    ui.block_size.value = 4
    assert ui.plan == plan_blocks(GRAPH, 4)
    ui.levels.value = 3
    assert ui.plan == plan_height_compressed(GRAPH, levels=3, block_size=4)
    assert ui.plan != plan_blocks(GRAPH, 4)


def test_the_first_plan_is_the_planners_own_choice():
    assert PlanExplorer(GRAPH).plan == plan_blocks(GRAPH)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", None, True])
def test_bad_block_sizes_and_levels_are_refused_and_change_nothing(value):
    ui = PlanExplorer(GRAPH)
    before = ui.plan
    with pytest.raises(PlanError, match=f"block_size must be a whole number of at least 1; found {value!r}"):
        ui.block_size.value = value
    with pytest.raises(PlanError, match=f"levels must be a whole number of at least 1; found {value!r}"):
        ui.levels.value = value
    assert ui.plan is before


def test_too_many_levels_are_refused_not_clipped():
    ui = PlanExplorer(GRAPH)
    with pytest.raises(PlanError, match="levels goes from 1 to 8 in the explorer; found 9"):
        ui.levels.value = 9
    assert ui.levels.value == 1


def test_the_slider_has_whole_stops_from_one_block_per_node_to_one_block():
    slider = PlanExplorer(GRAPH).block_size
    stops = slider._stops
    assert (stops[0], stops[-1]) == (1, 100)
    assert {1, 2, 4, 8, 16, 32, 64} <= set(stops.tolist())
    assert np.all(np.diff(stops) > 0)
    assert 8 <= stops[len(stops) // 2] <= 16  # the middle of a logarithmic slider over 1 to 100
    slider._slider.index = 0  # what a drag to the left end sends
    assert slider.value == slider._field.value == 1
    slider._field.value = 77  # what typing sends
    assert slider.value == 77
    assert abs(slider._slider.value - 77) == min(abs(stops - 77))


def test_the_price_stands_beside_that_of_save_everything():
    ui = PlanExplorer(GRAPH)
    ui.block_size.value = 50
    head, own, plain = Page(ui._price.value).rows
    assert head[0] == "predicted"
    assert own[:2] == ["this plan", format_bytes(ui.plan.peak_bytes)]
    assert own[3] == format_bytes(ui.plan.saved_bytes)
    assert own[4].startswith(f"+{100 * ui.plan.recompute_flops / GRAPH.flops.sum():.1f}%")
    assert plain[:3] == ["save everything", format_bytes(plan_save_everything(GRAPH).peak_bytes), "1.00 ×"]


def test_step_times_are_in_seconds_where_the_machine_was_calibrated(monkeypatch):
    models = {"not calibrated": None, "s)": CostModel(flops_per_second=1e9, bytes_per_second=1e9)}
    for text, model in models.items():
        monkeypatch.setattr(plan_explorer, "read_calibration", lambda model=model: model)
        ui = PlanExplorer(GRAPH)
        assert ui.cost_model is model
        head, own, plain = Page(ui._price.value).rows
        place = head.index("step time")
        used = model or CostModel()
        ratio = ui.plan.step_seconds(used) / plan_save_everything(GRAPH).step_seconds(used)
        assert own[place].startswith(f"{ratio:.2f} × (")
        assert text in own[place]
        assert plain[place].startswith("1.00 ×")
        assert text in ui._repr_mimebundle_()["text/html"]


def test_a_damaged_calibration_is_told_of_and_the_explorer_goes_on(monkeypatch):
    def fail():
        raise tiny_backprop.MeasureError("calibration.json is no calibration that this version wrote")

    monkeypatch.setattr(plan_explorer, "read_calibration", fail)
    ui = PlanExplorer(GRAPH)
    assert "is no calibration" in str(ui.errors[-1])
    assert "not calibrated" in ui._price.value


def test_all_views_follow_the_plan():
    ui = PlanExplorer(GRAPH)
    for size in (50, 3):
        ui.block_size.value = size
        assert ui.frontier.plan == ui.dag.plan == ui.tensors.plan == ui.plan
        assert ui.frontier._facts["peak_bytes"] == ui.plan.peak_bytes
        assert format_bytes(ui.plan.peak_bytes) in ui.tensors._rows["caption"]


def test_assigning_to_a_slider_chooses_what_plans():
    ui = PlanExplorer(CHAIN)
    ui.strategy.value = "budget"
    assert ui.plan == plan_save_everything(CHAIN)  # the budget is at its right end
    assert [w.layout.display for w in (ui.block_size, ui.levels, ui.budget)] == ["none", "none", None]
    ui.block_size.value = 7
    assert ui.strategy.value == "block size"
    assert ui.plan == plan_blocks(CHAIN, 7)
    assert [w.layout.display for w in (ui.block_size, ui.levels, ui.budget)] == [None, "none", "none"]
    ui.budget.value = 0.5
    ui.levels.value = 2
    assert ui.strategy.value == "height compression"
    assert ui.plan == plan_height_compressed(CHAIN, levels=2, block_size=7)
    assert [w.layout.display for w in (ui.block_size, ui.levels, ui.budget)] == [None, None, "none"]
    ui.block_size.value = 9
    assert ui.plan == plan_height_compressed(CHAIN, levels=2, block_size=9)
    ui.strategy.value = "block size"
    assert ui.plan == plan_blocks(CHAIN, 9)


def test_explorers_do_not_hide_each_others_sliders():
    first, second = PlanExplorer(CHAIN), PlanExplorer(CHAIN)
    first.budget.value = 0.5
    assert second.block_size.layout.display is None


@pytest.mark.parametrize("levels", [1, 2])
def test_code_makes_the_plan(levels):
    ui = PlanExplorer(loss, *ARGS, argnums=(0, 1), scale=2.0)
    ui.block_size.value, ui.levels.value = 3, levels
    names = {"loss": loss, "args": ARGS, "kwargs": {"scale": 2.0}}
    exec(ui.code(), names)
    assert names["plan"] == ui.plan
    value, gradients = names["value_and_grad"](*ARGS, scale=2.0)
    expected = jax.value_and_grad(loss, argnums=(0, 1))(*ARGS, scale=2.0)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    assert [g.shape for g in gradients] == [g.shape for g in expected[1]]
    ui = PlanExplorer(GRAPH)
    ui.block_size.value, ui.levels.value = 3, levels
    names = {"graph": GRAPH}
    exec(ui.code(), names)
    assert names["plan"] == ui.plan


def test_code_makes_the_plan_of_a_budget():
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "20 MiB"
    names = {"graph": CHAIN}
    exec(ui.code(), names)
    assert names["plan"] == ui.plan == plan_budget(CHAIN, "20 MiB")


def test_a_callback_that_raises_is_shown_and_recorded(monkeypatch):
    ui = PlanExplorer(GRAPH)
    before, picture = ui.plan, ui.frontier._lives
    with monkeypatch.context() as patch:
        patch.setattr(plan_explorer, "plan_blocks", lambda *_, **__: 1 / 0)
        ui.block_size.value = 2
    assert [type(e) for e in ui.errors] == [ZeroDivisionError]
    assert "ZeroDivisionError: division by zero" in ui._guarded.message.value
    assert ui.plan is before
    assert ui.frontier._lives == picture
    ui.block_size.value = 4
    assert ui._guarded.message.value == ""
    assert len(ui.errors) == 1


def test_mime_bundle_has_fallbacks():
    ui = PlanExplorer(GRAPH)
    bundle = ui._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("PlanExplorer(Plan(strategy='blocks'")
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    rows = Page(bundle["text/html"]).rows
    assert ["this plan", format_bytes(ui.plan.peak_bytes)] == rows[1][:2]


def test_a_cell_gets_the_live_view_and_what_stands_in_for_it(monkeypatch):
    ui, shown = PlanExplorer(GRAPH), []
    monkeypatch.setattr(stand_in, "display", lambda data, raw: shown.append(data))
    ui._ipython_display_()
    live, rest = shown
    assert set(live) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert set(rest) == {"image/png", "text/html"}
    (name,) = set(re.findall(r"tiny-backprop-stand-in-\w+", rest["text/html"]))
    assert f".{name}, .jp-OutputArea-child:has(.{name}) {{ display: none }}" in ui.children[0].value


def test_a_picture_that_cannot_be_drawn_says_so_and_leaves_the_live_view(monkeypatch):
    ui = PlanExplorer(GRAPH)
    monkeypatch.setattr(plan_explorer, "plot_frontier", lambda *_, **__: 1 / 0)
    bundle = ui._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "ZeroDivisionError" in bundle["text/html"]


def test_what_cannot_be_explored_is_refused():
    cases = [
        (lambda: PlanExplorer(capture_graph_jaxpr(loss, example_inputs=ARGS)), "a plan needs the backward phase"),
        (lambda: PlanExplorer(3), "needs a gradient graph, or a function and its example arguments; found int"),
        (lambda: PlanExplorer(GRAPH, 3), r"PlanExplorer\(graph\) takes no further arguments; found 1 positional"),
        (lambda: PlanExplorer(loss, *ARGS, argnums=5), "argnums=5 was asked for"),
    ]
    for make, words in cases:
        with pytest.raises(TinyBackpropError, match=words):
            make()


def test_a_gradient_without_forward_nodes_can_be_explored():
    graph = Graph.from_nodes([{"name": "d", "bytes": 8, "is_backward": True}], outputs=["d"])
    ui = PlanExplorer(graph)
    ui.block_size.value = 3
    assert ui.plan.peak_bytes == 8
    assert ui.errors == []


def test_reachable_from_the_core():
    assert tiny_backprop.PlanExplorer is PlanExplorer
    ui = tiny_backprop.explore(loss, *ARGS, argnums=1)
    assert ui.graph.fingerprint == tiny_backprop.capture_gradient(loss, *ARGS, argnums=1).fingerprint


def test_a_program_with_loops_is_explored_by_every_way_and_shown_from_inside(tmp_path):
    def scanned(w, h):
        h, means = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), h.mean()), h, None, length=50)
        return jnp.sum(h**2) + means.sum()

    args = jnp.eye(32), jnp.ones((64, 32))
    ui = PlanExplorer(scanned, *args)
    seen = set()
    for move in (
        lambda: setattr(ui.block_size, "value", 5),
        lambda: setattr(ui.levels, "value", 3),
        lambda: setattr(ui.budget, "value", 0.3),
    ):
        move()
        assert not ui.errors
        assert ui.plan.nested[0].n_again > 0
        assert "scan of 50 steps" in ui._loops.value
        seen.add(ui._loops.value)
    assert len(seen) == 3
    measurement = ui.verify()
    assert measurement.peak_bytes < 1.3 * ui.plan.peak_bytes
    assert any("trip_count" in loop for loop in ui.memory_map_view._facts["loops"])
    assert {p.name for p in ui.export(tmp_path)} >= {"plan.json", "report.html", "frontier.svg"}
    assert "scan of 50 steps" in (tmp_path / "report.html").read_text()
    sums = [v for v in range(ui.graph.n_values) if "scan" in value_type(ui.graph, v)]
    assert len(sums) == 3  # what it saves, and scratch space each way: of these XLA has many buffers
    assert {ui._linked.link.pairs.tell_value(v) for v in sums if not ui._linked.link.buffers_of(v)} == {
        "none of its own: it stands for what the scan keeps, of which XLA has several buffers"
    }
    exec(ui.code(), scope := {"scanned": scanned, "args": args})
    assert scope["plan"] == ui.plan
