"""A report on plans as one HTML file that needs nothing else: no kernel, no other file, no network."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd

import tiny_backprop.display as display
import tiny_backprop_widgets.exports.page as page
from tiny_backprop.analysis.report import loop_reports
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.plan import Plan, check_fits
from tiny_backprop.schedule.cost import CostModel
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets.content.prices import PRICE_HEADER, of_budget, plan_name, price_rows, references
from tiny_backprop_widgets.content.tensors import AtPeak, alive_at_peak
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import render
from tiny_backprop_widgets.plots.frontier import plot_frontier
from tiny_backprop_widgets.views.frontier_view import FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView
from tiny_backprop_widgets.views.map_link import MapLink
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView
from tiny_backprop_widgets.views.table_view import TableView
from tiny_backprop_widgets.views.view import View

_HOW_TO = (
    "Point at a picture to see what is there; click a tensor, a box or a row to choose it in all views. Drag to pan; "
    "zoom by the buttons, or the wheel with the control key held. From the keyboard, Tab leads to a picture; there the "
    "arrow keys move, + and − zoom, 0 shows all, N and P walk from one to the next, and Escape chooses none."
)
_ON_PRICES = (
    "Liveness counts the bytes of all values, as if XLA fused nothing; its lower bound is what no plan needs less than "
    "in this order. Steps are equations that run, again or for the first time."
)
_ON_STEP_TIMES = "Step times go by speeds of a typical CPU, not of this machine, until calibrate() has measured those."
_N_ROWS = 25
_N_LETTERS = 200


def write_report(
    path: str | os.PathLike[str],
    graph: Graph,
    plans: Plan | Sequence[Plan] | Mapping[str, Plan],
    *,
    measured: pd.DataFrame | None = None,
    memory_map: MemoryMap | None = None,
    cost_model: CostModel | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Path:
    """Write a report on plans for one gradient: prices, frontiers, what is alive at the peak, and the DAG.

    The file holds all it needs and is the same for the same plans. Frontiers, the table of the first plan, its DAG and
    the memory map are live: to hover over, zoom and click; what is chosen in one is chosen in all. Where scripts are
    switched off, pictures stand in their place. The page allows no script but its own, and no request.

    Args:
      path: HTML file to write; its folder must exist.
      graph: The gradient graph.
      plans: A plan or several, as a mapping their names too.
      measured: What `tiny_backprop.compare` returned, to be shown as a table measured by XLA.
      memory_map: `measure(…).memory_map` of the first plan's gradient, to be shown as XLA has it.
      cost_model: By which step times are predicted, as `tiny_backprop.calibrate` returns it.
      sizes: What symbolic dimensions stand for in the graph, to be told.

    Returns:
      The path.

    Raises:
      DisplayError: There is no plan.
      MeasureError: The memory map could not be decoded.
      PlanError: A plan is for another graph.
      OSError: The file cannot be written.
    """
    named = _named(plans)
    if not named:
        raise DisplayError("a report needs at least one plan; found none. Make one with plan_blocks(graph).")
    for plan in named.values():
        check_fits(plan, graph)
    path = Path(path)
    path.write_text(
        _html(graph, named, measured, memory_map, cost_model, sizes or {}),
        encoding="utf-8",
        errors="replace",
        newline="\n",
    )
    return path


def _named(plans: Plan | Sequence[Plan] | Mapping[str, Plan]) -> dict[str, Plan]:
    if isinstance(plans, Mapping):
        return dict(plans)
    listed = [plans] if isinstance(plans, Plan) else list(plans)
    named: dict[str, Plan] = {}
    for plan in listed:
        name = plan_name(plan)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = plan
    return named


def _html(
    graph: Graph,
    plans: Mapping[str, Plan],
    measured: pd.DataFrame | None,
    memory_map: MemoryMap | None,
    cost_model: CostModel | None,
    sizes: Mapping[str, int],
) -> str:
    plain = plan_save_everything(graph)
    first_name, first = next(iter(plans.items()))
    link = None if memory_map is None else MapLink(first, memory_map)
    title = f"Memory plan of the gradient of {_short(graph.name)}"
    prices = price_rows({**references(plain), **plans}, plain, cost_model)
    rows = [(_short(name), *cells) for name, *cells in prices]
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(_introduction(graph, sizes))}</p>",
        f'<p class="tb-live" hidden>{_HOW_TO}</p>',
        "<h2>Prices, predicted</h2>",
        page.wide(display.table(rows, PRICE_HEADER), "prices, predicted", len(PRICE_HEADER)),
        f"<p>{_ON_PRICES}{'' if cost_model else ' ' + _ON_STEP_TIMES}</p>",
    ]
    if measured is not None:
        parts += ["<h2>Measured by XLA</h2>", _measured_table(measured)]
    views: dict[str, View] = {}
    for i, (name, plan) in enumerate(plans.items()):
        views[f"frontier{i}"] = frontier = FrontierView(plan)
        if link is not None and plan is first:
            frontier.show_measured(*link.measured_curve)
        parts += [f"<h2>{html.escape(_short(name))}</h2>", page.place(f"frontier{i}", _frontier_svg(plan))]
        parts += [f"<h3>Alive at the predicted peak of {format_bytes(plan.peak_bytes)}</h3>"]
        if i:
            parts.append(_peak_table(plan))
        else:
            views["table"] = TableView(plan)
            parts.append(page.place("table", _peak_table(plan)))
    whose = f": {html.escape(_short(first_name))}" if len(plans) > 1 else ""
    views["graph"] = graph_view = GraphView(first)
    parts += [f"<h2>The JAXPR{whose}</h2>", page.place("graph", graph_view.to_svg())]
    if first.graph.nested:
        loops = "".join(loop._repr_html_() for loop in loop_reports(first.graph))
        parts += [f"<h2>Loops and branches, predicted{whose}</h2>", page.wide(loops, "loops and branches, predicted")]
    if memory_map is not None:
        views["memory_map"] = map_view = MemoryMapView(memory_map)
        parts += [f"<h2>Memory map, measured by XLA{whose}</h2>", f"<p>{_held_against(first, memory_map)}</p>"]
        parts.append(page.place("memory_map", _map_picture(map_view)))
    answers = None if link is None else link.packed_answers()
    text = page.page(title, "\n".join(parts), views, answers)
    for view in views.values():
        view.close()
    return text


def _held_against(plan: Plan, memory_map: MemoryMap) -> str:
    """Say what XLA allocates for a plan, and what was predicted."""
    peak_bytes = memory_map.temp_bytes + memory_map.output_bytes
    parts = f"temporaries {format_bytes(memory_map.temp_bytes)}, outputs {format_bytes(memory_map.output_bytes)}"
    predicted = format_bytes(plan.peak_bytes)
    told = f"XLA allocates <b>{format_bytes(peak_bytes)}</b> ({parts}), measured; predicted were {predicted}"
    return f"{told}{of_budget(plan, peak_bytes)}."


def _introduction(graph: Graph, sizes: Mapping[str, int]) -> str:
    at = f"At {', '.join(f'{_short(name)} = {n:,}' for name, n in sizes.items())}: " if sizes else ""
    return (
        f"{at}{graph.n_forward:,} forward and {graph.n_backward:,} backward equations, "
        f"{format_flops(float(graph.flops.sum()))}. The predicted peak is that of temporaries and outputs as XLA "
        "allocates them: activations, recomputed values, copies and gradients, without the arguments."
    )


def _frontier_svg(plan: Plan) -> str:
    with matplotlib.style.context("default"):
        text = render(plot_frontier(plan), "svg").decode()
    return text[text.index("<svg") :]


def _map_picture(view: MemoryMapView) -> str:
    """Return a picture whose size does not grow with the number of buffers."""
    with matplotlib.style.context("default"):
        picture = base64.b64encode(view.to_png()).decode()
    return f'<img alt="where XLA keeps each tensor, over the schedule" src="data:image/png;base64,{picture}">'


def _peak_table(plan: Plan) -> str:
    table = alive_at_peak(plan)
    rows = [
        (format_bytes(n_bytes), f"{dtype}{list(shape)}", *map(_short, texts))
        for _, _, n_bytes, dtype, shape, _, *texts in table.head(_N_ROWS).itertuples(index=False, name=None)
    ]
    n_rest, n_rest_bytes = len(table) - len(rows), int(table["bytes"].iloc[_N_ROWS:].sum())
    to_come_bytes = AtPeak.of(plan).to_come_bytes
    if to_come_bytes:
        rows.append((format_bytes(to_come_bytes), "outputs that are not yet made", "", "", "", ""))
    if n_rest:
        rows.append((format_bytes(n_rest_bytes), f"{n_rest:,} smaller values together", "", "", "", ""))
    header = ("bytes", "type", "made by", "phase", "scope", "source")
    return page.wide(display.table(rows, header), "tensors alive at the predicted peak")


def _measured_table(measured: pd.DataFrame) -> str:
    """Return a table of `compare`'s frame, with units."""
    columns = [str(c) for c in measured.columns]
    header = tuple(_short(c) for c in (measured.index.name or "", *map(_heading, columns)))
    cells = measured.astype(object).itertuples(name=None)
    rows = [tuple(_short(x) for x in (i, *map(_cell, columns, row))) for i, *row in cells]
    caption = (
        "Columns that begin with “measured” are XLA's own figures for the compiled program; “predicted” are the plan's."
    )
    return f"<p>{caption}</p>" + page.wide(display.table(rows, header), "measured by XLA")


def _short(text: object) -> str:
    """Return a name that fits into a heading or a cell."""
    return str(text) if len(str(text)) <= _N_LETTERS else f"{str(text)[:_N_LETTERS]}…"


def _heading(column: str) -> str:
    name, _, unit = column.rpartition("_")
    return (name if unit in ("bytes", "seconds") else column).replace("_", " ")


def _cell(column: str, x: Any) -> str:
    if not isinstance(x, (int, float, np.number)) or isinstance(x, bool):
        return "–" if pd.isna(x) else str(x)
    if np.isnan(x):
        return "–"
    unit = column.rpartition("_")[2]
    formats = {"bytes": format_bytes, "flops": format_flops}
    if unit in formats:
        return formats[unit](float(x))
    return f"{x:.2f} ×" if unit == "ratio" else f"{x:.3g} s" if unit == "seconds" else str(x)
