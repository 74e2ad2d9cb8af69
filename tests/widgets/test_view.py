"""All live views: a picture beside each, saved alike twice, hostile texts as data."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from tests.graphs import chain
from tests.widgets.viewed import GRAPH, PLAN, evil_graph, memory_map
from tiny_backprop import (
    pareto,
    plan_blocks,
    plan_save_everything,
)
from tiny_backprop_widgets import DisplayError, FrontierView, GraphView, MemoryMapView, ParetoView, TableView
from tiny_backprop_widgets.views import stand_in


@pytest.mark.parametrize(
    ("make", "tag"),
    [
        (lambda: FrontierView(PLAN), "<img"),
        (lambda: TableView(PLAN), "<table"),
        (lambda: GraphView(PLAN), "<svg"),
        (lambda: ParetoView(pareto(GRAPH, n_points=3)), "<img"),
        (lambda: MemoryMapView(memory_map()), "<img"),
    ],
)
def test_a_cell_gets_the_live_view_and_what_stands_in_for_it(make, tag, monkeypatch):
    view, shown = make(), []
    monkeypatch.setattr(stand_in, "display", lambda data, raw: shown.append(data))
    view._ipython_display_()
    live, rest = shown
    assert set(live) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert not {*live} & {*rest}
    assert tag in rest["text/html"]
    (name,) = set(re.findall(r"tiny-backprop-stand-in-\w+", rest["text/html"]))
    assert f".{name}, .jp-OutputArea-child:has(.{name}) {{ display: none }}" == view.get_state()["_stand_in_style"]


def test_what_is_no_plan_is_refused():
    with pytest.raises(DisplayError, match="a FrontierView needs a Plan; found Graph"):
        FrontierView(GRAPH)
    with pytest.raises(DisplayError, match="the baseline is a plan for"):
        FrontierView(PLAN, baseline=plan_save_everything(chain(3)))
    with pytest.raises(DisplayError, match="the baseline is a plan for"):
        FrontierView(PLAN).plan = plan_blocks(chain(3), 1)
    with pytest.raises(DisplayError, match="a TableView needs a Plan; found Graph"):
        TableView(GRAPH)
    with pytest.raises(DisplayError, match="a ParetoView needs a Pareto; found Plan"):
        ParetoView(PLAN)
    with pytest.raises(DisplayError, match="a GraphView needs a Plan or a Graph; found int"):
        GraphView(3)
    with pytest.raises(DisplayError, match=r"a MemoryMapView needs a MemoryMap; found Plan\. Try measure\(fun"):
        MemoryMapView(PLAN)


VIEWS = {
    "frontier": lambda: FrontierView(PLAN),
    "graph": lambda: GraphView(PLAN),
    "table": lambda: TableView(PLAN),
    "pareto": lambda: ParetoView(pareto(GRAPH, n_points=4)),
    "memory map": lambda: MemoryMapView(memory_map()),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_every_view_has_a_picture_beside_it(make):
    view = make()
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == repr(view)
    assert {"image/png", "image/svg+xml", "text/html"} & set(bundle)
    assert "no picture" not in bundle.get("text/html", "")


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("frontier", [".png", ".svg", ".pdf", ".csv"]),
        ("graph", [".svg", ".dot", *([".pdf", ".png"] if shutil.which("dot") else [])]),
        ("table", [".csv", ".html"]),
        ("pareto", [".png", ".svg", ".pdf", ".csv"]),
        ("memory map", [".png", ".svg", ".pdf", ".csv"]),
    ],
)
def test_views_are_saved_the_same_twice(name, suffixes, tmp_path):
    for suffix in suffixes:
        first, second = (VIEWS[name]().save(tmp_path / f"{i}{suffix}").read_bytes() for i in (1, 2))
        assert first == second
        starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<", ".dot": b"digraph", ".html": b"<!DOCTYPE"}
        assert first.startswith(starts.get(suffix, b""))
    with pytest.raises(DisplayError, match=r"is saved as .*; 'a\.gif' asks for '\.gif'"):
        VIEWS[name]().save(tmp_path / "a.gif")


@pytest.mark.parametrize("make", [FrontierView, GraphView, TableView], ids=lambda kind: kind.__name__)
def test_hostile_texts_are_data(make):
    view = make(plan_blocks(evil_graph(), 1))
    bundle = view._repr_mimebundle_()
    for text in (bundle.get("text/html", ""), bundle.get("image/svg+xml", "")):
        assert "<img" not in text.replace("<img alt=", "")
    if "image/svg+xml" in bundle:
        ET.fromstring(bundle["image/svg+xml"])
    json.dumps([view._strings if hasattr(view, "_strings") else view._boxes if make is GraphView else view._rows])
