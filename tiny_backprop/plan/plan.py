"""A plan: what to run, save, recompute and free, and what that costs by the referee's count."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from tiny_backprop import display
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph, read_json
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.latest import Latest
from tiny_backprop.plan.loops.nested import NestedPlan, keeping_everything, nested_plans, with_choices
from tiny_backprop.predict import step_time
from tiny_backprop.predict.materialized import Materialized, by_liveness, materialize
from tiny_backprop.schedule.cost import Cost, cost_model, node_costs
from tiny_backprop.schedule.simulate import Op, Timeline, simulate
from tiny_backprop.units import format_bytes, format_flops

if TYPE_CHECKING:
    from tiny_backprop.plan.certificate import Certificate
    from tiny_backprop.plan.why import Why

_FORMAT = "tiny_backprop.plan"
_VERSION = 2
_SHOWN = ("strategy", "budget", "block_size", "levels")
_MEASURED = "measured_peak_bytes"
_MOST_PREDICTIONS = 16


@dataclasses.dataclass(frozen=True)
class Action:
    """One action of a plan.

    Attributes:
      op: What is done.
      target: The node that is run, or the value that is saved or freed.
    """

    op: Op
    target: int

    def __repr__(self) -> str:
        return f"{self.op.name.lower()} {'value' if self.op in (Op.SAVE, Op.FREE) else 'node'} {self.target}"


class _Actions(Sequence[Action]):
    """`Plan.actions`: actions are made when asked for."""

    def __init__(self, ops: np.ndarray, targets: np.ndarray):
        self._ops, self._targets = ops, targets

    def __len__(self) -> int:
        return len(self._ops)

    @overload
    def __getitem__(self, i: int) -> Action: ...
    @overload
    def __getitem__(self, i: slice) -> list[Action]: ...
    def __getitem__(self, i: int | slice) -> Action | list[Action]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return Action(Op(int(self._ops[i])), int(self._targets[i]))

    def __repr__(self) -> str:
        return f"<{len(self)} actions>"


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
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

    graph: Graph
    ops: np.ndarray
    targets: np.ndarray
    meta: dict[str, Any]
    timeline: Timeline

    @classmethod
    def from_actions(cls, graph: Graph, ops: np.ndarray, targets: np.ndarray, meta: dict[str, Any]) -> Plan:
        """Let the referee play the actions and return the plan.

        Raises:
          IllegalPlanError: The actions break a rule of `simulate`.
        """
        timeline = simulate(graph, ops, targets)
        ops, targets = np.array(ops, np.uint8), np.array(targets, np.int64)
        ops.flags.writeable = targets.flags.writeable = False  # they are hashed
        return cls(graph, ops, targets, {**meta, "peak_frontier": timeline.peak_bytes}, timeline)

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
    def actions(self) -> Sequence[Action]:
        """The actions in order."""
        return _Actions(self.ops, self.targets)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of temporaries and outputs, as XLA allocates them; see `materialized`.

        For a graph made by hand, which XLA never sees, it is `liveness_peak_bytes`.
        """
        return self.materialized.peak_bytes

    @property
    def liveness_peak_bytes(self) -> int:
        """Largest number of live bytes at any step, forward and backward, as if nothing were fused, by the referee.

        Inputs of the graph are not counted. XLA may need less, since what is fused takes no memory, or more: it keeps
        the memory of outputs all along, and copies what it holds or lays out anew.
        """
        return self.timeline.peak_bytes

    @functools.cached_property
    def materialized(self) -> Materialized:
        """What is in memory over time, predicted: XLA's kernels and buffers; see `materialize`.

        A plan in which nothing runs again is taken for JAX's own gradient. For a graph made by hand kernels are the
        steps of the plan, and buffers are its values.
        """
        if not self.graph.backend:
            return by_liveness(self.graph, self.ops, self.targets, self.timeline)
        return predict_allocation(self.graph, self.timeline.steps)

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
        return step_time.step_seconds(self.materialized, model)

    @property
    def saved_bytes(self) -> int:
        """Bytes of the forward values that are kept for the backward phase."""
        return self.timeline.saved_bytes

    @property
    def recompute_flops(self) -> float:
        """FLOPs of the nodes that run again, and of the steps of planned loops that do."""
        return self.timeline.recompute_flops

    @property
    def flops(self) -> float:
        """FLOPs of the whole gradient, recomputation included."""
        return self._flops_once + self.recompute_flops

    @property
    def _flops_once(self) -> float:
        return float(self.graph.flops.sum() - self.graph.rerun_flops.sum())

    @property
    def recompute_fraction(self) -> float:
        """`recompute_flops` in proportion to the FLOPs of the gradient with every node run once."""
        return self.recompute_flops / self._flops_once if self._flops_once else 0.0

    @functools.cached_property
    def saved(self) -> np.ndarray:
        """Numbers of the saved values, in order."""
        return np.sort(self.targets[self.ops == Op.SAVE]).astype(np.int64)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """How far this plan is from the best possible one within its budget; see `tiny_backprop.plan.certify`."""
        from tiny_backprop.plan.certificate import certify

        return certify(self)

    def why(self, what: int | str) -> list[Why]:
        """Tell why values are saved, or made anew: who needs them, and what either costs; see `tiny_backprop.plan.why`.

        Args:
          what: Number of a value, or text in a source line or scope, such as `"model.py:91"`.

        Raises:
          PlanError: There is no such value, line or scope.
        """
        from tiny_backprop.plan.why import why

        return why(self, what)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Plan)
            and self.graph.fingerprint == other.graph.fingerprint
            and self.graph.donated == other.graph.donated
            and np.array_equal(self.ops, other.ops)
            and np.array_equal(self.targets, other.targets)
        )

    def __hash__(self) -> int:
        return hash((self.graph.fingerprint, self.ops.tobytes(), self.targets.tobytes()))

    def to_json(self) -> str:
        """Return the plan as JSON text; `Plan.from_json` reads it back beside its graph."""
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "fingerprint": self.graph.fingerprint,
                "meta": self.meta,
                "nested": [n.choice for n in self.graph.nested],
                "ops": self.ops.tolist(),
                "targets": self.targets.tolist(),
            }
        )

    @classmethod
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

    def _repr_html_(self) -> str:
        return display.guarded(self._html, self)

    def _html(self) -> str:
        plain, here = _live_bytes_of_everything(self.graph), self.materialized
        plain_bytes = int(plain.max(initial=0))
        rows = [
            ("peak (predicted)", format_bytes(self.peak_bytes), format_bytes(plain_bytes)),
            ("saved (predicted)", format_bytes(self.saved_bytes), "every residual"),
            ("recompute (predicted)", self._recompute, "none"),
        ]
        if _MEASURED in self.meta:
            rows.insert(1, ("peak (measured by XLA)", format_bytes(self.meta[_MEASURED]), ""))
        title = ", ".join(f"{k} {self.meta[k]}" for k in (*_SHOWN, "n_blocks") if k in self.meta)
        picture = display.frontier_svg(here.live_bytes, here.n_forward_kernels, plain)
        header = ("", "this plan", "save everything")
        return f"<div><b>Plan</b>: {html.escape(title)}<br>{picture}{display.table(rows, header)}</div>"


def _fitting(fingerprint: str, choices: Sequence[Mapping[str, Any]], graph: Graph) -> Graph:
    """Return the graph with its loops planned by `choices`, or raise PlanError where that has another fingerprint."""
    if len(choices) == len(graph.nested):
        graph = with_choices(graph, choices)
    if fingerprint != graph.fingerprint:
        raise _misfit(fingerprint, graph)
    return graph


def predict_allocation(graph: Graph, steps: np.ndarray) -> Materialized:
    """Return what XLA is predicted to allocate for a captured gradient; see `Plan.materialized`.

    The latest few predictions are kept with the graph: planners ask before there is a plan.

    Args:
      graph: A captured graph.
      steps: Nodes in the order in which they run.
    """

    def predict() -> Materialized:
        is_backward = graph.is_backward[steps]
        n_forward_steps = int(is_backward.argmax()) if is_backward.any() else len(steps)
        is_late = n_forward_steps < graph.n_forward  # some of the forward phase waits for the backward phase
        is_planned = len(steps) > graph.n_nodes or is_late or bool(graph.nested)
        return materialize(graph, steps, n_forward_steps, is_planned=is_planned, backend=graph.backend)

    known: Latest[Materialized] = graph.memo.setdefault("predicted allocations", Latest(_MOST_PREDICTIONS))
    return known.get(steps.tobytes(), predict)


def predict_jax_gradient(graph: Graph) -> Materialized:
    """Return what XLA is predicted to allocate for JAX's own gradient, whose loops are JAX's, too.

    Args:
      graph: A captured graph.
    """
    graph = keeping_everything(graph)
    return materialize(graph, np.arange(graph.n_nodes), graph.n_forward, is_planned=False, backend=graph.backend)


def _live_bytes_of_everything(graph: Graph) -> np.ndarray:
    """Return the live bytes of save-everything, counted as `Plan.materialized` counts."""
    graph = keeping_everything(graph)
    return predict_allocation(graph, np.arange(graph.n_nodes)).live_bytes if graph.backend else frontier(graph)


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
