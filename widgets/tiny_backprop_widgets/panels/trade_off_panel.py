"""`TradeOffPanel`: the trade-off of a gradient, worked out in the background, whose points can be chosen.

It is worked out when its button is clicked, and unasked, in idle time, where that is cheap and changes no other plan:
then with all that budgets are chosen from, so that their slider moves as lightly as the others. Callbacks come first: a
search goes on, a plan at a time, once none has run for a while; an unasked one waits for cells, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

import ipywidgets as widgets

from tiny_backprop.graph import Graph
from tiny_backprop.plan.pareto import Pareto, pareto, pareto_steps
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.policies import POLICIES
from tiny_backprop.plan.strategies.budget import count_budgets_ahead
from tiny_backprop_widgets.background.guard import Guard
from tiny_backprop_widgets.views.pareto_view import ParetoView

N_POINTS = 24
_N_STEPS = 1 + N_POINTS + 1 + len(POLICIES)
_IDLE_SECONDS, _IDLE_SECONDS_UNASKED = 0.05, 1.0
_MOST_NODES_UNASKED = 12_000  # a step takes tenths of a second at 10,000 nodes, all of them half a minute
_HIDDEN = {"display": "none"}
_NO_MORE = object()


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
        self._is_over = threading.Event()  # the search that is running, or the last one, is to end
        self._was_started = self._is_following = False
        self.button = widgets.Button(
            description="Work out the trade-off",
            icon="line-chart",
            layout={"width": "14em"},
            tooltip=f"plans for {N_POINTS} budgets, in the background",
        )
        self.cancel_button = widgets.Button(description="Cancel", icon="times", layout=_HIDDEN)
        self._progress = widgets.IntProgress(max=_N_STEPS, layout=_HIDDEN, style={"description_width": "initial"})
        self.button.on_click(lambda _: guard(self._clicked))
        self.cancel_button.on_click(lambda _: guard(self.end))
        self._bar = widgets.HBox([self.button, self._progress, self.cancel_button])
        super().__init__([self._bar])

    def work_out(self, n_points: int = N_POINTS) -> Pareto:
        """Work the trade-off out, and wait; see `PlanExplorer.trade_off`."""
        with self._guard.lock:
            self.end()
            found = pareto(self._graph, n_points=n_points)
            self._show(found)
        return found

    def work_out_unasked(self) -> None:
        """Work the trade-off out in idle time, once for a graph, where that is cheap.

        Of a graph made by hand, plans depend on what was planned before: there it waits until it is asked for.
        """
        is_cheap = bool(self._graph.backend) and self._graph.n_nodes <= _MOST_NODES_UNASKED
        if is_cheap and self.view is None and not self._was_started:
            self._start(is_asked=False)

    def show_graph(self, graph: Graph) -> None:
        """Be the panel of another graph, whose trade-off is not known yet."""
        self.end()
        self._graph, self.view, self._was_started = graph, None, False
        self.children = [self._bar]

    def follow(self) -> None:
        """Mark the plan that is shown."""
        if self.view is not None:
            self._is_following = True
            try:
                self.view.show(self._plan())
            finally:
                self._is_following = False

    def _show(self, found: Pareto) -> None:
        view = ParetoView(found, current=self._plan())
        view.observe(lambda change: self._guard(lambda: self._chosen(change["new"])), "value")
        self.view = view
        self.children = [view]
        self._known()

    def _chosen(self, point: int | None) -> None:
        if point is not None and not self._is_following and self.view is not None:
            self._take(self.view.pareto.plans[point])

    def _clicked(self) -> None:
        self.end()
        self._start(is_asked=True)

    def _start(self, is_asked: bool) -> None:
        self._was_started, self._is_over = True, threading.Event()
        args = (self._graph, is_asked, self._is_over)
        self.search = threading.Thread(target=self._run, args=args, name="tiny_backprop trade-off", daemon=True)
        self._progress.value, self._progress.description = 0, "" if is_asked else "worked out in idle time"
        self._show_buttons()
        self.search.start()

    def end(self) -> None:
        """Have nothing more come of the search that is running, if any."""
        self._is_over.set()
        self.search = None
        self._show_buttons()

    def _run(self, graph: Graph, is_asked: bool, is_over: threading.Event) -> None:
        idle_seconds = _IDLE_SECONDS if is_asked else _IDLE_SECONDS_UNASKED
        ahead = iter(()) if is_asked else count_budgets_ahead(graph)
        steps = pareto_steps(graph, n_points=N_POINTS)
        while self._guard.wait_until_idle(idle_seconds, is_over, for_cells=not is_asked):
            go_on = self._next(ahead, steps)
            with self._guard.lock:
                if not is_over.is_set():
                    go_on()

    def _next(self, ahead: Iterator[None], steps: Generator[None, None, Pareto]) -> Callable[[], None]:
        """Take one step, beside which callbacks may run, and return what is to be shown of it."""
        try:
            if next(ahead, _NO_MORE) is not _NO_MORE:
                return lambda: None
            next(steps)
            return self._show_progress
        except StopIteration as e:
            found = e.value
            return lambda: self._finish(lambda: self._show(found))
        except Exception as e:
            failure = e
            return lambda: self._finish(lambda: self._guard.fail(failure))

    def _show_progress(self) -> None:
        self._progress.value += 1

    def _finish(self, show: Callable[[], None]) -> None:
        self.end()
        show()

    def _show_buttons(self) -> None:
        is_running = self.search is not None
        self.button.layout.display = "none" if is_running else None
        self._progress.layout.display = self.cancel_button.layout.display = None if is_running else "none"
