"""The trade-off in the explorer: asked for and unasked, cancelled, chosen from."""

import numpy as np
import pytest

from tests.widgets.explored import ARGS, CHAIN, loss
from tiny_backprop import (
    PlanError,
    capture_gradient,
    pareto,
    plan_blocks,
    plan_budget,
)
from tiny_backprop.plan.strategies.budget import sweep_of
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import ParetoView, PlanExplorer
from tiny_backprop_widgets.panels import trade_off_panel
from tiny_backprop_widgets.views import stand_in


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


def test_no_trade_off_comes_unasked_where_it_is_costly_or_changes_other_plans(monkeypatch):
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
    sweep = sweep_of(ui.graph, "seconds")
    counted = len(sweep.counted)
    ui.strategy.value = "budget"
    assert ui.budget.knee_bytes == ui.trade_off_view.pareto.knee.peak_bytes
    alike = capture_gradient(loss, *ARGS)
    for n_bytes in np.linspace(*ui.budget.range_bytes, 30).astype(int).tolist():
        ui.budget.value = n_bytes
        assert ui.plan == plan_budget(alike, n_bytes)
    assert len(sweep.counted) == counted
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
