"""Why a plan saves a value, or runs its node again: who needs it, what either costs, and where the answer changes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from tiny_backprop.display import guarded, table
from tiny_backprop.errors import BudgetError, PlanError
from tiny_backprop.graph import Graph, Node, Value
from tiny_backprop.plan.strategies.budget import schedule_within
from tiny_backprop.predict.allocation import predicted_peak_bytes
from tiny_backprop.schedule.cost import node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.schedule.simulate import Op
from tiny_backprop.units import format_bytes, format_flops

_MOST_STEPS = 12  # budgets that are asked, each way
_STEP = 2**0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Why:
    """What a plan does with one value of the forward phase, and why; everything is predicted.

    Attributes:
      plan: The plan.
      value: The value.
      fate: `"saved"`, `"recomputed"`, or `"freed"` where the backward phase does not read it.
      needed_by: The backward nodes that read it.
      recompute_nodes: The forward nodes that would run, in order, to make it from what the plan saves and the inputs.
      recompute_flops: Their FLOPs.
      recompute_seconds: Their seconds, by the default cost model.
    """

    plan: Schedule
    value: Value
    fate: str
    needed_by: tuple[Node, ...]
    recompute_nodes: tuple[Node, ...]
    recompute_flops: float
    recompute_seconds: float

    @functools.cached_property
    def changes(self) -> tuple[tuple[int, str], ...]:
        """The next smaller and the next larger byte budget with another fate.

        Of budgets around the plan's peak in equal ratios; each as budget and fate, none where it stays the same as far
        as there are plans. Plans up to two dozen budgets.
        """
        found = []
        for factor in (1 / _STEP, _STEP):
            n_bytes = float(predicted_peak_bytes(self.plan))
            for _ in range(_MOST_STEPS):
                n_bytes *= factor
                try:
                    fate = fate_of(schedule_within(self.plan.graph, int(n_bytes)), self.value.index)
                except BudgetError:
                    break
                if fate != self.fate:
                    found.append((int(n_bytes), fate))
                    break
        return tuple(found)

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        v = self.value
        what = f"value {v.index} ({v.dtype}{list(v.shape)}, {format_bytes(v.bytes)})"
        if self.fate == "freed":
            return f"{what} is freed: no backward node reads it"
        price = f"{format_flops(self.recompute_flops)} in {len(self.recompute_nodes)} nodes"
        other = f"to make it anew takes {price}" if self.fate == "saved" else f"which takes {price}"
        return f"{what} is {self.fate}, for {len(self.needed_by)} backward node(s); {other} (predicted)"

    def __repr__(self) -> str:
        return f"Why({self.verdict})"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        node = self.plan.graph.node(self.value.node or 0)
        rows = [
            ("what", self.verdict),
            ("made by", f"{node.primitive}, node {node.index}, {node.scope} {node.source}"),
            ("saving it takes (predicted)", format_bytes(self.value.bytes)),
            ("running it again takes (predicted)", format_flops(self.recompute_flops)),
            ("otherwise", "; ".join(f"{fate} within {format_bytes(n)}" for n, fate in self.changes) or "the same"),
        ]
        readers = [(n.index, n.primitive, n.scope, n.source) for n in self.needed_by[:10]]
        header = ("needed by node", "primitive", "scope", "source")
        return f"<div>{table(rows)}{table(readers, header)}</div>"


def fate_of(plan: Schedule, value: int) -> str:
    """Return what a plan does with a value of the forward phase: `"saved"`, `"recomputed"` or `"freed"`."""
    if value in plan.saved:
        return "saved"
    node, t = plan.graph.value_node[value], plan.timeline
    is_late = (t.steps == node) & (np.arange(len(t.steps)) >= t.n_forward_steps)
    return "recomputed" if np.any(is_late | ((t.steps == node) & (t.ops == Op.RECOMPUTE))) else "freed"


def why(plan: Schedule, what: int | str) -> list[Why]:
    """Tell why a plan saves a value or runs its node again.

    Args:
      plan: A plan of a gradient.
      what: Number of a value of the forward phase, or text: all residuals whose source line or scope contains it, the
        largest first.

    Returns:
      One answer for each value. To find where an answer changes takes plans for other budgets (`Why.changes`).

    Raises:
      PlanError: There is no such value, or no residual of such a line or scope.

    Example:
      >>> from tiny_backprop import Graph, plan_save_everything
      >>> nodes = [dict(name="h", bytes=8, flops=2), dict(name="dh", bytes=8, reads=["h"], is_backward=True)]
      >>> (answer,) = why(plan_save_everything(Graph.from_nodes(nodes, outputs=["dh"])), 0)
      >>> answer.fate, answer.recompute_flops
      ('saved', 2.0)
    """
    graph = plan.graph
    if isinstance(what, str):
        values = _residuals_of(graph, what)
        if not values:
            raise PlanError(
                f"no residual of {graph.name!r} has a source line or scope with {what!r}; plan.graph.to_pandas() lists "
                "both, and graph.residuals the values that the backward phase reads"
            )
        return [_why(plan, v) for v in values]
    border = int(graph.output_start[graph.n_forward])
    if isinstance(what, bool) or not isinstance(what, int | np.integer) or not graph.n_inputs <= what < border:
        raise PlanError(
            f"value {what!r} was asked for; the forward phase makes values {graph.n_inputs} to {border - 1}"
        )
    return [_why(plan, int(what))]


def _residuals_of(graph: Graph, text: str) -> list[int]:
    residuals = graph.residuals[np.argsort(-graph.value_bytes[graph.residuals], kind="stable")].tolist()
    nodes = graph.value_node.tolist()
    return [v for v in residuals if text in graph.sources[nodes[v]] or text in graph.scopes[nodes[v]]]


def _why(plan: Schedule, value: int) -> Why:
    graph = plan.graph
    node, read = graph.reads
    readers = np.unique(node[(read == value) & (node >= graph.n_forward)])
    kept = set(plan.saved.tolist()) - {value}
    nodes, stack = set[int](), [int(graph.value_node[value])]
    while stack:
        i = stack.pop()
        if i not in nodes:
            nodes.add(i)
            stack += [int(graph.value_node[v]) for v in graph.read_lists[i] if v not in kept]
    again = sorted(nodes)
    return Why(
        plan=plan,
        value=graph.value(value),
        fate=fate_of(plan, value),
        needed_by=tuple(graph.node(i) for i in readers.tolist()),
        recompute_nodes=tuple(map(graph.node, again)),
        recompute_flops=float(graph.flops[again].sum()),
        recompute_seconds=float(node_costs(graph, "seconds")[again].sum()),
    )
