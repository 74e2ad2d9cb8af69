"""What is to be said of one tensor: its type, its life, what the plan does with it, and the lines that make it."""

from __future__ import annotations

import html
import linecache
import re

import numpy as np

import tiny_backprop.display as display
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets.content.tensors import FATES, fates, lives, value_type

_N_AROUND = 3
_MOST_LETTERS = 300


def tensor_html(plan: Plan, value: int, by_xla: str = "") -> str:
    """Return a description of a tensor as HTML, everything in it escaped.

    Args:
      plan: The plan.
      value: Number of the tensor; inputs of the graph are described, too.
      by_xla: What XLA was found to do with it, measured.
    """
    graph = plan.graph
    node = int(graph.value_node[value])
    facts = [("tensor", f"{value}: {value_type(graph, value)}, {format_bytes(int(graph.value_bytes[value]))}")]
    if node < 0:
        facts.append(("input", graph.input_names[value]))
        facts += [("buffers of XLA", by_xla)] if by_xla else []
        return display.table([(name, text[:_MOST_LETTERS]) for name, text in facts])
    table, _ = lives(plan)
    spans = [f"{a} to {b}" for a, b in table[table[:, 0] == value, 1:].tolist()]
    word = plan.materialized.kernel_word
    nowhere = "none: it is computed where it is read, takes no bytes, or is never made"
    n_reads = int(np.count_nonzero(graph.reads[1] == value))
    facts += [
        ("the plan", FATES[fates(plan)[value]]),
        (f"alive at {word}s", ", ".join(spans) or nowhere),
        *([("buffers of XLA", by_xla)] if by_xla else []),
        ("made by", f"{graph.primitives[node]}, node {node}, {format_flops(float(graph.flops[node]))}"),
        ("read by", f"{n_reads} node{'s' * (n_reads != 1)}"),
        ("scope", display.plain_scope(graph.scopes[node])),
        ("source", display.short_path(graph.sources[node])),
    ]
    return display.table([(name, text[:_MOST_LETTERS]) for name, text in facts]) + source_html(graph.sources[node])


def source_html(source: str) -> str:
    """Return the lines around a source line `file:line (function)` as HTML; "" where the file is not to be had."""
    found = re.match(r"(.*):(\d+)(?: \(.*\))?$", source)
    if not found:
        return ""
    path, at = found[1], int(found[2])
    try:
        lines = [(i, linecache.getline(path, i).rstrip()) for i in range(max(1, at - _N_AROUND), at + _N_AROUND + 1)]
    except (ValueError, OSError):  # no path at all: a NUL in it, too long
        return ""
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        return ""
    shown = [f"{i:5} {html.escape(text[:_MOST_LETTERS])}" for i, text in lines]
    marked = [f"<mark>{text}</mark>" if text.startswith(f"{at:5} ") else text for text in shown]
    text = "\n".join(marked)
    return f'<pre class="tiny-backprop-source" dir="ltr">{text}</pre>'
