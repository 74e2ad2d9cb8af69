"""Where the boxes of the DAG go: forward down on the left, backward up beside it, every group in a box of its own.

Within a group, children stand in rows by longest path, and in a row by where what they read stands. Linear in equations
and edges; a drawing of 1,000 boxes takes some tens of milliseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop_widgets.content.outline import Group, Outline

WIDTH, HEIGHT = 168.0, 46.0
_GAP_X, _GAP_Y, _PADDING, _HEADER, _BETWEEN = 18.0, 26.0, 12.0, 22.0, 190.0
_MOST_IN_ROW = 6


@dataclasses.dataclass(frozen=True)
class Box:
    """A group as it is drawn.

    Attributes:
      group: The group.
      x: Left edge.
      y: Upper edge.
      width: Width.
      height: Height.
      level: How many open groups it is in.
      is_open: Whether its children are drawn inside.
    """

    group: Group
    x: float
    y: float
    width: float
    height: float
    level: int
    is_open: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A drawing of a graph.

    Attributes:
      boxes: Open groups, each before what is inside, and closed ones.
      items: Numbers, among `boxes`, of those that are closed, in execution order.
      edges: Rows (tail, head, number of values) of edges between `items`; int64 of shape (n_edges, 3).
      edge_bytes: Bytes of the values of each edge.
      of_node: The item that each node is in.
      edge_of_value: Rows (edge, value): which values make up each edge; int64 of shape (n, 2).
    """

    boxes: tuple[Box, ...]
    items: np.ndarray
    edges: np.ndarray
    edge_bytes: np.ndarray
    of_node: np.ndarray
    edge_of_value: np.ndarray

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the drawing."""
        return (
            max((b.x + b.width for b in self.boxes), default=0.0),
            max((b.y + b.height for b in self.boxes), default=0.0),
        )


def lay_out(outline: Outline, opened: Set[Group]) -> Layout:
    """Place the boxes of a graph.

    Args:
      outline: The groups.
      opened: The groups whose children are drawn; the phases are always open.

    Returns:
      The drawing.
    """
    placed = [
        _place(outline, root, opened, is_up=i == 1 or outline.graph.n_forward == 0) for i, root in _phases(outline)
    ]
    tall = max((p.height for p in placed), default=0.0)
    boxes: list[Box] = []
    x = 0.0
    for p in placed:
        # A phase that is shorter is stretched, so that its turn lies beside that of the other.
        p.emit(x, 0.0, 0, tall / p.height if p.height else 1.0, boxes)
        x += p.width + _BETWEEN
    items = np.array([i for i, b in enumerate(boxes) if not b.is_open], np.int64)
    items = items[np.argsort([boxes[i].group.start for i in items.tolist()], kind="stable")]
    starts = np.array([boxes[i].group.start for i in items.tolist()], np.int64)
    of_node = np.searchsorted(starts, np.arange(outline.graph.n_nodes), side="right") - 1
    return Layout(tuple(boxes), items, *_edges(outline.graph, of_node))


def _phases(outline: Outline) -> list[tuple[int, Group]]:
    return [(int(root.label == "backward"), root) for root in outline.roots]


class _Placed:
    """A group with its children placed around it; `emit` gives them their places in the drawing."""

    def __init__(self, group: Group, is_open: bool):
        self.group, self.is_open = group, is_open
        self.width, self.height = WIDTH, HEIGHT
        self.inside: list[tuple[_Placed, float, float]] = []

    def emit(self, x: float, y: float, level: int, stretch: float, boxes: list[Box]) -> None:
        boxes.append(Box(self.group, x, y, self.width, self.height * stretch, level, self.is_open))
        for child, dx, dy in self.inside:
            child.emit(x + dx, y + dy * stretch + child.height * (stretch - 1) / 2, level + 1, 1.0, boxes)


def _place(outline: Outline, group: Group, opened: Set[Group], is_up: bool) -> _Placed:
    is_open = group in outline.roots or (group in opened and not group.is_equation)
    placed = _Placed(group, is_open)
    children = outline.children(group) if is_open else ()
    if not children:
        if is_open:  # a phase of one equation
            placed.inside = [(_Placed(group, False), _PADDING, _HEADER)]
            placed.width, placed.height = WIDTH + 2 * _PADDING, HEIGHT + _HEADER + _PADDING
        return placed
    inner = [_place(outline, c, opened, is_up) for c in children]
    rows = _rows(*_edges_between(outline.graph, group, children), len(children))
    widths = [sum(inner[c].width for c in row) + _GAP_X * (len(row) - 1) for row in rows]
    placed.width = max(widths) + 2 * _PADDING
    y = _HEADER
    for row, width in zip(rows[::-1] if is_up else rows, widths[::-1] if is_up else widths, strict=True):
        x, tall = (placed.width - width) / 2, max(inner[c].height for c in row)
        for c in row:
            placed.inside.append((inner[c], x, y + (tall - inner[c].height) / 2))
            x += inner[c].width + _GAP_X
        y += tall + _GAP_Y
    placed.height = y - _GAP_Y + _PADDING
    return placed


def _edges_between(graph: Graph, group: Group, children: tuple[Group, ...]) -> tuple[list[int], list[int]]:
    """Return tails and heads of the edges among a group's children, without repeats, sorted by head."""
    node, value = graph.reads
    low, high = np.searchsorted(node, [group.start, group.end])
    head, tail = node[low:high], graph.value_node[value[low:high]]
    keep = tail >= group.start
    starts = np.array([c.start for c in children])
    a = np.searchsorted(starts, tail[keep], side="right") - 1
    b = np.searchsorted(starts, head[keep], side="right") - 1
    pairs = np.unique((b * len(children) + a)[a != b])
    return (pairs % len(children)).tolist(), (pairs // len(children)).tolist()


def _rows(tails: list[int], heads: list[int], n: int) -> list[list[int]]:
    """Return the children of each row: by longest path, sources just above their first reader, few side by side."""
    rank, has_input = [0] * n, [False] * n
    for a, b in zip(tails, heads, strict=True):
        rank[b] = max(rank[b], rank[a] + 1)
        has_input[b] = True
    first_reader = [n] * n
    for a, b in zip(tails, heads, strict=True):
        first_reader[a] = min(first_reader[a], rank[b])
    for i in range(n):
        if not has_input[i] and first_reader[i] < n:
            rank[i] = first_reader[i] - 1
    by_rank: dict[int, list[int]] = {}
    for i, r in enumerate(rank):
        by_rank.setdefault(r, []).append(i)
    place: dict[int, float] = {}
    read: dict[int, list[int]] = {}
    for a, b in zip(tails, heads, strict=True):
        read.setdefault(b, []).append(a)
    rows = []
    for r in sorted(by_rank):
        row = sorted(by_rank[r], key=lambda i: (_mean([place[a] for a in read.get(i, []) if a in place]), i))
        for at in range(0, len(row), _MOST_IN_ROW):
            part = row[at : at + _MOST_IN_ROW]
            place |= {i: k - (len(part) - 1) / 2 for k, i in enumerate(part)}
            rows.append(part)
    return rows


def _mean(xs: list[float]) -> float:
    return sum(xs) / len(xs) if xs else 0.0


def _edges(graph: Graph, of_node: np.ndarray) -> tuple[Any, ...]:
    """Return edges, their bytes, `of_node` again, and which values each edge stands for, each value once."""
    node, value = graph.reads
    tail, head = of_node[graph.value_node[value]], of_node[node]
    keep = tail != head
    rows = np.unique(np.stack([tail[keep], head[keep], value[keep]], axis=1), axis=0)
    pairs, at = np.unique(rows[:, :2], axis=0, return_inverse=True)
    at = at.reshape(-1)
    n_bytes = np.zeros(len(pairs), np.int64)
    np.add.at(n_bytes, at, graph.value_bytes[rows[:, 2]])
    edges = np.concatenate([pairs, np.bincount(at, minlength=len(pairs))[:, None]], axis=1).astype(np.int64)
    return edges, n_bytes, of_node, np.stack([at, rows[:, 2]], axis=1)
