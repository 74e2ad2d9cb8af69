"""Budgets in the explorer: assigned, typed, refused, marked."""

import re

import numpy as np
import pytest

from tests.widgets.explored import CHAIN
from tiny_backprop import (
    BudgetError,
    PlanError,
    plan_budget,
    plan_save_everything,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import PlanExplorer


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
