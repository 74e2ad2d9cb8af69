"""`TradeOffPanel`: the trade-off of a gradient, worked out in the background, whose points can be chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.plan import Pareto, Plan, pareto
from tiny_backprop.plan.budget import budget_range_bytes, plan_budget
from tiny_backprop_widgets.guard import Guard
from tiny_backprop_widgets.pareto_view import ParetoView

N_POINTS = 24
_HIDDEN = {"display": "none"}


class TradeOffPanel(widgets.VBox):
    """A button, its progress with Cancel, and then the curve.

    Attributes:
      view: The `ParetoView`, once the trade-off is known; None before.
      search: The thread that works it out, or None.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Callable[[], Plan],
        take: Callable[[Plan], None],
        known: Callable[[], None],
        guard: Guard,
    ):
        """Make the panel; `take` is called with a plan that is chosen, `known` when there is a curve."""
        self._graph, self._plan, self._take, self._known, self._guard = graph, plan, take, known, guard
        self.view: ParetoView | None = None
        self.search: threading.Thread | None = None
        self._is_cancelled = self._is_following = False
        self.button = widgets.Button(
            description="Work out the trade-off",
            icon="line-chart",
            layout={"width": "14em"},
            tooltip=f"plans for {N_POINTS} budgets, in the background",
        )
        self.cancel_button = widgets.Button(description="Cancel", icon="times", layout=_HIDDEN)
        self._progress = widgets.IntProgress(max=N_POINTS, layout=_HIDDEN)
        self.button.on_click(lambda _: guard(self._clicked))
        self.cancel_button.on_click(lambda _: guard(self._cancelled))
        self._bar = widgets.HBox([self.button, self._progress, self.cancel_button])
        super().__init__([self._bar])

    def work_out(self, n_points: int = N_POINTS) -> Pareto:
        """Work the trade-off out, and wait; see `PlanExplorer.trade_off`."""
        found = pareto(self._graph, n_points=n_points)
        with self._guard.lock:
            view = ParetoView(found, current=self._plan())
            view.observe(lambda change: self._guard(lambda: self._chosen(change["new"])), "value")
            self.view = view
            self.children = [view]
            self._known()
        return found

    def show_graph(self, graph: Graph) -> None:
        """Be the panel of another graph, whose trade-off is not known yet."""
        self._graph, self.view, self._is_cancelled = graph, None, True
        self.children = [self._bar]

    def follow(self) -> None:
        """Mark the plan that is shown."""
        if self.view is not None:
            self._is_following = True
            try:
                self.view.show(self._plan())
            finally:
                self._is_following = False

    def _chosen(self, point: int | None) -> None:
        if point is not None and not self._is_following and self.view is not None:
            self._take(self.view.pareto.plans[point])

    def _clicked(self) -> None:
        if self.search is None:
            self._is_cancelled = False
            self.search = threading.Thread(target=self._run, name="tiny_backprop trade-off", daemon=True)
            self._show_buttons()
            self.search.start()

    def _cancelled(self) -> None:
        self._is_cancelled = True

    def _run(self) -> None:
        """Plan for one budget after the other; between two of them the sliders get their turn."""
        try:
            with self._guard.lock:
                least, most = budget_range_bytes(self._graph)
            ladder = np.geomspace(max(most, 1), max(least, 1), N_POINTS).round().astype(np.int64).tolist()
            for i, budget in enumerate(ladder):
                if self._is_cancelled:
                    return
                with self._guard.lock:
                    plan_budget(self._graph, max(budget, least))
                self._progress.value = i + 1
            self.work_out()
        except Exception as e:
            self._guard.fail(e)
        finally:
            self.search = None
            self._show_buttons()

    def _show_buttons(self) -> None:
        is_running = self.search is not None
        self.button.layout.display = "none" if is_running else None
        self._progress.layout.display = self.cancel_button.layout.display = None if is_running else "none"
