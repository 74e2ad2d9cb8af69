"""Figures that a notebook shows by itself and that are written to files without dates; units of their axes."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None},
}
"""What each format would else stamp into the file: nothing of the day it was written stays."""


class NotebookFigure(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


class NotebookAxes(Axes):
    """Axes of a figure of their own, which a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        figure = self.get_figure(root=True)
        assert figure is not None
        return render(figure, "png")


def render(figure: Figure, suffix: str, dots_per_inch: int = 110) -> bytes:
    """Return a figure as the bytes of a PNG, SVG or PDF file, without dates; text in an SVG stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tiny_backprop", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=suffix, metadata=METADATA[suffix], dpi=dots_per_inch)
    return buffer.getvalue()


def scale_of(top_bytes: int) -> int:
    """Return the bytes of the IEC unit in which an axis up to `top_bytes`, 1 or more, counts."""
    return 1024 ** min((top_bytes.bit_length() - 1) // 10, 5)
