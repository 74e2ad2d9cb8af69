"""`Guard`: callbacks one at a time, and what they raise shown in place; a browser event has nobody else to raise to."""

from __future__ import annotations

import html
import threading
import time
import traceback
from collections.abc import Callable

import ipywidgets as widgets

from tiny_backprop.errors import BudgetError
from tiny_backprop_widgets.background.cells import follow_cells

_SHOWN = "What is shown is the last plan that could be made"


class Guard:
    """Runs the callbacks of an interface.

    Attributes:
      message: Where the last callback's error is shown; empty where it had none.
      errors: Every exception that a callback raised, but for budgets that cannot be met.
      budget_error: Why there is no plan for the budget that was asked for last, or None.
      lock: JupyterLab may have callbacks run in a thread of their own, beside a cell that assigns to the sliders.
    """

    def __init__(self):
        self.message = widgets.HTML()
        self.errors: list[Exception] = []
        self.budget_error: BudgetError | None = None
        self.lock = threading.RLock()
        self._last_called = time.monotonic()
        self._cells = follow_cells()

    def __call__(self, callback: Callable[[], None]) -> None:
        """Run a callback; show what it raises, and keep it."""
        self._last_called = time.monotonic()
        with self.lock:
            try:
                callback()
            except BudgetError as e:
                self.budget_error = e
                self.refuse(e)
            except Exception as e:
                self.fail(e)
            else:
                self.message.value = ""
            self._last_called = time.monotonic()

    def wait_until_idle(self, seconds: float, is_over: threading.Event, *, for_cells: bool = False) -> bool:
        """Wait until no callback, or cell if asked, has run for so long; return False as soon as `is_over` is set."""
        cells = self._cells if for_cells else None
        while (left := max(self._last_called, cells.last_ran if cells else 0) + seconds - time.monotonic()) > 0:
            if is_over.wait(left):
                return False
        return not is_over.is_set()

    def fail(self, e: Exception) -> None:
        """Show and keep an exception."""
        with self.lock:
            self.errors.append(e)
            text = html.escape(f"{type(e).__name__}: {e}")
            trace = html.escape("".join(traceback.format_exception(e)))
            details = f"<details><summary>Traceback</summary><pre>{trace}</pre></details>"
            self.message.value = _alert(f"<b>{text}</b><br>{_SHOWN} and drawn.{details}", "#d1242f")

    def refuse(self, e: Exception) -> None:
        """Say why what was asked for cannot be; that is an answer, and no failure of the interface."""
        self.message.value = _alert(f"{html.escape(str(e))}<br>{_SHOWN}.", "#E69F00")


def _alert(text: str, colour: str) -> str:
    style = f"border-left: 4px solid {colour}; padding-left: .6em; line-height: 1.5; max-width: 760px"
    return f'<div role="alert" style="{style}">{text}</div>'
