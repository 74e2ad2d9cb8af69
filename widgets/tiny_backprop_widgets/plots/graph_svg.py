"""The drawing of a `GraphView` as SVG: what stands in where there is no kernel, and what is exported without `dot`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.content.layout import Box, Layout

LOOKS = {
    "saved": ("#d5f0e7", "#009E73"),
    "recomputed": ("#f6e3ec", "#CC79A7"),
    "gradient": ("#fdf0d5", "#E69F00"),
    "transient": ("#dceefa", "#56B4E9"),
}
_MARGIN = 14
_LABELLED = 400  # edges up to which each is labelled
_BAD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def graph_svg(
    layout: Layout, boxes: Sequence[dict[str, Any]], box_bytes: np.ndarray, edge_saved_bytes: np.ndarray
) -> str:
    """Return a drawing.

    Args:
      layout: Where the boxes are.
      boxes: What a `GraphView` says of each: its lines, whether it is backward.
      box_bytes: Bytes of each box that are saved, recomputed, and neither; float64 of shape (n_boxes, 3).
      edge_saved_bytes: Bytes of each edge that are saved.
    """
    width, height = layout.size
    parts = [_edge(layout, e, boxes, float(edge_saved_bytes[e])) for e in range(len(layout.edges))]
    frames = [_frame(b, d) for b, d in zip(layout.boxes, boxes, strict=True) if b.is_open]
    closed = [_closed(b, d, n) for b, d, n in zip(layout.boxes, boxes, box_bytes, strict=True) if not b.is_open]
    size = f"{-_MARGIN} {-_MARGIN} {width + 2 * _MARGIN:.0f} {height + 2 * _MARGIN:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" width="{width + 2 * _MARGIN:.0f}" '
    head += f'height="{height + 2 * _MARGIN:.0f}" font-family="sans-serif" font-size="11" style="max-width:100%">'
    ground = f'<rect x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, ground, *frames, *parts, *closed, "</svg>\n"])


def fate_of(is_backward: bool, n_bytes: Sequence[float]) -> str:
    """Return what most of a box's bytes are: "saved", "recomputed", "gradient" or "transient"."""
    saved, recomputed, _ = n_bytes
    if is_backward:
        return "gradient"
    if saved or recomputed:
        return "saved" if saved >= recomputed else "recomputed"
    return "transient"


def _text(text: str, most: int) -> str:
    clean = _BAD.sub(" ", text)
    return html.escape(clean if len(clean) <= most else clean[: most - 1] + "…")


def _frame(box: Box, about: dict[str, Any]) -> str:
    colour = LOOKS["gradient" if about["backward"] else "transient"][1]
    return (
        f'<g><rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="6" '
        f'fill="{colour}" fill-opacity=".05" stroke="{colour}" stroke-opacity=".6"/><text x="{box.x + 8:.1f}" '
        f'y="{box.y + 14:.1f}" font-weight="bold" fill="#333">{_text(about["lines"][0], 34)}</text></g>'
    )


def _closed(box: Box, about: dict[str, Any], n_bytes: np.ndarray) -> str:
    fate = fate_of(about["backward"], n_bytes.tolist())
    fill, stroke = LOOKS[fate]
    x, y, w, h = box.x, box.y, box.width, box.height
    dash = ' stroke-dasharray="5 3"' if fate == "recomputed" else ""
    outlines = {
        "saved": f"M{x:.1f},{y + 3:.1f}q{w / 2:.1f},-7 {w:.1f},0v{h - 6:.1f}q{-w / 2:.1f},7 {-w:.1f},0z"
        f"m0,0q{w / 2:.1f},6 {w:.1f},0",
        "recomputed": f"M{x + 8:.1f},{y:.1f}h{w - 16:.1f}l8,{h / 2:.1f}l-8,{h / 2:.1f}h{16 - w:.1f}l-8,{-h / 2:.1f}z",
        "gradient": f"M{x + 14:.1f},{y:.1f}h{w - 28:.1f}q14,0 14,14v{h - 28:.1f}q0,14 -14,14h{28 - w:.1f}"
        f"q-14,0 -14,-14v{28 - h:.1f}q0,-14 14,-14z",
        "transient": f"M{x:.1f},{y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z",
    }
    lines = "".join(
        f'<text x="{x + w / 2:.1f}" y="{y + 17 + 12 * i:.1f}" text-anchor="middle" font-weight="{400 if i else 700}">'
        f"{_text(line, 26)}</text>"
        for i, line in enumerate(about["lines"][:3])
    )
    tip = "\n".join(_text(line, 200) for line in [*about["lines"], *about["more"]])
    return (
        f'<g><title>{tip}</title><path d="{outlines[fate]}" fill="{fill}" stroke="{stroke}" stroke-width="1.6"{dash}/>'
        f"{lines}</g>"
    )


def _edge(layout: Layout, e: int, boxes: Sequence[dict[str, Any]], saved_bytes: float) -> str:
    tail, head, n_values = layout.edges[e].tolist()
    i, j = int(layout.items[tail]), int(layout.items[head])
    a, b = layout.boxes[i], layout.boxes[j]
    is_across = boxes[i]["backward"] != boxes[j]["backward"]
    if is_across:
        x0, y0, x1, y1 = a.x + a.width, a.y + a.height / 2, b.x, b.y + b.height / 2
        d = f"M{x0:.1f},{y0:.1f}C{x0 + 60:.1f},{y0:.1f} {x1 - 60:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
    else:
        is_up = boxes[i]["backward"]
        x0, y0 = a.x + a.width / 2, a.y if is_up else a.y + a.height
        x1, y1 = b.x + b.width / 2, b.y + b.height if is_up else b.y
        bend = (y1 - y0) / 2
        d = f"M{x0:.1f},{y0:.1f}C{x0:.1f},{y0 + bend:.1f} {x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}"
    look = 'stroke="#888"'
    if is_across:
        look = 'stroke="#009E73" stroke-width="1.6"' if saved_bytes else 'stroke="#CC79A7" stroke-dasharray="5 3"'
    n_bytes = int(layout.edge_bytes[e])
    label = f"{n_values} value{'s' * (n_values != 1)}, {format_bytes(n_bytes)}"
    text = ""
    if len(layout.edges) <= _LABELLED:
        at = f'x="{(x0 + x1) / 2 + 3:.1f}" y="{(y0 + y1) / 2:.1f}"'
        text = f'<text {at} font-size="8" fill="#555">{format_bytes(n_bytes)}</text>'
    return f'<g><title>{label}</title><path d="{d}" fill="none" {look}/>{text}</g>'
