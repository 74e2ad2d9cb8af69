"""HTML for notebooks: self-contained, escaped, and never an exception in the user's cell."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tiny_backprop.units import format_bytes

FORWARD, BACKWARD, BASELINE = "#0072B2", "#D55E00", "#999999"
"""Okabe-Ito colours of the forward phase, the backward phase and whatever a plan is compared with."""
MEASURED = "#CC79A7"
"""The same palette's colour of what XLA measured."""


def guarded(make: Callable[[], str], value: object) -> str:
    """Return `make()`, or the value's text and the reason where making the HTML fails."""
    try:
        return make()
    except Exception as e:
        return f"<pre>{html.escape(repr(value))}\n(no HTML: {html.escape(repr(e))})</pre>"


def short_path(source: str) -> str:
    """Return a source line with the last folder of its path alone."""
    parts = source.split("/")
    return f"…/{'/'.join(parts[-2:])}" if len(parts) > 3 else source


@functools.lru_cache(maxsize=4096)
def plain_scope(scope: str) -> str:
    """Return a name stack without what differentiation wraps around its parts; the phase is told elsewhere."""
    while (i := max(scope.find("jvp("), scope.find("transpose("))) >= 0:
        begin = scope.index("(", i)
        end = _closing(scope, begin)
        if end < 0:
            return scope
        scope = scope[:i] + scope[begin + 1 : end] + scope[end + 1 :]
    return "/".join(part for part in scope.split("/") if part)


def _closing(text: str, begin: int) -> int:
    """Return where the parenthesis that opens at `begin` closes, -1 where it does not."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return -1


def table(rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> str:
    """Return an HTML table of escaped cells."""
    head = "<tr>" + "".join(f"<th>{html.escape(str(c))}</th>" for c in header) + "</tr>" if header else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<table class="tiny-backprop">{head}{body}</table>'


def peaks_per_bin(y: np.ndarray, n_bins: int) -> np.ndarray:
    """Return `y` shortened to at most `n_bins` entries, each the maximum of its bin, so that no peak is lost."""
    if len(y) <= n_bins:
        return y
    return np.maximum.reduceat(y, np.linspace(0, len(y), n_bins, endpoint=False).astype(int))


def _area(series: np.ndarray, top: float, x0: float, x1: float, height: int, n_bins: int) -> str:
    """Return the path under a series, from x0 to x1."""
    if not len(series):
        return ""
    s = peaks_per_bin(series, n_bins)
    xs = np.linspace(x0, x1, len(s) + 1)
    tops = height * (1 - s / top)
    points = "".join(f"L{a:.1f},{y:.1f}H{b:.1f}" for a, b, y in zip(xs, xs[1:], tops, strict=False))
    return f"M{x0:.1f},{height}{points}V{height}Z"


def live_svg(y: np.ndarray, label: str, width: int = 480, height: int = 110) -> str:
    """Return a small picture of measured live bytes over a schedule."""
    label = html.escape(f"{label}, peak {format_bytes(float(y.max(initial=0)))}")
    path = _area(y, max(float(y.max(initial=1.0)), 1.0), 0, width, height, width)
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:100%"><title>{label}</title><path d="{path}" fill="{MEASURED}" fill-opacity=".75"/></svg>'
    )


def frontier_svg(
    y: np.ndarray, n_forward: int, baseline: np.ndarray | None = None, width: int = 480, height: int = 110
) -> str:
    """Return a small picture of live bytes over the steps of a schedule, over a grey baseline where one is given."""
    top = max(float(y.max(initial=1.0)), float(baseline.max(initial=1.0)) if baseline is not None else 1.0)

    split = width * n_forward / max(len(y), 1)
    shapes = [
        f'<path d="{_area(part, top, x0, x1, height, width)}" fill="{colour}" fill-opacity=".75">'
        f"<title>{phase}</title></path>"
        for phase, colour, part, x0, x1 in (
            ("forward", FORWARD, y[:n_forward], 0, split),
            ("backward", BACKWARD, y[n_forward:], split, width),
        )
    ]
    if baseline is not None:
        shapes.insert(
            0, f'<path d="{_area(baseline, top, 0, width, height, width)}" fill="{BASELINE}" fill-opacity=".35"/>'
        )
    label = f"live bytes over {len(y)} steps, peak {format_bytes(float(y.max(initial=0)))} (predicted)"
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width:100%"><title>{label}</title>{"".join(shapes)}</svg>'
    )


def curve_svg(
    x_bytes: np.ndarray,
    y: np.ndarray,
    knee: int,
    references: Sequence[tuple[float, float, str]],
    width: int = 480,
    height: int = 150,
) -> str:
    """Return a small picture of a trade-off: bytes to the right, cost upwards, the knee marked, others as crosses."""
    margin = 8
    right = max(float(x_bytes.max()), *(r[0] for r in references), 1.0)
    top = max(float(y.max()), *(r[1] for r in references), 1e-30)

    def at(x: float, cost: float) -> tuple[float, float]:
        return margin + (width - 2 * margin) * x / right, height - margin - (height - 2 * margin) * cost / top

    points = [at(a, b) for a, b in zip(x_bytes.tolist(), y.tolist(), strict=True)]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    shapes = [f'<polyline points="{line}" fill="none" stroke="{FORWARD}" stroke-width="1.5"/>']
    shapes += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="{FORWARD}"/>' for a, b in points]
    a, b = points[knee]
    shapes.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="{BACKWARD}"><title>knee</title></circle>')
    for x, cost, name in references:
        a, b = at(x, cost)
        cross = f"M{a - 4:.1f},{b - 4:.1f}l8,8m0,-8l-8,8"
        shapes.append(
            f'<path d="{cross}" stroke="{BASELINE}" stroke-width="2"><title>{html.escape(name)}</title></path>'
        )
    label = f"recompute cost over peak bytes of {len(points)} plans (predicted)"
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width:100%"><title>{label}</title>{"".join(shapes)}</svg>'
    )
