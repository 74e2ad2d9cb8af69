"""Sliders over counts, each with a field for what lies between its stops; wrong assignments raise PlanError."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets

from tiny_backprop.errors import CaptureError, PlanError
from tiny_backprop.plan.checks import check_count

MAX_LEVELS = 8
_MOST_TRIED = 1024
STYLE = {"description_width": "6em"}
WIDE = {"width": "min(26.5em, 80%)"}


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
            layout=WIDE,
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
