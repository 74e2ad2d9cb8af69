"""The report: self-contained, escaped, and telling predicted from measured."""

import base64
import hashlib
import re

import pandas as pd
import pytest

from tests.graphs import chain
from tests.widgets.explored import GRAPH, Page, data_of
from tiny_backprop import (
    Graph,
    PlanError,
    plan_blocks,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import DisplayError, write_report


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
