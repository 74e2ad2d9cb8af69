"""`PlanExplorer`: drag the block size or the byte budget, see the price.

A known weakness: the DAG is drawn, and XLA asked, on request, not while a slider moves: a layout may take a second, a
compilation more.
"""

from __future__ import annotations

import base64
import functools
import html
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import jax

from tiny_backprop import capture_gradient, display, height_compressed_value_and_grad, jit, measure
from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax import Measurement
from tiny_backprop.plan import Plan, plan_blocks, plan_budget, plan_height_compressed, plan_save_everything
from tiny_backprop.plan.cost import node_costs
from tiny_backprop.plan.exact import recompute_cost
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.dag import has_dot, jaxpr_dag
from tiny_backprop_widgets.frontier import export_frontier, plot_frontier, render
from tiny_backprop_widgets.report import PRICE_HEADER, plan_name, price_rows, write_report
from tiny_backprop_widgets.sliders import MAX_LEVELS, STYLE, BlockSizeSlider, BudgetSlider, LevelsSlider

_MAX_BOXES = 120
_BY_BLOCKS, _BY_BUDGET = "block size", "byte budget"
_LABEL = {"width": STYLE["description_width"], "display": "flex", "justify_content": "flex-end"}
_WIDE = {"width": "30em"}
_CSS = "<style>.tiny-backprop-explorer :is(th, td) { padding: 0 1.2em 0 0; text-align: left; line-height: 1.6 }</style>"


class PlanExplorer(widgets.VBox):
    """Choose the block size and the levels of a plan, or its byte budget, and see its predicted price at once.

    Whatever it does can be done without it; `code()` tells how.

    Args:
      graph_or_fun: A gradient graph, or a function to capture the gradient of.
      *args: Example arguments of the function: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether the function returns a pair whose second part is not differentiated.
      **kwargs: Keyword arguments of the function.

    Attributes:
      graph: The gradient graph.
      block_size: The block-size slider. Assign any whole number of at least 1 to `block_size.value`; the new plan is
        there when the assignment returns.
      levels: The slider of levels, 1 to 8; assign to `levels.value` likewise. One level is `plan_blocks`, more are
        `plan_height_compressed`.
      budget: The slider of byte budgets; assign to `budget.value` whatever `plan_budget` takes.
      plan_by: What plans: `"block size"` (and levels) or `"byte budget"`. Changing a slider chooses it.
      budget_error: Why there is no plan for the budget that was asked for last, or None. The plan stays what it was.
      errors: Every exception that a callback of the interface raised; each is also shown in place. End a notebook with
        `assert not ui.errors`.

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
        **kwargs: Any,
    ):
        self.graph, self._capture_lines = _graph_and_code(graph_or_fun, args, argnums, has_aux, kwargs)
        self._lower: Callable[[Plan], Any] | None = None
        if not isinstance(graph_or_fun, Graph):
            self._lower = functools.partial(_lower, graph_or_fun, args, kwargs, argnums, has_aux)
        self._measured: dict[Plan, Measurement] = {}
        self.errors: list[Exception] = []
        self.budget_error: BudgetError | None = None
        # JupyterLab may have callbacks run in a thread of their own, beside a cell that assigns to the sliders.
        self._lock = threading.RLock()
        self._plan = plan_blocks(self.graph)
        self._plain = plan_save_everything(self.graph)
        self._dag_plan: Plan | None = None  # the plan whose DAG is drawn
        self.block_size = BlockSizeSlider(self.graph.n_forward, self._plan.meta["block_size"])
        self.levels = LevelsSlider(
            value=1, min=1, max=MAX_LEVELS, description="levels", continuous_update=True, layout=_WIDE, style=STYLE
        )
        self.budget = BudgetSlider(self.graph, self._refuse)
        self.plan_by = widgets.ToggleButtons(
            options=[_BY_BLOCKS, _BY_BUDGET],
            style={"button_width": "9em"},
            tooltips=["blocks of so many nodes, and levels", "the cheapest plan within so many bytes"],
        )
        super().__init__(self._build())
        self.add_class("tiny-backprop-explorer")
        self.plan_by.observe(lambda _: self._guarded(self._replan), "value")
        for slider, way in ((self.block_size, _BY_BLOCKS), (self.levels, _BY_BLOCKS), (self.budget, _BY_BUDGET)):
            slider.observe(functools.partial(self._chosen, way), "value")
        self._verify_button.on_click(lambda _: self._guarded(self._verify_clicked))
        self._export_button.on_click(lambda _: self._guarded(self._export_clicked))
        self._dag_button.on_click(lambda _: self._guarded(self._draw_dag))
        self._show_sliders()
        self._guarded(lambda: self._show(self._plan))

    def _build(self) -> list[widgets.Widget]:
        title = f"<b>{html.escape(self.graph.name[:100])}</b>: {self.graph.n_forward:,} forward and "
        title += f"{self.graph.n_backward:,} backward equations; what is shown is predicted"
        self._message, self._price, self._code = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._exported, self._stale, self._dag = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._budget_line, self._measured_line = widgets.HTML(), widgets.HTML()
        self._image = widgets.Image(format="svg+xml", layout=widgets.Layout(width="100%", max_width="760px"))
        self._dag_button = widgets.Button(description="Draw the DAG", icon="project-diagram")
        self._export_button = widgets.Button(description="Export", icon="download")
        self._verify_button = widgets.Button(
            description="Verify", icon="check", tooltip="compile this gradient and ask XLA what it allocates"
        )
        verify = [self._verify_button, self._measured_line] if self._lower else []
        self._directory = widgets.Text(value="plan-export", description="to folder", style=STYLE)
        return [
            widgets.HTML(title),
            widgets.HBox([widgets.Label("plan by", layout=_LABEL), self.plan_by]),
            self.block_size,
            self.levels,
            self.budget,
            self._budget_line,
            self._message,
            self._price,
            self._image,
            widgets.HBox(verify),
            self._code,
            widgets.HBox([self._export_button, self._directory]),
            self._exported,
            self._dag_button,
            self._stale,
            self._dag,
        ]

    @property
    def plan(self) -> Plan:
        """The plan that is shown: after a re-planning that failed (see `errors`), the last one that was made."""
        return self._plan

    def code(self) -> str:
        """Return lines of Python that make `plan` without the explorer; the function and `args` are the caller's."""
        meta = self._plan.meta
        size, levels = meta.get("block_size"), meta.get("levels")
        if "budget" in meta:
            planner, call = "plan_budget", f"plan_budget(graph, {meta['budget']!r})"
        elif levels == 1:
            planner, call = "plan_blocks", f"plan_blocks(graph, block_size={size})"
        else:
            planner = "plan_height_compressed"
            call = f"{planner}(graph, levels={levels}, block_size={size})"
        if not self._capture_lines:
            return f"from tiny_backprop import {planner}\n\nplan = {call}"
        names = ", ".join(["capture_gradient", planner])
        return f"from tiny_backprop import {names}\n\n{self._capture_lines}\nplan = {call}"

    def verify(self) -> Measurement:
        """Compile the gradient of `plan` and show what XLA allocates for it; a plan is compiled once.

        Returns:
          The measurement; `peak_bytes` (temporaries and outputs) is what a budget is held against.

        Raises:
          PlanError: The explorer was made from a graph, which cannot be compiled.
          CaptureError: The function does not return a real scalar.
        """
        if self._lower is None:
            raise PlanError("to verify a plan, its function is compiled: make the explorer by PlanExplorer(fun, *args)")
        plan = self._plan
        if plan not in self._measured:
            self._measured[plan] = measure(self._lower(plan))
            self._show_measured()
        return self._measured[plan]

    def export(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write the plan into a folder, which is made if need be, over what was exported there before.

        Args:
          directory: The folder.

        Returns:
          The files: the frontier as PNG, SVG, PDF and CSV, the plan as JSON, the DAG as DOT and, where Graphviz's `dot`
          is installed, as SVG, and `report.html`, which needs none of the others.

        Raises:
          OSError: A file cannot be written.
          DisplayError: `dot` is installed, but fails or takes longer than 30 seconds.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        plan = self._plan
        frontiers = [folder / f"frontier.{suffix}" for suffix in ("png", "svg", "pdf", "csv")]
        paths = [export_frontier(plan, path, baseline=self._plain) for path in frontiers]
        paths.append(folder / "plan.json")
        paths[-1].write_text(plan.to_json(), encoding="utf-8")
        dag = jaxpr_dag(self.graph, plan, _MAX_BOXES)
        paths.append(dag.save(folder / "dag.dot"))
        if has_dot():
            paths.append(dag.save(folder / "dag.svg"))
        paths.append(write_report(folder / "report.html", self.graph, plan, max_boxes=_MAX_BOXES))
        return paths

    def __repr__(self) -> str:
        return f"PlanExplorer({self._plan!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
        data["text/plain"] = repr(self)
        picture = render(plot_frontier(self._plan, baseline=self._plain), "png")
        data["image/png"] = base64.b64encode(picture).decode()
        return data

    # ---- callbacks; each runs inside _guarded ----

    def _guarded(self, callback: Callable[[], None]) -> None:
        """Run a callback; show what it raises, and keep it in `errors`: a browser event has nobody else to raise to."""
        with self._lock:
            try:
                callback()
            except BudgetError as e:
                self.budget_error = e
                self._refuse(e)
            except Exception as e:
                self.errors.append(e)
                self._message.value = _alert(e)
            else:
                self._message.value = ""

    def _refuse(self, e: Exception) -> None:
        """Say why what was asked for cannot be; that is an answer, and no failure of the interface."""
        self._message.value = _alert(e, is_failure=False)

    def _chosen(self, way: str, _: Any) -> None:
        if self.plan_by.value == way:
            self._guarded(self._replan)
        else:
            self.plan_by.value = way  # which plans

    def _replan(self) -> None:
        self.budget_error = None
        by_budget = self.plan_by.value == _BY_BUDGET
        if by_budget and not self.budget.is_ready:
            self._message.value = "Looking for the smallest peak…"
            self.budget.prepare()
        self._show_sliders()
        if by_budget:
            self._show(plan_budget(self.graph, self.budget.value))
            return
        size, levels = self.block_size.value, self.levels.value
        if levels == 1:
            self._show(plan_blocks(self.graph, size))
        else:
            self._show(plan_height_compressed(self.graph, levels=levels, block_size=size))

    def _show_sliders(self) -> None:
        """Hide the sliders that play no part."""
        by_budget = self.plan_by.value == _BY_BUDGET
        for widget in (self.block_size, self.levels):
            widget.layout.display = "none" if by_budget else None
        for widget in (self.budget, self._budget_line):
            widget.layout.display = None if by_budget else "none"

    def _show(self, plan: Plan) -> None:
        """Make everything that shows a plan, and only then change anything: plan and display stay one."""
        rows = price_rows({"this plan": plan, "save everything": self._plain}, self._plain)
        price = _CSS + display.table(rows, PRICE_HEADER)
        picture = render(plot_frontier(plan, baseline=self._plain), "svg")
        self._plan, self._price.value, self._image.value = plan, price, picture
        self._code.value = f"The same in Python:<pre>{html.escape(self.code())}</pre>"
        self._budget_line.value = self._budget_text()
        self._show_measured()
        self._mark_stale()

    def _budget_text(self) -> str:
        plan = self._plan
        if "budget_bytes" not in plan.meta:
            return ""
        budget, costs = plan.meta["budget_bytes"], node_costs(self.graph, plan.meta["cost"])
        share = recompute_cost(plan, costs) / (costs.sum() or 1.0)
        of_all = f"{budget / max(self._plain.peak_bytes, 1):.0%} of save everything"
        return (
            f"budget <b>{format_bytes(budget)}</b> ({of_all}): predicted peak <b>{format_bytes(plan.peak_bytes)}</b>, "
            f"recompute <b>+{share:.1%}</b> predicted seconds (+{plan.recompute_fraction:.1%} FLOPs)"
        )

    def _show_measured(self) -> None:
        """Show what XLA allocates for the plan that is shown, if it has been asked."""
        m, budget = self._measured.get(self._plan), self._plan.meta.get("budget_bytes")
        if m is None:
            self._measured_line.value = ""
            return
        text = (
            f"measured by XLA on {m.platform}: <b>{format_bytes(m.peak_bytes)}</b> (temp {format_bytes(m.temp_bytes)} "
            f"+ output {format_bytes(m.output_bytes)}); predicted {format_bytes(self._plan.peak_bytes)}"
        )
        if budget is not None and m.peak_bytes <= budget:
            text += f"; <b>within</b> the budget of {format_bytes(budget)}"
        elif budget is not None:
            text += f"; <b>{format_bytes(m.peak_bytes - budget)} above</b> the budget of {format_bytes(budget)}, which "
            text += "is for predicted bytes: <code>verify=True</code> makes it one for measured ones"
        self._measured_line.value = text

    def _verify_clicked(self) -> None:
        self._measured_line.value, self._verify_button.disabled = "compiling…", True
        try:
            self.verify()
        finally:
            self._verify_button.disabled = False
            self._show_measured()

    def _mark_stale(self) -> None:
        old, self._stale.value = self._dag_plan, ""
        if old is not None and old != self._plan:
            self._stale.value = f"The DAG below is that of {plan_name(old)}; draw it again."

    def _draw_dag(self) -> None:
        self._dag.value = jaxpr_dag(self.graph, self._plan, _MAX_BOXES)._repr_html_()
        self._dag_plan = self._plan
        self._mark_stale()

    def _export_clicked(self) -> None:
        paths = self.export(self._directory.value)
        folder = html.escape(str(paths[0].parent.resolve()))
        self._exported.value = f"Written to {folder}: " + html.escape(", ".join(p.name for p in paths))


def _alert(e: Exception, is_failure: bool = True) -> str:
    shown = "What is shown is the last plan that could be made"
    if not is_failure:
        style = "border-left: 4px solid #E69F00; padding-left: .6em; line-height: 1.5; max-width: 760px"
        return f'<div role="alert" style="{style}">{html.escape(str(e))}<br>{shown}.</div>'
    text = html.escape(f"{type(e).__name__}: {e}")
    trace = html.escape("".join(traceback.format_exception(e)))
    return (
        f'<div role="alert" style="color:#b00020"><b>{text}</b><br>{shown} '
        f"and drawn.<details><summary>Traceback</summary><pre>{trace}</pre></details></div>"
    )


def _lower(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    plan: Plan,
) -> Any:
    """Return the gradient of a function along a plan, ready for the compiler; what is no array is a constant of it."""
    planned = height_compressed_value_and_grad(fun, plan=plan, argnums=argnums, has_aux=has_aux, on_error="raise")
    leaves, tree = jax.tree.flatten((args, kwargs))
    at = [i for i, x in enumerate(leaves) if hasattr(x, "dtype") or isinstance(x, int | float | complex)]

    def gradient(arrays: list[Any]) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(at, arrays, strict=True))
        a, k = jax.tree.unflatten(tree, filled.values())
        return planned(*a, **k)

    return jit(gradient).lower([leaves[i] for i in at])


def _graph_and_code(
    graph_or_fun: Any, args: tuple[Any, ...], argnums: int | Sequence[int], has_aux: bool, kwargs: dict[str, Any]
) -> tuple[Graph, str]:
    """Return the gradient graph, and the line of Python that captures it, "" where the caller gave the graph."""
    if isinstance(graph_or_fun, Graph):
        if args or kwargs:
            raise PlanError(
                f"PlanExplorer(graph) takes no further arguments; found {len(args)} positional and {sorted(kwargs)}. "
                "Give it either a graph or a function with its example arguments."
            )
        return graph_or_fun, ""
    if not callable(graph_or_fun):
        raise PlanError(
            f"PlanExplorer needs a gradient graph, or a function and its example arguments; found "
            f"{type(graph_or_fun).__name__}. Try PlanExplorer(capture_gradient(fun, *args))."
        )
    graph = capture_gradient(graph_or_fun, *args, argnums=argnums, has_aux=has_aux, **kwargs)
    name = getattr(graph_or_fun, "__name__", "")
    given = [name if name.isidentifier() else "fun", "*args"]
    given += [f"argnums={argnums!r}"] if argnums != 0 else []
    given += ["has_aux=True"] if has_aux else []
    given += ["**kwargs"] if kwargs else []
    return graph, f"graph = capture_gradient({', '.join(given)})"
