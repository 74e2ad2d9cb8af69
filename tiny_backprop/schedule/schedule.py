"""A schedule: in which order a gradient's nodes run, what is saved and freed on the way, and the referee's count of it.

Planners make schedules, compilers are predicted from them, and whatever is asked about a plan is worked out from its
schedule: a `tiny_backprop.plan.plan.Plan` is a schedule with a door to each of these answers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self, overload

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.record import Record
from tiny_backprop.schedule.simulate import Op, Timeline, simulate
from tiny_backprop.schedule.steps import lives, values_read


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
    """`Schedule.actions`: actions are made when asked for."""

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
class Schedule(Record):
    """What to do with every node and value of a gradient, with the referee's count of it.

    Attributes:
      graph: The gradient graph, its loops planned.
      ops: `Op` of each action, uint8 of shape (n_actions,).
      targets: Node or value of each action, int64 of shape (n_actions,).
      meta: How it was made: `strategy`; `block_size` (as it was asked for), `levels`, `n_blocks`; or `budget` (as it
        was asked for), `budget_bytes`, `cost` (what was minimised), `recompute_percent` (of that cost), and, where it
        was verified, `measured_peak_bytes`; and `peak_frontier`, the same as `liveness_peak_bytes`.
      timeline: What the referee saw.
    """

    graph: Graph
    ops: np.ndarray
    targets: np.ndarray
    meta: dict[str, Any]
    timeline: Timeline

    @classmethod
    def from_actions(cls, graph: Graph, ops: np.ndarray, targets: np.ndarray, meta: dict[str, Any]) -> Self:
        """Let the referee play the actions and return what they make.

        Raises:
          IllegalPlanError: The actions break a rule of `simulate`.
        """
        timeline = simulate(graph, ops, targets)
        ops, targets = np.array(ops, np.uint8), np.array(targets, np.int64)
        ops.flags.writeable = targets.flags.writeable = False  # they are hashed
        return cls(graph, ops, targets, {**meta, "peak_frontier": timeline.peak_bytes}, timeline)

    @classmethod
    def from_steps(cls, graph: Graph, steps: np.ndarray, meta: dict[str, Any]) -> Self:
        """Save and free around an order of steps: every value is freed right after the last step that reads it.

        A value that is made several times lives, each time, until the last step that reads it before it is made anew;
        what the program returns lives to the end. Forward values alive when the backward phase begins are saved. O(n
        log n) in the number of steps and reads.

        Args:
          graph: Any graph.
          steps: Nodes in the order in which they run, forward nodes possibly several times; int64 of shape (n_steps,).
          meta: See `Schedule`.

        Raises:
          IllegalPlanError: A step reads a value that no earlier step makes.
        """
        return cls.from_actions(graph, *_actions(graph, np.asarray(steps, np.int64)), meta)

    @property
    def steps(self) -> np.ndarray:
        """Nodes in the order in which they run, int64 of shape (n_steps,)."""
        return self.timeline.steps

    @property
    def actions(self) -> Sequence[Action]:
        """The actions in order."""
        return _Actions(self.ops, self.targets)

    @property
    def liveness_peak_bytes(self) -> int:
        """Largest number of live bytes at any step, forward and backward, as if nothing were fused, by the referee.

        Inputs of the graph are not counted. XLA may need less, since what is fused takes no memory, or more: it keeps
        the memory of outputs all along, and copies what it holds or lays out anew.
        """
        return self.timeline.peak_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes of the forward values that are kept for the backward phase."""
        return self.timeline.saved_bytes

    @functools.cached_property
    def saved(self) -> np.ndarray:
        """Numbers of the saved values, in order."""
        return np.sort(self.targets[self.ops == Op.SAVE]).astype(np.int64)

    @property
    def backward_order(self) -> np.ndarray:
        """The backward nodes in the order in which they run."""
        return self.timeline.steps[self.timeline.ops == Op.BACKWARD]

    @property
    def recompute_flops(self) -> float:
        """FLOPs of the nodes that run again, and of the steps of planned loops that do."""
        return self.timeline.recompute_flops

    def recompute_cost(self, costs: np.ndarray) -> float:
        """Return what the nodes that run again cost, where each node costs what `costs` says."""
        return float(costs[self.timeline.steps[self.timeline.ops == Op.RECOMPUTE]].sum())

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

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Schedule)
            and self.graph.fingerprint == other.graph.fingerprint
            and self.graph.donated == other.graph.donated
            and np.array_equal(self.ops, other.ops)
            and np.array_equal(self.targets, other.targets)
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.ops.flags.writeable = self.targets.flags.writeable = False

    def __hash__(self) -> int:
        return hash((self.graph.fingerprint, self.ops.tobytes(), self.targets.tobytes()))


def _actions(graph: Graph, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions of `Schedule.from_steps`: `Op` and target of each."""
    n = len(steps)
    backward = graph.is_backward[steps]
    kinds = np.where(backward, Op.BACKWARD, Op.RECOMPUTE)
    first = np.unique(steps, return_index=True)[1]
    kinds[first[~backward[first]]] = Op.RUN
    made, made_at, last = lives(graph, steps)
    kept = last == n
    border = int(np.flatnonzero(backward)[0]) if backward.any() else n
    saved = (made_at < border) & (last >= border) & (last < n)  # the function's own outputs too, where made again
    # So is what the program returns and a later step reads, be it a backward node or one that runs again.
    saved |= kept & (made_at < border) & np.isin(made, values_read(graph, steps[border:])[0])
    saved &= border < n

    # Each step is followed by the saving of what it made and by the freeing of what it read last.
    freed = last < n
    slots = np.r_[np.arange(n), made_at[saved], last[freed]]
    ops = np.r_[kinds, np.full(saved.sum(), Op.SAVE), np.full(freed.sum(), Op.FREE)]
    targets = np.r_[steps, made[saved], made[freed]]
    rank = np.r_[np.zeros(n, int), np.ones(saved.sum(), int), np.full(freed.sum(), 2)]
    order = np.argsort(slots * 3 + rank, kind="stable")
    return ops[order].astype(np.uint8), targets[order]
