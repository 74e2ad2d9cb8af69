"""A report on plans as one HTML file that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd

from tiny_backprop import display
from tiny_backprop.graph import Graph
from tiny_backprop.plan import Plan, plan_save_everything
from tiny_backprop.plan.plan import check_fits
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets.dag import jaxpr_dag
from tiny_backprop_widgets.frontier import DisplayError, plot_frontier, render

_N_ROWS = 25
_N_LETTERS = 200
_STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; background: #fff }
table { border-collapse: collapse; margin: .5rem 0; font-size: 13px }
td:first-child { white-space: nowrap } td:last-child { overflow-wrap: anywhere }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ccc; text-align: left; overflow-wrap: break-word }
svg { max-width: 100%; height: auto } .dag { overflow: auto; max-height: 50rem } .dag svg { max-width: none }
"""


def write_report(
    path: str | os.PathLike[str],
    graph: Graph,
    plans: Plan | Sequence[Plan] | Mapping[str, Plan],
    *,
    measured: pd.DataFrame | None = None,
    max_boxes: int = 120,
) -> Path:
    """Write a report on plans for one gradient: prices, frontiers, what is alive at the peak, and the DAG.

    The file holds all it needs and shows the same bytes for the same plans. The DAG is that of the first plan; where
    Graphviz's `dot` is missing, the report says so in its place.

    Args:
      path: HTML file to write; its folder must exist.
      graph: The gradient graph.
      plans: A plan or several, as a mapping their names too.
      measured: What `tiny_backprop.compare` returned, to be shown as a table measured by XLA.
      max_boxes: The most boxes in the DAG.

    Returns:
      The path.

    Raises:
      DisplayError: There is no plan.
      PlanError: A plan is for another graph.
      OSError: The file cannot be written.
    """
    named = _named(plans)
    if not named:
        raise DisplayError("a report needs at least one plan; found none. Make one with plan_blocks(graph).")
    for plan in named.values():
        check_fits(plan.graph.fingerprint, graph)
    path = Path(path)
    path.write_text(_html(graph, named, measured, max_boxes), encoding="utf-8", errors="replace", newline="\n")
    return path


def price_rows(plans: Mapping[str, Plan], plain: Plan) -> list[tuple[str, ...]]:
    """Return, for each plan, the cells under `PRICE_HEADER`, all predicted; `plain` is save-everything."""
    plain_bytes = max(plain.peak_bytes, 1)
    return [
        (
            name,
            format_bytes(p.peak_bytes),
            f"{p.peak_bytes / plain_bytes:.2f} ×",
            format_bytes(p.saved_bytes),
            f"+{p.recompute_fraction:.1%} ({format_flops(p.recompute_flops)})",
            f"{len(p.timeline.steps):,}",
        )
        for name, p in plans.items()
    ]


PRICE_HEADER = ("predicted", "peak", "of save everything", "saved", "recompute", "steps")


def alive_at_peak(plan: Plan) -> pd.DataFrame:
    """Return the values alive at the plan's peak, largest first; their bytes add up to `plan.peak_bytes`.

    Returns:
      One row per value, with `value`, `bytes`, `dtype`, `shape`, `node`, `primitive`, `phase`, `scope` and `source`.
    """
    graph = plan.graph
    values = plan.alive_at_peak
    values = values[np.argsort(-graph.value_bytes[values], kind="stable")]
    nodes = graph.value_node[values].tolist()
    return pd.DataFrame(
        {
            "value": values,
            "bytes": graph.value_bytes[values],
            "dtype": [graph.value_dtypes[v] for v in values.tolist()],
            "shape": [graph.value_shapes[v] for v in values.tolist()],
            "node": nodes,
            "primitive": [graph.primitives[i] for i in nodes],
            "phase": ["backward" if graph.is_backward[i] else "forward" for i in nodes],
            "scope": [graph.scopes[i] for i in nodes],
            "source": [graph.sources[i] for i in nodes],
        }
    )


def _named(plans: Plan | Sequence[Plan] | Mapping[str, Plan]) -> dict[str, Plan]:
    if isinstance(plans, Mapping):
        return dict(plans)
    listed = [plans] if isinstance(plans, Plan) else list(plans)
    named: dict[str, Plan] = {}
    for plan in listed:
        name = plan_name(plan)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = plan
    return named


def plan_name(plan: Plan) -> str:
    """Return how a plan was asked for, such as "blocks, levels 1, block size 64" or "byte budget, 24 MiB"."""
    meta = plan.meta
    if "budget_bytes" in meta:
        return f"{meta.get('strategy', 'plan')}, {format_bytes(meta['budget_bytes'])}"
    parts = [f"{k.replace('_', ' ')} {meta[k]}" for k in ("levels", "block_size") if k in meta]
    return ", ".join([str(meta.get("strategy", "plan")), *parts])


def _html(graph: Graph, plans: Mapping[str, Plan], measured: pd.DataFrame | None, max_boxes: int) -> str:
    plain = plan_save_everything(graph)
    title = html.escape(f"Memory plan of the gradient of {graph.name[:200]}")
    parts = [
        f"<h1>{title}</h1><p>{html.escape(_introduction(graph))}</p>",
        "<h2>Prices, predicted</h2>",
        display.table(price_rows({"save everything": plain, **plans}, plain), PRICE_HEADER),
    ]
    if measured is not None:
        parts += ["<h2>Measured by XLA</h2>", _measured_table(measured)]
    for name, plan in plans.items():
        parts += [f"<h2>{html.escape(name)}</h2>", f"<figure>{_frontier_svg(plan, plain)}</figure>", _peak_table(plan)]
    parts += ["<h2>The JAXPR</h2>", _dag(graph, next(iter(plans.values())), max_boxes)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _introduction(graph: Graph) -> str:
    return (
        f"{graph.n_forward:,} forward and {graph.n_backward:,} backward equations, "
        f"{format_flops(float(graph.flops.sum()))}. Predicted figures are what the referee counts when it plays the "
        "plan: live bytes of activations, recomputed values and gradients, without the arguments."
    )


def _frontier_svg(plan: Plan, plain: Plan) -> str:
    with matplotlib.style.context("default"):
        text = render(plot_frontier(plan, baseline=plain), "svg").decode()
    return text[text.index("<svg") :]


def _peak_table(plan: Plan) -> str:
    table = alive_at_peak(plan)
    rows = [
        (format_bytes(n_bytes), f"{dtype}{list(shape)}", *(str(text)[:_N_LETTERS] for text in texts))
        for _, n_bytes, dtype, shape, _, *texts in table.head(_N_ROWS).itertuples(index=False, name=None)
    ]
    n_rest, n_rest_bytes = len(table) - len(rows), int(table["bytes"].iloc[_N_ROWS:].sum())
    if n_rest:
        rows.append((format_bytes(n_rest_bytes), f"{n_rest:,} smaller values together", "", "", "", ""))
    header = ("bytes", "type", "made by", "phase", "scope", "source")
    return f"<h3>Alive at the predicted peak of {format_bytes(plan.peak_bytes)}</h3>" + display.table(rows, header)


def _dag(graph: Graph, plan: Plan, max_boxes: int) -> str:
    dag = jaxpr_dag(graph, plan, max_boxes)
    try:
        return f'<p>{html.escape(dag.caption)}</p><div class="dag">{dag.to_svg()}</div>'
    except DisplayError as e:
        return f"<p>The graph is not drawn. {html.escape(str(e))}</p>"


def _measured_table(measured: pd.DataFrame) -> str:
    """Return a table of `compare`'s frame, with units."""
    columns = [str(c) for c in measured.columns]
    header = (str(measured.index.name or ""), *(_heading(c) for c in columns))
    cells = measured.astype(object).itertuples(name=None)
    rows = [(i, *(_cell(c, x) for c, x in zip(columns, row, strict=True))) for i, *row in cells]
    caption = (
        "Columns that begin with “measured” are XLA's own figures for the compiled program; “predicted” are the plan's."
    )
    return f"<p>{caption}</p>" + display.table(rows, header)


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
