"""`FrontierView`: the live bytes of a plan over time, the largest tensors as bands, to zoom, pan and click."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

import tiny_backprop_widgets.assets as assets
from tiny_backprop.graph import Graph
from tiny_backprop.plan.plan import Plan
from tiny_backprop_widgets.content.tensors import Texts, fates, lives
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import render
from tiny_backprop_widgets.plots.frontier import baseline_of, export_frontier, plot_frontier
from tiny_backprop_widgets.views.view import View, packed

_N_BANDS = 1000


class FrontierView(View):
    """The live bytes of a plan over time, over those of save-everything; all predicted, but for a measured curve.

    Time is counted in kernels, as XLA is predicted to run them; for a graph made by hand, in steps of the plan.

    The largest tensors in sight have a band of their own, the rest is one area. Hover over a band, or click it, to see
    the tensor; drag to pan; zoom by the buttons, the keys + and -, or the wheel with the control key held. Long
    schedules are shortened to the peaks of short runs of steps, so that no peak is lost.

    Args:
      plan: The plan.
      baseline: Whether to draw behind it what the program takes without a plan (save-everything, or JAX's own gradient
        where the program has calls under `jax.checkpoint`), or another plan for the same graph to draw there.
      budget_bytes: Where to draw a line; by default the budget that the plan was made for.
      detail: The most tensors that have a band of their own.

    Attributes:
      plan: The plan that is shown; assign another plan for the same graph to show that.
      value: Number of the tensor that is chosen, or None; `observe` it, or assign to it.
      detail: The most tensors that have a band of their own.

    Raises:
      DisplayError: `plan` is no plan, or `baseline` is a plan for another graph.

    Example:
      >>> from tiny_backprop import Graph, plan_blocks
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> view = FrontierView(plan_blocks(Graph.from_nodes([h, dh], outputs=["dh"])))
      >>> view.value is None
      True
    """

    kind = "frontier"
    _esm = assets.module(f"views/{kind}")
    _css = assets.style()

    value = traitlets.Int(None, allow_none=True).tag(sync=True)
    detail = traitlets.Int(_N_BANDS, min=0).tag(sync=True)
    _strings = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _value_table = traitlets.Bytes().tag(sync=True)
    _value_bytes = traitlets.Bytes().tag(sync=True)
    _node_table = traitlets.Bytes().tag(sync=True)
    _facts = traitlets.Dict().tag(sync=True)
    _live_bytes = traitlets.Bytes().tag(sync=True)
    _baseline_bytes = traitlets.Bytes().tag(sync=True)
    _steps = traitlets.Bytes().tag(sync=True)
    _ops = traitlets.Bytes().tag(sync=True)
    _fates = traitlets.Bytes().tag(sync=True)
    _lives = traitlets.Bytes().tag(sync=True)
    _life_bytes = traitlets.Bytes().tag(sync=True)
    _measured = traitlets.Bytes().tag(sync=True)

    def __init__(
        self, plan: Plan, *, baseline: bool | Plan = True, budget_bytes: int | None = None, detail: int = _N_BANDS
    ):
        _check_plan(plan)
        self._behind = baseline_of(plan, baseline)
        texts = Texts.of(plan.graph)
        live = np.zeros(0) if self._behind is None else self._behind.materialized.live_bytes
        super().__init__(
            detail=detail,
            _strings=texts.strings,
            _value_table=packed(texts.value_table, np.int32),
            _value_bytes=packed(plan.graph.value_bytes, np.float64),
            _node_table=packed(texts.node_table, np.int32),
            _baseline_bytes=packed(live, np.float64),
        )
        self._serial = 0
        self.show(plan, budget_bytes)

    @property
    def plan(self) -> Plan:
        """The plan that is shown."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self.show(plan)

    def show(self, plan: Plan, budget_bytes: int | None = None, *, baseline: Plan | None = None) -> None:
        """Show another plan; what was measured for the one before goes away.

        Args:
          plan: The plan.
          budget_bytes: See `FrontierView`.
          baseline: What to draw behind it from now on; without it, the plan has to be for the same graph.

        Raises:
          DisplayError: `plan` is no plan, or one for another graph.
        """
        _check_plan(plan)
        behind = self._behind if baseline is None else baseline
        if behind is not None:
            baseline_of(plan, behind)
        self._behind = behind
        m = plan.materialized
        self._plan, self._budget_bytes, self._serial = plan, budget_bytes, self._serial + 1
        with self.hold_sync():
            if baseline is not None:
                self._show_texts(plan.graph, baseline)
            if plan.graph.nested:  # their bytes are the plan's
                self._value_bytes = packed(plan.graph.value_bytes, np.float64)
            self._live_bytes = packed(m.live_bytes, np.float64)
            self._steps, self._ops = packed(m.kernel_nodes, np.int32), packed(m.kernel_ops, np.uint8)
            self._fates, (table, n_bytes) = packed(fates(plan), np.uint8), lives(plan)
            self._lives, self._life_bytes = packed(table, np.int32), packed(n_bytes, np.float64)
            self._measured = b""
            self._facts = self._facts_of(plan, budget_bytes)

    def _show_texts(self, graph: Graph, baseline: Plan) -> None:
        texts = Texts.of(graph)
        if self.value is not None and (self.value >= graph.n_values or len(self._value_table) != 8 * graph.n_values):
            self.value = None
        self._strings = texts.strings
        self._value_table = packed(texts.value_table, np.int32)
        self._node_table = packed(texts.node_table, np.int32)
        self._value_bytes = packed(graph.value_bytes, np.float64)
        self._baseline_bytes = packed(baseline.materialized.live_bytes, np.float64)

    def show_measured(self, positions: Any, live_bytes: Any) -> None:
        """Lay a measured curve over the predicted one.

        Args:
          positions: Where in the program each entry lies, from 0 (its start) to 1 (its end), rising.
          live_bytes: The live bytes there, measured.

        Raises:
          DisplayError: The two differ in length, or a position lies outside 0 to 1.
        """
        x, y = np.asarray(positions, float).reshape(-1), np.asarray(live_bytes, float).reshape(-1)
        if len(x) != len(y) or (len(x) and not (x.min() >= 0 and x.max() <= 1)):
            raise DisplayError(
                f"a measured curve needs as many positions as live bytes, positions from 0 to 1; found {len(x)} and "
                f"{len(y)}, positions from {x.min(initial=0):g} to {x.max(initial=0):g}"
            )
        self._measured = packed(np.stack([x, y], axis=1), np.float64)
        top_bytes = max(self._facts["top_bytes"], float(y.max(initial=0)))
        self._serial += 1
        self._facts = {**self._facts, "top_bytes": top_bytes, "serial": self._serial}

    def _facts_of(self, plan: Plan, budget_bytes: int | None) -> dict[str, Any]:
        behind, m = self._behind, plan.materialized
        budget = plan.meta.get("budget_bytes") if budget_bytes is None else budget_bytes
        top = max(plan.peak_bytes, behind.peak_bytes if behind else 0, budget or 0)
        if behind:
            # Beside what saving everything takes, a budget far above it would flatten the picture.
            top = min(top, math.ceil(1.05 * max(behind.peak_bytes, plan.peak_bytes)))
        return {
            "serial": self._serial,
            "word": m.kernel_word,
            "n_forward_steps": m.n_forward_kernels,
            "peak_step": m.peak_kernel,
            "peak_bytes": plan.peak_bytes,
            "budget_bytes": None if budget is None else int(budget),
            "top_bytes": top,
            "baseline_name": behind.meta.get("strategy", "other plan") if behind else "",
            "baseline_peak_bytes": behind.peak_bytes if behind else 0,
            "baseline_n_forward_steps": behind.materialized.n_forward_kernels if behind else 0,
        }

    def _writers(self) -> Mapping[str, Any]:
        baseline = self._behind if self._behind is not None else False
        return {
            suffix: lambda path: export_frontier(self._plan, path, baseline=baseline)
            for suffix in (".png", ".svg", ".pdf", ".csv")
        }

    def _pictures(self) -> dict[str, str]:
        baseline = self._behind if self._behind is not None else False
        picture = render(plot_frontier(self._plan, baseline=baseline), "png")
        return {"image/png": base64.b64encode(picture).decode()}

    def __repr__(self) -> str:
        return f"FrontierView({self._plan!r})"


def _check_plan(plan: Any) -> None:
    if not isinstance(plan, Plan):
        raise DisplayError(f"a FrontierView needs a Plan; found {type(plan).__name__}. Try plan_blocks(graph).")
