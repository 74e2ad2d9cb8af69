"""What the explorer writes into a folder."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest

import tiny_backprop
from tests.widgets.explored import ARGS, CHAIN, GRAPH, Page, data_of, loss
from tiny_backprop import (
    Plan,
    plan_budget,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import PlanExplorer, write_report


def test_a_budgets_plan_is_exported_under_its_name(tmp_path):
    ui = PlanExplorer(CHAIN)
    ui.budget.value = "13 MiB"
    files = {p.name: p for p in ui.export(tmp_path)}
    assert Plan.from_json(files["plan.json"].read_text(), CHAIN) == ui.plan
    assert "<h2>byte budget, 13 MiB</h2>" in files["report.html"].read_text()
    assert ui.errors == []


def test_a_failed_export_is_shown_in_place(tmp_path):
    ui = PlanExplorer(GRAPH)
    (tmp_path / "file").write_text("")
    ui._directory.value = str(tmp_path / "file")
    ui._export_button.click()
    assert [type(e) for e in ui.errors] == [FileExistsError]
    assert "FileExistsError" in ui._guarded.message.value


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
