"""`SliderMarks`: ticks with words under a slider, which take it there when they are clicked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import traitlets

import tiny_backprop_widgets.assets as assets
from tiny_backprop.units import format_bytes


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place on a slider of bytes.

    Attributes:
      name: What is there, in a word or two.
      bytes: The bytes that it stands for.
      at: Where it is, from 0 (the left end) to 1.
      row: Below which row of words it is written, 0 or 1, so that neighbours do not cover each other.
      title: What it means.
    """

    name: str
    bytes: int
    at: float
    row: int
    title: str


class SliderMarks(anywidget.AnyWidget):
    """Ticks and words under a slider; `take` is called with the mark that is clicked, or entered from the keyboard."""

    _esm = assets.module("panels/slider_marks")
    _css = assets.style()

    _marks = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, take: Callable[[Mark], None], **kwargs: Any):
        super().__init__(**kwargs)
        self.marks: tuple[Mark, ...] = ()
        self._take = take
        self.on_msg(self._clicked)

    def show(self, marks: Sequence[Mark]) -> None:
        """Show these marks instead of those before."""
        if tuple(marks) == self.marks:
            return
        self.marks = tuple(marks)
        self._marks = [
            {
                "at": mark.at,
                "row": mark.row,
                "text": f"{mark.name} {format_bytes(mark.bytes)}",
                "title": f"{mark.title}: set the budget to {format_bytes(mark.bytes)}",
            }
            for mark in self.marks
        ]

    def _clicked(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, int) and 0 <= content < len(self.marks):
            self._take(self.marks[content])
