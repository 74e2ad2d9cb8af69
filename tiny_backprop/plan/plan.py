"""A plan: a schedule, with its predicted price and a door to whatever can be asked about it.

What can be worked out from a schedule is worked out by functions of schedules in the rooms below: what XLA allocates
for it (`tiny_backprop.predict`), how far it is from the best (`certificate`), why a value is saved (`why`). A `Plan` is
the schedule that users hold, and its attributes call these functions; so nothing below knows of plans, and this is the
one way in which a plan comes by what is derived from it. The planners that return plans are above: `blocks`, `budget`,
`exact`, `policies`, `pareto`.
"""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tiny_backprop.display import frontier_svg, guarded, table
from tiny_backprop.door import door
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.json_text import read_json, write_json
from tiny_backprop.plan.baseline import live_bytes_of_everything
from tiny_backprop.plan.certificate import Certificate, certify
from tiny_backprop.plan.checkpointed_calls import CheckpointedCalls, checkpointed_calls
from tiny_backprop.plan.left_alone import LeftAlone, left_alone
from tiny_backprop.plan.loops.nested import keeping_everything
from tiny_backprop.plan.strategies.tree import jax_gradient
from tiny_backprop.plan.why import Why, why
from tiny_backprop.predict.allocation import JAX_GRADIENT, allocation_of
from tiny_backprop.predict.materialized import Materialized
from tiny_backprop.predict.nested import NestedPlan, nested_plans, with_choices
from tiny_backprop.predict.step_time import step_seconds
from tiny_backprop.schedule.cost import Cost, cost_model, node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.schedule.simulate import Op
from tiny_backprop.units import format_bytes, format_flops

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "tiny_backprop.plan"
_VERSION = 2
_SHOWN = ("strategy", "budget", "block_size", "levels")
_MEASURED = "measured_peak_bytes"


@dataclasses.dataclass(frozen=True, eq=False)
class Plan(Schedule):
    """What to do with every node and value of a gradient, with its predicted price.

    Every figure is predicted. `peak_bytes` is what XLA is predicted to allocate (`materialized`), `liveness_peak_bytes`
    what the referee counts for these actions on this graph (`simulate`). Two plans are equal when they do the same on
    the same graph.

    Attributes:
      graph: The gradient graph that the plan is for, its loops planned; see `nested`.
      ops: `Op` of each action, uint8 of shape (n_actions,).
      targets: Node or value of each action, int64 of shape (n_actions,).
      meta: How the plan was made: `strategy`; `block_size` (as it was asked for), `levels`, `n_blocks`; or `budget` (as
        it was asked for), `budget_bytes`, `cost` (what was minimised), `recompute_percent` (of that cost), and, where
        it was verified, `measured_peak_bytes`; and `peak_frontier`, the same as `liveness_peak_bytes`.
      timeline: What the referee saw.
    """

    @classmethod
    def of(cls, schedule: Schedule) -> Plan:
        """Return the plan that is a schedule."""
        return cls(schedule.graph, schedule.ops, schedule.targets, schedule.meta, schedule.timeline)

    @property
    def is_jax_gradient(self) -> bool:
        """Whether it stands for JAX's own gradient, which runs as it is."""
        return self.meta.get("strategy") == JAX_GRADIENT

    @door(PlanError, graph=GRAPH)
    def on(self, graph: Graph) -> Plan:
        """Return the plan for another graph of the same program, its loops planned as here and its costs the other's.

        Raises:
          PlanError: The graph is not one of the same program.
        """
        graph = _fitting(self.graph.fingerprint, [n.choice for n in self.graph.nested], graph)
        return self if graph is self.graph else Plan.from_actions(graph, self.ops, self.targets, self.meta)

    @property
    def nested(self) -> tuple[NestedPlan, ...]:
        """How the loops and branches of the program are reversed, one entry for each of `graph.nested`."""
        return nested_plans(self.graph)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of temporaries and outputs, as XLA allocates them; see `materialized`.

        For a graph made by hand, which XLA never sees, it is `liveness_peak_bytes`.
        """
        return self.materialized.peak_bytes

    @functools.cached_property
    def materialized(self) -> Materialized:
        """What is in memory over time, predicted: XLA's kernels and buffers; see `materialize`.

        A plan in which nothing runs again is taken for JAX's own gradient. For a graph made by hand kernels are the
        steps of the plan, and buffers are its values.
        """
        return allocation_of(self)

    def step_seconds(self, cost: Cost = "seconds") -> float:
        """Predict how long a step of the gradient takes; see `tiny_backprop.predict.step_time`.

        Meant for ratios between plans: seconds themselves can be wrong by a factor of two or three.
        Takes a fraction of what the prediction of memory takes, whose kernels it prices. A graph made by hand is priced
        node by node.

        Args:
          cost: A `CostModel`, such as `tiny_backprop.calibrate` returns, the name of a preset, or `"seconds"`, the
            default one.

        Raises:
          PlanError: `cost` is none of these.
        """
        model = cost_model(cost)
        if not self.graph.backend:
            return float(node_costs(self.graph, model)[self.timeline.steps].sum())
        return step_seconds(self.materialized, model)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """How far this plan is from the best possible one within its budget; see `tiny_backprop.plan.certify`."""
        return certify(self)

    @property
    def left_alone(self) -> tuple[LeftAlone, ...]:
        """What holds memory and runs as JAX has it, the largest first; see `tiny_backprop.plan.left_alone`."""
        return left_alone(self.graph)

    @property
    def checkpointed_calls(self) -> tuple[CheckpointedCalls, ...]:
        """What the program's own calls under `jax.checkpoint` do; see `tiny_backprop.plan.checkpointed_calls`."""
        return checkpointed_calls(self.graph)

    def why(self, what: int | str) -> list[Why]:
        """Tell why values are saved, or made anew: who needs them, and what either costs; see `tiny_backprop.plan.why`.

        Args:
          what: Number of a value, or text in a source line or scope, such as `"model.py:91"`.

        Raises:
          PlanError: There is no such value, line or scope.
        """
        return why(self, what)

    def to_json(self) -> str:
        """Return the plan as JSON text; `Plan.from_json` reads it back beside its graph."""
        fields = {
            "fingerprint": self.graph.fingerprint,
            "meta": self.meta,
            "nested": [n.choice for n in self.graph.nested],
            "ops": self.ops.tolist(),
            "targets": self.targets.tolist(),
        }
        return write_json(_FORMAT, _VERSION, fields)

    @classmethod
    @door(PlanError, graph=GRAPH)
    def from_json(cls, text: str, graph: Graph) -> Plan:
        """Read a plan that `to_json` wrote, for a graph; the referee plays it again.

        Raises:
          PlanError: The text is no plan, was written by another version of the format, or belongs to another graph.
          IllegalPlanError: The actions were altered and no longer make a legal plan.
        """
        data = read_json(text, _FORMAT, _VERSION, PlanError)
        missing = {"fingerprint", "meta", "nested", "ops", "targets"} - set(data)
        if missing:
            raise PlanError(f"the saved plan lacks {sorted(missing)}")
        graph = _fitting(data["fingerprint"], data["nested"], graph)
        try:
            actions = np.array([data["ops"], data["targets"]], np.int64)
            meta = dict(data["meta"])
        except (TypeError, ValueError, OverflowError) as e:
            raise PlanError(f"the saved plan is damaged: {e}") from None
        return cls.from_actions(graph, actions[0], actions[1], meta)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per step: action, node, primitive, predicted live bytes, scope and source."""
        import pandas as pd

        t, g = self.timeline, self.graph
        names = np.array([op.name.lower() for op in Op])
        steps = t.steps.tolist()
        return pd.DataFrame(
            {
                "action": names[t.ops],
                "node": t.steps,
                "primitive": [g.primitives[i] for i in steps],
                "live_bytes": t.live_bytes,
                "made_bytes": g.node_bytes[t.steps],
                "flops": g.flops[t.steps],
                "scope": [g.scopes[i] for i in steps],
                "source": [g.sources[i] for i in steps],
            },
            index=pd.RangeIndex(len(steps), name="step"),
        )

    def __repr__(self) -> str:
        asked = ", ".join(f"{k}={self.meta[k]!r}" for k in _SHOWN if k in self.meta)
        measured = f", measured {format_bytes(self.meta[_MEASURED])}" if _MEASURED in self.meta else ""
        return (
            f"Plan({asked}: predicted peak {format_bytes(self.peak_bytes)}{measured}, saved "
            f"{format_bytes(self.saved_bytes)}, recompute {self._recompute})"
        )

    @property
    def _recompute(self) -> str:
        flops = f"{format_flops(self.recompute_flops)} = +{self.recompute_fraction:.1%}"
        if self.meta.get("cost", "flops") == "flops" or "recompute_percent" not in self.meta:
            return flops
        return f"{flops}, +{self.meta['recompute_percent']:.1f}% seconds"

    def _prices(self, name: str) -> tuple[str, str, str, str]:
        return name, format_bytes(self.peak_bytes), format_bytes(self.saved_bytes), self._recompute

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        plain, here = live_bytes_of_everything(self.graph), self.materialized
        plain_bytes = int(plain.max(initial=0))
        columns = [self._prices("this plan"), ("save everything", format_bytes(plain_bytes), "every residual", "none")]
        if self.graph.has_checkpoints:
            columns.append(Plan.of(jax_gradient(self.graph))._prices("jax.grad, your jax.checkpoint"))
        names = ("", "peak (predicted)", "saved (predicted)", "recompute (predicted)")
        header, *rows = zip(names, *columns, strict=True)
        if _MEASURED in self.meta:
            rows.insert(1, ("peak (measured by XLA)", format_bytes(self.meta[_MEASURED])))
        title = ", ".join(f"{k} {self.meta[k]}" for k in (*_SHOWN, "n_blocks") if k in self.meta)
        picture = frontier_svg(here.live_bytes, here.n_forward_kernels, plain)
        return f"<div><b>Plan</b>: {html.escape(title)}<br>{picture}{table(rows, header)}</div>"


def _fitting(fingerprint: str, choices: Sequence[Mapping[str, Any]], graph: Graph) -> Graph:
    """Return the graph with its loops planned by `choices`, or raise PlanError where that has another fingerprint."""
    if len(choices) == len(graph.nested):
        graph = with_choices(graph, choices)
    if fingerprint != graph.fingerprint:
        raise _misfit(fingerprint, graph)
    return graph


def is_same_program(a: Graph, b: Graph) -> bool:
    """Return whether two graphs are of one program; their loops may be planned differently."""
    return a is b or keeping_everything(a).fingerprint == keeping_everything(b).fingerprint


def check_fits(plan: Plan, graph: Graph) -> None:
    """Raise PlanError unless a plan is for the program of a graph; its loops may be planned otherwise there."""
    if not is_same_program(plan.graph, graph):
        raise _misfit(plan.graph.fingerprint, graph)


def _misfit(fingerprint: str, graph: Graph) -> PlanError:
    return PlanError(
        f"the plan was made for a graph with fingerprint {fingerprint}; this graph ({graph.name!r}, {graph.n_nodes} "
        f"nodes) has {graph.fingerprint}. A plan fits one function with one set of shapes and dtypes: make it again "
        "for these arguments."
    )
