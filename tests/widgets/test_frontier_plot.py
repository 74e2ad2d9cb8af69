"""The frontier plot and its export, held against the plan's own numbers and against other programs' parsers."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from tests.graphs import chain
from tiny_backprop import Graph, plan_blocks, plan_height_compressed, plan_save_everything
from tiny_backprop_widgets import DisplayError, export_frontier, plot_frontier

GRAPH = chain(64, n_bytes=2**20)
PLAN = plan_blocks(GRAPH, 8)


def curves(figure):
    """Return the (edges, heights) of every drawn curve by its colour."""
    drawn = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, StepPatch):
            drawn.setdefault(patch.get_facecolor()[:3], []).append((patch.get_data().edges, patch.get_data().values))
    return list(drawn.values())


def test_the_curve_is_the_timeline():
    baseline, forward, backward = curves(plot_frontier(PLAN))
    heights = np.concatenate([forward[0][1], backward[0][1]])
    np.testing.assert_allclose(heights * 2**20, PLAN.materialized.live_bytes)
    assert backward[0][0][0] == PLAN.materialized.n_forward_kernels
    assert backward[0][0][-1] == len(PLAN.materialized.live_bytes)
    plain = plan_save_everything(GRAPH).materialized
    np.testing.assert_allclose(np.concatenate([b[1] for b in baseline]) * 2**20, plain.live_bytes)


def test_phases_of_the_baseline_are_stretched_to_the_plans():
    (first, second), *_ = curves(plot_frontier(PLAN))
    border, n_steps = PLAN.materialized.n_forward_kernels, len(PLAN.materialized.live_bytes)
    assert (first[0][0], first[0][-1], second[0][0], second[0][-1]) == (0, border, border, n_steps)
    assert len(curves(plot_frontier(PLAN, baseline=False))) == 2


def test_labels_say_predicted_and_mark_the_peak_in_iec_units():
    ax = plot_frontier(PLAN).axes[0]
    assert ax.get_ylabel() == "live bytes, predicted (MiB)"
    n_mib = PLAN.peak_bytes / 2**20
    assert f"peak {n_mib:.3g} MiB" in [t.get_text() for t in ax.texts]
    assert {"forward", "backward"} <= {t.get_text() for t in ax.texts}
    assert ax.get_legend().get_texts()[0].get_text() == "save everything: peak 65 MiB"


def test_backward_differs_by_more_than_colour():
    hatches = [p.get_hatch() for p in plot_frontier(PLAN).axes[0].patches if isinstance(p, StepPatch)]
    assert hatches.count("////") == 1


def test_the_peak_of_a_long_schedule_survives_decimation():
    graph = chain(6000)
    plan = plan_blocks(graph, 77)
    _, *own = curves(plot_frontier(plan))
    heights = np.concatenate([h for curve in own for _, h in curve])
    assert len(heights) < 1000 < len(plan.timeline.steps)
    assert heights.max() * 1024 == plan.peak_bytes


def test_draws_into_given_axes():
    ax = Figure().add_subplot()
    assert plot_frontier(PLAN, ax=ax) is ax.get_figure()
    assert ax.get_ylabel().startswith("live bytes")


@pytest.mark.parametrize(
    "graph",
    [
        Graph.from_nodes([]),
        Graph.from_nodes([{"name": "a", "bytes": 0}]),
        Graph.from_nodes([{"name": "a", "bytes": 1, "is_backward": True}], outputs=["a"]),
        Graph.from_nodes([{"name": "a", "bytes": 2**60}], outputs=["a"]),
    ],
    ids=["empty", "no bytes", "backward alone", "an exbibyte"],
)
def test_odd_graphs_are_drawn(graph, tmp_path):
    path = export_frontier(plan_save_everything(graph), tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_csv_holds_the_plan(tmp_path):
    frame = pd.read_csv(export_frontier(PLAN, tmp_path / "a.csv"), index_col=PLAN.materialized.kernel_word)
    assert frame.predicted_live_bytes.max() == PLAN.peak_bytes
    assert frame.predicted_live_bytes.idxmax() == PLAN.materialized.peak_kernel
    assert (frame.action == "recompute").sum() == len(PLAN.timeline.steps) - GRAPH.n_nodes


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "csv", "SVG"])
def test_export_is_deterministic_in_another_style(suffix, tmp_path):
    first = export_frontier(PLAN, tmp_path / f"a.{suffix}").read_bytes()
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "svg.fonttype": "path"}):
        assert export_frontier(PLAN, tmp_path / f"b.{suffix}").read_bytes() == first
    dates = rb"(?i)<dc:date>|/CreationDate|20\d\d-\d\d-\d\d"
    assert not re.search(dates, first)


def test_exported_files_are_what_their_suffix_says(tmp_path):
    assert export_frontier(PLAN, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    svg = ET.parse(export_frontier(PLAN, tmp_path / "a.svg"))
    words = {t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert "live bytes, predicted (MiB)" in words


def test_bad_requests_say_what_would_work(tmp_path):
    with pytest.raises(DisplayError, match=r"written as \.png, \.svg, \.pdf or \.csv; 'a\.gif' asks for '\.gif'"):
        export_frontier(PLAN, tmp_path / "a.gif")
    with pytest.raises(DisplayError, match="needs a Plan; found Graph"):
        plot_frontier(GRAPH)
    with pytest.raises(DisplayError, match="the baseline is a plan for Graph"):
        plot_frontier(PLAN, baseline=plan_save_everything(chain(3)))
    assert not list(tmp_path.iterdir())


def test_global_matplotlib_state_is_left_alone():
    before = dict(matplotlib.rcParams)
    assert plot_frontier(plan_height_compressed(GRAPH, 2, 4))._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys, tiny_backprop as tb, tiny_backprop_widgets as w\n"
        "g = tb.Graph.from_nodes([dict(name='h', bytes=8), dict(name='d', bytes=8, reads=['h'], is_backward=True)])\n"
        "w.export_frontier(tb.plan_blocks(g), sys.argv[1])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
