"""What the frontier view sends to the page."""

import pytest

from tests.widgets.viewed import GRAPH, PLAN, array, evil_graph
from tiny_backprop import (
    plan_blocks,
    plan_budget,
    plan_save_everything,
)
from tiny_backprop_widgets import DisplayError, FrontierView
from tiny_backprop_widgets.content.tensors import lives


def test_the_frontier_sends_the_timeline_and_every_life():
    view = FrontierView(PLAN)
    assert array(view._live_bytes, "f8").tolist() == PLAN.materialized.live_bytes.tolist()
    assert array(view._steps, "i4").tolist() == PLAN.materialized.kernel_nodes.tolist()
    table, n_bytes = lives(PLAN)
    assert array(view._lives, "i4", -1, 3).tolist() == table.tolist()
    assert array(view._life_bytes, "f8").tolist() == n_bytes.tolist()
    plain = plan_save_everything(GRAPH).materialized
    assert array(view._baseline_bytes, "f8").tolist() == plain.live_bytes.tolist()
    facts = view._facts
    assert (facts["peak_bytes"], facts["peak_step"]) == (PLAN.peak_bytes, PLAN.materialized.peak_kernel)
    assert (facts["n_forward_steps"], facts["budget_bytes"]) == (PLAN.materialized.n_forward_kernels, None)
    assert facts["baseline_peak_bytes"] == facts["top_bytes"] == plain.peak_bytes


def test_texts_are_sent_once_and_name_every_node():
    view = FrontierView(PLAN)
    nodes = array(view._node_table, "i4", -1, 4)
    assert [view._strings[i] for i in nodes[:, 0]] == list(GRAPH.primitives)
    assert len(set(view._strings)) == len(view._strings)
    assert max(map(len, FrontierView(plan_blocks(evil_graph(), 1))._strings)) <= 300


def test_another_plan_is_one_message_and_texts_stay(monkeypatch):
    view = FrontierView(PLAN)
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(set(key or ())))
    view.plan = plan_blocks(GRAPH, 3)
    assert len(sent) <= 1
    assert not any({"_strings", "_value_table", "_node_table"} & keys for keys in sent)
    assert view._facts["serial"] == 2


def test_a_budget_is_a_line_and_may_be_given():
    assert FrontierView(plan_budget(GRAPH, "12 MiB"))._facts["budget_bytes"] == 12 * 2**20
    assert FrontierView(PLAN, budget_bytes=5)._facts["budget_bytes"] == 5


def test_a_measured_curve_is_laid_over_and_goes_with_its_plan():
    view = FrontierView(PLAN)
    view.show_measured([0, 0.5, 1], [1.0, 2.0**30, 2.0])
    assert array(view._measured, "f8", -1, 2).tolist() == [[0, 1], [0.5, 2**30], [1, 2]]
    assert view._facts["top_bytes"] == 2**30
    view.plan = plan_blocks(GRAPH, 3)
    assert view._measured == b""
    with pytest.raises(DisplayError, match="as many positions as live bytes, positions from 0 to 1; found 2 and 1"):
        view.show_measured([0, 1], [1])
    with pytest.raises(DisplayError, match="positions from 0 to 3"):
        view.show_measured([0, 3], [1, 2])


def test_the_chosen_tensor_can_be_observed():
    view, seen = FrontierView(PLAN), []
    view.observe(lambda change: seen.append(change["new"]), "value")
    view.value = 5
    view.value = None
    assert seen == [5, None]
