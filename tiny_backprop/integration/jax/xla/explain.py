"""Predicted beside measured: where a plan and XLA's memory map disagree, by source line."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from tiny_backprop.display import guarded, table
from tiny_backprop.errors import MeasureError, PlanError
from tiny_backprop.integration.jax.xla.measure import Measurement
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.plan.plan import Plan
from tiny_backprop.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

NO_SOURCE, OUTPUTS_TO_COME = "no source line", "outputs that are not yet made"


@dataclasses.dataclass(frozen=True)
class LineDifference:
    """What one line of source keeps alive at the peak, as predicted and as XLA has it.

    Attributes:
      source: `file:line (function)`, `no source line`, or `outputs that are not yet made`, whose memory is taken all
        along.
      predicted_bytes: Bytes of the buffers that the plan is predicted to have alive at its peak.
      measured_bytes: Bytes of the buffers that XLA has alive at its own.
      values: Dtype, shape and number of the former, the largest first.
      buffers: Shape and number of the latter, the largest first.
    """

    source: str
    predicted_bytes: int
    measured_bytes: int
    values: str
    buffers: str

    @property
    def difference_bytes(self) -> int:
        """Predicted minus measured: above 0 where XLA does without."""
        return self.predicted_bytes - self.measured_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Where a prediction and XLA disagree, by source line; made by `explain`.

    The two peaks need not be at the same moment: a line that XLA keeps and the plan does not may be one that the plan
    has alive at another time.

    Attributes:
      name: Name of the plan's function.
      predicted_peak_bytes: The plan's peak.
      measured_peak_bytes: The most bytes of temporaries and outputs that hold a tensor at any position, by XLA.
      reserved_bytes: What XLA reserves for both, throughout; more than that by gaps and by outputs not yet made.
      lines: One entry per source line with anything alive at either peak, the largest difference first.
      doubts: The memory map's doubts.
    """

    name: str
    predicted_peak_bytes: int
    measured_peak_bytes: int
    reserved_bytes: int
    lines: tuple[LineDifference, ...]
    doubts: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per source line, the largest difference first."""
        import pandas as pd

        columns = ["predicted_bytes", "measured_bytes", "difference_bytes", "values", "buffers"]
        rows = [[getattr(line, c) for c in columns] for line in self.lines]
        index = pd.Index([line.source for line in self.lines], name="source")
        return pd.DataFrame(rows, index=index, columns=pd.Index(columns))

    def __repr__(self) -> str:
        worst = self.lines[0] if self.lines else None
        most = f"; most at {worst.source}: {_signed(worst.difference_bytes)}" if worst else ""
        return (
            f"Explanation({self.name}: predicted peak {format_bytes(self.predicted_peak_bytes)}, measured "
            f"{format_bytes(self.measured_peak_bytes)} live, {format_bytes(self.reserved_bytes)} reserved{most})"
        )

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        title = (
            f"<b>{html.escape(self.name)}</b>: predicted peak {format_bytes(self.predicted_peak_bytes)}; XLA has at "
            f"most {format_bytes(self.measured_peak_bytes)} live and reserves {format_bytes(self.reserved_bytes)}"
        )
        rows = [
            (
                line.source,
                format_bytes(line.predicted_bytes),
                format_bytes(line.measured_bytes),
                _signed(line.difference_bytes),
                line.values,
                line.buffers,
            )
            for line in self.lines[:15]
        ]
        more = f"<p>{len(self.lines) - 15} more lines in .to_pandas().</p>" if len(self.lines) > 15 else ""
        header = ("alive at the peak, from", "predicted", "measured by XLA", "difference", "values", "buffers")
        doubts = "".join(f"<p>Doubtful: {html.escape(doubt)}.</p>" for doubt in self.doubts)
        return f"<div>{title}{table(rows, header)}{more}{doubts}</div>"


def explain(plan: Plan, measurement: Measurement) -> Explanation:
    """List where a plan's prediction and XLA's memory disagree, by the source line that the tensors come from.

    Compares the buffers, temporaries and outputs, that the plan is predicted to have alive at its peak with those that
    XLA has alive at its own. A fusion counts for the line of the equation that it ends with.

    Args:
      plan: The plan.
      measurement: `measure` of the gradient that carries the plan out.

    Returns:
      The explanation; the largest differences come first.

    Raises:
      PlanError: `plan` is no plan.
      MeasureError: `measurement` is none, or has no memory map; the message says why.

    Example:
      >>> import jax.numpy as jnp
      >>> import tiny_backprop as tb
      >>> loss = lambda w: jnp.tanh(w @ w).sum()
      >>> plan = tb.plan_save_everything(tb.capture_gradient(loss, jnp.ones((64, 64))))
      >>> measured = tb.measure(tb.height_compressed_grad(loss, plan=plan), jnp.ones((64, 64)))
      >>> explain(plan, measured).predicted_peak_bytes == plan.peak_bytes
      True
    """
    memory_map = _check(plan, measurement)
    live = memory_map.live_bytes + memory_map.live_output_bytes
    position = int(live.argmax()) if len(live) else 0
    predicted = _predicted(plan)
    measured: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for memory in ("temp", "output"):
        for b in memory_map.alive_at(position, memory):
            measured[b.source or NO_SOURCE].append((b.bytes, b.shape))
    if len(live):
        to_come = measurement.output_bytes - measurement.alias_bytes - int(memory_map.live_output_bytes[position])
        measured[OUTPUTS_TO_COME].append((max(to_come, 0), ""))
    lines = [
        LineDifference(
            source,
            sum(n for n, _ in predicted[source]),
            sum(n for n, _ in measured[source]),
            _counted(predicted[source]),
            _counted(measured[source]),
        )
        for source in dict.fromkeys([*predicted, *measured])
    ]
    lines.sort(key=lambda line: (-abs(line.difference_bytes), line.source))
    return Explanation(
        plan.graph.name,
        plan.peak_bytes,
        int(live.max(initial=0)),
        measurement.peak_bytes,
        tuple(lines),
        memory_map.doubts,
    )


def _predicted(plan: Plan) -> dict[str, list[tuple[int, str]]]:
    """Return the bytes and shape of what a plan has alive at its peak, by source line."""
    graph, m = plan.graph, plan.materialized
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    alive = m.alive_at(m.peak_kernel)
    for v, node, n_bytes in zip(*(a[alive].tolist() for a in (m.values, m.nodes, m.n_bytes)), strict=True):
        maker = node if node >= 0 or v < 0 else int(graph.value_node[v])  # a copy is its original's
        shape = f"{graph.value_dtypes[v]}[{','.join(map(str, graph.value_shapes[v]))}]" if v >= 0 else "pred[]"
        found[(graph.sources[maker] if maker >= 0 else "") or NO_SOURCE].append((n_bytes, shape))
    to_come = m.peak_bytes - int(m.n_bytes[alive].sum())
    found[OUTPUTS_TO_COME].append((to_come, ""))
    return found


def _check(plan: Plan, measurement: Measurement) -> MemoryMap:
    if not isinstance(plan, Plan):
        raise PlanError(f"explain needs a Plan; found {type(plan).__name__}. Try plan_budget(graph, '500MiB').")
    if not isinstance(measurement, Measurement):
        raise MeasureError(
            f"explain needs a Measurement of the planned gradient; found {type(measurement).__name__}. Try "
            "measure(height_compressed_grad(fun, plan=plan), *args)."
        )
    return measurement.memory_map


def _counted(tensors: list[tuple[int, str]]) -> str:
    """Return shapes with how often each occurs, the largest first, three at most."""
    by_shape: Counter[str] = Counter()
    for n_bytes, shape in tensors:
        by_shape[shape] += n_bytes
    number = Counter(shape for _, shape in tensors)
    parts = [f"{number[s]} × {s}" if number[s] > 1 else s for s, _ in by_shape.most_common(3)]
    return ", ".join(parts) + (", …" if len(by_shape) > 3 else "")


def _signed(n_bytes: int) -> str:
    return ("+" if n_bytes >= 0 else "−") + format_bytes(abs(n_bytes))
