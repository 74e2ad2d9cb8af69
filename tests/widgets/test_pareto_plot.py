"""The trade-off plot, held against the plans it draws."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import tiny_backprop
from tests.graphs import chain
from tiny_backprop import CostModel, pareto, plan_blocks
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import DisplayError, plot_pareto
from tiny_backprop_widgets.plots.figure import render

GRAPH = chain(24, n_bytes=2**20)
FRONT = pareto(GRAPH, cost="flops")
POLICIES = {"nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"}


def lines(ax):
    """Return the drawn lines by their labels."""
    return {line.get_label(): line for line in ax.get_lines()}


def texts(ax):
    return [t.get_text() for t in ax.texts]


def test_the_curve_is_the_plans():
    line = lines(plot_pareto(FRONT))[f"{len(FRONT)} plans"]
    x, y = line.get_data()
    assert len(FRONT) > 3
    np.testing.assert_allclose(x * 2**20, [p.peak_bytes for p in FRONT.plans][::-1])
    np.testing.assert_allclose(y, [100 * p.recompute_fraction for p in FRONT.plans][::-1])


def test_between_two_plans_the_curve_is_what_the_budget_gets():
    """A step, level from a plan to the next one with more memory."""
    line = lines(plot_pareto(FRONT))[f"{len(FRONT)} plans"]
    assert line.get_drawstyle() == "steps-post"
    assert np.all(np.diff(line.get_xdata()) > 0)


def test_knee_and_policies_are_marked_and_labelled():
    ax = plot_pareto(FRONT)
    knee = FRONT.knee
    assert f"knee: {format_bytes(knee.peak_bytes)}, +{knee.recompute_fraction:.1%}" in texts(ax)
    (marker,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    np.testing.assert_allclose(marker.get_data(), [[knee.peak_bytes / 2**20], [100 * knee.recompute_fraction]])
    for name in POLICIES:
        plan = FRONT.references[name]
        assert f"{name}: {format_bytes(plan.peak_bytes)}, +{plan.recompute_fraction:.1%}" in texts(ax)
    x, y = lines(ax)["jax.checkpoint around the function"].get_data()
    np.testing.assert_allclose(x * 2**20, [p.peak_bytes for p in FRONT.references.values()])
    np.testing.assert_allclose(y, [100 * p.recompute_fraction for p in FRONT.references.values()])


def test_names_do_not_lie_over_each_other():
    """A chain has no contractions: all three policies stand at the same point."""
    assert len({FRONT.references[name].peak_bytes for name in POLICIES}) == 1
    ax = plot_pareto(FRONT)
    figure = ax.get_figure()
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text().split(":")[0] in POLICIES]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_nothing_is_cut_off():
    ax = plot_pareto(FRONT)
    figure = ax.get_figure()
    figure.canvas.draw()
    for box in (ax.get_legend().get_window_extent(), ax.title.get_window_extent()):
        assert all(figure.bbox.contains(*corner) for corner in (box.min, box.max))


def test_every_axis_says_predicted():
    ax = plot_pareto(FRONT)
    assert ax.get_xlabel() == "peak bytes, predicted (MiB)"
    assert ax.get_ylabel() == "recompute FLOPs, predicted (%)"
    assert "predicted" in ax.get_title()
    assert plot_pareto(pareto(GRAPH, cost=CostModel())).get_ylabel() == "recompute seconds, predicted (%)"


def test_the_dotted_line_is_the_working_set_bound():
    line = lines(plot_pareto(FRONT))[f"bound in this order: {format_bytes(working_set_bound(GRAPH))}"]
    assert line.get_xdata()[0] * 2**20 == working_set_bound(GRAPH) <= FRONT.plans[-1].peak_bytes


def test_draws_into_given_axes():
    ax = Figure().add_subplot()
    assert plot_pareto(FRONT, ax=ax) is ax
    assert ax.get_xlabel().startswith("peak bytes")


def test_a_notebook_shows_the_axes_of_a_new_figure():
    assert plot_pareto(FRONT)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "graph",
    [
        chain(3, n_bytes=0),
        chain(3, n_bytes=2**60),
        chain(1),
        dataclasses.replace(chain(3), name="$\\frac{<b>"),
    ],
    ids=["no bytes", "exbibytes", "one node", "a name that is no formula"],
)
def test_odd_graphs_are_drawn(graph):
    assert plot_pareto(pareto(graph))._repr_png_().startswith(b"\x89PNG")


def test_the_same_plans_give_the_same_picture_and_leave_global_state_alone():
    before = dict(matplotlib.rcParams)
    pictures = {render(plot_pareto(FRONT).get_figure(), "svg") for _ in range(2)}
    assert len(pictures) == 1
    assert dict(matplotlib.rcParams) == before


def test_bad_requests_say_what_would_work():
    with pytest.raises(DisplayError, match=r"needs a Pareto; found Plan. Try pareto\(graph\)"):
        plot_pareto(plan_blocks(GRAPH))


def test_reachable_from_the_core():
    assert tiny_backprop.plot_pareto is plot_pareto
