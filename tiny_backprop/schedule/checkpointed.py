"""JAX's own gradient as a schedule: what the program's calls under `jax.checkpoint` save, and what runs again when.

JAX differentiates such a call as a whole. Forward, it keeps what the call reads and what its policy saves. Backward,
before the first node of the call's reverse pass, all that the reverse pass lacks is made again at once, from what was
kept, behind an optimisation barrier that waits for the cotangents of the call. A call inside of another one runs again
with it, and once more for its own reverse pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.schedule.holds import Holds, no_holds
from tiny_backprop.schedule.runs import NONE, Runs

_OUTSIDE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class JaxSchedule:
    """The steps of JAX's own gradient.

    Attributes:
      steps: Nodes in the order in which they run, int64 of shape (n_steps,).
      n_forward_steps: How many of them come before the backward phase.
      kept: The forward values that are kept for the backward phase, in order.
      starts: Each call that is reversed, a place in `Graph.checkpoints`, with the step at which it runs again.
      call_of_step: The innermost call that each step of the backward phase belongs to, -1 for none.
    """

    steps: np.ndarray
    n_forward_steps: int
    kept: tuple[int, ...]
    starts: dict[int, int]
    call_of_step: np.ndarray


def jax_schedule(graph: Graph) -> JaxSchedule:
    """Return the steps of JAX's own gradient; without calls under `jax.checkpoint`, every node once and in order.

    Args:
      graph: A gradient graph.
    """
    if "jax schedule" not in graph.memo:
        graph.memo["jax schedule"] = _Calls(graph).schedule() if graph.checkpoints else _in_order(graph)
    return graph.memo["jax schedule"]


def _in_order(graph: Graph) -> JaxSchedule:
    n = graph.n_nodes
    return JaxSchedule(np.arange(n), graph.n_forward, tuple(graph.residuals.tolist()), {}, np.full(n, NONE))


class _Calls:
    """Finds what each call makes again.

    Attributes:
      chain: The calls that each node stands in, the outermost first.
      saved_in: Of each call, its nodes whose results its policy keeps.
      wanted: Of each call, and outside of them (-1), the nodes that run again with it (outside: in the forward phase).
      kept: The values that are read from what the forward phase leaves.
    """

    def __init__(self, graph: Graph):
        self.graph, self.makers = graph, graph.value_node.tolist()
        self.chain: list[tuple[int, ...]] = [()] * graph.n_nodes
        for k, call in enumerate(graph.checkpoints):
            for i in call.nodes:
                self.chain[i] = (*self.chain[i], k)
        self.saved_in = [{*c.saved, *c.offloaded} for c in graph.checkpoints]
        self.wanted: dict[int, set[int]] = {k: set() for k in range(_OUTSIDE, len(graph.checkpoints))}
        self.kept: set[int] = set()

    def schedule(self) -> JaxSchedule:
        """Return the steps."""
        graph = self.graph
        for i in range(graph.n_forward, graph.n_nodes):
            self._ask(graph.read_lists[i], self.chain[i])
        made = [v for v in graph.outputs.tolist() if v >= graph.n_inputs]
        gradients = [v for v in graph.outputs[graph.n_primal_outputs :].tolist() if v >= graph.n_inputs]
        self._ask(gradients, ())  # one that depends on no cotangent is a forward value
        once = np.flatnonzero(graph.has_effect[: graph.n_forward]).tolist()
        self.wanted[_OUTSIDE].update(once, (self.makers[v] for v in made if self.makers[v] < graph.n_forward))
        for k in range(len(graph.checkpoints) - 1, _OUTSIDE - 1, -1):  # calls come after those that they stand in
            self._close(k)
        steps, starts = sorted(self.wanted[_OUTSIDE]), dict[int, int]()
        n_forward_steps = len(steps)
        calls = [NONE] * n_forward_steps
        for i in range(graph.n_forward, graph.n_nodes):
            for k in self.chain[i]:
                if k not in starts:
                    starts[k] = len(steps)
                    again = sorted(self.wanted[k])
                    steps += again
                    calls += [k] * len(again)
            steps.append(i)
            calls.append(self.chain[i][-1] if self.chain[i] else NONE)
        return JaxSchedule(
            np.array(steps, np.int64), n_forward_steps, tuple(sorted(self.kept)), starts, np.array(calls, np.int64)
        )

    def _ask(self, values: Sequence[int], chain: tuple[int, ...]) -> None:
        """Note which run must make the forward values that a backward node in a chain of calls reads."""
        for v in values:
            node = self.makers[v]
            if node < self.graph.n_forward:
                at = self._made_in(node, chain)
                self.wanted[at].add(node)
                if at == _OUTSIDE:
                    self.kept.add(v)

    def _made_in(self, node: int, chain: tuple[int, ...]) -> int:
        """Return the call whose second run makes what is read inside a chain of calls; -1 for the forward phase."""
        at = _OUTSIDE
        for k, own in zip(chain, self.chain[node], strict=False):
            if k != own or node in self.saved_in[k]:
                break
            at = k
        return at

    def _close(self, k: int) -> None:
        """Add the nodes that what a call makes again needs; what comes from further outside is asked for there."""
        waiting, chain = sorted(self.wanted[k]), () if k == _OUTSIDE else self._chain_of(k)
        while waiting:
            for v in self.graph.read_lists[waiting.pop()]:
                node = self.makers[v]
                at = self._made_in(node, chain)
                if at == _OUTSIDE != k:
                    self.kept.add(v)
                if node not in self.wanted[at]:
                    self.wanted[at].add(node)
                    if at == k:
                        waiting.append(node)

    def _chain_of(self, k: int) -> tuple[int, ...]:
        parent = self.graph.checkpoints[k].parent
        return (k,) if parent == NONE else (*self._chain_of(parent), k)


def find_barriers(runs: Runs, schedule: JaxSchedule) -> Holds:
    """Return what the barriers of `jax.checkpoint` hold: all that a call reads from outside, and its cotangents.

    Args:
      runs: The runs of `schedule.steps`.
      schedule: JAX's own gradient.
    """
    graph = runs.graph
    if not schedule.starts:
        return no_holds(runs)
    calls = np.append(schedule.call_of_step, NONE)[runs.readers]
    start_of = np.full(len(graph.checkpoints) + 1, len(runs.steps))  # of no call: at the end
    start_of[list(schedule.starts)] = list(schedule.starts.values())
    start = start_of[calls]
    from_outside = (calls != NONE) & (runs.makers < start)
    reads = np.flatnonzero(from_outside)
    keys, first = np.unique(start[reads] * graph.n_values + runs.values[reads], return_index=True)
    steps, values = keys // graph.n_values, keys % graph.n_values
    of_read = np.full(len(runs.values), NONE)
    of_read[reads] = np.searchsorted(keys, start[reads] * graph.n_values + runs.values[reads])
    is_cotangent = runs.makers[reads[first]] >= schedule.n_forward_steps
    is_cotangent &= graph.value_node[values] >= graph.n_forward
    none = np.zeros(0, np.int64)
    return Holds(steps, values, of_read, steps[is_cotangent], values[is_cotangent], none, none)
