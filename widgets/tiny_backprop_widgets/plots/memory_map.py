"""The memory map as a picture: XLA's arena over the schedule of a compiled program, each tensor a rectangle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tiny_backprop.display import BACKWARD, BASELINE, FORWARD
from tiny_backprop.integration.jax.xla.lifetimes import Loop
from tiny_backprop.integration.jax.xla.memory_map import Buffer, MemoryMap
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import NotebookAxes, scale_of

_KINDS: dict[str, tuple[str, str]] = {  # colour and hatch; Okabe-Ito
    "saved": ("#009E73", ""),
    "forward": (FORWARD, "...."),
    "recomputed": ("#E69F00", "xxxx"),
    "gradient": (BACKWARD, "////"),
    "other": (BASELINE, ""),
}
KIND_NAMES = {
    "saved": "saved for the backward phase",
    "forward": "forward",
    "recomputed": "recomputed",
    "gradient": "gradient",
    "other": "other",
}
_COLORS = (FORWARD, "#E69F00", "#009E73", BACKWARD, "#56B4E9", "#CC79A7", "#F0E442", "#6A51A3")
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oooo")
_N_COLUMNS, _N_ROWS = 1400, 600  # finer than any screen: what is smaller than a cell is drawn as a whole cell
_N_HATCHED_ROWS, _N_EDGED_ROWS = 80, 160  # lower rectangles show neither, and hatches take most of the time of drawing
_N_WIDE_CELLS = 8  # nor do narrower ones, of which there may be thousands
_N_LEGEND_LETTERS = 30
_N_LABELS = 24
_N_BARS = 200
_WIDTH_OF_LETTER, _HEIGHT_OF_LINE = 0.0088, 0.024  # of a small label, in proportion to the axes


def plot_memory_map(memory_map: MemoryMap, ax: Axes | None = None, *, color_by: str = "kind") -> Axes:
    """Draw where each tensor lies in XLA's arena, and from when to when: offset over schedule position.

    Below are the temporaries; above them, where the program has any, the buffers of its outputs, which XLA keeps
    throughout and lends to temporaries meanwhile. White is memory that no tensor holds. Loops, branches and calls are
    opened once; bars below the axis say where, and how often a loop's body runs. Colour and hatch say what a tensor is;
    the largest ones are labelled with their source line. Rectangles too small to be seen are drawn together, as cells
    of a fine grid, so that maps of 20,000 buffers stay quick. Neither pyplot nor any global setting is touched.

    Args:
      memory_map: `measure(fun, *args).memory_map`.
      ax: Axes to draw into; by default those of a new figure.
      color_by: `"kind"` (saved, recomputed, gradient, …) or `"scope"` (the outermost of the user's named scopes; the
        seven with most bytes × positions have colours of their own).

    Returns:
      The axes. A notebook shows those of a new figure; `ax.get_figure().savefig(path)` writes them to a file.

    Raises:
      DisplayError: `memory_map` is no map, or `color_by` is neither of the two.
      MeasureError: The map could not be decoded; `memory_map.missing` says why.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tiny_backprop import measure
      >>> loss = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum()
      >>> m = measure(jax.grad(loss), jnp.ones((64, 64)), jnp.ones((8, 64)))
      >>> plot_memory_map(m.memory_map).get_ylabel()
      'offset in memory, by XLA (KiB)'
    """
    check_map("plot_memory_map", memory_map, color_by)
    live_bytes = memory_map.live_bytes  # raises where there is no map
    if ax is None:
        figure = Figure(figsize=(9.6, 5.4))
        bars = 0.75 * _bars_height(memory_map)
        ax = figure.add_axes(NotebookAxes(figure, (0.085, 0.115 + bars, 0.895, 0.745 - bars)))
    _draw(memory_map, live_bytes, color_by, ax)
    return ax


def check_map(what: str, memory_map: Any, color_by: Any) -> None:
    """Raise DisplayError unless something can draw a map, coloured as asked."""
    if not isinstance(memory_map, MemoryMap):
        raise DisplayError(
            f"{what} needs a MemoryMap; found {type(memory_map).__name__}. Try measure(fun, *args).memory_map."
        )
    if color_by not in ("kind", "scope"):
        raise DisplayError(f"color_by={color_by!r}: expected 'kind' or 'scope'.")


def _draw(memory_map: MemoryMap, live_bytes: np.ndarray, color_by: str, ax: Axes) -> None:
    bases = bases_of(memory_map)
    shown = [b for b in memory_map.buffers if b.allocation in bases]
    top_bytes = max(memory_map.temp_bytes + memory_map.output_bytes, 1)
    scale, n = scale_of(top_bytes), max(len(memory_map.schedule), 1)
    ax.set_xlim(0, n)
    ax.set_ylim(0, 1.0 * top_bytes / scale)
    groups, styles = by_kind(shown) if color_by == "kind" else by_scope(shown)
    handles = []
    for name, buffers in groups.items():
        color, hatch = styles[name]
        _rectangles(buffers, bases, scale, color, hatch, ax)
        label = KIND_NAMES.get(name, name) if color_by == "kind" else _plain(name[:_N_LEGEND_LETTERS])
        handles.append(Patch(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=label))
    _label_largest(shown, bases, scale, ax)
    _mark_outputs(memory_map, scale, ax)
    _mark_peak(memory_map, live_bytes, scale, ax)
    _mark_loops(memory_map, ax)
    ax.set_ylabel(f"offset in memory, by XLA ({format_bytes(scale).split()[-1]})")
    ax.set_xlabel(f"position in the schedule ({n:,} instructions{', loops opened once' if memory_map.loops else ''})")
    doubts = f"; {len(memory_map.doubts)} doubts, see .doubts" if memory_map.doubts else ""
    ax.set_title(
        f"{_plain(memory_map.name[:50])}: temporaries {format_bytes(memory_map.temp_bytes)}, at most "
        f"{format_bytes(memory_map.peak_live_bytes)} of them live; outputs {format_bytes(memory_map.output_bytes)}"
        f" (measured by XLA{doubts})",
        fontsize=10,
        pad=26,
        parse_math=False,
    )
    if handles:
        style: dict[str, Any] = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2, "handleheight": 1.1}
        legend = ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(len(handles), 8), **style
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _plain(text: str) -> str:
    """Return a text without what no font and no SVG has, such as control characters."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def bases_of(memory_map: MemoryMap) -> dict[int, int]:
    """Return where each allocation begins on the axis: arenas first, then outputs, the largest first."""
    sizes: dict[int, int] = defaultdict(int)
    memory = {}
    for b in memory_map.buffers:
        if b.memory in ("temp", "output"):
            sizes[b.allocation] = max(sizes[b.allocation], b.offset_bytes + b.bytes)
            memory[b.allocation] = b.memory
    order = sorted(sizes, key=lambda a: (memory[a] == "output", -sizes[a], a))
    ends = np.cumsum([0, *(sizes[a] for a in order)])
    return {a: int(base) for a, base in zip(order, ends, strict=False)}


def by_kind(buffers: Sequence[Buffer]) -> tuple[dict[str, list[Buffer]], Mapping[str, tuple[str, str]]]:
    """Group buffers by what they are."""
    groups = {kind: [b for b in buffers if b.kind == kind] for kind in _KINDS}
    return {kind: found for kind, found in groups.items() if found}, _KINDS


def by_scope(buffers: Sequence[Buffer]) -> tuple[dict[str, list[Buffer]], Mapping[str, tuple[str, str]]]:
    """Group buffers by their outermost scope, the smaller scopes together."""
    weight: dict[str, int] = defaultdict(int)
    for b in buffers:
        weight[b.scope.partition("/")[0]] += b.bytes * (b.freed_at - b.first_use)
    largest = sorted((s for s in weight if s), key=lambda s: -weight[s])[: len(_COLORS) - 1]
    names = sorted(largest, key=_natural)
    groups: dict[str, list[Buffer]] = {name: [] for name in names}
    for b in buffers:
        scope = b.scope.partition("/")[0]
        groups.setdefault(scope if scope in largest else ("other scopes" if scope else "no scope"), []).append(b)
    styles = dict(zip(names, zip(_COLORS, _HATCHES, strict=True), strict=False))
    return groups, {**styles, "other scopes": (BASELINE, ""), "no scope": ("#DDDDDD", "")}


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that puts block10 after block9."""
    parts, digits = [], ""
    for letter in text + " ":
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return parts


def _rectangles(
    buffers: Sequence[Buffer], bases: Mapping[int, int], scale: int, color: str, hatch: str, ax: Axes
) -> None:
    """Draw one rectangle per buffer; those lower than a cell of a fine grid as the cells that they lie in."""
    x0, x1, y0, y1 = (
        np.array([f(b) for b in buffers], float)
        for f in (
            lambda b: b.first_use,
            lambda b: b.freed_at,
            lambda b: bases[b.allocation] + b.offset_bytes,
            lambda b: bases[b.allocation] + b.offset_bytes + b.bytes,
        )
    )
    cell_x, cell_y = ax.get_xlim()[1] / _N_COLUMNS, ax.get_ylim()[1] / _N_ROWS
    corners = np.stack([x0, x1, y0 / scale, y1 / scale], 1)
    small = corners[:, 3] - corners[:, 2] < cell_y
    cells = np.stack(
        [
            np.floor(corners[small, 0] / cell_x) * cell_x,
            np.ceil(corners[small, 1] / cell_x) * cell_x,
            np.floor(corners[small, 2] / cell_y) * cell_y,
            (np.floor(corners[small, 2] / cell_y) + 1) * cell_y,
        ],
        1,
    )
    per_axis = ax.get_ylim()[1] / np.maximum(corners[:, 3] - corners[:, 2], 1e-30)
    is_wide = corners[:, 1] - corners[:, 0] >= _N_WIDE_CELLS * cell_x
    hatched, edged = is_wide & (per_axis < _N_HATCHED_ROWS), is_wide & (per_axis < _N_EDGED_ROWS)
    _add(np.unique(cells, axis=0), ax, facecolor=color, linewidth=0, antialiased=False)
    _add(corners[~small & ~edged], ax, facecolor=color, linewidth=0, antialiased=False)
    _add(corners[edged & ~hatched], ax, facecolor=color, edgecolor="white", linewidth=0.3)
    _add(corners[hatched], ax, facecolor=color, edgecolor="white", hatch=hatch, linewidth=0.4)


def _add(corners: np.ndarray, ax: Axes, **style: Any) -> None:
    if not len(corners):
        return
    x0, x1, y0, y1 = corners.T
    vertices = np.stack([np.stack([x0, y0], 1), np.stack([x1, y0], 1), np.stack([x1, y1], 1), np.stack([x0, y1], 1)], 1)
    ax.add_collection(PolyCollection(list(vertices), hatch_linewidth=0.5, **style), autolim=False)


def _label_largest(buffers: Sequence[Buffer], bases: Mapping[int, int], scale: int, ax: Axes) -> None:
    """Write source line and shape into the largest rectangles that have room for them."""
    width, height = ax.get_xlim()[1], ax.get_ylim()[1]
    n_labels = 0
    for b in sorted(buffers, key=lambda b: -b.bytes * (b.freed_at - b.first_use)):
        room = (b.freed_at - b.first_use) / width / _WIDTH_OF_LETTER
        if b.bytes / scale / height < _HEIGHT_OF_LINE or room < 8:
            continue
        line = b.source.split(" ")[0].replace("\\", "/").rpartition("/")[2] or b.op_name.rpartition("/")[2]
        text = next((t for t in (f"{line}  {b.shape}", line) if t and len(t) <= room), None)
        if text is None:
            continue
        text = _plain(text)
        x, y = (b.first_use + b.freed_at) / 2, (bases[b.allocation] + b.offset_bytes + b.bytes / 2) / scale
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3}
        ax.text(x, y, text, ha="center", va="center", fontsize=6.5, color="black", bbox=box, parse_math=False)
        n_labels += 1
        if n_labels == _N_LABELS:
            return


def _mark_outputs(memory_map: MemoryMap, scale: int, ax: Axes) -> None:
    """Shade the outputs and draw the line between them and the temporaries."""
    border, top = memory_map.temp_bytes / scale, ax.get_ylim()[1]
    if not memory_map.output_bytes:
        return
    ax.axhspan(border, top, color=BASELINE, alpha=0.13, linewidth=0, zorder=0)
    ax.axhline(border, color="black", linewidth=0.9)
    if (top - border) / top > 0.035:
        _note(f"outputs, {format_bytes(memory_map.output_bytes)}", 0.005, top, "top", ax)
    if border / top > 0.035:
        _note(f"temporaries, {format_bytes(memory_map.temp_bytes)}", 0.005, border, "top", ax)


def _note(text: str, x: float, y: float, va: Any, ax: Axes) -> None:
    ax.text(
        x,
        y,
        text,
        transform=ax.get_yaxis_transform(),
        ha="left",
        va=va,
        fontsize=8,
        style="italic",
        color="black",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )


def _mark_peak(memory_map: MemoryMap, live_bytes: np.ndarray, scale: int, ax: Axes) -> None:
    if not memory_map.peak_live_bytes:
        return
    x = memory_map.peak_position + 0.5
    ax.axvline(x, color="black", linewidth=0.9, linestyle="--")
    is_right = x > 0.6 * len(live_bytes)
    ax.annotate(
        f"peak: {format_bytes(memory_map.peak_live_bytes)} live",
        (x, 0.93),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-4 if is_right else 4, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        fontsize=8,
        weight="bold",
        color="black",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _barred(memory_map: MemoryMap) -> list[Loop]:
    """Return the loops, branches and calls that are wide enough for a bar, outer ones first."""
    least = max(2.0, len(memory_map.schedule) / 500)
    return [loop for loop in memory_map.loops if loop.last + 1 - loop.first >= least][:_N_BARS]


def _bars_height(memory_map: MemoryMap) -> float:
    """Return the height of the bars below the axis, in proportion to the axes."""
    depth = max((loop.depth + 1 for loop in _barred(memory_map)), default=0)
    return min(0.034 * depth, 0.17)


def _mark_loops(memory_map: MemoryMap, ax: Axes) -> None:
    """Draw a bar below the axis for each opened loop, branch and call, nested ones lower."""
    loops, n = _barred(memory_map), len(memory_map.schedule)
    if not loops:
        return
    height = _bars_height(memory_map) / (1 + max(loop.depth for loop in loops))
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = 72 * figure.get_size_inches()[1] * ax.get_position().height
    ax.tick_params(axis="x", pad=5 + points * _bars_height(memory_map))
    for loop in loops:
        y, width = -0.012 - height * (loop.depth + 1), loop.last + 1 - loop.first
        color = "#f4f4f4" if loop.trip_count is None else "#d4d4d4"
        style: dict[str, Any] = {"facecolor": color, "edgecolor": "#555555", "linewidth": 0.5, "clip_on": False}
        ax.add_artist(Rectangle((loop.first, y), width, 0.85 * height, transform=ax.get_xaxis_transform(), **style))
        times = f"× {loop.trip_count:,}" if loop.trip_count is not None else ""
        room = width / n / _WIDTH_OF_LETTER
        text = _plain(next((t for t in (f"{loop.name} {times}".strip(), times) if t and len(t) <= room), ""))
        if text and height > 0.02:
            x = loop.first + width / 2
            style = {"ha": "center", "va": "center", "fontsize": 6.5, "color": "black", "parse_math": False}
            ax.text(x, y + 0.4 * height, text, transform=ax.get_xaxis_transform(), **style)
