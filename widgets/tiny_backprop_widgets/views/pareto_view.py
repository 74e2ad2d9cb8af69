"""`ParetoView`: the trade-off between peak bytes and recompute cost, with a point for each plan to click."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import traitlets

import tiny_backprop_widgets.assets as assets
from tiny_backprop.plan.pareto import Pareto
from tiny_backprop.plan.plan import Plan
from tiny_backprop_widgets.content.prices import plan_name
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.plots.figure import render
from tiny_backprop_widgets.plots.pareto import plot_pareto
from tiny_backprop_widgets.views.view import View


class ParetoView(View):
    """The trade-off of a gradient: each point is a plan; the knee is marked, and so are `jax.checkpoint`'s policies.

    Args:
      pareto: What `tiny_backprop.pareto` returned.
      current: A plan to mark, on the curve or off it.

    Attributes:
      pareto: The trade-off.
      value: Number of the chosen plan among `pareto.plans`, or None; a click chooses. `observe` it, or assign to it.

    Raises:
      DisplayError: `pareto` is no `Pareto`.

    Example:
      >>> from tiny_backprop import Graph, pareto
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> view = ParetoView(pareto(Graph.from_nodes([h, dh], outputs=["dh"])))
      >>> view.value = 0
      >>> view.plan.peak_bytes
      16
    """

    kind = "pareto"
    _esm = assets.module(f"views/{kind}")
    _css = assets.style()

    value = traitlets.Int(None, allow_none=True, min=0).tag(sync=True)
    _curve = traitlets.Dict().tag(sync=True)

    def __init__(self, pareto: Pareto, current: Plan | None = None):
        if not isinstance(pareto, Pareto):
            raise DisplayError(f"a ParetoView needs a Pareto; found {type(pareto).__name__}. Try pareto(graph).")
        self.pareto = pareto
        super().__init__(_curve=_curve(pareto, current))

    @traitlets.validate("value")
    def _check(self, proposal: Any) -> Any:
        value = proposal["value"]
        if value is not None and value >= len(self.pareto):
            raise traitlets.TraitError(f"value is the number of a plan, 0 to {len(self.pareto) - 1}; found {value}")
        return value

    @property
    def plan(self) -> Plan | None:
        """The plan that is chosen, or None."""
        return None if self.value is None else self.pareto.plans[self.value]

    def show(self, current: Plan | None) -> None:
        """Mark a plan, and choose the point that it is, if any.

        Args:
          current: A plan for the same graph, or None to mark none.
        """
        with self.hold_sync():
            same = [i for i, p in enumerate(self.pareto.plans) if current is not None and p == current]
            self._curve = _curve(self.pareto, current)
            self.value = same[0] if same else None

    def _writers(self) -> Mapping[str, Any]:
        def draw(path: Path) -> None:
            path.write_bytes(self._rendered(path.suffix.lower()[1:]))

        def table(path: Path) -> None:
            text = io.StringIO()
            self.pareto.to_pandas().to_csv(text, index=False, lineterminator="\n")
            path.write_text(text.getvalue(), encoding="utf-8")

        return {".png": draw, ".svg": draw, ".pdf": draw, ".csv": table}

    def _rendered(self, suffix: str) -> bytes:
        figure = plot_pareto(self.pareto).get_figure(root=True)
        assert figure is not None
        return render(figure, suffix)

    def _pictures(self) -> dict[str, str]:
        return {"image/png": base64.b64encode(self._rendered("png")).decode()}

    def __repr__(self) -> str:
        return f"ParetoView({self.pareto!r})"


def _curve(pareto: Pareto, current: Plan | None) -> dict[str, Any]:
    return {
        "points": [_point(pareto, p) for p in pareto.plans],
        "references": [{**_point(pareto, p), "name": name, "label": ""} for name, p in pareto.references.items()],
        "knee": pareto.plans.index(pareto.knee),
        "bound_bytes": pareto.bound[0],
        "bound_name": pareto.bound[1],
        "unit": "FLOPs" if pareto.unit == "flops" else pareto.unit,
        "current": None if current is None else _point(pareto, current),
    }


def _point(pareto: Pareto, plan: Plan) -> dict[str, Any]:
    least = pareto.least_cost
    percent = 100 * pareto.recompute_cost(plan) / least if least else 0.0
    return {"peak_bytes": plan.peak_bytes, "percent": percent, "label": plan_name(plan)}
