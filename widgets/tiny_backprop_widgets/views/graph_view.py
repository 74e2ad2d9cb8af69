"""`GraphView`: the equations of a gradient as boxes that open and close, forward down and backward up beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

import tiny_backprop_widgets.assets as assets
from tiny_backprop.display import plain_scope
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.plan import Plan, check_fits
from tiny_backprop.plan.strategies.tree import block_starts
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets.content.layout import Box, lay_out
from tiny_backprop_widgets.content.outline import Group, Outline
from tiny_backprop_widgets.content.tensors import RECOMPUTED, SAVED, fates, value_type
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.dag import jaxpr_dag
from tiny_backprop_widgets.plots.graph_svg import graph_svg
from tiny_backprop_widgets.views.view import View, packed

_ALL = 1000
_SMALL = 60
_MOST_LETTERS = 200


class GraphView(View):
    """The JAXPR of a gradient as boxes: the forward phase down, the backward phase up beside it, as a U.

    Equations are collapsed by scope, or by block of the plan; a click on the corner of a box opens or closes it. Colour
    and shape say what the plan saves, recomputes, and makes as gradient; they follow the plan, and boxes stay in place.
    Edges tell the number and bytes of values; green ones are saved, dashed ones recomputed.

    Args:
      plan: The plan, or a graph, which is then shown as if everything were saved.
      group_by: `"scope"`, or `"block"`: the blocks of the plan that is shown when this is set.
      max_boxes: For `save` as `.dot`, `.pdf` and `.png`, which show the plan's blocks: see `jaxpr_dag`.

    Attributes:
      graph: The graph.
      plan: The plan that is shown; assign another plan for the same graph to recolour the boxes.
      value: The chosen node, or None; the box that holds it stands out. `observe` it, or assign to it.
      query: What to search for in primitives, scopes and source lines; boxes that hold it stand out.
      matches: The nodes that the query finds, int64.
      group_by: As given; assigning to it lays the boxes out anew.

    Raises:
      DisplayError: `plan` is neither a plan nor a graph.

    Example:
      >>> from tiny_backprop import Graph, plan_blocks
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> view = GraphView(plan_blocks(Graph.from_nodes([h, dh], outputs=["dh"])))
      >>> view.query = "dh"
      >>> view.matches.tolist()
      [1]
    """

    kind = "graph"
    _esm = assets.module(f"views/{kind}")
    _css = assets.style()

    value = traitlets.Int(None, allow_none=True, min=0).tag(sync=True)
    query = traitlets.Unicode("").tag(sync=True)
    group_by = traitlets.Enum(["scope", "block"], "scope").tag(sync=True)
    _opened = traitlets.List().tag(sync=True)  # [start, end] of each open group below the phases
    _boxes = traitlets.List().tag(sync=True)
    _places = traitlets.Bytes().tag(sync=True)
    _edges = traitlets.Bytes().tag(sync=True)
    _edge_bytes = traitlets.Bytes().tag(sync=True)
    _box_bytes = traitlets.Bytes().tag(sync=True)
    _edge_saved_bytes = traitlets.Bytes().tag(sync=True)
    _hits = traitlets.Bytes().tag(sync=True)
    _caption = traitlets.Unicode("").tag(sync=True)
    _is_live = traitlets.Bool(True).tag(sync=True)

    def __init__(self, plan: Plan | Graph, *, group_by: str = "scope", max_boxes: int = 200):
        if isinstance(plan, Graph):
            plan = plan_save_everything(plan)
        if not isinstance(plan, Plan):
            raise DisplayError(f"a GraphView needs a Plan or a Graph; found {type(plan).__name__}")
        self.graph, self._plan, self._max_boxes = plan.graph, plan, max_boxes
        self.matches = np.zeros(0, np.int64)
        super().__init__(group_by=group_by)
        self._start()
        self.observe(lambda _: self._start(), "group_by")
        self.observe(lambda _: self._draw(), "_opened")
        self.observe(lambda _: self._search(), "query")

    @property
    def plan(self) -> Plan:
        """The plan that is shown."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        check_fits(plan, self.graph)
        self.graph, self._plan = plan.graph, plan
        with self.hold_sync():
            self._colour()

    def show(self, plan: Plan) -> None:
        """Show a plan for another graph: where it is the same program at other sizes, boxes stay where they are."""
        old, new = self.graph, plan.graph
        self.graph, self._plan = new, plan
        if (old.primitives, old.scopes, old.n_forward) != (new.primitives, new.scopes, new.n_forward):
            self.value = None
            self._start()
        else:
            self._outline = Outline(new, self._outline.by_block)
            self._draw()

    @property
    def expanded(self) -> list[tuple[int, int]]:
        """The open groups below the phases, each as its first node and one more than its last."""
        groups = [b.group for b in self._layout.boxes if b.is_open and b.group not in self._outline.roots]
        return [(g.start, g.end) for g in groups]

    @property
    def n_boxes(self) -> int:
        """How many closed boxes are drawn."""
        return len(self._layout.items)

    def expand(self, node: int) -> None:
        """Open the smallest closed box that holds a node.

        Raises:
          PlanError: There is no such node.
        """
        closed = [g for g in self._path_to(node) if not g.is_equation and g not in self._open_set()]
        self._opened = [*self._opened, *([[closed[0].start, closed[0].end]] if closed else [])]

    def collapse(self, node: int) -> None:
        """Close the smallest open box that holds a node; phases stay open.

        Raises:
          PlanError: There is no such node.
        """
        opened = [g for g in self._path_to(node) if g in self._open_set() and g not in self._outline.roots]
        if opened:
            self._opened = [pair for pair in self._opened if pair != [opened[-1].start, opened[-1].end]]

    def expand_all(self) -> None:
        """Open boxes, from the outside in, until about 1,000 are drawn or every equation is."""
        opened, todo, n = [], [*self._outline.roots], 0
        while todo and n < _ALL:
            group = todo.pop(0)
            children = self._outline.children(group)
            n += len(children) - 1
            opened.append([group.start, group.end])
            todo += [c for c in children if not c.is_equation]
        self._opened = opened

    def collapse_all(self) -> None:
        """Close all boxes but the phases."""
        self._opened = []

    # ---- drawing ----

    def _start(self) -> None:
        """Lay out the outline anew, closed but for what would show nothing if it were."""
        by_block = self._blocks() if self.group_by == "block" else None
        self._outline = Outline(self.graph, by_block)
        self._opened = [[g.start, g.end] for g in self._outline.bulky()]
        if self.graph.n_nodes <= _SMALL:
            self.expand_all()
        self._draw()

    def _blocks(self) -> np.ndarray:
        graph, size = self.graph, self._plan.meta.get("block_size")
        size = size or max(1, round(graph.n_forward**0.5))
        return block_starts(graph, int(size)) if graph.n_forward else np.zeros(0, np.int64)

    def _path_to(self, node: int) -> list[Group]:
        if not 0 <= node < self.graph.n_nodes:
            raise PlanError(f"node {node} was asked for; the graph has nodes 0 to {self.graph.n_nodes - 1}")
        return self._outline.path_to(int(node))

    def _open_set(self) -> set[Group]:
        """Return the groups that are open; what a page sends that is no group of the outline counts for nothing."""
        wanted = {tuple(pair) for pair in self._opened}
        found, todo = set(self._outline.roots), [*self._outline.roots]
        while todo:
            for child in self._outline.children(todo.pop()):
                if (child.start, child.end) in wanted and not child.is_equation:
                    found.add(child)
                    todo.append(child)
        return found

    def _draw(self) -> None:
        self._layout = layout = lay_out(self._outline, self._open_set())
        boxes = layout.boxes
        with self.hold_sync():
            self._boxes = [self._describe(b) for b in boxes]
            self._places = packed([[b.x, b.y, b.width, b.height] for b in boxes], np.float32)
            ends = layout.items[layout.edges[:, :2]] if len(layout.edges) else np.zeros((0, 2), np.int64)
            self._edges = packed(np.concatenate([ends, layout.edges[:, 2:]], axis=1), np.int32)
            self._edge_bytes = packed(layout.edge_bytes, np.float64)
            self._caption = self._describe_all()
            self._colour()
            self._search()

    def _describe(self, box: Box) -> dict[str, Any]:
        g, graph = box.group, self.graph
        return {
            "start": g.start,
            "end": g.end,
            "open": box.is_open,
            "level": box.level,
            "backward": bool(graph.is_backward[g.start]),
            "lines": [line[:_MOST_LETTERS] for line in describe(graph, g)],
            "more": [line[:_MOST_LETTERS] for line in _more(graph, g)],
        }

    def _describe_all(self) -> str:
        n, whole = len(self._layout.items), self.graph.n_nodes
        return f"{n:,} box{'es' * (n != 1)} of {whole:,} equation{'s' * (whole != 1)}"

    def _colour(self) -> None:
        """Tell what the plan does with the bytes of each box and edge; nothing moves."""
        layout, graph, fate = self._layout, self.graph, fates(self._plan)
        made = np.arange(graph.n_inputs, graph.n_values)
        totals = np.zeros((graph.n_nodes + 1, 3))
        kind = np.select([fate[made] == SAVED, fate[made] == RECOMPUTED], [0, 1], 2)
        np.add.at(totals, (graph.value_node[made] + 1, kind), graph.value_bytes[made])
        totals = np.cumsum(totals, axis=0)
        starts = np.array([b.group.start for b in layout.boxes], np.int64)
        ends = np.array([b.group.end for b in layout.boxes], np.int64)
        self._box_bytes = packed(totals[ends] - totals[starts], np.float64)
        saved = np.zeros(len(layout.edges))
        edge, value = layout.edge_of_value.reshape(-1, 2).T
        is_saved = fate[value] == SAVED
        np.add.at(saved, edge[is_saved], graph.value_bytes[value[is_saved]])
        self._edge_saved_bytes = packed(saved, np.float64)

    def _search(self) -> None:
        """Count in each box the equations that the query finds."""
        graph, text = self.graph, self.query.strip().lower()
        found = np.zeros(graph.n_nodes, bool)
        if text:
            texts = (graph.primitives, graph.scopes, graph.sources)
            hits = {t: text in t.lower() or text in plain_scope(t).lower() for column in texts for t in set(column)}
            found = np.array([any(hits[column[i]] for column in texts) for i in range(graph.n_nodes)], bool)
        self.matches = np.flatnonzero(found)
        counts = np.r_[0, np.cumsum(found)]
        per_box = [counts[b.group.end] - counts[b.group.start] for b in self._layout.boxes]
        self._hits = packed(per_box if text else [], np.int32)

    def to_svg(self) -> str:
        """Return what is drawn as an `<svg>` element; it needs no other program."""
        return graph_svg(
            self._layout, self._boxes, _matrix(self._box_bytes, 3), _matrix(self._edge_saved_bytes, 1)[:, 0]
        )

    def _writers(self) -> Mapping[str, Any]:
        def by_dot(path: Any) -> Any:
            return jaxpr_dag(self.graph, self._plan, self._max_boxes).save(path)

        def svg(path: Any) -> None:
            path.write_text(self.to_svg(), encoding="utf-8", newline="\n")

        return {".svg": svg, ".dot": by_dot, ".pdf": by_dot, ".png": by_dot}

    def _pictures(self) -> dict[str, str]:
        return {"image/svg+xml": self.to_svg()}

    def __repr__(self) -> str:
        return f"GraphView({self.graph.name!r}: {self._describe_all()})"


def describe(graph: Graph, group: Group) -> list[str]:
    """Return the lines that stand in a box: the equation and its type, or a group's name, size and work."""
    i, j = group.start, group.end
    flops = format_flops(float(graph.flops[i:j].sum()))
    if group.is_equation:
        outs = range(int(graph.output_start[i]), int(graph.output_start[i + 1]))
        types = " ".join(value_type(graph, v) for v in list(outs)[:2])
        return [graph.primitives[i], types, flops]
    common = ", ".join(f"{n} {p}" for p, n in Counter(graph.primitives[i:j]).most_common(3))
    return [group.label or common, f"{j - i:,} equations", flops]


def _more(graph: Graph, group: Group) -> list[str]:
    """Return what the tooltip of a box adds."""
    i, j = group.start, group.end
    nodes = f"node {i}" if group.is_equation else f"nodes {i} to {j - 1}"
    scope = plain_scope(Counter(graph.scopes[i:j]).most_common(1)[0][0])
    source = Counter(s for s in graph.sources[i:j] if s).most_common(1)
    made = f"makes {format_bytes(int(graph.node_bytes[i:j].sum()))}"
    common = ", ".join(f"{n} {p}" for p, n in Counter(graph.primitives[i:j]).most_common(6))
    lines = [f"{nodes}; {made}", *([f"in {scope}"] if scope else []), *(s for s, _ in source)]
    return lines if group.is_equation else [*lines, common]


def _matrix(data: bytes, n_columns: int) -> np.ndarray:
    return np.frombuffer(data, "<f8").reshape(-1, n_columns)
