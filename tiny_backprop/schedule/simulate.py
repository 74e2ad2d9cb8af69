"""The referee: plays a plan's actions with byte counts and refuses any that reads a value that is not there.

It knows nothing of planners. A plan's `liveness_peak_bytes` comes from here and from nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from tiny_backprop.door import WHOLE_NUMBERS, door
from tiny_backprop.errors import IllegalPlanError
from tiny_backprop.graph import GRAPH, Graph


class Op(enum.IntEnum):
    """What an action does; the target of the first three is a node, of the last two a value.

    * `RUN`: run a forward node for the first time.
    * `RECOMPUTE`: run a forward node again.
    * `BACKWARD`: run a backward node.
    * `SAVE`: keep a value of the forward phase for the backward phase.
    * `FREE`: drop a value; its bytes are given back.
    """

    RUN = 0
    SAVE = 1
    RECOMPUTE = 2
    BACKWARD = 3
    FREE = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """What the referee saw: one entry per step, a step being a `RUN`, `RECOMPUTE` or `BACKWARD` action.

    Attributes:
      steps: The node that runs at each step.
      ops: The `Op` of each step.
      live_bytes: Bytes alive during each step, what it reads and makes included; inputs of the graph are not counted.
      peak_bytes: The largest of `live_bytes`.
      peak_step: The first step with `peak_bytes`.
      n_forward_steps: Steps before the first `BACKWARD` action.
      saved_bytes: Bytes of all saved values together.
      recompute_flops: FLOPs of all `RECOMPUTE` actions together, and of what nodes run again by themselves.
      recompute_bytes_moved: Bytes moved by all `RECOMPUTE` actions together.
    """

    steps: np.ndarray
    ops: np.ndarray
    live_bytes: np.ndarray
    peak_bytes: int
    peak_step: int
    n_forward_steps: int
    saved_bytes: int
    recompute_flops: float
    recompute_bytes_moved: float


@door(IllegalPlanError, graph=GRAPH, ops=WHOLE_NUMBERS, targets=WHOLE_NUMBERS)
def simulate(graph: Graph, ops: np.ndarray, targets: np.ndarray) -> Timeline:
    """Play actions over a graph and return what they cost; O(n log n) in the number of actions.

    Args:
      graph: Any graph.
      ops: `Op` of each action, shape (n_actions,).
      targets: Node or value of each action, shape (n_actions,).

    Returns:
      The timeline.

    Raises:
      IllegalPlanError: An action reads, saves or frees a value that is not alive; makes one that is; runs a node in the
        wrong phase, repeats a backward node or an effect, or skips a node that the outputs need; or a forward value is
        alive in the backward phase, or read there, that was not saved. The message names the action.
    """
    ops, targets = np.asarray(ops, np.int64), np.asarray(targets, np.int64)
    _check_targets(graph, ops, targets)
    is_step = (ops != Op.SAVE) & (ops != Op.FREE)
    at = np.flatnonzero(is_step)
    steps = targets[at]
    _check_steps(graph, ops[at], steps, at)

    # Events of each value in time order: +1 where an action makes it, -1 where one frees it.
    n_made = np.diff(graph.output_start)[steps]
    made_at = np.repeat(at, n_made)
    made = ranges(graph.output_start[steps], n_made)
    freed_at = np.flatnonzero(ops == Op.FREE)
    freed = targets[freed_at]
    events = _Events(graph.n_values, len(ops), np.r_[made, freed], np.r_[made_at, freed_at], len(made))

    def refuse(values: np.ndarray, when: np.ndarray, wanted: bool, verb: str) -> None:
        bad = np.flatnonzero(events.alive_before(values, when) != wanted)
        if len(bad):
            i = bad[0]
            state = "is not alive" if wanted else "is alive already"
            raise IllegalPlanError(
                f"{_describe(graph, ops, targets, int(when[i]))} {verb} value {values[i]}, which {state}"
            )

    node, value = graph.reads
    bounds = np.searchsorted(node, np.arange(graph.n_nodes + 1))
    n_read = np.diff(bounds)[steps]
    refuse(value[ranges(bounds[steps], n_read)], np.repeat(at, n_read), True, "reads")
    refuse(made, made_at, False, "makes")
    refuse(freed, freed_at, True, "frees")
    saved_at = np.flatnonzero(ops == Op.SAVE)
    refuse(targets[saved_at], saved_at, True, "saves")
    returned = np.unique(graph.outputs[graph.outputs >= graph.n_inputs])
    if not np.all(events.alive_before(returned, np.full(len(returned), len(ops)))):
        raise IllegalPlanError("the plan ends without some value that the program returns")
    _check_complete(graph, steps)
    _check_border(graph, ops, targets, events, returned)
    _check_late_reads(graph, ops, targets, events, steps, at)

    delta = np.zeros(len(ops) + 1, np.int64)
    np.add.at(delta, made_at, graph.value_bytes[made])
    np.add.at(delta, freed_at, -graph.value_bytes[freed])
    live = np.cumsum(delta)[at]
    peak_step = int(live.argmax()) if len(live) else 0
    again = steps[ops[at] == Op.RECOMPUTE]
    backward = np.flatnonzero(ops[at] == Op.BACKWARD)
    return Timeline(
        steps=steps,
        ops=ops[at].astype(np.uint8),
        live_bytes=live,
        peak_bytes=int(live[peak_step]) if len(live) else 0,
        peak_step=peak_step,
        n_forward_steps=int(backward[0]) if len(backward) else len(at),
        saved_bytes=int(graph.value_bytes[targets[saved_at]].sum()),
        recompute_flops=float(graph.flops[again].sum() + graph.rerun_flops.sum()),
        recompute_bytes_moved=float(graph.bytes_moved[again].sum()),
    )


class _Events:
    """When each value is made and freed, answering whether it is alive just before an action."""

    def __init__(self, n_values: int, n_actions: int, values: np.ndarray, when: np.ndarray, n_made: int):
        self._stride = n_actions + 1
        keys = values * self._stride + when
        order = np.argsort(keys, kind="stable")
        self._keys, self._values = keys[order], values[order]
        self._makes = order < n_made

    def alive_before(self, values: np.ndarray, when: np.ndarray) -> np.ndarray:
        if not len(self._keys):
            return np.zeros(len(values), bool)
        i = self.last_before(values, when)
        return (i >= 0) & (self._values[i] == values) & self._makes[i]

    def last_before(self, values: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Return the number of the last event before an action; it is another value's where there is none."""
        return np.searchsorted(self._keys, values * self._stride + when) - 1


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the integers of the ranges [start, start + length), one range after the other."""
    total = int(lengths.sum())
    offsets = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + np.arange(total) - offsets


def _check_targets(graph: Graph, ops: np.ndarray, targets: np.ndarray) -> None:
    if ops.shape != targets.shape or ops.ndim != 1:
        raise IllegalPlanError(f"each action needs one target; found {ops.shape} actions and {targets.shape} targets")
    if len(ops) and (ops.min() < 0 or ops.max() > max(Op)):
        raise IllegalPlanError(f"actions are numbered 0 to {int(max(Op))}; found {int(ops.min())} to {int(ops.max())}")
    is_step = (ops != Op.SAVE) & (ops != Op.FREE)
    low, high = np.where(is_step, 0, graph.n_inputs), np.where(is_step, graph.n_nodes, graph.n_values)
    bad = np.flatnonzero((targets < low) | (targets >= high))
    if len(bad):
        i = int(bad[0])
        raise IllegalPlanError(f"action {i} ({Op(int(ops[i])).name.lower()}) has target {targets[i]}, not in the graph")


def _check_steps(graph: Graph, ops: np.ndarray, steps: np.ndarray, at: np.ndarray) -> None:
    """Check that nodes run in their phase, and as often as they may."""

    def refuse(bad: np.ndarray, why: str) -> None:
        if np.any(bad):
            i = int(np.flatnonzero(bad)[0])
            name = graph.primitives[steps[i]]
            raise IllegalPlanError(f"action {at[i]} ({Op(int(ops[i])).name.lower()} node {steps[i]}, {name}) {why}")

    first = np.zeros(len(steps), bool)
    first[np.unique(steps, return_index=True)[1]] = True
    backward = graph.is_backward[steps]
    refuse((ops == Op.BACKWARD) != backward, "runs a node in the wrong phase")
    refuse(backward & ~first, "repeats a backward node")
    refuse((ops == Op.RUN) & ~first, "runs a node that ran before; that is a recomputation")
    refuse((ops == Op.RECOMPUTE) & first, "recomputes a node that never ran")
    refuse(graph.has_effect[steps] & ~first, "repeats a node with an effect, which may run only once")


def _check_complete(graph: Graph, steps: np.ndarray) -> None:
    """Check that every backward node and every effect runs."""
    ran = np.zeros(graph.n_nodes, bool)
    ran[steps] = True
    missing = np.flatnonzero(~ran & (graph.is_backward | graph.has_effect))
    if len(missing):
        raise IllegalPlanError(f"the plan never runs node {missing[0]} ({graph.primitives[missing[0]]})")


def _check_border(graph: Graph, ops: np.ndarray, targets: np.ndarray, events: _Events, returned: np.ndarray) -> None:
    """Check what the forward phase leaves behind.

    What the function returns must be there, effects must have run, and whatever else is alive must have been saved.
    """
    backward = np.flatnonzero(ops == Op.BACKWARD)
    if not len(backward):
        return
    border = int(backward[0])
    made = np.arange(graph.n_inputs, graph.output_start[graph.n_forward])
    alive = made[events.alive_before(made, np.full(len(made), border))]
    bad = np.setdiff1d(alive, np.r_[targets[ops == Op.SAVE], returned])
    if len(bad):
        raise IllegalPlanError(f"value {bad[0]} of the forward phase lives on in the backward phase but was not saved")
    primal = graph.outputs[: graph.n_primal_outputs]
    primal = primal[primal >= graph.n_inputs]
    absent = primal[~events.alive_before(primal, np.full(len(primal), border))]
    if len(absent):
        raise IllegalPlanError(f"the backward phase begins without value {absent[0]}, which the function returns")
    later = targets[border:][ops[border:] == Op.RUN]
    if np.any(graph.has_effect[later]):
        raise IllegalPlanError(
            f"node {later[graph.has_effect[later]][0]} has an effect, and must run in the forward phase"
        )
    late = np.flatnonzero(ops[border:] == Op.SAVE)
    if len(late):
        raise IllegalPlanError(f"action {border + late[0]} saves a value after the backward phase has begun")


def _check_late_reads(
    graph: Graph, ops: np.ndarray, targets: np.ndarray, events: _Events, steps: np.ndarray, at: np.ndarray
) -> None:
    """Check that the backward phase reads nothing that the function returns as the forward phase left it, unsaved."""
    backward = np.flatnonzero(ops == Op.BACKWARD)
    if not len(backward):
        return
    border = int(backward[0])
    late = at >= border
    node, value = graph.reads
    bounds = np.searchsorted(node, np.arange(graph.n_nodes + 1))
    n_read = np.diff(bounds)[steps[late]]
    read, when = value[ranges(bounds[steps[late]], n_read)], np.repeat(at[late], n_read)
    is_old = events.last_before(read, when) == events.last_before(read, np.full(len(read), border))
    is_old &= read < graph.output_start[graph.n_forward]
    bad = np.flatnonzero(is_old & ~np.isin(read, targets[ops == Op.SAVE]))
    if len(bad):
        i = bad[0]
        raise IllegalPlanError(
            f"{_describe(graph, ops, targets, int(when[i]))} reads value {read[i]}, which the function returns but "
            "which was not saved"
        )


def _describe(graph: Graph, ops: np.ndarray, targets: np.ndarray, i: int) -> str:
    op, target = Op(int(ops[i])), int(targets[i])
    if op in (Op.SAVE, Op.FREE):
        return f"action {i} ({op.name.lower()} value {target})"
    return f"action {i} ({op.name.lower()} node {target}, {graph.primitives[target]})"
