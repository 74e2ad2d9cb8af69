"""The JAXPR of a program, or of its gradient, as a graph of boxes, drawn by Graphviz.

Equations are collapsed by block (`content.block_groups`). The forward phase runs down and the backward phase climbs
beside it; laid out otherwise, its edges to the forward phase span the whole drawing, and Graphviz takes minutes.

A known weakness: inputs of the graph (arguments, constants, cotangents) are not drawn.
"""

from __future__ import annotations

import dataclasses
import html
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import graphviz
import numpy as np

from tiny_backprop.display import BACKWARD, FORWARD, guarded, plain_scope
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.checks import check_count
from tiny_backprop.plan.plan import Plan, check_fits
from tiny_backprop.schedule.simulate import Op
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets.content.block_groups import Groups, group_by_block
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.dot import run_dot

_N_LETTERS = 60
_SAVED = "#009E73"
_STYLES = {
    "forward": {"shape": "box", "color": FORWARD, "fillcolor": "#d9ebf7"},
    "backward": {
        "shape": "box",
        "style": "filled,rounded",
        "penwidth": "2",
        "color": BACKWARD,
        "fillcolor": "#fbe3d3",
    },
    "saved": {"shape": "cylinder", "color": _SAVED, "fillcolor": "#d5f0e7"},
}
_LEGEND = {
    "forward": "blue boxes: forward",
    "backward": "orange boxes with round corners: backward",
    "saved": "green cylinders: saved by the plan",
}


@dataclasses.dataclass(frozen=True)
class JaxprDag:
    """A program as a graph of boxes; a notebook draws it. Make one with `jaxpr_dag`.

    Attributes:
      source: The graph in Graphviz's DOT language.
      n_boxes: How many boxes it has.
      n_equations: How many equations they stand for.
      caption: What the boxes are, in one sentence.
    """

    source: str
    n_boxes: int
    n_equations: int
    caption: str

    def to_svg(self) -> str:
        """Return the drawing as an `<svg>` element, to be put into HTML.

        Raises:
          DisplayError: `dot` is missing, fails, or takes longer than 30 seconds.
        """
        text = run_dot(self.source, "svg").decode()
        return text[text.index("<svg") :]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the drawing as `.svg`, `.pdf` or `.png`, or its DOT text as `.dot`, and return the path.

        Raises:
          DisplayError: The suffix is none of these; or `dot`, if needed, is missing, fails or takes longer than 30 s.
          OSError: The file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower().lstrip(".")
        if suffix not in ("svg", "pdf", "png", "dot"):
            raise DisplayError(f"a DAG is saved as .svg, .pdf, .png or .dot; {path.name!r} asks for {path.suffix!r}")
        path.write_bytes(self.source.encode() if suffix == "dot" else run_dot(self.source, suffix))
        return path

    def __repr__(self) -> str:
        return f"JaxprDag({self.caption})"

    def _repr_html_(self) -> str:
        try:
            picture = self.to_svg()
        except DisplayError as e:
            source = f"<details><summary>DOT text</summary><pre>{html.escape(self.source)}</pre></details>"
            picture = f"<p>The graph is not drawn. {html.escape(str(e))}</p>{source}"
        style = "max-height:640px;overflow:auto;background:#fff;color:#000"
        return f'<div class="tiny-backprop-dag" style="{style}">{picture}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": guarded(self._repr_html_, self)}


def jaxpr_dag(graph: Graph, plan: Plan | None = None, max_boxes: int = 200) -> JaxprDag:
    """Return a program as a graph of at most `max_boxes` boxes, collapsed by block.

    Boxes tell the number of their equations, their FLOPs and the bytes that they make; edges the number and bytes of
    the values that pass. With a plan, what it saves is a box of its own beside each block, a green edge from there into
    the backward phase is a saved value (read there, or by forward equations that run there), and a dashed edge is a
    value that is not saved, but made when the backward phase needs it. FLOPs and bytes are predicted.

    Args:
      graph: Any graph.
      plan: A plan for it; by default equations are grouped without regard to any plan.
      max_boxes: The most boxes to draw, 3 or more.

    Returns:
      The drawing. Nothing is laid out before it is shown or saved.

    Raises:
      PlanError: The plan is for another graph, or `max_boxes` is not a whole number of at least 3.

    Example:
      >>> from tiny_backprop import Graph
      >>> a, b = dict(name="a", bytes=8), dict(name="b", bytes=4, reads=["a"])
      >>> jaxpr_dag(Graph.from_nodes([a, b], outputs=["b"])).caption
      '2 groups of 2 equations, one each; blue boxes: forward'
    """
    if check_count("max_boxes", max_boxes) < 3:
        raise PlanError(f"max_boxes must be a whole number of at least 3; found {max_boxes!r}")
    if plan is not None:
        check_fits(plan, graph)
        graph = plan.graph
    groups = group_by_block(graph, plan, max_boxes)
    boxes, edges = _boxes(groups), _edges(groups)
    caption = _caption(groups, boxes)
    return JaxprDag(_dot(graph, caption, boxes, edges), len(boxes), graph.n_nodes, caption)


# ---- what is drawn ----


@dataclasses.dataclass(frozen=True)
class _Box:
    name: str
    kind: str
    lines: tuple[str, ...]
    tooltip: str


@dataclasses.dataclass(frozen=True)
class _Edge:
    tail: str
    head: str
    n_values: int
    bytes: int
    is_missing: bool = False

    @property
    def label(self) -> str:
        values = "" if self.n_values == 1 else f"{self.n_values} values, "
        return f"{values}{format_bytes(self.bytes)}{', not saved' if self.is_missing else ''}"


def _boxes(groups: Groups) -> list[_Box]:
    _, at, is_again = _late_runs(groups)
    n_late = np.bincount(at, minlength=len(groups.starts)).tolist()
    n_again = np.bincount(at[is_again], minlength=len(groups.starts)).tolist()
    boxes = [_group_box(groups, g, n_late[g], n_again[g]) for g in range(len(groups.starts))]
    if groups.plan is not None:
        saved = groups.plan.saved
        owner = groups.of_node[groups.graph.value_node[saved]]
        for g in np.unique(owner).tolist():
            values = saved[owner == g]
            n_bytes = format_bytes(int(groups.graph.value_bytes[values].sum()))
            lines = (f"saved: {len(values)} value{'s' if len(values) > 1 else ''}", n_bytes)
            boxes.append(_Box(f"s{g}", "saved", lines, f"saved by the plan, made by group {g}"))
    return boxes


def _group_box(groups: Groups, g: int, n_late: int, n_again: int) -> _Box:
    graph, (i, j) = groups.graph, groups.spans[g]
    kind = "forward" if g < groups.n_forward else "backward"
    made = f"makes {format_bytes(int(graph.node_bytes[i:j].sum()))}"
    flops = format_flops(float(graph.flops[i:j].sum()))
    scope = plain_scope(Counter(graph.scopes[i:j]).most_common(1)[0][0])
    if j - i == 1:
        node = graph.node(i)
        shapes = " ".join(f"{v.dtype}{list(v.shape)}" for v in node.outputs[:3])
        lines = (node.primitive, shapes, f"{flops}, {made}")
    else:
        common = ", ".join(f"{n} {p}" for p, n in Counter(graph.primitives[i:j]).most_common(3))
        lines = (f"{kind}, {j - i} equations", f"{flops}, {made}", common)
    if scope:
        lines = (lines[0], f"in {scope}", *lines[1:])
    if n_late:
        lines = (*lines, f"first runs {n_late} forward equations, {n_again} again")
    where = next((s for s in graph.sources[i:j] if s), "no source line")
    nodes = f"node {i}" if j - i == 1 else f"nodes {i} to {j - 1}"
    return _Box(f"g{g}", kind, lines, f"{nodes}; {where}")


def _late_runs(groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the forward nodes that the plan runs in the backward phase, the group for which, and whether again."""
    if groups.plan is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
    timeline = groups.plan.timeline
    backward = np.flatnonzero(timeline.ops == Op.BACKWARD)
    late = np.flatnonzero(timeline.ops != Op.BACKWARD)
    late = late[(late > timeline.n_forward_steps) & (late < backward.max(initial=0))]
    following = timeline.steps[backward[np.searchsorted(backward, late)]]
    return timeline.steps[late], groups.of_node[following], timeline.ops[late] == Op.RECOMPUTE


def _edges(groups: Groups) -> list[_Edge]:
    graph, of_node = groups.graph, groups.of_node
    node, value = graph.reads
    tail, head = of_node[graph.value_node[value]], of_node[node]
    is_residual = (tail < groups.n_forward) & (head >= groups.n_forward)
    is_saved = np.zeros(graph.n_values, bool)
    if groups.plan is not None:
        is_saved[groups.plan.saved] = True
    direct = is_residual & is_saved[value]
    missing = is_residual & ~is_saved[value] & (groups.plan is not None)
    plain = (tail != head) & ~direct & ~missing
    edges = _summed(groups, tail[plain], head[plain], value[plain], "g")
    edges += _summed(groups, tail[missing], head[missing], value[missing], "g", is_missing=True)
    if groups.plan is not None:
        saved = groups.plan.saved
        owner = of_node[graph.value_node[saved]]
        edges += [dataclasses.replace(e, head="s" + e.head[1:]) for e in _summed(groups, owner, owner, saved, "g")]
        values, heads = _read_by_recomputation(groups, is_saved)
        values, heads = np.r_[value[direct], values], np.r_[head[direct], heads]
        edges += _summed(groups, of_node[graph.value_node[values]], heads, values, "s")
    return edges


def _read_by_recomputation(groups: Groups, is_saved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the saved values that forward nodes read in the backward phase, and the groups for which these run."""
    nodes, heads, _ = _late_runs(groups)
    reads = [(v, g) for i, g in zip(nodes.tolist(), heads.tolist(), strict=True) for v in groups.graph.read_lists[i]]
    pairs = np.array(reads, np.int64).reshape(-1, 2)
    pairs = pairs[is_saved[pairs[:, 0]]]
    return pairs[:, 0], pairs[:, 1]


def _summed(
    groups: Groups, tail: np.ndarray, head: np.ndarray, value: np.ndarray, letter: str, is_missing: bool = False
) -> list[_Edge]:
    """Return one edge for each pair (tail, head), each value counted once; `letter` begins the name of the tail."""
    rows = np.unique(np.stack([tail, head, value], axis=1), axis=0)
    pairs, at = np.unique(rows[:, :2], axis=0, return_inverse=True)
    at = at.reshape(-1)
    n_values = np.bincount(at, minlength=len(pairs)).tolist()
    n_bytes = np.zeros(len(pairs), np.int64)
    np.add.at(n_bytes, at, groups.graph.value_bytes[rows[:, 2]])
    return [
        _Edge(f"{letter}{t}", f"g{h}", n, b, is_missing)
        for (t, h), n, b in zip(pairs.tolist(), n_values, n_bytes.tolist(), strict=True)
    ]


def _caption(groups: Groups, boxes: list[_Box]) -> str:
    n_groups, n_nodes = len(groups.starts), groups.graph.n_nodes
    counts = f"{n_groups:,} group{'s' * (n_groups != 1)} of {n_nodes:,} equation{'s' * (n_nodes != 1)}"
    if n_groups == n_nodes:
        counts += ", one each"
    if groups.n_merged > 1:
        counts += f", {groups.n_merged} blocks of the plan in each forward group"
    kinds = {b.kind for b in boxes}
    return "; ".join([counts, *(text for kind, text in _LEGEND.items() if kind in kinds)])


# ---- DOT ----


def _dot(graph: Graph, caption: str, boxes: list[_Box], edges: list[_Edge]) -> str:
    attributes = {
        "label": _label(graph.name, *caption.split("; ")),
        "labelloc": "t",
        "bgcolor": "white",
        "fontname": "sans-serif",
    }
    attributes |= {"fontsize": "11", "nodesep": "0.25", "ranksep": "0.35"}
    attributes |= {"nslimit": "1", "nslimit1": "1", "mclimit": "0.1"} if len(boxes) > 60 else {}
    dot = graphviz.Digraph("jaxpr", graph_attr=attributes)
    dot.attr("node", style="filled", fontname="sans-serif", fontsize="10", margin="0.08,0.04")
    dot.attr("edge", fontname="sans-serif", fontsize="8", color="#555555", arrowsize="0.6")
    for box in boxes:
        dot.node(box.name, _label(*box.lines), tooltip=_label(box.tooltip), **_STYLES[box.kind])
    kinds = {b.name: b.kind for b in boxes}
    for edge in edges:
        _add_edge(dot, edge, kinds)
    return dot.source


def _add_edge(dot: graphviz.Digraph, edge: _Edge, kinds: dict[str, str]) -> None:
    style = {"style": "dashed", "color": BACKWARD} if edge.is_missing else {}
    if edge.tail.startswith("s") or edge.head.startswith("s"):
        style = {"color": _SAVED, "penwidth": "1.6"}
    tip = f"{edge.tail} to {edge.head}: {edge.label}"
    if kinds[edge.tail] == kinds[edge.head] and int(edge.head[1:]) == int(edge.tail[1:]) + 1:
        style = {**style, "weight": "20"}  # keeps the groups of a phase in one column
    if kinds[edge.tail] == kinds[edge.head] == "backward":
        dot.edge(edge.head, edge.tail, edge.label, dir="back", edgetooltip=tip, **style)
    else:
        dot.edge(edge.tail, edge.head, edge.label, edgetooltip=tip, **style)


def _label(*lines: str) -> str:
    """Return text as a DOT label that shows it literally, each line shortened to what fits a box."""
    return graphviz.nohtml("\\n".join(map(_escaped, lines)))


def _escaped(text: str) -> str:
    text = re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).encode("utf-8", "replace").decode()
    if len(text) > _N_LETTERS:
        text = text[: _N_LETTERS - 1] + "…"
    return str(graphviz.escape(text.replace("&", "&amp;")))
