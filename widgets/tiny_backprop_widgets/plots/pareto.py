"""The trade-off plot: the predicted peak bytes of plans against what their recomputation costs."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tiny_backprop.display import BACKWARD, BASELINE, FORWARD
from tiny_backprop.plan.pareto import Pareto
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import NotebookAxes, scale_of

_LINE_HEIGHT = 0.055  # of a small label, in proportion to the axes


def plot_pareto(pareto: Pareto, ax: Axes | None = None) -> Axes:
    """Draw the trade-off of a gradient: peak bytes to the right, recompute cost upwards, all predicted.

    Between two plans the curve stays level: a budget that lies there gets the plan on its left. The knee is marked, and
    so is what the policies of `jax.checkpoint` around the whole function would do. Left of the dotted line there is no
    plan: see `Pareto.bound`. Neither pyplot nor any global setting is touched.

    Args:
      pareto: What `tiny_backprop.pareto` returned.
      ax: Axes to draw into; by default those of a new figure.

    Returns:
      The axes. A notebook shows those of a new figure; `ax.get_figure().savefig(path)` writes them to a file.

    Raises:
      DisplayError: `pareto` is no `Pareto`.

    Example:
      >>> from tiny_backprop import Graph, pareto
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> plot_pareto(pareto(Graph.from_nodes([h, dh], outputs=["dh"]))).get_xlabel()
      'peak bytes, predicted (B)'
    """
    if not isinstance(pareto, Pareto):
        raise DisplayError(f"plot_pareto needs a Pareto; found {type(pareto).__name__}. Try pareto(graph).")
    if ax is None:
        figure = Figure(figsize=(7.6, 4.0))
        ax = figure.add_axes(NotebookAxes(figure, (0.09, 0.125, 0.89, 0.735)))
    _draw(pareto, ax)
    return ax


def _draw(pareto: Pareto, ax: Axes) -> None:
    bound, bound_name = pareto.bound
    references = list(pareto.references.values())
    peaks = [p.peak_bytes for p in (*pareto.plans, *references)]
    scale = scale_of(max(*peaks, bound, 1))
    percents = [_percent(pareto, p) for p in (*pareto.plans, *references)]
    ax.set_xlim(0, 1.06 * max(*peaks, bound, 1) / scale)
    ax.set_ylim(-0.04 * max(*percents, 1e-6), 1.12 * max(*percents, 1e-6))
    front = sorted((p.peak_bytes / scale, _percent(pareto, p)) for p in pareto.plans)
    style = {"color": FORWARD, "marker": "o", "markersize": 3.5, "linewidth": 1.3, "drawstyle": "steps-post"}
    ax.plot(*zip(*front, strict=True), label=f"{len(pareto)} plans", **style)
    x, y = [p.peak_bytes / scale for p in references], [_percent(pareto, p) for p in references]
    style = {"color": "#555555", "marker": "X", "markersize": 7, "linestyle": "none"}
    ax.plot(x, y, label="jax.checkpoint around the function", **style)
    _label_references(pareto, scale, ax)
    _mark_knee(pareto, scale, ax)
    name = f"{bound_name}: {format_bytes(bound)}"
    ax.axvline(bound / scale, color="black", linewidth=0.9, linestyle=":", label=name)
    ax.axhline(0, color=BASELINE, linewidth=0.6, zorder=0)
    ax.set_xlabel(f"peak bytes, predicted ({format_bytes(scale).split()[-1]})")
    ax.set_ylabel(f"recompute {_unit(pareto)}, predicted (%)")
    ax.set_title(
        f"{pareto.graph.name[:60]}: predicted peak, and what recomputation adds to the {_unit(pareto)} of the gradient",
        fontsize=10,
        pad=24,
        parse_math=False,
    )
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9, borderaxespad=0.2)


def _percent(pareto: Pareto, plan: Plan) -> float:
    least = pareto.least_cost
    return 100 * pareto.recompute_cost(plan) / least if least else 0.0


def _unit(pareto: Pareto) -> str:
    return "FLOPs" if pareto.unit == "flops" else pareto.unit


def _mark_knee(pareto: Pareto, scale: int, ax: Axes) -> None:
    x, y = pareto.knee.peak_bytes / scale, _percent(pareto, pareto.knee)
    ax.plot([x], [y], marker="D", markersize=8, color=BACKWARD, markeredgecolor="black", linestyle="none", zorder=5)
    ax.annotate(
        f"knee: {format_bytes(pareto.knee.peak_bytes)}, +{y:.1f}%",
        (x, y),
        xytext=(9, 7) if x < ax.get_xlim()[1] / 2 else (-9, 7),
        textcoords="offset points",
        ha="left" if x < ax.get_xlim()[1] / 2 else "right",
        weight="bold",
        color="black",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )


def _label_references(pareto: Pareto, scale: int, ax: Axes) -> None:
    """Write the policies' names beside their points, from bottom to top, none over the one below."""
    right, (bottom, top) = ax.get_xlim()[1], ax.get_ylim()
    free = bottom
    for name, plan in sorted(pareto.references.items(), key=lambda item: pareto.recompute_cost(item[1])):
        x, y = plan.peak_bytes / scale, _percent(pareto, plan)
        at = max(y, free)
        free = at + _LINE_HEIGHT * (top - bottom)
        is_right = x > right / 2
        ax.annotate(
            f"{name}: {format_bytes(plan.peak_bytes)}, +{y:.1f}%",
            (x, at),
            xytext=(-8 if is_right else 8, 0),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="center",
            fontsize=8,
            parse_math=False,
        )
