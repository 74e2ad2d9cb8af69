"""The explorer without a browser: what is assigned from Python, what it shows, what it writes."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shutil
import threading
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from graphs import chain

import tiny_backprop
from tiny_backprop import (
    BudgetError,
    CostModel,
    Graph,
    Plan,
    PlanError,
    TinyBackpropError,
    capture_gradient,
    capture_graph_jaxpr,
    pareto,
    plan_blocks,
    plan_budget,
    plan_height_compressed,
    plan_save_everything,
)
from tiny_backprop.plan.budget import ladder_of
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import DisplayError, ParetoView, PlanExplorer, explorer, write_report
from tiny_backprop_widgets.panels import cells, guard, trade_off_panel, verify_panel
from tiny_backprop_widgets.views import stand_in
from tiny_backprop_widgets.content.tensors import AtPeak, alive_at_peak, value_type

GRAPH = chain(100, n_bytes=2**20)


def loss(w, x, scale=1.0):
    for _ in range(8):
        x = jnp.tanh(x @ w) * scale
    return x.sum()


ARGS = (jnp.ones((4, 4)), jnp.ones((2, 4)))


class Page(html.parser.HTMLParser):
    """The cells of every table of a page, the tags it uses and the addresses it names."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.links, self._in_cell = [], set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def data_of(report):
    """Return what the scripts of a report have to show, without what is in it as bytes."""
    text = re.search(r'id="tb-data">([^<]*)</script>', report)[1]
    whole = zlib.decompress(base64.b64decode(text))
    return json.loads(whole[4 : 4 + int.from_bytes(whole[:4], "little")])


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
        monkeypatch.setattr(explorer, "read_calibration", lambda model=model: model)
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

    monkeypatch.setattr(explorer, "read_calibration", fail)
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


# ---- byte budgets ----


CHAIN = chain(40, n_bytes=2**20)


@pytest.mark.parametrize("budget", ["20 MiB", 0.3, 16 * 2**20, np.int64(12 * 2**20)])
def test_assigning_a_budget_replans_before_it_returns(budget):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = budget
    assert ui.strategy.value == "budget"
    assert ui.plan == plan_budget(CHAIN, budget)
    assert ui.plan.meta["budget"] == budget
    assert ui.plan.peak_bytes <= ui.budget.bytes == ui.plan.meta["budget_bytes"]
    assert ui.errors == []
    assert ui.budget_error is None


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


def test_the_slider_goes_from_the_smallest_peak_to_save_everything():
    ui = PlanExplorer(CHAIN)
    ui.strategy.value = "budget"
    slider = ui.budget
    smallest, most = int(slider._stops[0]), int(slider._stops[-1])
    assert most == plan_save_everything(CHAIN).peak_bytes
    slider._slider.index = 0  # what a drag to the left end sends
    assert slider.value == smallest == ui.plan.peak_bytes
    with pytest.raises(BudgetError):
        plan_budget(CHAIN, smallest - 1)
    for i in range(0, len(slider._stops), 25):
        slider._slider.index = i
        assert slider.value == ui.plan.meta["budget_bytes"] == slider._stops[i]
        assert slider._field.value == format_bytes(slider._stops[i])
    assert ui.errors == []


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20 MiB", "20 MiB"), ("50%", 0.5), (" 12.5 % ", 0.125), ("0.5", 0.5), ("2e7", "2e7")],
)
def test_what_is_typed_is_the_budget(text, budget):
    ui = PlanExplorer(CHAIN)
    ui.strategy.value = "budget"
    ui.budget._field.value = text
    assert ui.budget.value == budget
    assert ui.plan == plan_budget(CHAIN, budget)


@pytest.mark.parametrize("text", ["a lot", "12 MiBB", "-5%", "0%", "nan%", ""])
def test_what_is_no_budget_is_refused_in_place(text):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = 0.5
    before = ui.plan
    ui.budget._field.value = text
    assert "a budget is bytes" in ui._guarded.message.value
    assert "What is shown is the last plan that could be made" in ui._guarded.message.value
    assert (ui.plan, ui.budget.value, ui.errors) == (before, 0.5, [])
    ui.budget.value = 0.6
    assert (ui._guarded.message.value, ui.budget._field.value) == ("", format_bytes(ui.budget.bytes))


@pytest.mark.parametrize("value", [1.5, -1, 0.0, None, True, "much", []])
def test_bad_budgets_raise_and_change_nothing(value):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = 0.5
    before = ui.plan
    with pytest.raises(PlanError, match="a budget is bytes"):
        ui.budget.value = value
    assert (ui.plan, ui.budget.value) == (before, 0.5)


def test_an_impossible_budget_is_explained_and_nothing_is_lost():
    ui = PlanExplorer(CHAIN)
    ui.budget.value = 0.5
    before, picture, price = ui.plan, ui.frontier._lives, ui._price.value
    ui.budget.value = "1 KiB"
    smallest = int(ui.budget._stops[0])
    assert f"the smallest peak that the planner can reach is {format_bytes(smallest)}" in ui._guarded.message.value
    assert "Traceback" not in ui._guarded.message.value
    assert isinstance(ui.budget_error, BudgetError)
    assert ui.budget_error.smallest_peak_bytes == smallest
    assert (ui.plan, ui.frontier._lives, ui._price.value) == (before, picture, price)
    assert ui.errors == []
    ui.budget.value = smallest
    assert (ui._guarded.message.value, ui.budget_error) == ("", None)
    assert ui.plan.peak_bytes == smallest


def test_the_budget_stands_beside_its_price():
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "13 MiB"
    text = re.sub("<[^>]*>", "", ui._budget_line.value)
    share = ui.budget.bytes / plan_save_everything(CHAIN).peak_bytes
    assert text.startswith(f"budget 13 MiB ({share:.0%} of save everything): predicted peak ")
    assert f"peak {format_bytes(ui.plan.peak_bytes)}, recompute +" in text
    assert "in the planner's seconds, by FLOPs and bytes moved" in text
    assert f"(+{ui.plan.recompute_fraction:.1%} FLOPs)" in text


def test_a_budgets_plan_is_exported_under_its_name(tmp_path):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "13 MiB"
    files = {p.name: p for p in ui.export(tmp_path)}
    assert Plan.from_json(files["plan.json"].read_text(), CHAIN) == ui.plan
    assert "<h2>byte budget, 13 MiB</h2>" in files["report.html"].read_text()
    assert ui.errors == []


def test_the_range_of_budgets_and_the_knee_are_told():
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "13 MiB"
    low, high = (format_bytes(int(n)) for n in (ui.budget._stops[0], ui.budget._stops[-1]))
    assert f"possible: {low} to {high}" in ui._budget_line.value
    assert "knee" not in ui._budget_line.value
    knee = ui.trade_off(n_points=8).knee
    assert f"knee at {format_bytes(knee.peak_bytes)}" in ui._budget_line.value


def test_the_range_and_the_knee_are_marked_under_the_budget_slider():
    ui = PlanExplorer(CHAIN)
    assert ui.budget._marks.marks == ()
    ui.budget.value = "13 MiB"
    low, high = ui.budget.range_bytes
    assert [(m.name, m.bytes, m.at) for m in ui.budget._marks.marks] == [
        ("smallest", low, 0.0),
        ("save everything", high, 1.0),
    ]
    knee_bytes = ui.trade_off(n_points=5).knee.peak_bytes
    assert ui.budget.knee_bytes == knee_bytes
    assert [m.name for m in ui.budget._marks.marks] == ["smallest", "knee", "save everything"]
    knee = ui.budget._marks.marks[1]
    assert knee.bytes == knee_bytes
    assert [m.row for m in ui.budget._marks.marks] == [1, 0, 1]  # no tick crosses words
    handle = ui.budget._stops[round(knee.at * (len(ui.budget._stops) - 1))]  # where the slider's handle would be
    assert abs(np.log(handle / knee_bytes)) <= np.log(high / low) / 100
    for n, mark in enumerate(ui.budget._marks.marks):
        assert ui.budget._marks._marks[n]["text"] == f"{mark.name} {format_bytes(mark.bytes)}"
        ui.budget._marks._handle_custom_msg(n, [])
        assert (ui.budget.value, ui.plan.meta["budget_bytes"]) == (mark.bytes, mark.bytes)
    before = ui.plan
    for content in (3, -1, "0", None, 0.0, {"n": 0}, [1]):  # what no page of ours sends
        ui.budget._marks._handle_custom_msg(content, [])
    assert (ui.plan, ui.errors) == (before, [])


def test_marks_that_stay_the_same_are_not_sent_again(monkeypatch):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "13 MiB"
    ui.trade_off(n_points=5)
    sent = []
    monkeypatch.setattr(ui.budget._marks, "send_state", lambda key=None: sent.append(key))
    ui.budget.value = "15 MiB"
    assert sent == []


# ---- the trade-off ----


def test_a_point_of_the_trade_off_is_chosen():
    ui = PlanExplorer(CHAIN)
    found = ui.trade_off(n_points=8)
    assert ui.trade_off_view.pareto is found
    for i in (0, len(found) // 2, len(found) - 1):
        ui.trade_off_view.value = i
        assert ui.plan.peak_bytes == found.plans[i].peak_bytes
        assert found.recompute_cost(ui.plan) == pytest.approx(found.recompute_cost(found.plans[i]))
        assert ui.strategy.value == "budget"
        assert ui.trade_off_view._curve["current"]["peak_bytes"] == ui.plan.peak_bytes
    ui.block_size.value = 3
    assert ui.trade_off_view.value is None
    assert ui.trade_off_view._curve["current"]["peak_bytes"] == plan_blocks(CHAIN, 3).peak_bytes
    assert ui.errors == []


def test_the_trade_off_is_worked_out_in_the_background_and_can_be_cancelled():
    ui = PlanExplorer(CHAIN)
    with ui._guarded.lock:  # the first budget has to wait
        ui._trade_off.button.click()
        search = ui._trade_off.search
        ui._trade_off.cancel_button.click()
    search.join(60)
    assert ui.trade_off_view is None
    assert ui._trade_off.button.layout.display is None
    ui._trade_off.button.click()
    (ui._trade_off.search or search).join(60)
    assert isinstance(ui.trade_off_view, ParetoView)
    assert ui.errors == []


def idle_explorer(monkeypatch, *args):
    """Return an explorer at a budget, for which every moment is an idle one."""
    monkeypatch.setattr(trade_off_panel, "_IDLE_SECONDS_UNASKED", 0.0)
    ui = PlanExplorer(*args)
    with ui._guarded.lock:  # the search has to wait
        ui.budget.value = 0.9
        return ui, ui._trade_off.search


def test_the_knee_is_worked_out_and_marked_without_being_asked_for(monkeypatch):
    ui, search = idle_explorer(monkeypatch, loss, *ARGS)
    ui.budget.value = 0.8
    search.join(60)
    knee = pareto(capture_gradient(loss, *ARGS), n_points=trade_off_panel.N_POINTS).knee
    assert ui.budget.knee_bytes == knee.peak_bytes
    assert [m.name for m in ui.budget._marks.marks] == ["smallest", "knee", "save everything"]
    assert f"knee at {format_bytes(knee.peak_bytes)}" in ui._budget_line.value
    assert ui.plan == plan_budget(ui.graph, 0.8)  # what was chosen meanwhile
    assert ui._trade_off.search is None
    assert ui._trade_off.button.layout.display is None
    assert ui.errors == []


def test_a_trade_off_that_was_cancelled_comes_only_when_it_is_asked_for(monkeypatch):
    ui, search = idle_explorer(monkeypatch, loss, *ARGS)
    with ui._guarded.lock:
        if ui.trade_off_view is None:
            ui._trade_off.cancel_button.click()
    search.join(60)
    was_found = ui.trade_off_view is not None
    ui.budget.value = 0.7
    assert ui._trade_off.search is None
    assert (ui.trade_off_view is not None) == was_found
    ui._trade_off.button.click()
    if ui._trade_off.search is not None:
        ui._trade_off.search.join(60)
    assert ui.trade_off_view is not None


def test_no_trade_off_comes_unasked_where_it_is_dear_or_changes_other_plans(monkeypatch):
    _, search = idle_explorer(monkeypatch, CHAIN)
    assert search is None
    monkeypatch.setattr(trade_off_panel, "_MOST_NODES_UNASKED", 5)
    _, search = idle_explorer(monkeypatch, loss, *ARGS)
    assert search is None


def test_what_fails_in_the_background_is_told_once(monkeypatch):
    def fails(*_, **__):
        raise PlanError("no trade-off today")
        yield

    monkeypatch.setattr(trade_off_panel, "pareto_steps", fails)
    ui, search = idle_explorer(monkeypatch, loss, *ARGS)
    search.join(60)
    assert [str(e) for e in ui.errors] == ["no trade-off today"]
    assert "no trade-off today" in ui._guarded.message.value
    ui.budget.value = 0.8
    assert (len(ui.errors), ui._trade_off.search) == (1, None)


def test_what_is_asked_for_supersedes_what_runs_in_the_background(monkeypatch):
    ui, search = idle_explorer(monkeypatch, loss, *ARGS)
    with ui._guarded.lock:
        found = ui.trade_off(n_points=5)
    search.join(60)
    assert ui.trade_off_view.pareto is found
    assert ui._trade_off.search is None


def test_the_background_waits_until_no_callback_has_come_for_a_while(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    guarded = guard.Guard()
    waits = []

    class Over(threading.Event):
        def wait(self, timeout=None):
            now[0] += timeout
            waits.append(timeout)
            if len(waits) == 1:
                guarded(lambda: now.append(now.pop() + 5.0))  # comes as the wait ends, and takes 5 s
            return self.is_set()

    assert guarded.wait_until_idle(2.0, Over())
    assert (waits, now) == ([2.0, 2.0], [9.0])
    over = threading.Event()
    over.set()
    assert not guarded.wait_until_idle(0.0, over)


class Shell:
    """An IPython that runs a cell, with no more than its events."""

    def __init__(self):
        self.events, self._called = self, {}

    def register(self, event, callback):
        self._called[event] = callback

    def trigger(self, event):
        self._called[event](None)


def test_what_is_done_unasked_waits_for_cells_as_well(monkeypatch):
    now, shell, waits = [0.0], Shell(), []
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cells, "get_ipython", lambda: shell)
    guarded = guard.Guard()

    class Over(threading.Event):
        def wait(self, timeout=None):
            now[0] += timeout
            waits.append(timeout)
            if len(waits) == 3:  # the cell that made the explorer ends
                shell.trigger("post_run_cell")
            return self.is_set()

    assert guarded.wait_until_idle(2.0, Over())  # asked for: only callbacks count
    assert waits == [2.0]
    assert guarded.wait_until_idle(2.0, Over(), for_cells=True)
    assert waits == [2.0] * 4
    for event, is_running in (("pre", True), ("pre", True), ("post", True), ("post", False)):  # a cell within a cell
        shell.trigger(f"{event}_run_cell")
        now[0] += 10
        over = threading.Event()
        threading.Timer(0.05, over.set).start()
        assert guarded.wait_until_idle(0.01, over, for_cells=True) == (not is_running)


def test_an_explorer_that_is_shown_is_ready_for_budgets_before_one_is_chosen(monkeypatch):
    monkeypatch.setattr(trade_off_panel, "_IDLE_SECONDS_UNASKED", 0.0)
    monkeypatch.setattr(stand_in, "display", lambda *_, **__: None)
    ui = PlanExplorer(loss, *ARGS)
    assert ui._trade_off.search is None  # nobody looks at it yet
    with ui._guarded.lock:
        ui._ipython_display_()
        search = ui._trade_off.search
    search.join(60)
    assert ui.strategy.value == "block size"
    ladder = ladder_of(ui.graph, "seconds")
    counted = len(ladder.counted)
    ui.strategy.value = "budget"
    assert ui.budget.knee_bytes == ui.trade_off_view.pareto.knee.peak_bytes
    alike = capture_gradient(loss, *ARGS)
    for n_bytes in np.linspace(*ui.budget.range_bytes, 30).astype(int).tolist():
        ui.budget.value = n_bytes
        assert ui.plan == plan_budget(alike, n_bytes)
    assert len(ladder.counted) == counted
    assert ui.errors == []


def test_an_explorer_that_is_closed_does_nothing_more(monkeypatch):
    ui, search = idle_explorer(monkeypatch, loss, *ARGS)
    with ui._guarded.lock:
        was_found = ui.trade_off_view is not None
        ui.close()
    search.join(60)
    assert ui._trade_off.search is None
    assert (ui.trade_off_view is not None) == was_found
    assert ui.errors == []


# ---- verify ----


def test_verify_shows_what_xla_allocates_for_this_plan():
    ui = PlanExplorer(loss, *ARGS, argnums=(0, 1), scale=2.0)
    ui.budget.value = 0.7
    click_and_wait(ui)
    assert ui.errors == []
    planned = tiny_backprop.height_compressed_value_and_grad(loss, plan=ui.plan, argnums=(0, 1))
    expected = tiny_backprop.measure(planned, *ARGS, scale=2.0)
    measured = ui.measurement
    assert measured is ui.verify()
    assert (measured.temp_bytes, measured.output_bytes) == (expected.temp_bytes, expected.output_bytes)
    text = re.sub("<[^>]*>", "", ui._verify_panel.line.value)
    assert f"measured by XLA on {expected.platform}: {format_bytes(expected.peak_bytes)} (temp " in text
    assert f"predicted {format_bytes(ui.plan.peak_bytes)}" in text
    away = measured.peak_bytes - ui.budget.bytes
    assert (f"{format_bytes(away)} above the budget" if away > 0 else "within the budget of") in text
    assert ui._verify_panel.button.layout.display is None


def test_tensors_and_xlas_buffers_are_chosen_together():
    ui = PlanExplorer(loss, jnp.ones((64, 64)), jnp.ones((96, 64)), scale=2.0)
    ui.strategy.value = "block size"
    ui.block_size.value = 4
    saved = int(ui.plan.saved[-1])
    ui.frontier.value = saved
    assert "buffers of XLA" not in ui._tensor.value  # not known yet
    ui.verify()
    view = ui.memory_map_view
    buffers = view.memory_map.buffers

    def shown():
        return ui.frontier.value, ui.tensors.value, ui.dag.value

    both = {view.value, *view.marked}
    assert both == set(ui._link.pairs.buffers_of(saved)) != set()  # of what was chosen before
    assert buffers[view.value].source == ui.graph.sources[ui.graph.value_node[saved]]
    assert view.note.startswith(f"In the plan: tensor {saved}, float32[96,64], made by ")
    assert f"In XLA's memory: {buffers[min(both, key=lambda i: buffers[i].first_use)].instruction}" in view.note
    assert html.escape(ui._link.pairs.tell_value(saved)[:100], quote=False) in ui._tensor.value

    other = next(i for i in range(len(buffers)) if ui._link.pairs.value_of(i) not in (None, saved))
    value = ui._link.pairs.value_of(other)
    view.value = other  # as a click does
    assert shown() == (value, value, int(ui.graph.value_node[value]))
    assert view.marked == [i for i in ui._link.buffers_of(value) if i != other]
    assert f"tensor {value}, " in view.note

    stranger = next(i for i, b in enumerate(buffers) if b.memory == "temp" and ui._link.pairs.value_of(i) is None)
    view.value = stranger
    assert shown() == (None, None, None)
    assert (view.value, view.marked) == (stranger, [])
    assert view.note == f"In the plan: none; {ui._link.pairs.tell_buffer(stranger)}."

    fused = next(v for v in range(ui.graph.n_inputs, ui.graph.n_values) if not ui._link.pairs.buffers_of(v))
    ui.tensors.value = fused
    assert (view.value, view.marked) == (None, [])
    assert view.note.endswith(f"In XLA's memory: {ui._link.pairs.tell_value(fused)}.")
    ui.frontier.value = None
    assert (view.value, view.note) == (None, "")
    ui.frontier.value = saved
    ui.block_size.value = 3  # another plan, of which nothing is known
    assert "buffers of XLA" not in ui._tensor.value
    assert ui.errors == []


def test_once_verified_there_is_a_live_map_of_each_plan_under_the_functions_name(monkeypatch):
    ui = PlanExplorer(loss, *ARGS)
    assert ui.memory_map_view is None
    assert ui._map_tab.children == (ui._map,)
    assert "Verify asks XLA" in ui._map.value
    ui.verify()
    first = ui.memory_map_view
    assert ui._map_tab.children == (first,)
    assert first.memory_map is ui.measurement.memory_map
    assert first._facts["title"].startswith("loss: temporaries ")
    first.color_by = "scope"
    ui.block_size.value = 2 if ui.block_size.value != 2 else 3
    assert (ui.memory_map_view, ui._map_tab.children) == (None, (ui._map,))
    ui.verify()
    assert ui.memory_map_view is not first
    assert ui.memory_map_view.color_by == "scope"  # as it was chosen
    missing = dataclasses.replace(ui.measurement.memory_map, missing="<b>no such luck</b>")
    monkeypatch.setattr(type(ui.measurement), "memory_map", missing)
    ui.block_size.value = 5
    ui.verify()
    assert ui.memory_map_view is None
    assert "No map: &lt;b&gt;no such luck&lt;/b&gt;." in ui._map.value
    assert ui.errors == []


def test_what_was_measured_stays_with_its_plan(monkeypatch):
    calls = []
    real = verify_panel.Compilation
    monkeypatch.setattr(verify_panel, "Compilation", lambda *args: calls.append(args) or real(*args))
    ui = PlanExplorer(loss, *ARGS)
    ui.block_size.value = 4
    click_and_wait(ui)
    text = ui._verify_panel.line.value
    assert "measured by XLA" in text
    assert "budget" not in text
    ui.block_size.value = 5
    assert ui._verify_panel.line.value == ""
    ui.block_size.value = 4
    assert ui._verify_panel.line.value == text
    click_and_wait(ui)
    assert len(calls) == 1


def test_arguments_named_as_those_of_measure_are_the_functions():
    def fun(x, run=False, repeats=1):
        return jnp.sum(jnp.sin(x) * repeats)

    ui = PlanExplorer(fun, jnp.ones(4), run=True, repeats=3)
    assert ui.verify().step_seconds is None


def test_arguments_that_are_no_arrays_are_passed_on():
    def fun(x, activation, offset):
        return jnp.sum(activation(x) + offset)

    ui = PlanExplorer(fun, jnp.ones(4), jnp.sin, offset=1.5)
    assert ui.verify().output_bytes >= 4 + 16


def test_a_graph_alone_cannot_be_verified():
    ui = PlanExplorer(CHAIN)
    assert ui._verify_panel.children == ()
    with pytest.raises(PlanError, match=r"make the explorer by PlanExplorer\(fun, \*args\)"):
        ui.verify()


def test_a_gradient_that_cannot_be_compiled_says_so_in_place():
    ui = PlanExplorer(lambda x: jnp.sin(jnp.sin(x)), jnp.ones(4))
    click_and_wait(ui)
    assert "needs one real number as output" in ui._guarded.message.value
    assert ui._verify_panel.line.value == ""
    assert ui._verify_panel.button.layout.display is None
    assert len(ui.errors) == 1
    ui.block_size.value = 2
    assert ui._guarded.message.value == ""


def test_a_compilation_that_is_cancelled_is_forgotten_and_its_process_ends():
    ui = PlanExplorer(loss, *ARGS)
    ui._verify_panel.button.click()
    compilation = ui._verify_panel.compilation
    assert "tracing" in ui._verify_panel.line.value or "compiling" in ui._verify_panel.line.value
    while compilation._process is None and compilation.is_running:
        compilation.join(0.01)
    ui._verify_panel.cancel_button.click()
    compilation.join(60)
    assert compilation._process.returncode == -9
    assert (ui.measurement, ui._verify_panel.compilation, compilation.measurement) == (None, None, None)
    assert ui._verify_panel.line.value == "cancelled"
    assert ui.errors == []
    click_and_wait(ui)
    assert ui.measurement.temp_bytes > 0


def test_sliders_work_while_xla_compiles_and_the_figures_stay_with_their_plan():
    ui = PlanExplorer(loss, *ARGS)
    ui.block_size.value = 4
    plan, compilation = ui.plan, start(ui)
    ui.block_size.value = 2
    compilation.join(120)
    assert ui.measurement is None
    ui.block_size.value = 4
    assert ui.plan == plan
    assert ui.measurement == dataclasses.replace(
        compilation.measurement, name="loss"
    )  # not what was compiled around it


def test_what_cannot_be_exported_is_compiled_in_the_kernel():
    def fun(x):
        jax.debug.print("x {}", x[0])
        return jnp.sum(jnp.sin(x))

    ui = PlanExplorer(fun, jnp.ones(4))
    compilation = start(ui)
    compilation.join(120)
    assert compilation._process is None
    assert "in the kernel's own process" in compilation.stage
    assert ui.measurement.output_bytes >= 4 + 16


def start(ui):
    """Click on Verify and return the compilation."""
    ui._verify_panel.button.click()
    return ui._verify_panel.compilation


def click_and_wait(ui):
    """Click on Verify and wait for what comes of it."""
    compilation = start(ui)
    if compilation is not None:
        compilation.join(120)
        assert not compilation.is_running


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
        patch.setattr(explorer, "plan_blocks", lambda *_, **__: 1 / 0)
        ui.block_size.value = 2
    assert [type(e) for e in ui.errors] == [ZeroDivisionError]
    assert "ZeroDivisionError: division by zero" in ui._guarded.message.value
    assert ui.plan is before
    assert ui.frontier._lives == picture
    ui.block_size.value = 4
    assert ui._guarded.message.value == ""
    assert len(ui.errors) == 1


def test_a_failed_export_is_shown_in_place(tmp_path):
    ui = PlanExplorer(GRAPH)
    (tmp_path / "file").write_text("")
    ui._directory.value = str(tmp_path / "file")
    ui._export_button.click()
    assert [type(e) for e in ui.errors] == [FileExistsError]
    assert "FileExistsError" in ui._guarded.message.value


# ---- linked views ----


def test_a_tensor_that_is_chosen_in_one_view_is_chosen_in_all():
    ui = PlanExplorer(loss, *ARGS)
    value = int(ui.graph.value_node.argmax()) - 3
    node = int(ui.graph.value_node[value])
    ui.frontier.value = value
    assert (ui.tensors.value, ui.dag.value) == (value, node)
    assert f"node {node}" in ui._tensor.value
    row = ui.tensors._rows["rows"][0]
    ui.tensors.value = row[0]
    assert ui.frontier.value == row[0]
    assert ui.dag.value == ui.graph.value_node[row[0]]
    ui.dag.value = 3
    assert ui.graph.value_node[ui.frontier.value] == 3
    assert ui.tensors.value == ui.frontier.value
    ui.frontier.value = None
    assert (ui.tensors.value, ui.dag.value, ui._tensor.value) == (None, None, "")
    assert ui.errors == []


def test_a_chosen_tensor_shows_the_line_that_makes_it():
    ui = PlanExplorer(loss, *ARGS)
    node = ui.graph.primitives.index("tanh")
    ui.dag.value = node
    assert "<mark>" in ui._tensor.value
    assert "x = jnp.tanh(x @ w) * scale" in ui._tensor.value
    ui.block_size.value = 1
    assert "recomputed" in ui._tensor.value or "saved" in ui._tensor.value


def test_export_writes_everything(tmp_path):
    ui = PlanExplorer(GRAPH)
    ui.block_size.value = 10
    paths = ui.export(tmp_path / "new" / "folder")
    wanted = {f"frontier.{suffix}" for suffix in ("png", "svg", "pdf", "csv", "json")}
    wanted |= {"tensors.csv", "plan.json", "dag.svg", "dag.dot", "report.html"}
    assert {p.name for p in paths} == wanted | ({"dag.pdf", "dag.png"} if shutil.which("dot") else set())
    files = {p.name: p for p in paths}
    assert Plan.from_json(files["plan.json"].read_text(), GRAPH) == ui.plan
    assert pd.read_csv(files["frontier.csv"]).predicted_live_bytes.max() == ui.plan.peak_bytes
    steps = json.loads(files["frontier.json"].read_text())
    assert max(step["predicted_live_bytes"] for step in steps) == ui.plan.peak_bytes
    assert [list(step) for step in steps] == [list(pd.read_csv(files["frontier.csv"]))] * len(steps)
    assert pd.read_csv(files["tensors.csv"]).bytes.sum() == ui.plan.peak_bytes
    first = {name: path.read_bytes() for name, path in files.items()}
    assert {p.name: p.read_bytes() for p in ui.export(tmp_path / "again")} == first


def test_without_dot_export_leaves_out_what_it_alone_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    paths = PlanExplorer(GRAPH).export(tmp_path)
    assert [p.name for p in paths[-3:]] == ["dag.svg", "dag.dot", "report.html"]


def test_the_trade_off_is_exported_once_it_is_known(tmp_path):
    ui = PlanExplorer(CHAIN)
    ui.trade_off(n_points=5)
    files = {p.name: p for p in ui.export(tmp_path)}
    assert files["trade-off.svg"].read_text().startswith("<?xml")
    assert len(pd.read_csv(files["trade-off.csv"])) == len(ui.trade_off_view.pareto) + 3


def test_xlas_memory_map_is_exported_once_it_is_known(tmp_path):
    ui = PlanExplorer(loss, *ARGS)
    assert not [p for p in ui.export(tmp_path / "before") if "memory-map" in p.name]
    measured = ui.verify()
    files = {p.name: p for p in ui.export(tmp_path / "after")}
    assert files["memory-map.svg"].read_text().startswith("<?xml")
    assert "reserved by XLA" in files["frontier.svg"].read_text()
    assert "reserved by XLA" not in (tmp_path / "before" / "frontier.svg").read_text()
    buffers = pd.read_csv(files["memory-map.csv"])
    assert len(buffers) == len(measured.memory_map.buffers)
    assert buffers.bytes.sum() == sum(b.bytes for b in measured.memory_map.buffers)
    report = files["report.html"].read_text()
    allocated = format_bytes(measured.peak_bytes)
    assert f"XLA allocates <b>{allocated}</b>" in report
    assert f"measured; predicted were {format_bytes(ui.plan.peak_bytes)}." in report
    plan = plan_budget(ui.graph, 0.6)
    low, high = (
        dataclasses.replace(plan, meta=plan.meta | {"budget_bytes": measured.peak_bytes + n}) for n in (-1024, 0)
    )
    for told, said in ((low, "; <b>1 KiB above</b> the budget of "), (high, "; <b>within</b> the budget of ")):
        path = write_report(tmp_path / "b.html", ui.graph, told, memory_map=measured.memory_map)
        assert f"predicted were {format_bytes(plan.peak_bytes)}{said}" in path.read_text()
    assert '<figure data-view="memory_map"><img alt=' in report
    data = data_of(report)
    assert data["memory_map"]["state"]["_facts"]["peak_live_bytes"] == measured.memory_map.peak_live_bytes
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in Page(report).links)
    missing = dataclasses.replace(measured.memory_map, missing="it rained")
    with pytest.raises(tiny_backprop.MeasureError, match="no memory map of loss: it rained"):
        write_report(tmp_path / "a.html", ui.graph, ui.plan, memory_map=missing)
    assert not (tmp_path / "a.html").exists()


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
    monkeypatch.setattr(explorer, "plot_frontier", lambda *_, **__: 1 / 0)
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


# ---- the report ----


PLANS = [plan_blocks(GRAPH, 7), plan_height_compressed(GRAPH, 3, 2), plan_save_everything(GRAPH)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.meta["strategy"])
def test_what_is_alive_at_the_peak_adds_up_to_the_peak(plan):
    table = alive_at_peak(plan)
    assert table.bytes.sum() == plan.peak_bytes - AtPeak.of(plan).to_come_bytes
    assert table.value[~table.is_copy].is_unique


def test_report_is_self_contained_and_escaped(tmp_path):
    evil = '<script>alert("x")</script><img src=https://example.org/x>'
    nodes = [
        {"name": "h", "bytes": 8, "primitive": evil, "scope": evil, "source": evil},
        {
            "name": "d",
            "bytes": 8,
            "reads": ["h"],
            "is_backward": True,
            "primitive": evil,
            "scope": evil,
            "source": evil,
        },
    ]
    graph = Graph.from_nodes(nodes, outputs=["d"], name=evil)
    measured = pd.DataFrame({evil: [1], "measured_temp_bytes": [2048]}, index=pd.Index([evil], name=evil))
    path = write_report(tmp_path / "a.html", graph, {evil: plan_blocks(graph, 1)}, measured=measured)
    page = Page(path.read_text())
    assert {"img", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert {"svg", "table"} <= page.tags
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", path.read_text(), re.DOTALL)
    data, module = (attributes for attributes, _ in scripts)
    assert (data, module) == (' type="application/octet-stream" id="tb-data"', ' type="module"')
    assert path.read_text().count("<script") == 2
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in path.read_text()
    assert "default-src 'none'" in path.read_text()
    assert evil in data_of(path.read_text())["frontier0"]["state"]["_strings"]
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)", path.read_text())
    assert any("alert" in cell for row in page.rows for cell in row)


def test_report_tells_predicted_from_measured(tmp_path):
    plans = [plan_blocks(GRAPH, 5), plan_blocks(GRAPH, 10)]
    frame = pd.DataFrame(
        {
            "predicted_peak_bytes": [2**20, None],
            "measured_temp_bytes": [2**21, 2**22],
            "measured_flops": [1e9, 2e9],
            "temp_ratio": [1.0, 0.25],
            "compile_seconds": [1.5, 0.5],
        },
        index=pd.Index(["a", "b"], name="gradient"),
    )
    rows = Page(write_report(tmp_path / "a.html", GRAPH, plans, measured=frame).read_text()).rows
    assert ["gradient", "predicted peak", "measured temp", "measured flops", "temp ratio", "compile"] in rows
    assert ["a", "1 MiB", "2 MiB", "1 GFLOP", "1.00 ×", "1.5 s"] in rows
    assert ["b", "–", "4 MiB", "2 GFLOP", "0.25 ×", "0.5 s"] in rows
    peaks = {row[0]: row[1] for row in rows if row and row[0].startswith("blocks")}
    assert peaks == {f"blocks, levels 1, block size {p.meta['block_size']}": format_bytes(p.peak_bytes) for p in plans}


def test_report_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(DisplayError, match="a report needs at least one plan; found none"):
        write_report(tmp_path / "a.html", GRAPH, [])
    with pytest.raises(PlanError, match="the plan was made for a graph with fingerprint"):
        write_report(tmp_path / "a.html", GRAPH, plan_blocks(chain(3), 1))
    assert not list(tmp_path.iterdir())


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
    assert {ui._link.pairs.tell_value(v) for v in sums if not ui._link.buffers_of(v)} == {
        "none of its own: it stands for what the scan keeps, of which XLA has several buffers"
    }
    exec(ui.code(), scope := {"scanned": scanned, "args": args})
    assert scope["plan"] == ui.plan


# ---- symbolic dimensions ----


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
