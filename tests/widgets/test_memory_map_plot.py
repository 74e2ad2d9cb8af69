"""Pictures of memory maps, and what XLA allocates laid over the predicted frontier."""

import dataclasses
import re

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import tiny_backprop as tb
from tests.compiled_programs import array, gpt_plan, measured
from tiny_backprop import measure
from tiny_backprop_widgets import DisplayError, plot_frontier, plot_memory_map
from tiny_backprop_widgets.plots.figure import render

KIB = 1024


def polygons(ax):
    return sum(len(c.get_paths()) for c in ax.collections if isinstance(c, PolyCollection))


@pytest.mark.parametrize("color_by", ["kind", "scope"])
def test_every_large_buffer_is_a_rectangle(color_by):
    found = measured("gpt's planned gradient").memory_map
    ax = plot_memory_map(found, color_by=color_by)
    total = found.temp_bytes + found.output_bytes
    large = [b for b in found.buffers if b.memory in ("temp", "output") and b.bytes > total / 500]
    drawn = [p.vertices for c in ax.collections if isinstance(c, PolyCollection) for p in c.get_paths()]
    spans = {(v[:, 0].min(), v[:, 0].max()) for v in drawn}
    assert all((b.first_use, b.freed_at) in spans for b in large)
    assert ax.get_ylabel().startswith("offset in memory, by XLA (")
    assert "measured by XLA" in ax.get_title()


def test_colour_is_never_alone():
    ax = plot_memory_map(measured("gpt's planned gradient").memory_map)
    handles = ax.get_legend().legend_handles
    assert len({(h.get_facecolor(), h.get_hatch()) for h in handles}) == len(handles) >= 4
    by_hatch = {h.get_hatch() for h in handles}
    assert len(by_hatch) >= 3
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert {"saved for the backward phase", "recomputed", "gradient"} <= set(labels)


def test_labels_name_lines_loops_and_the_peak():
    found = measured("scan's gradient").memory_map
    texts = [t.get_text() for t in plot_memory_map(found).texts]
    assert any(re.match(r"compiled_programs\.py:\d+  f32\[17,8,32\]", t) for t in texts)
    assert any(re.match(r"while\.\d+ body × 17", t) for t in texts)
    assert any(t.startswith("peak: ") for t in texts)


def test_thousands_of_buffers_are_drawn_together():
    found = measure(lambda x: x, array(4)).memory_map
    template = dataclasses.replace(found.buffers[0], memory="temp", kind="saved", bytes=1, allocation=9)
    n = 20_000
    buffers = tuple(
        dataclasses.replace(template, offset_bytes=i, first_use=i, last_use=i + n // 4, freed_at=i + n // 4 + 1)
        for i in range(n)
    )
    big = dataclasses.replace(
        found, temp_bytes=n, output_bytes=0, buffers=buffers, schedule=found.schedule[:1] * (2 * n), loops=()
    )
    ax = plot_memory_map(big)
    assert 500 < polygons(ax) < n // 4
    left, right = ax.get_xlim()
    assert (left, right) == (0, 2 * n)


@pytest.mark.parametrize("name", ["nothing", "identity", "empty arrays", "fused"])
def test_programs_without_temporaries_are_drawn(name):
    assert plot_memory_map(measured(name).memory_map)._repr_png_().startswith(b"\x89PNG")


def test_draws_into_given_axes_and_says_what_is_wrong():
    ax = Figure().add_subplot()
    assert plot_memory_map(measured("scan").memory_map, ax) is ax
    with pytest.raises(DisplayError, match=r"needs a MemoryMap; found Measurement.*memory_map"):
        plot_memory_map(measured("scan"))
    with pytest.raises(DisplayError, match="color_by='size': expected 'kind' or 'scope'"):
        plot_memory_map(measured("scan").memory_map, color_by="size")
    assert tb.plot_memory_map is plot_memory_map


def test_the_same_map_gives_the_same_picture():
    found = measured("nested loops' gradient").memory_map
    pictures = {render(plot_memory_map(found).get_figure(), "svg") for _ in range(2)}
    assert len(pictures) == 1


def test_names_that_are_no_formula_are_drawn():
    found = measured("scan's gradient").memory_map
    buffers = tuple(dataclasses.replace(b, source="$\\frac{<b>:3 (f)", scope="$_{") for b in found.buffers)
    odd = dataclasses.replace(found, name="$\\frac{", buffers=buffers)
    for color_by in ("kind", "scope"):
        assert plot_memory_map(odd, color_by=color_by)._repr_png_().startswith(b"\x89PNG")


def test_the_frontier_plot_lays_xlas_bytes_over_the_prediction():
    plan, m = gpt_plan("blocks")
    ax = plot_frontier(plan, measured=m).axes[0]
    live = m.memory_map.live_bytes + m.memory_map.live_output_bytes
    (line,) = [x for x in ax.get_lines() if x.get_label().startswith("live by XLA: peak ")]
    assert line.get_ydata().max() * KIB == live.max()
    (reserved,) = [x for x in ax.get_lines() if x.get_label().startswith("reserved by XLA: ")]
    assert reserved.get_ydata()[0] * KIB == m.peak_bytes
    assert "stand at their kernel, by scope and source line" in ax.get_xlabel()
    assert "predicted" in ax.get_ylabel()
    assert "XLA" in ax.get_ylabel()
    assert len(plot_frontier(plan).axes[0].get_lines()) == len(ax.get_lines()) - 2


def test_the_frontier_plot_says_where_live_bytes_are_not_known():
    plan, m = gpt_plan("blocks")
    blind = dataclasses.replace(m, program=dataclasses.replace(m.program, assignment=b""))
    ax = plot_frontier(plan, measured=blind).axes[0]
    assert "XLA's live bytes are not known: the backend gives no buffer assignment" in ax.get_xlabel()
    assert any(x.get_label().startswith("reserved by XLA: ") for x in ax.get_lines())
    with pytest.raises(DisplayError, match="expected a Measurement"):
        plot_frontier(plan, measured=3)
