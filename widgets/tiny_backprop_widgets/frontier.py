"""The frontier plot: predicted live bytes over the steps of a plan, above those of save-everything; and its export."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from tiny_backprop.display import BACKWARD, BASELINE, FORWARD, peaks_per_bin
from tiny_backprop.errors import TinyBackpropError
from tiny_backprop.plan import Plan, plan_save_everything
from tiny_backprop.units import format_bytes

_N_BINS = 700
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None},
}
"""What each format would else stamp into the file: nothing of the day it was written stays."""


class DisplayError(TinyBackpropError, ValueError):
    """Something cannot be drawn or exported as asked."""


class _NotebookFigure(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def plot_frontier(plan: Plan, *, baseline: bool | Plan = True, ax: Axes | None = None) -> Figure:
    """Draw the predicted live bytes of a plan over its steps, above those of save-everything.

    The horizontal axis counts the plan's steps, recomputation included. The curve of save-everything has fewer steps;
    each of its phases is stretched to the width of the plan's, so that the borders of forward and backward phase
    coincide. Long schedules are shortened to the peaks of short runs of steps. Neither pyplot nor any global setting is
    touched.

    Args:
      plan: The plan; its bytes are predicted.
      baseline: Whether to draw save-everything behind it, or another plan for the same graph to draw there.
      ax: Axes to draw into; by default those of a new figure.

    Returns:
      The figure. A notebook shows it; `export_frontier` writes it to a file.

    Raises:
      DisplayError: `plan` is no plan, or `baseline` is a plan for another graph.

    Example:
      >>> from tiny_backprop import Graph, plan_blocks
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> figure = plot_frontier(plan_blocks(Graph.from_nodes([h, dh], outputs=["dh"])))
      >>> figure.axes[0].get_ylabel()
      'live bytes, predicted (B)'
    """
    if not isinstance(plan, Plan):
        raise DisplayError(f"plot_frontier needs a Plan; found {type(plan).__name__}. Try plan_blocks(graph).")
    behind = baseline_of(plan, baseline)
    if ax is None:
        ax = _NotebookFigure(figsize=(7.6, 3.2)).add_axes((0.1, 0.155, 0.88, 0.735))
    _draw(plan, behind, ax)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def export_frontier(plan: Plan, path: str | os.PathLike[str], *, baseline: bool | Plan = True) -> Path:
    """Write the frontier of a plan as PNG, SVG or PDF, or its numbers as CSV; the same plan gives the same bytes.

    Args:
      plan: The plan.
      path: File to write; its suffix (`.png`, `.svg`, `.pdf` or `.csv`) is the format. The folder must exist.
      baseline: See `plot_frontier`; the CSV has one row per step of the plan, and no baseline.

    Returns:
      The path.

    Raises:
      DisplayError: The suffix is none of these, or see `plot_frontier`.
      OSError: The file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    if suffix == "csv":
        frame = plan.to_pandas().rename(columns={"live_bytes": "predicted_live_bytes"})
        frame.to_csv(path, lineterminator="\n")
    elif suffix in _METADATA:
        with matplotlib.style.context("default"):
            path.write_bytes(render(plot_frontier(plan, baseline=baseline), suffix))
    else:
        raise DisplayError(f"a frontier is written as .png, .svg, .pdf or .csv; {path.name!r} asks for {path.suffix!r}")
    return path


def render(figure: Figure, suffix: str, dots_per_inch: int = 110) -> bytes:
    """Return a figure as the bytes of a PNG, SVG or PDF file, without dates; text in an SVG stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tiny_backprop", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=suffix, metadata=_METADATA[suffix], dpi=dots_per_inch)
    return buffer.getvalue()


def scale_of(top_bytes: int) -> int:
    """Return the bytes of the IEC unit in which an axis up to `top_bytes`, 1 or more, counts."""
    return 1024 ** min((top_bytes.bit_length() - 1) // 10, 5)


def baseline_of(plan: Plan, baseline: bool | Plan) -> Plan | None:
    """Return the plan to draw behind another, or None; it must be one for the same graph."""
    if not isinstance(baseline, Plan):
        return plan_save_everything(plan.graph) if baseline else None
    if baseline.graph.fingerprint != plan.graph.fingerprint:
        raise DisplayError(f"the baseline is a plan for {baseline.graph!r}; the plan to draw is for {plan.graph!r}")
    return baseline


def _draw(plan: Plan, behind: Plan | None, ax: Axes) -> None:
    live, border, n_steps = plan.timeline.live_bytes, plan.timeline.n_forward_steps, max(len(plan.timeline.steps), 1)
    top_bytes = max(plan.peak_bytes, behind.peak_bytes if behind else 0, 1)
    scale = scale_of(top_bytes)
    ax.set_xlim(0, n_steps)
    ax.set_ylim(0, 1.25 * top_bytes / scale)
    if behind:
        _draw_baseline(behind, border, n_steps, scale, ax)
    _stairs(
        ax, live[:border] / scale, 0, border, facecolor=FORWARD, linewidth=0, alpha=0.85, label="this plan, forward"
    )
    backward = {"facecolor": BACKWARD, "edgecolor": "#5c2800", "hatch": "////", "linewidth": 0, "alpha": 0.85}
    _stairs(ax, live[border:] / scale, border, n_steps, label="this plan, backward", **backward)
    _mark_peak(plan, scale, ax)
    _mark_phases(border, n_steps, ax)
    ax.set_ylabel(f"live bytes, predicted ({format_bytes(scale).split()[-1]})")
    stretched = (
        f"; the {len(behind.timeline.steps):,} steps of the other curve are stretched to the phases" if behind else ""
    )
    ax.set_xlabel(f"step of the plan ({n_steps:,}){stretched}")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9, borderaxespad=0.2)


def _draw_baseline(behind: Plan, border: int, n_steps: int, scale: int, ax: Axes) -> None:
    """Draw another plan's curve, its phases stretched to those of the plan in front; only one of them has a label."""
    live, own_border = behind.timeline.live_bytes / scale, behind.timeline.n_forward_steps
    name = behind.meta.get("strategy", "other plan")
    label = f"{name}: peak {format_bytes(behind.peak_bytes)}"
    style = {"facecolor": "#e4e4e4", "edgecolor": BASELINE, "linewidth": 1, "linestyle": "--"}
    _stairs(ax, live[:own_border], 0, border, label=label, **style)
    _stairs(ax, live[own_border:], border, n_steps, **style)


def _stairs(ax: Axes, live: np.ndarray, x0: float, x1: float, **style: Any) -> None:
    """Fill the area under live bytes, stretched from x0 to x1; where steps outnumber pixels, under their peaks."""
    if len(live):
        heights = peaks_per_bin(live, max(1, round(_N_BINS * (x1 - x0) / ax.get_xlim()[1])))
        # Axes.stairs would measure each corner as a Bézier curve, to autoscale; the limits are set by hand.
        ax.add_artist(StepPatch(heights, np.linspace(x0, x1, len(heights) + 1), fill=True, **style))


def _mark_peak(plan: Plan, scale: int, ax: Axes) -> None:
    x, y = plan.timeline.peak_step + 0.5, plan.peak_bytes / scale
    is_right = x > 0.5 * len(plan.timeline.steps)
    ax.plot([x], [y], marker="v", color="black", markersize=6, linestyle="none", clip_on=False)
    ax.annotate(
        f"peak {format_bytes(plan.peak_bytes)}",
        (x, y),
        xytext=(-7 if is_right else 7, 5),
        textcoords="offset points",
        ha="right" if is_right else "left",
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        color="black",
    )


def _mark_phases(border: int, n_steps: int, ax: Axes) -> None:
    for name, x0, x1, color in (("forward", 0, border, FORWARD), ("backward", border, n_steps, BACKWARD)):
        if x1 > x0:
            ax.axvspan(x0, x1, color=color, alpha=0.06, linewidth=0, zorder=0)
            ax.text(
                (x0 + x1) / 2, 0.98, name, transform=ax.get_xaxis_transform(), ha="center", va="top", style="italic"
            )
    ax.axvline(border, color="black", linewidth=0.8, linestyle=":")
