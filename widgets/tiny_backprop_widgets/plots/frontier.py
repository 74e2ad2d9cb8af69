"""The frontier plot: predicted live bytes of a plan over time, above those of save-everything; and its export.

What XLA measured can be laid over it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from tiny_backprop.display import BACKWARD, BASELINE, FORWARD, peaks_per_bin
from tiny_backprop.integration.jax.xla.correspondence import kernels_of_positions
from tiny_backprop.integration.jax.xla.measure import Measurement
from tiny_backprop.plan.blocks import plan_jax_gradient, plan_save_everything
from tiny_backprop.plan.plan import Plan, is_same_program
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import METADATA, NotebookFigure, render, scale_of

_N_BINS = 700


def plot_frontier(
    plan: Plan, *, baseline: bool | Plan = True, measured: Measurement | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the predicted live bytes of a plan over time, above those of the program without a plan.

    The horizontal axis counts the kernels that XLA is predicted to run, recomputation included; the live bytes are
    those of temporaries and outputs (see `Plan.materialized`). For a graph made by hand they are the plan's steps and
    what the referee counts. The curve behind is shorter; each of its phases is stretched to the width of the plan's, so
    that the borders of forward and backward phase coincide. Long schedules are shortened to the peaks of short runs.
    Neither pyplot nor any global setting is touched.

    With `measured`, the bytes of temporaries and outputs that hold a tensor by XLA's own memory map are laid over it,
    as a black line, and what XLA reserves for both as a dotted one. The instructions of the compiled program are put
    at the kernels that they correspond to, where phase, user's scope, source line and primitive agree, in order, and
    evenly in between; where fewer than a tenth of them find theirs, the whole schedule is stretched evenly over the
    axis. The label below the axis says which, and how many were found.

    Args:
      plan: The plan; its bytes are predicted.
      baseline: Whether to draw behind it what the program takes without a plan (save-everything, or JAX's own gradient
        where the program has calls under `jax.checkpoint`), or another plan for the same graph to draw there.
      measured: What `measure` returned for the gradient that carries the plan out.
      ax: Axes to draw into; by default those of a new figure.

    Returns:
      The figure. A notebook shows it; `export_frontier` writes it to a file.

    Raises:
      DisplayError: `plan` is no plan, `baseline` is a plan for another graph, or `measured` no measurement.

    Example:
      >>> from tiny_backprop import Graph, plan_blocks
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> figure = plot_frontier(plan_blocks(Graph.from_nodes([h, dh], outputs=["dh"])))
      >>> figure.axes[0].get_ylabel()
      'live bytes, predicted (B)'
    """
    if not isinstance(plan, Plan):
        raise DisplayError(f"plot_frontier needs a Plan; found {type(plan).__name__}. Try plan_blocks(graph).")
    if measured is not None and not isinstance(measured, Measurement):
        raise DisplayError(f"measured={measured!r}: expected a Measurement, such as measure(fun, *args) returns.")
    behind = baseline_of(plan, baseline)
    if ax is None:
        rectangle = (0.1, 0.155, 0.88, 0.735) if measured is None else (0.115, 0.2, 0.865, 0.645)
        ax = NotebookFigure(figsize=(7.6, 3.2 if measured is None else 3.9)).add_axes(rectangle)
    _draw(plan, behind, measured, ax)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def export_frontier(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    baseline: bool | Plan = True,
    measured: Measurement | None = None,
) -> Path:
    """Write the frontier of a plan as PNG, SVG or PDF, or its numbers as CSV; the same plan gives the same bytes.

    Args:
      plan: The plan.
      path: File to write; its suffix (`.png`, `.svg`, `.pdf` or `.csv`) is the format. The folder must exist.
      baseline: See `plot_frontier`; the CSV has one row per kernel, or step, of the plan, and no baseline.
      measured: See `plot_frontier`; the CSV holds what is predicted alone.

    Returns:
      The path.

    Raises:
      DisplayError: The suffix is none of these, or see `plot_frontier`.
      OSError: The file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    if suffix == "csv":
        plan.materialized.kernels_to_pandas().to_csv(path, lineterminator="\n")
    elif suffix in METADATA:
        with matplotlib.style.context("default"):
            path.write_bytes(render(plot_frontier(plan, baseline=baseline, measured=measured), suffix))
    else:
        raise DisplayError(f"a frontier is written as .png, .svg, .pdf or .csv; {path.name!r} asks for {path.suffix!r}")
    return path


def baseline_of(plan: Plan, baseline: bool | Plan) -> Plan | None:
    """Return the plan to draw behind another, or None; it must be one for the same graph."""
    if not isinstance(baseline, Plan):
        if not baseline:
            return None
        return (plan_jax_gradient if plan.graph.has_checkpoints else plan_save_everything)(plan.graph)
    if not is_same_program(baseline.graph, plan.graph):
        raise DisplayError(f"the baseline is a plan for {baseline.graph!r}; the plan to draw is for {plan.graph!r}")
    return baseline


def _draw(plan: Plan, behind: Plan | None, measured: Measurement | None, ax: Axes) -> None:
    m = plan.materialized
    live, border, n_steps = m.live_bytes, m.n_forward_kernels, max(len(m.live_bytes), 1)
    top_bytes = max(plan.peak_bytes, behind.peak_bytes if behind else 0, 1)
    top_bytes = max(top_bytes, measured.peak_bytes if measured else 0)
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
    what = "live bytes, predicted" if measured is None else "live bytes,\npredicted and by XLA"
    ax.set_ylabel(f"{what} ({format_bytes(scale).split()[-1]})")
    n_behind = len(behind.materialized.live_bytes) if behind else 0
    stretched = f"; the {n_behind:,} of the other curve are stretched to the phases" if behind else ""
    matched = _draw_measured(plan, measured, n_steps, scale, ax) if measured else ""
    ax.set_xlabel(f"{m.kernel_word} of the plan ({n_steps:,}){stretched}{matched}", fontsize=8.5 if measured else None)
    if ax.get_legend_handles_labels()[0]:
        style: dict[str, Any] = {"ncols": 3, "frameon": False, "borderaxespad": 0.2}
        style |= {"fontsize": 9} if measured is None else {"fontsize": 8.5, "columnspacing": 1.2}
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), **style)


def _draw_measured(plan: Plan, measured: Measurement, n_steps: int, scale: int, ax: Axes) -> str:
    """Lay what XLA has alive over the prediction and return how the two axes correspond."""
    reserved = f"reserved by XLA: {format_bytes(measured.peak_bytes)}"
    ax.axhline(measured.peak_bytes / scale, color="black", linewidth=1, linestyle=":", label=reserved)
    memory_map = measured.memory_map
    if memory_map.missing:
        return f"\nXLA's live bytes are not known: {memory_map.missing[:90]}"
    edges, n_matched = kernels_of_positions(plan, memory_map)
    live = memory_map.live_bytes + memory_map.live_output_bytes
    if not len(live):
        return ""
    # The highest of what falls into each bin; bins into which nothing falls go on as before.
    bins = np.minimum((edges[:-1] / max(n_steps, 1) * _N_BINS).astype(int), _N_BINS - 1)
    heights = np.full(_N_BINS, -1, np.int64)
    np.maximum.at(heights, bins, live)
    known = np.maximum.accumulate(np.where(heights >= 0, np.arange(_N_BINS), 0))
    x = np.linspace(0, n_steps, _N_BINS + 1)
    label = f"live by XLA: peak {format_bytes(int(live.max()))}"
    ax.step(x[:-1], heights[known].clip(0) / scale, where="post", color="black", linewidth=1.2, label=label)
    if not n_matched:
        return f"; XLA's {len(live):,} instructions are stretched evenly"
    word = plan.materialized.kernel_word
    return f"\n{n_matched:,} of XLA's {len(live):,} instructions stand at their {word}, by scope and source line"


def _draw_baseline(behind: Plan, border: int, n_steps: int, scale: int, ax: Axes) -> None:
    """Draw another plan's curve, its phases stretched to those of the plan in front; only one of them has a label."""
    live, own_border = behind.materialized.live_bytes / scale, behind.materialized.n_forward_kernels
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
    x, y = plan.materialized.peak_kernel + 0.5, plan.peak_bytes / scale
    is_right = x > 0.5 * len(plan.materialized.live_bytes)
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
