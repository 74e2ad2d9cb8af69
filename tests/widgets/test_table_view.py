"""The table of what is alive at the peak."""

import re

import pandas as pd

from tests.graphs import chain
from tests.widgets.viewed import GRAPH, PLAN
from tiny_backprop import (
    plan_save_everything,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import TableView
from tiny_backprop_widgets.content.tensors import AtPeak


def test_the_table_shows_what_is_alive_at_the_peak_and_whatever_is_chosen():
    view = TableView(PLAN)
    rows = view._rows["rows"]
    to_come_bytes = AtPeak.of(PLAN).to_come_bytes
    assert sum(row[1] for row in rows) == PLAN.peak_bytes - to_come_bytes
    assert (f"{format_bytes(to_come_bytes)} kept for outputs" in view._rows["caption"]) == (to_come_bytes >= 256)
    assert format_bytes(PLAN.peak_bytes) in view._rows["caption"]
    absent = next(v for v in range(GRAPH.n_inputs, GRAPH.n_values) if v not in {row[0] for row in rows})
    view.value = absent
    assert view._rows["rows"][0][0] == absent
    assert "not alive then" in view._rows["caption"]
    view.value = rows[0][0]
    assert view._rows["rows"] == rows
    assert view.to_pandas().bytes.sum() == PLAN.peak_bytes - to_come_bytes


def test_many_tensors_are_summed_up():
    view = TableView(plan_save_everything(chain(200)))
    assert len(view._rows["rows"]) == 100
    assert re.search(r"201 tensors .* the largest 100 of them, 101 B more in the others", view._rows["caption"])


def test_a_saved_table_is_read_back(tmp_path):
    frame = pd.read_csv(TableView(PLAN).save(tmp_path / "a.csv"))
    assert frame.bytes.sum() == PLAN.peak_bytes
