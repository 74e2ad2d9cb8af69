"""`PlanExplorer`: drag the block size, see the price.

A known weakness: the DAG is drawn on request, not while a slider moves, since its layout may take a second.
"""

from __future__ import annotations

import base64
import html
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets

from tiny_backprop import capture_gradient, display
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan import Plan, plan_blocks, plan_height_compressed, plan_save_everything
from tiny_backprop.plan.blocks import check_count
from tiny_backprop_widgets.dag import has_dot, jaxpr_dag
from tiny_backprop_widgets.frontier import export_frontier, plot_frontier, render
from tiny_backprop_widgets.report import PRICE_HEADER, plan_name, price_rows, write_report

_MAX_LEVELS = 8
_MAX_BOXES = 120
_WIDE = widgets.Layout(width="30em")
_STYLE = {"description_width": "6em"}
_CSS = "<style>.tiny-backprop-explorer :is(th, td) { padding: 0 1.2em 0 0; text-align: left; line-height: 1.6 }</style>"


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


class BlockSizeSlider(widgets.HBox):
    """A logarithmic slider over block sizes, and a field for an exact one.

    `value` is the block size: any whole number of at least 1, not only those that the slider stops at. Assigning it
    moves the slider to the nearest stop, and calls observers before the assignment returns. Anything else raises
    PlanError.
    """

    value = _Count("block_size")

    def __init__(self, n_forward: int, value: int):
        largest = max(n_forward, 1)
        self._stops = np.unique(np.r_[(2 ** np.arange(0, np.log2(largest), 0.25)).round(), largest]).astype(int)
        self._slider = widgets.SelectionSlider(
            options=[(str(n), n) for n in self._stops.tolist()],
            description="block size",
            tooltip="forward nodes per block; logarithmic",
            readout=False,
            continuous_update=True,
            layout=widgets.Layout(width="26.5em"),
            style=_STYLE,
        )
        self._field = widgets.BoundedIntText(
            value=1, min=1, max=2**31 - 1, tooltip="exact block size", layout=widgets.Layout(width="6em")
        )
        super().__init__([self._slider, self._field])
        self.value = value
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
            self.value = change["new"]

    def _from_field(self, change: Any) -> None:
        if change["new"] != min(self.value, self._field.max):
            self.value = change["new"]


class LevelsSlider(widgets.IntSlider):
    """A slider over 1 to 8 levels; a value out of range raises PlanError where IntSlider would silently clip it."""

    value = _Count("levels", _MAX_LEVELS).tag(sync=True)


class PlanExplorer(widgets.VBox):
    """Choose the block size and the levels of a plan, and see its predicted price and frontier at once.

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
        self.errors: list[Exception] = []
        # JupyterLab may have callbacks run in a thread of their own, beside a cell that assigns to the sliders.
        self._lock = threading.RLock()
        self._plan = plan_blocks(self.graph)
        self._plain = plan_save_everything(self.graph)
        self._dag_plan: Plan | None = None  # the plan whose DAG is drawn
        self.block_size = BlockSizeSlider(self.graph.n_forward, self._plan.meta["block_size"])
        self.levels = LevelsSlider(
            value=1, min=1, max=_MAX_LEVELS, description="levels", continuous_update=True, layout=_WIDE, style=_STYLE
        )
        super().__init__(self._build())
        self.add_class("tiny-backprop-explorer")
        self.block_size.observe(lambda _: self._guarded(self._replan), "value")
        self.levels.observe(lambda _: self._guarded(self._replan), "value")
        self._export_button.on_click(lambda _: self._guarded(self._export_clicked))
        self._dag_button.on_click(lambda _: self._guarded(self._draw_dag))
        self._guarded(lambda: self._show(self._plan))

    def _build(self) -> list[widgets.Widget]:
        title = f"<b>{html.escape(self.graph.name[:100])}</b>: {self.graph.n_forward:,} forward and "
        title += f"{self.graph.n_backward:,} backward equations; what is shown is predicted"
        self._message, self._price, self._code = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._exported, self._stale, self._dag = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._image = widgets.Image(format="svg+xml", layout=widgets.Layout(width="100%", max_width="760px"))
        self._dag_button = widgets.Button(description="Draw the DAG", icon="project-diagram")
        self._export_button = widgets.Button(description="Export", icon="download")
        self._directory = widgets.Text(value="plan-export", description="to folder", style=_STYLE)
        return [
            widgets.HTML(title),
            self.block_size,
            self.levels,
            self._message,
            self._price,
            self._image,
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
        size, levels = self._plan.meta["block_size"], self._plan.meta["levels"]
        if levels == 1:
            planner, call = "plan_blocks", f"plan_blocks(graph, block_size={size})"
        else:
            planner = "plan_height_compressed"
            call = f"{planner}(graph, levels={levels}, block_size={size})"
        if not self._capture_lines:
            return f"from tiny_backprop import {planner}\n\nplan = {call}"
        names = ", ".join(["capture_gradient", planner])
        return f"from tiny_backprop import {names}\n\n{self._capture_lines}\nplan = {call}"

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
            except Exception as e:
                self.errors.append(e)
                self._message.value = _alert(e)
            else:
                self._message.value = ""

    def _replan(self) -> None:
        size, levels = self.block_size.value, self.levels.value
        if levels == 1:
            self._show(plan_blocks(self.graph, size))
        else:
            self._show(plan_height_compressed(self.graph, levels=levels, block_size=size))

    def _show(self, plan: Plan) -> None:
        """Make everything that shows a plan, and only then change anything: plan and display stay one."""
        rows = price_rows({"this plan": plan, "save everything": self._plain}, self._plain)
        price = _CSS + display.table(rows, PRICE_HEADER)
        picture = render(plot_frontier(plan, baseline=self._plain), "svg")
        self._plan, self._price.value, self._image.value = plan, price, picture
        self._code.value = f"The same in Python:<pre>{html.escape(self.code())}</pre>"
        self._mark_stale()

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


def _alert(e: Exception) -> str:
    text = html.escape(f"{type(e).__name__}: {e}")
    trace = html.escape("".join(traceback.format_exception(e)))
    return (
        f'<div role="alert" style="color:#b00020"><b>{text}</b><br>What is shown is the last plan that could be made '
        f"and drawn.<details><summary>Traceback</summary><pre>{trace}</pre></details></div>"
    )


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
