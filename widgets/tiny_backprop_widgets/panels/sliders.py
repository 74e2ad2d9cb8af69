"""The sliders of the explorer, each with a field for what lies between its stops; wrong assignments raise PlanError."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets

from tiny_backprop.errors import CaptureError, PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.blocks import plan_save_everything
from tiny_backprop.plan.checks import check_count
from tiny_backprop.plan.strategies.budget import budget_range_bytes, parse_budget
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.panels.slider_marks import Mark, SliderMarks

MAX_LEVELS = 8
_N_STOPS = 101
_MOST_TRIED = 1024
STYLE = {"description_width": "6em"}
_WIDE = {"width": "min(26.5em, 80%)"}


class _Count(traitlets.TraitType[int, int]):
    """A whole number of at least 1; whatever else is assigned, None and 2.5 included, raises PlanError."""

    def __init__(self, argument: str, most: int | None = None):
        super().__init__(1)
        self._argument, self._most = argument, most

    def validate(self, obj: Any, value: Any) -> int:
        count = check_count(self._argument, value)
        if self._most is not None and count > self._most:
            raise PlanError(f"{self._argument} goes from 1 to {self._most} in the explorer; found {count}")
        return count


class _CountSlider(widgets.HBox):
    """A logarithmic slider over counts, and a field for an exact one; `value` is the count."""

    value = _Count("count")

    def __init__(self, stops: np.ndarray, value: int, description: str, tooltip: str):
        self._stops = stops
        self._slider = widgets.SelectionSlider(
            options=[(str(n), n) for n in stops.tolist()],
            description=description,
            tooltip=tooltip,
            readout=False,
            continuous_update=True,
            layout=_WIDE,
            style=STYLE,
        )
        self._field = widgets.BoundedIntText(
            value=1, min=1, max=2**31 - 1, tooltip=f"exact {description}", layout=widgets.Layout(width="6em")
        )
        super().__init__([self._slider, self._field])
        self.value = value
        self._follow(None)
        self._slider.observe(self._from_slider, "value")
        self._field.observe(self._from_field, "value")

    def _nearest(self) -> int:
        """Return the number of the stop that is nearest to `value`."""
        return int(np.abs(np.log(self._stops / self.value)).argmin())

    @traitlets.observe("value")
    def _follow(self, _: Any) -> None:
        self._slider.index = self._nearest()
        self._field.value = min(self.value, self._field.max)

    def _from_slider(self, change: Any) -> None:
        if self._slider.index != self._nearest():  # else the slider only follows
            self._chosen(change["new"])

    def _from_field(self, change: Any) -> None:
        if change["new"] != min(self.value, self._field.max):
            self._chosen(change["new"])

    def _chosen(self, value: int) -> None:
        self.value = value


class BlockSizeSlider(_CountSlider):
    """A logarithmic slider over block sizes, and a field for an exact one.

    `value` is the block size: any whole number of at least 1, not only those that the slider stops at. Assigning it
    moves the slider to the nearest stop, and calls observers before the assignment returns. Anything else raises
    PlanError.
    """

    value = _Count("block_size")

    def __init__(self, n_forward: int, value: int):
        largest = max(n_forward, 1)
        stops = np.unique(np.r_[(2 ** np.arange(0, np.log2(largest), 0.25)).round(), largest]).astype(int)
        super().__init__(stops, value, "block size", "forward nodes per block; logarithmic")


class _Size(traitlets.TraitType[int, int]):
    """A size of a symbolic dimension; whatever does not meet its constraints raises CaptureError."""

    def validate(self, obj: Any, value: Any) -> int:
        return obj.check(value)


class DimensionSlider(_CountSlider):
    """A logarithmic slider over the sizes of a symbolic dimension, and a field for an exact one.

    `value` is the size: any that meets the constraints, not only those that the slider stops at. Assigning it moves the
    slider to the nearest stop, and calls observers before the assignment returns. Anything else raises CaptureError,
    or, from the browser, is told by `complain`.

    Assign a pair to `range` to change where the slider begins and ends; 1 and 4,096 at first.
    """

    value = _Size(1)

    def __init__(self, name: str, value: int, check: Callable[[Any], int], complain: Callable[[Exception], None]):
        self.check, self._complain, self._range = check, complain, (1, 4096)
        stops = self._possible(*self._range)
        super().__init__(stops, value, name[:40], f"size of the dimension {name}; logarithmic")

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest size that the slider may stop at."""
        return self._range

    @range.setter
    def range(self, bounds: tuple[int, int]) -> None:
        low, high = (check_count("range", n) for n in bounds)
        stops = self._possible(low, high)
        if not len(stops):
            raise PlanError(f"no size from {low} to {high} meets the constraints of the dimension")
        self._range, self._stops = (low, high), stops
        with self.hold_trait_notifications():
            self._slider.unobserve(self._from_slider, "value")
            self._slider.options = [(str(n), n) for n in stops.tolist()]
            self._slider.index = self._nearest()
            self._slider.observe(self._from_slider, "value")

    def _possible(self, low: int, high: int) -> np.ndarray:
        """Return sizes that meet the constraints, about two for each doubling; powers of two where they do."""
        marks = [low, *(2 ** np.arange(0, 31, 0.5)).round().astype(int).tolist(), high]
        marks = sorted({n for n in marks if low <= n <= high})
        found = (self._first_possible(a, b) for a, b in itertools.pairwise([*marks, high + 1]))
        return np.array([n for n in found if n is not None], int)

    def _first_possible(self, first: int, end: int) -> int | None:
        for n in range(first, min(end, first + _MOST_TRIED)):
            try:
                return self.check(n)
            except CaptureError:
                continue
        return None

    def _chosen(self, value: int) -> None:
        try:
            self.value = value
        except CaptureError as e:
            self._complain(e)
            self._follow(None)


class LevelsSlider(widgets.IntSlider):
    """A slider over 1 to 8 levels; a value out of range raises PlanError where IntSlider would silently clip it."""

    value = _Count("levels", MAX_LEVELS).tag(sync=True)


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
        self._marks = SliderMarks(self._from_mark, layout=_WIDE)
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
        """The peak after which less memory becomes dear, to be marked; None where it is not known."""
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
            layout=_WIDE,
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
            marks.append(Mark("knee", self._knee_bytes, at, 0, "the knee, after which less memory becomes dear"))
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
