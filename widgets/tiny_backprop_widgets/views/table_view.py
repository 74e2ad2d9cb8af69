"""`TableView`: the tensors that are alive at a plan's peak, largest first, one of which can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import traitlets

import tiny_backprop.display as display
import tiny_backprop_widgets.assets as assets
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.content.tensors import FATES, AtPeak, alive_at_peak, fates, value_type
from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.views.view import View

_N_ROWS = 100
_MOST_LETTERS = 600
_LEAST_TOLD_BYTES = 256
_HEADER = ("bytes", "type", "what the plan does", "made by", "scope", "source")


class TableView(View):
    """The tensors that are alive at the peak of a plan, largest first; predicted.

    Args:
      plan: The plan.

    Attributes:
      plan: The plan that is shown; assign another to show that.
      value: Number of the chosen tensor, or None; a click on a row chooses. A tensor that is chosen from elsewhere and
        is not alive at the peak gets a row of its own.

    Raises:
      DisplayError: `plan` is no plan.

    Example:
      >>> from tiny_backprop import Graph, plan_blocks
      >>> h, dh = dict(name="h", bytes=8), dict(name="dh", bytes=8, reads=["h"], is_backward=True)
      >>> TableView(plan_blocks(Graph.from_nodes([h, dh], outputs=["dh"])))
      TableView(2 tensors alive at the predicted peak of 16 B)
    """

    kind = "table"
    _esm = assets.module(f"views/{kind}")
    _css = assets.style()

    value = traitlets.Int(None, allow_none=True).tag(sync=True)
    _rows = traitlets.Dict().tag(sync=True)

    def __init__(self, plan: Plan):
        _check(plan)
        self._plan = plan
        self._make()
        super().__init__(_rows=self._shown())
        self.observe(lambda _: self.set_trait("_rows", self._shown()), "value")

    @property
    def plan(self) -> Plan:
        """The plan that is shown."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        _check(plan)
        self._plan = plan
        self._make()
        self._rows = self._shown()

    def _make(self) -> None:
        """Find what is alive at the peak; texts are made for the rows that are shown alone."""
        self._fates = fates(self._plan)
        self._at_peak = AtPeak.of(self._plan)

    def _row(self, v: int, is_copy: bool = False) -> list[Any]:
        graph = self._plan.graph
        i = int(graph.value_node[v])
        if i < 0:
            made = (f"{'copy of ' if is_copy else ''}{graph.input_names[v]}", "", "")
        else:
            copied = "copy of what is made by " if is_copy else ""
            made = (f"{copied}{graph.primitives[i]}, node {i}", display.plain_scope(graph.scopes[i]), graph.sources[i])
        texts = (value_type(graph, v), FATES[self._fates[v]], *made)
        return [v, int(graph.value_bytes[v]), *(t[:_MOST_LETTERS] for t in texts)]

    def _shown(self) -> dict[str, Any]:
        at_peak, graph, v = self._at_peak, self._plan.graph, self.value
        values, is_copy = at_peak.values[:_N_ROWS].tolist(), at_peak.is_copy[:_N_ROWS].tolist()
        peak = format_bytes(self._plan.peak_bytes)
        caption = f"{len(at_peak.values):,} tensors alive at the predicted peak of {peak}"
        rest = int(at_peak.n_bytes[_N_ROWS:].sum())
        caption += f", the largest {_N_ROWS} of them, {format_bytes(rest)} more in the others" if rest else ""
        if at_peak.to_come_bytes >= _LEAST_TOLD_BYTES:
            caption += f"; {format_bytes(at_peak.to_come_bytes)} kept for outputs that are not yet made"
        if v is not None and graph.n_inputs <= v < graph.n_values and v not in values:
            values, is_copy = [v, *values], [False, *is_copy]
            if v not in at_peak.values:
                caption += "; the first row is chosen, and not alive then"
        rows = [self._row(v, copy) for v, copy in zip(values, is_copy, strict=True)]
        return {"header": list(_HEADER), "rows": rows, "caption": caption}

    def _writers(self) -> Mapping[str, Any]:
        def csv(path: Path) -> None:
            self.to_pandas().to_csv(path, index=False, lineterminator="\n")

        def page(path: Path) -> None:
            path.write_text(
                f'<!DOCTYPE html><meta charset="utf-8">{self._html()}\n', encoding="utf-8", errors="replace"
            )

        return {".csv": csv, ".html": page}

    def to_pandas(self) -> Any:
        """Return all tensors that are alive at the peak, one row each, as a `pandas.DataFrame`."""
        return alive_at_peak(self._plan)

    def _html(self) -> str:
        rows = [(format_bytes(n), *texts) for _, n, *texts in self._shown()["rows"]]
        return f"<div>{display.table(rows, _HEADER)}</div>"

    def _pictures(self) -> dict[str, str]:
        return {"text/html": self._html()}

    def __repr__(self) -> str:
        peak = format_bytes(self._plan.peak_bytes)
        return f"TableView({len(self._at_peak.values)} tensors alive at the predicted peak of {peak})"


def _check(plan: Any) -> None:
    if not isinstance(plan, Plan):
        raise DisplayError(f"a TableView needs a Plan; found {type(plan).__name__}. Try plan_blocks(graph).")
