"""`PlanExplorer`: turn the sliders of a plan, see its price, its frontier, its graph, and what XLA says to it.

What is costly is asked for: the trade-off (`trade_off_panel`) and XLA's own figures (`verify_panel`), both worked out
in the background.
"""

from __future__ import annotations

import base64
import functools
import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

import tiny_backprop.display as display
from tiny_backprop.analysis.report import loop_reports
from tiny_backprop.errors import BudgetError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.xla.calibration import read_calibration
from tiny_backprop.integration.jax.xla.measure import Measurement
from tiny_backprop.plan.blocks import plan_blocks, plan_height_compressed
from tiny_backprop.plan.blocks import plan_save_everything as save_everything
from tiny_backprop.plan.budget import plan_budget
from tiny_backprop.plan.pareto import Pareto
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.cost import CostModel
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.background.guard import Guard
from tiny_backprop_widgets.content.prices import PRICE_HEADER, price_rows, references, remarks_html
from tiny_backprop_widgets.explorer.gradient import Gradient
from tiny_backprop_widgets.explorer.linked_views import LinkedViews
from tiny_backprop_widgets.exports.report import write_report
from tiny_backprop_widgets.panels.budget_slider import BudgetSlider
from tiny_backprop_widgets.panels.sliders import (
    MAX_LEVELS,
    STYLE,
    BlockSizeSlider,
    DimensionSlider,
    LevelsSlider,
)
from tiny_backprop_widgets.panels.trade_off_panel import N_POINTS, TradeOffPanel
from tiny_backprop_widgets.panels.verify_panel import VerifyPanel
from tiny_backprop_widgets.plots.dag import jaxpr_dag
from tiny_backprop_widgets.plots.dot import has_dot
from tiny_backprop_widgets.plots.figure import render
from tiny_backprop_widgets.plots.frontier import baseline_of, export_frontier, plot_frontier
from tiny_backprop_widgets.views.frontier_view import FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView
from tiny_backprop_widgets.views.pareto_view import ParetoView
from tiny_backprop_widgets.views.stand_in import hidden_stand_in, show_with_stand_in
from tiny_backprop_widgets.views.table_view import TableView
from tiny_backprop_widgets.views.view import with_pictures

_MAX_BOXES = 120
_BY_BLOCKS, _BY_HEIGHT, _BY_BUDGET = STRATEGIES = ("block size", "height compression", "budget")
_LABEL = {"width": STYLE["description_width"], "display": "flex", "justify_content": "flex-end"}
_WIDE = {"width": "min(30em, 100%)"}
_CSS = (
    "<style>.tiny-backprop-explorer :is(th, td) { padding: 0 1.2em 0 0; text-align: left; line-height: 1.6 } "
    ".tiny-backprop-explorer .widget-html-content { overflow-x: auto; min-width: 0 } "
    # Where there is no room beside each other, tabs stand below each other, and rows of prices become columns.
    ".tiny-backprop-explorer .lm-TabBar-content { flex-wrap: wrap } "
    ".tiny-backprop-explorer .lm-TabBar-tab { flex: 0 0 auto !important; min-width: max-content !important } "
    ".tiny-backprop-price > .widget-html-content { container-type: inline-size } "
    "@container (max-width: 46em) { .tiny-backprop-price :is(table, tr) { display: contents } "
    ".tiny-backprop-price tbody { display: grid; grid: repeat(8, auto) / auto-flow minmax(0, max-content) } "
    ".tiny-backprop-price :is(th, td) { padding-right: .9em; white-space: normal; max-width: 11em } } "
    ".tiny-backprop-explorer pre { white-space: pre-wrap; line-height: 1.4 } "
    ".tiny-backprop-explorer mark { background: #ffe08a; color: #000 }</style>"
)


class PlanExplorer(widgets.VBox):
    """Choose a plan by block size, levels or byte budget, and see its price, its frontier and its graph at once.

    Whatever it does can be done without it; `code()` tells how.

    Args:
      graph_or_fun: A gradient graph, or a function to capture the gradient of.
      *args: Example arguments of the function: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them. Symbolic
        dimensions in them (`jax.export.symbolic_shape`) get a slider each.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether the function returns a pair whose second part is not differentiated.
      donate_argnums: Which positional arguments the gradient may write over, as with `jax.jit`.
      **kwargs: Keyword arguments of the function.

    Attributes:
      graph: The gradient graph.
      block_size: The block-size slider. Assign any whole number of at least 1 to `block_size.value`; the new plan is
        there when the assignment returns.
      levels: The slider of levels, 1 to 8; assign to `levels.value` likewise.
      budget: The slider of byte budgets; assign to `budget.value` whatever `plan_budget` takes.
      dimensions: The slider of each symbolic dimension, by name; assign sizes to `dimensions["batch"].value`, and to
        `dimensions["batch"].range` where the slider begins and ends.
      strategy: What plans: `"block size"` (`plan_blocks`), `"height compression"` (`plan_height_compressed`, by block
        size and levels) or `"budget"` (`plan_budget`). Changing a slider chooses it.
      frontier: The `FrontierView`.
      dag: The `GraphView`.
      tensors: The `TableView` of what is alive at the peak. A tensor that is chosen in one view is chosen in all,
        in XLA's memory map, too, as far as it can be told which buffers hold it.
      cost_model: What `tiny_backprop.calibrate` has kept for this machine, for predicted step times; else None.

    End a notebook with `assert not ui.errors`: an exception in a callback fails no cell.

    Raises:
      PlanError: The graph has no backward phase, or the first argument is neither a graph nor a function.
      CaptureError: The function cannot be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> ui = PlanExplorer(lambda x: jnp.sum(jnp.sin(jnp.sin(x))), jnp.ones(4))
      >>> ui.block_size.value = 2
      >>> ui.plan.meta["block_size"]
      2
    """

    def __init__(
        self,
        graph_or_fun: Graph | Callable[..., Any],
        *args: Any,
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        donate_argnums: int | Sequence[int] = (),
        **kwargs: Any,
    ):
        options = {"argnums": argnums, "has_aux": has_aux, "donate_argnums": donate_argnums}
        self._guarded, self._is_resizing, self._is_shown = Guard(), False, False
        self.cost_model: CostModel | None = None
        self._gradient = Gradient(graph_or_fun, args, kwargs, options)
        self._sizes = self._gradient.example_sizes
        self.graph = self._gradient.graph_at(self._sizes)
        self.dimensions = {name: self._dimension_slider(name) for name in self._sizes}
        self._plan = plan_blocks(self.graph)
        self._plain = save_everything(self.graph)
        self._references = references(self._plain)
        self.block_size = BlockSizeSlider(self.graph.n_forward, self._plan.meta["block_size"])
        self.levels = LevelsSlider(
            value=1, min=1, max=MAX_LEVELS, description="levels", continuous_update=True, layout=_WIDE, style=STYLE
        )
        self.budget = BudgetSlider(self.graph, self._guarded.refuse)
        self.strategy = widgets.ToggleButtons(
            options=list(STRATEGIES),
            style={"button_width": "13em"},
            tooltips=[
                "blocks of so many nodes, each recomputed once",
                "blocks of blocks, on several levels: less memory, more recomputation",
                "the cheapest plan within so many bytes",
            ],
        )
        self.frontier = FrontierView(self._plan)
        self.dag = GraphView(self._plan, max_boxes=_MAX_BOXES)
        self.tensors = TableView(self._plan)
        views = self.frontier, self.dag, self.tensors
        self._linked = LinkedViews(self.graph, lambda: self._plan, *views, self._guarded)
        program = (lambda plan: self._gradient.program(plan, self._sizes)) if self._gradient.is_function else None
        show = self._linked.show_measurement
        self._verify_panel = VerifyPanel(program, lambda: self._plan, show, self._guarded)
        self._trade_off = TradeOffPanel(self.graph, lambda: self._plan, self._take, self._tell_budget, self._guarded)
        super().__init__(self._build())
        self.add_class("tiny-backprop-explorer")
        self._guarded(self._read_calibration)
        self._connect()
        self._show_sliders()
        self._guarded(lambda: self._show(self._plan))

    def _build(self) -> list[widgets.Widget]:
        self._title = widgets.HTML()
        title = f"<b>{html.escape(self.graph.name[:100])}</b>: {self.graph.n_forward:,} forward and "
        title += f"{self.graph.n_backward:,} backward equations; what is shown is predicted unless it says measured"
        self._title.value = f"{_CSS}<style>{hidden_stand_in(self._title.model_id)}</style>{title}"
        self._price, self._code = widgets.HTML(), widgets.HTML()
        self._price.add_class("tiny-backprop-price")
        self._exported, self._budget_line = widgets.HTML(), widgets.HTML()
        self._loops = widgets.HTML()
        self._export_button = widgets.Button(description="Export", icon="download")
        self._directory = widgets.Text(value="plan-export", description="to folder", style=STYLE)
        self._tabs = widgets.Tab(
            [
                widgets.VBox([self.tensors, self._linked.tensor]),
                self.dag,
                self._loops,
                self._trade_off,
                self._linked.map_tab,
                widgets.VBox([self._code, _row(self._export_button, self._directory), self._exported]),
            ],
            titles=["Tensors", "Graph", "Loops", "Trade-off", "Memory map", "Code and export"],
        )
        return [
            self._title,
            _row(widgets.Label("plan by", layout=_LABEL), self.strategy),
            *self.dimensions.values(),
            self.block_size,
            self.levels,
            self.budget,
            self._budget_line,
            self._guarded.message,
            self._price,
            self._verify_panel,
            self.frontier,
            self._tabs,
        ]

    def _connect(self) -> None:
        """Have every event run its callback guarded."""
        self.strategy.observe(lambda _: self._guarded(self._replan), "value")
        for slider in (self.block_size, self.levels, self.budget):
            slider.observe(functools.partial(self._chosen, slider), "value")
        for slider in self.dimensions.values():
            slider.observe(lambda _: self._guarded(self._replan), "value")
        self._export_button.on_click(lambda _: self._guarded(self._export_clicked))

    # ---- from Python ----

    @property
    def plan(self) -> Plan:
        """The plan that is shown: after a re-planning that failed (see `errors`), the last one that was made."""
        return self._plan

    @property
    def measurement(self) -> Measurement | None:
        """What XLA allocates for `plan`, if it has been asked; see `verify`."""
        return self._verify_panel.measured.get(self._plan)

    @property
    def memory_map_view(self) -> MemoryMapView | None:
        """The `MemoryMapView` of `measurement`, once there is one; None before."""
        return self._linked.map_view

    @property
    def trade_off_view(self) -> ParetoView | None:
        """The `ParetoView`, once the trade-off is known; None before."""
        return self._trade_off.view

    @property
    def errors(self) -> list[Exception]:
        """Every exception that a callback of the interface raised; each is also shown in place."""
        return self._guarded.errors

    @property
    def budget_error(self) -> BudgetError | None:
        """Why there is no plan for the budget that was asked for last, or None; the plan stays what it was."""
        return self._guarded.budget_error

    def code(self) -> str:
        """Return lines of Python that make `plan`, and run it, without the explorer; the function is the caller's."""
        return self._gradient.code(self._plan, self._sizes)

    def verify(self) -> Measurement:
        """Compile the gradient of `plan` and show what XLA allocates for it; a plan is compiled once.

        The button does the same in the background.

        Returns:
          The measurement; `peak_bytes` (temporaries and outputs) is what a budget is held against.

        Raises:
          PlanError: The explorer was made from a graph, which cannot be compiled.
          CaptureError: The function does not return a real scalar.
        """
        return self._verify_panel.verify()

    def trade_off(self, n_points: int = N_POINTS) -> Pareto:
        """Work out the trade-off between peak bytes and recompute cost, and show it; see `tiny_backprop.pareto`.

        The button does the same in the background.

        Args:
          n_points: How many budgets to plan for.

        Returns:
          The trade-off.

        Raises:
          PlanError: `n_points` is not a whole number of at least 1.
        """
        return self._trade_off.work_out(n_points)

    def export(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write the plan into a folder, which is made if need be, over what was exported there before.

        Args:
          directory: The folder.

        Returns:
          The files: the frontier as PNG, SVG, PDF (over it what XLA has alive, once that is known), CSV and JSON, the
          tensors at the peak as CSV, the plan as JSON, the DAG as DOT and SVG and, where Graphviz's `dot` is
          installed, as PDF and PNG, the trade-off and XLA's memory map as SVG and CSV where they are known, and
          `report.html`, which needs none of the others.

        Raises:
          OSError: A file cannot be written.
          DisplayError: `dot` is installed, but fails or takes longer than 30 seconds.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        plan = self._plan
        frontiers = [folder / f"frontier.{suffix}" for suffix in ("png", "svg", "pdf", "csv")]
        measured = self.measurement
        paths = [export_frontier(plan, path, measured=measured) for path in frontiers]
        paths.append(folder / "frontier.json")
        plan.materialized.kernels_to_pandas().reset_index().to_json(paths[-1], orient="records")
        paths.append(self.tensors.save(folder / "tensors.csv"))
        paths.append(folder / "plan.json")
        paths[-1].write_text(plan.to_json(), encoding="utf-8")
        paths.append(self.dag.save(folder / "dag.svg"))
        drawing = jaxpr_dag(self.graph, plan, _MAX_BOXES)
        paths += [drawing.save(folder / f"dag.{s}") for s in (("dot", "pdf", "png") if has_dot() else ("dot",))]
        if self.trade_off_view is not None:
            paths += [self.trade_off_view.save(folder / f"trade-off.{s}") for s in ("svg", "csv")]
        memory_map = None
        if self._linked.map_view is not None:
            memory_map = self._linked.map_view.memory_map
            paths += [self._linked.map_view.save(folder / f"memory-map.{s}") for s in ("svg", "csv")]
        report = folder / "report.html"
        known = {"memory_map": memory_map, "cost_model": self.cost_model, "sizes": self._sizes}
        paths.append(write_report(report, self.graph, plan, **known))
        return paths

    def close(self) -> None:
        """Close the explorer, and end what it does in the background."""
        if hasattr(self, "_trade_off"):  # ipywidgets closes what could not be made, too
            self._trade_off.end()
        super().close()

    def __repr__(self) -> str:
        return f"PlanExplorer({self._plan!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return with_pictures(super()._repr_mimebundle_(**kwargs), self, self._pictures)

    def _ipython_display_(self) -> None:
        """Show the live explorer and, as an output of its own, what stands in where its model is not found."""
        show_with_stand_in(self._repr_mimebundle_(), self._title.model_id)
        self._is_shown = True
        self._trade_off.work_out_unasked()

    def _pictures(self) -> dict[str, str]:
        """Return a static picture and table, which stand in where there is no kernel."""
        picture = base64.b64encode(render(plot_frontier(self._plan), "png")).decode()
        rows = price_rows({"this plan": self._plan, **self._references}, self._plain, self.cost_model)
        image = f'<img alt="live bytes over the steps of the plan" src="data:image/png;base64,{picture}">'
        table = display.table(rows, PRICE_HEADER) + self._verify_panel.text()
        return {"image/png": picture, "text/html": f"<div><p>{html.escape(repr(self))}</p>{table}{image}</div>"}

    # ---- callbacks; each runs inside _guarded ----

    def _chosen(self, slider: widgets.Widget, _: Any) -> None:
        if self._is_resizing:  # the budget follows the graph; nobody chose it
            return
        by_size = _BY_HEIGHT if self.strategy.value == _BY_HEIGHT else _BY_BLOCKS
        way = {self.budget: _BY_BUDGET, self.levels: _BY_HEIGHT, self.block_size: by_size}[slider]
        if self.strategy.value == way:
            self._guarded(self._replan)
        else:
            self.strategy.value = way  # which plans

    def _replan(self) -> None:
        self._guarded.budget_error = None
        way = self.strategy.value
        graph, sizes = self.graph, {name: slider.value for name, slider in self.dimensions.items()}
        if sizes:
            graph = self._gradient.graph_at(sizes)
            self._show_budgets_of(graph)
        if way == _BY_BUDGET and not self.budget.is_ready:
            self._guarded.message.value = "Looking for the smallest peak…"
            self.budget.prepare()
        self._show_sliders()
        if way == _BY_BUDGET:
            plan = plan_budget(graph, self.budget.value)
        elif way == _BY_BLOCKS:
            plan = plan_blocks(graph, self.block_size.value)
        else:
            plan = plan_height_compressed(graph, levels=self.levels.value, block_size=self.block_size.value)
        if graph is not self.graph:
            self._take_in(graph, sizes, plan)
        self._show(plan)
        if self._is_shown or way == _BY_BUDGET:
            self._trade_off.work_out_unasked()

    def _show_budgets_of(self, graph: Graph) -> None:
        self._is_resizing = True
        try:
            self.budget.show_graph(graph)
        finally:
            self._is_resizing = False

    def _take_in(self, graph: Graph, sizes: dict[str, int], plan: Plan) -> None:
        """Have all views show a plan for the graph at other sizes."""
        plain = save_everything(graph)
        self.frontier.show(plan, baseline=baseline_of(plan, True))
        self.graph, self._sizes, self._plan, self._plain = graph, sizes, plan, plain
        self._references = references(plain)
        self._linked.show_graph(graph)
        self.dag.show(plan)
        self._trade_off.show_graph(graph)

    def _show_sliders(self) -> None:
        """Hide the sliders that play no part."""
        way = self.strategy.value
        for widget, ways in (
            (self.block_size, (_BY_BLOCKS, _BY_HEIGHT)),
            (self.levels, (_BY_HEIGHT,)),
            (self.budget, (_BY_BUDGET,)),
            (self._budget_line, (_BY_BUDGET,)),
        ):
            widget.layout.display = None if way in ways else "none"

    def _show(self, plan: Plan) -> None:
        """Show a plan everywhere; the frontier comes first, and only when it has worked is the plan the one shown."""
        rows = price_rows({"this plan": plan, **self._references}, self._plain, self.cost_model)
        price = display.table(rows, PRICE_HEADER) + remarks_html(plan)
        self.frontier.plan = plan
        self._plan, self._price.value = plan, price
        self.dag.plan = plan
        self.tensors.plan = plan
        self._code.value = f"The same in Python:<pre>{html.escape(self.code())}</pre>"
        self._tell_budget()
        self._loops.value = self._loops_text()
        self._verify_panel.refresh()
        self._linked.show_tensor()
        self._trade_off.follow()

    def _dimension_slider(self, name: str) -> DimensionSlider:
        def check(size: Any) -> int:
            others = {k: slider.value for k, slider in getattr(self, "dimensions", {}).items()}
            return self._gradient.checked({**self._sizes, **others, name: size})[name]

        return DimensionSlider(name, self._sizes[name], check, self._guarded.refuse)

    def _read_calibration(self) -> None:
        self.cost_model = read_calibration()

    def _loops_text(self) -> str:
        """Show what is inside the loops and branches, as the plan has them."""
        if not self._plan.graph.nested:
            return "The program has no loops and branches to plan."
        return "".join(loop._repr_html_() for loop in loop_reports(self._plan.graph))

    def _tell_budget(self) -> None:
        """Say what the budget's plan costs, and which budgets are possible."""
        plan = self._plan
        if "budget_bytes" not in plan.meta:
            self._budget_line.value = ""
            return
        budget, percent = plan.meta["budget_bytes"], plan.meta["recompute_percent"]
        of_all = f"{budget / max(self._plain.peak_bytes, 1):.0%} of save everything"
        text = (
            f"budget <b>{format_bytes(budget)}</b> ({of_all}): predicted peak <b>{format_bytes(plan.peak_bytes)}</b>, "
            f"recompute <b>+{percent:.1f}%</b> in the planner's seconds, by FLOPs and bytes moved "
            f"(+{plan.recompute_fraction:.1%} FLOPs)"
        )
        if self.budget.is_ready:
            low, high = self.budget.range_bytes
            text += f"<br>possible: {format_bytes(low)} to {format_bytes(high)}"
        if self.trade_off_view is not None:
            self.budget.knee_bytes = knee = self.trade_off_view.pareto.knee.peak_bytes
            text += f"; knee at {format_bytes(knee)}, after which less memory becomes costly"
        self._budget_line.value = text

    def _take(self, plan: Plan) -> None:
        """Show a plan of the trade-off."""
        self.budget.value = int(plan.meta.get("budget_bytes", plan.peak_bytes))
        self.strategy.value = _BY_BUDGET  # it is not chosen yet where the slider stood there already

    def _export_clicked(self) -> None:
        paths = self.export(self._directory.value)
        folder = html.escape(str(paths[0].parent.resolve()))
        self._exported.value = f"Written to {folder}: " + html.escape(", ".join(p.name for p in paths))


def explore(fun: Callable[..., Any] | Graph, *args: Any, **kwargs: Any) -> PlanExplorer:
    """Open the explorer for the gradient of a function.

    Args:
      fun: The function, or a gradient graph.
      *args: Example arguments: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them.
      **kwargs: `argnums` and `has_aux`, as for `jax.grad`, and `donate_argnums`, as for `jax.jit`; others are keyword
        arguments of the function.

    Returns:
      The explorer; a notebook shows it.

    Raises:
      PlanError: See `PlanExplorer`.
      CaptureError: See `PlanExplorer`.

    Example:
      >>> import jax.numpy as jnp
      >>> ui = explore(lambda x: jnp.sum(jnp.sin(jnp.sin(x))), jnp.ones(4))
      >>> ui.plan.graph.n_forward, ui.plan.graph.n_backward
      (5, 3)
    """
    return PlanExplorer(fun, *args, **kwargs)


def _row(*children: widgets.Widget) -> widgets.Box:
    """Return widgets side by side, below each other where there is no room."""
    return widgets.Box(children, layout=widgets.Layout(display="flex", flex_flow="row wrap", align_items="center"))
