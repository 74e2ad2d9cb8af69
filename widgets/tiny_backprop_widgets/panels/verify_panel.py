"""`VerifyPanel`: what XLA allocates for a plan, asked in the background, beside what was predicted."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable

import ipywidgets as widgets

from tiny_backprop.errors import PlanError
from tiny_backprop.integration.jax.xla.measure import Measurement
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.background.compiling import Compilation, Program, measure_program
from tiny_backprop_widgets.background.guard import Guard
from tiny_backprop_widgets.content.prices import of_budget

_TICK_SECONDS = 0.5
_HIDDEN = {"display": "none"}


class VerifyPanel(widgets.Box):
    """A button, its progress with Cancel, and XLA's figures; a plan is compiled once.

    Attributes:
      measured: What XLA allocates, by plan.
      compilation: What is being compiled, or None.
      line: What is told.
    """

    def __init__(
        self,
        gradient: Callable[[Plan], Program] | None,
        plan: Callable[[], Plan],
        show: Callable[[Measurement | None], None],
        guard: Guard,
    ):
        """Make the panel for the plan that `plan()` returns.

        Args:
          gradient: Returns what to compile for a plan; None where there is nothing to compile.
          plan: Returns the plan.
          show: Shows what is known of the plan elsewhere.
          guard: Runs callbacks.
        """
        self._gradient, self._plan, self._show, self._guard = gradient, plan, show, guard
        self.measured: dict[Plan, Measurement] = {}
        self.compilation: Compilation | None = None
        self.line = widgets.HTML()
        self.button = widgets.Button(
            description="Verify", icon="check", tooltip="compile this gradient and ask XLA what it allocates"
        )
        self.cancel_button = widgets.Button(description="Cancel", icon="times", layout=_HIDDEN)
        self.button.on_click(lambda _: guard(self._clicked))
        self.cancel_button.on_click(lambda _: guard(self._cancelled))
        layout = widgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        super().__init__([self.button, self.cancel_button, self.line] if gradient else [], layout=layout)

    def verify(self) -> Measurement:
        """Compile the plan, and wait; see `PlanExplorer.verify`."""
        if self._gradient is None:
            raise PlanError("to verify a plan, its function is compiled: make the explorer by PlanExplorer(fun, *args)")
        plan = self._plan()
        if plan not in self.measured:
            self._keep(plan, measure_program(self._gradient(plan)))
            self.refresh()
        return self.measured[plan]

    def _keep(self, plan: Plan, measurement: Measurement) -> None:
        """Keep a measurement under the name of the user's function, not that of what was compiled around it."""
        self.measured[plan] = dataclasses.replace(measurement, name=plan.graph.name)

    def refresh(self) -> None:
        """Show what XLA allocates for the plan, or that it is being asked."""
        compilation = self.compilation
        if compilation is not None:
            self.line.value = f"{compilation.stage}, {compilation.seconds:.0f} s…"
        else:
            self.line.value = self.text()
            self._show(self.measured.get(self._plan()))

    def text(self) -> str:
        """Return XLA's figures for the plan as HTML, "" where they are not known."""
        plan = self._plan()
        m = self.measured.get(plan)
        if m is None:
            return ""
        return (
            f"measured by XLA on {m.platform}: <b>{format_bytes(m.peak_bytes)}</b> (temp {format_bytes(m.temp_bytes)} "
            f"+ output {format_bytes(m.output_bytes)}); predicted {format_bytes(plan.peak_bytes)}"
            f"{of_budget(plan, m.peak_bytes)}"
        )

    def _clicked(self) -> None:
        plan = self._plan()
        if self._gradient is None or self.compilation is not None or plan in self.measured:
            return
        self.compilation = Compilation(self._gradient(plan), functools.partial(self._ended, plan))
        self._show_buttons()
        self.refresh()
        self.compilation.start()
        threading.Thread(target=self._tick, args=(self.compilation,), daemon=True).start()

    def _tick(self, compilation: Compilation) -> None:
        """Tell how far the compilation is, as long as it is running."""
        while compilation is self.compilation and compilation.is_running:
            self.refresh()
            compilation.join(_TICK_SECONDS)

    def _ended(self, plan: Plan, compilation: Compilation) -> None:
        """Take the end of a compilation from its thread; one that was cancelled has been forgotten already."""
        with self._guard.lock:
            if compilation is not self.compilation:
                return
            self.compilation = None
            if compilation.measurement is not None:
                self._keep(plan, compilation.measurement)
            elif compilation.error is not None:
                self._guard.fail(compilation.error)
            self._show_buttons()
            self.refresh()

    def _cancelled(self) -> None:
        compilation, self.compilation = self.compilation, None
        if compilation is not None:
            compilation.cancel()
        self._show_buttons()
        self.line.value = "cancelled"

    def _show_buttons(self) -> None:
        is_running = self.compilation is not None
        self.button.layout.display = "none" if is_running else None
        self.cancel_button.layout.display = None if is_running else "none"
