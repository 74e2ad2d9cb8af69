"""`BudgetSlider`: byte budgets, with a field to type into and marks for those that mean something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.strategies.budget import budget_range_bytes, parse_budget
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.panels.slider_marks import Mark, SliderMarks
from tiny_backprop_widgets.panels.sliders import STYLE, WIDE

_N_STOPS = 101


class _Budget(traitlets.TraitType[Any, Any]):
    """A byte budget as `plan_budget` takes it; whatever else is assigned raises PlanError."""

    def __init__(self):
        super().__init__(0)

    def validate(self, obj: Any, value: Any) -> Any:
        parse_budget(obj.graph, value)
        return value


class BudgetSlider(widgets.VBox):
    """A slider from the smallest peak that the planner can reach to that of save-everything, and a field to type into.

    `value` is the budget, as `plan_budget` takes it: bytes, text such as "24 MiB", or a fraction of the save-everything
    peak. Assigning it moves the slider to the nearest stop, and calls observers before the assignment returns. What is
    no budget raises PlanError; a budget that no plan fits into does not.

    Under the slider are marked the smallest budget, the knee once it is told (`knee_bytes`), and save-everything.
    """

    value = _Budget()

    def __init__(self, graph: Graph, complain: Callable[[Exception], None]):
        self.graph, self._complain = graph, complain
        self._stops, self._slider = np.zeros(0, np.int64), None
        self._knee_bytes: int | None = None
        self._marks = SliderMarks(self._from_mark, layout=WIDE)
        self._marks.add_class("tiny-backprop-marks")
        self._field = widgets.Text(
            continuous_update=False, tooltip="a budget such as 24 MiB or 50%", layout=widgets.Layout(width="6em")
        )
        super().__init__([self._field])
        self.value = self._most_bytes = plan_save_everything(graph).peak_bytes
        self._field.observe(self._from_field, "value")

    @property
    def is_ready(self) -> bool:
        """Whether `prepare` has been called."""
        return self._slider is not None

    @property
    def bytes(self) -> int:
        """The budget in bytes."""
        return parse_budget(self.graph, self.value)

    @property
    def range_bytes(self) -> tuple[int, int]:
        """The smallest and the largest budget that the slider goes to; `prepare` must have been called."""
        return int(self._stops[0]), int(self._stops[-1])

    @property
    def knee_bytes(self) -> int | None:
        """The peak of the trade-off's knee, to be marked; None where it is not known."""
        return self._knee_bytes

    @knee_bytes.setter
    def knee_bytes(self, knee_bytes: int | None) -> None:
        self._knee_bytes = knee_bytes
        self._mark()

    def show_graph(self, graph: Graph) -> None:
        """Be the slider of another graph; it has to be prepared anew. A budget that was never chosen follows it."""
        if graph is not self.graph:
            was_chosen, self.graph = self.value != self._most_bytes, graph
            self._slider, self._knee_bytes, self.children = None, None, [self._field]
            self._most_bytes = plan_save_everything(graph).peak_bytes
            if not was_chosen:
                self.value = self._most_bytes
            self._field.value = self._text()

    def prepare(self) -> None:
        """Make the slider, unless it is there: where it begins takes the planner about a second to find."""
        if self._slider is not None:
            return
        least_bytes, _ = budget_range_bytes(self.graph)
        stops = np.geomspace(max(least_bytes, 1), max(self._most_bytes, 1), _N_STOPS)
        self._stops = np.unique(stops.round().astype(np.int64))
        self._slider = widgets.SelectionSlider(
            options=[(format_bytes(n), n) for n in self._stops.tolist()],
            index=self._nearest(),
            description="budget",
            tooltip="predicted peak at most; logarithmic",
            readout=False,
            continuous_update=True,
            layout=WIDE,
            style=STYLE,
        )
        self._slider.observe(self._from_slider, "value")
        self.children = [widgets.HBox([self._slider, self._field]), self._marks]
        self._mark()

    def _mark(self) -> None:
        """Mark what is known of the budgets."""
        if self._slider is None:
            return
        low, high = self.range_bytes
        row = 0 if self._knee_bytes is None else 1  # below the knee, whose tick would cross their words
        marks = [Mark("smallest", low, 0.0, row, "the smallest budget that a plan was found for")]
        if self._knee_bytes is not None:
            stop = np.interp(self._knee_bytes, self._stops, np.arange(len(self._stops)))
            at = float(stop / max(len(self._stops) - 1, 1))
            marks.append(Mark("knee", self._knee_bytes, at, 0, "the knee, after which less memory becomes costly"))
        if high > low:
            marks.append(Mark("save everything", high, 1.0, row, "what saving everything takes"))
        self._marks.show(marks)

    def _from_mark(self, mark: Mark) -> None:
        self.value = mark.bytes

    def _nearest(self) -> int:
        """Return the number of the stop that is nearest to the budget."""
        return int(np.abs(np.log(self._stops / max(self.bytes, 1))).argmin())

    def _text(self) -> str:
        return self.value if isinstance(self.value, str) else format_bytes(self.bytes)

    @traitlets.observe("value")
    def _follow(self, _: Any) -> None:
        if self._slider is not None:
            self._slider.index = self._nearest()
        self._field.value = self._text()

    def _from_slider(self, change: Any) -> None:
        if self._slider is not None and self._slider.index != self._nearest():  # else the slider only follows
            self.value = change["new"]

    def _from_field(self, change: Any) -> None:
        if change["new"] != self._text():
            try:
                self.value = _typed_budget(change["new"])
            except PlanError as e:
                self._complain(e)


def _typed_budget(text: str) -> str | float:
    """Return what was typed, "50%" and "0.5" as a fraction: nobody means half a byte."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        return text
    return share if text.strip().endswith("%") or 0 < share < 1 else text
