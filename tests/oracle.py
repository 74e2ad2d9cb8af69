"""The cheapest plan of a tiny graph by brute force: Dijkstra over everything that may be alive.

Knows the rules of `simulate`, and nothing of planners and bounds. Exponential: for about ten nodes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator

import numpy as np

from tiny_backprop import Graph, Op, Plan

# Backward nodes done, alive forward values as bits, forward nodes that ran as bits.
State = tuple[int, int, int]
Move = tuple[tuple[Op, int], int, State]

_START: State = (0, 0, 0)


class Oracle:
    """Searches every plan that the referee lets pass, backward nodes in the program's order."""

    def __init__(self, graph: Graph):
        self.graph = g = graph
        self._first, self._end = g.n_inputs, int(g.output_start[g.n_forward])
        self._made = [self._bits(range(g.output_start[i], g.output_start[i + 1])) for i in range(g.n_nodes)]
        self._read = [self._bits(values) for values in g.read_lists]
        self._primal = self._bits(g.outputs[: g.n_primal_outputs])
        self._returned = self._bits(g.outputs)
        self._effects = sum(1 << i for i in range(g.n_forward) if g.has_effect[i])
        self._bytes = [int(b) for b in g.value_bytes[self._first : self._end]]
        self._last = self._last_reads()

    def _bits(self, values: Iterable[int]) -> int:
        """Return forward values as bits; others have none."""
        return sum(1 << (v - self._first) for v in {int(v) for v in values} if self._first <= v < self._end)

    def _last_reads(self) -> dict[int, int]:
        """Return the last node that reads each backward value; freeing it right then is never worse."""
        g = self.graph
        last = {v: int(g.value_node[v]) for v in range(self._end, g.n_values)}
        for i in range(g.n_nodes):
            last.update({v: i for v in g.read_lists[i] if v in last})
        last.update({int(v): g.n_nodes for v in g.outputs if v >= self._end})
        return last

    def _live(self, alive: int, done: int) -> int:
        """Return the bytes alive between two steps."""
        forward = sum(b for k, b in enumerate(self._bytes) if alive >> k & 1)
        node, maker = self.graph.n_forward + done, self.graph.value_node
        return forward + sum(
            int(self.graph.value_bytes[v]) for v, last in self._last.items() if maker[v] < node <= last
        )

    def _moves(self, state: State) -> Iterator[Move]:
        """Yield each action that the referee would allow, the bytes alive during it, and the next state."""
        done, alive, ran = state
        g = self.graph
        live = self._live(alive, done)
        for k in range(len(self._bytes)):
            if alive >> k & 1:
                yield (Op.FREE, self._first + k), 0, (done, alive & ~(1 << k), ran)
        for i in range(g.n_forward):
            again = ran >> i & 1
            if alive & self._made[i] or self._read[i] & ~alive or (g.has_effect[i] and (again or done)):
                continue
            action = (Op.RECOMPUTE if again else Op.RUN, i)
            yield action, live + int(g.node_bytes[i]), (done, alive | self._made[i], ran | 1 << i)
        at_border_without = not done and (self._primal & ~alive or self._effects & ~ran)
        if done < g.n_backward and not self._read[i := g.n_forward + done] & ~alive and not at_border_without:
            yield (Op.BACKWARD, i), live + int(g.node_bytes[i]), (done + 1, alive, ran)

    def _is_goal(self, state: State) -> bool:
        done, alive, ran = state
        return done == self.graph.n_backward and not self._returned & ~alive and not self._effects & ~ran

    def smallest_peak(self) -> int:
        """Return the smallest peak of any plan."""
        best, heap = {_START: 0}, [(0, _START)]
        while heap:
            peak, state = heapq.heappop(heap)
            if self._is_goal(state):
                return peak
            for _, live, then in self._moves(state) if peak == best[state] else ():
                if max(peak, live) < best.get(then, math.inf):
                    best[then] = max(peak, live)
                    heapq.heappush(heap, (best[then], then))
        raise AssertionError("the graph has no plan")

    def cheapest(self, budget_bytes: int) -> Plan | None:
        """Return a plan within a budget with the fewest FLOPs recomputed, or None where no plan fits."""
        best, heap = {_START: 0.0}, [(0.0, _START)]
        came: dict[State, tuple[State, tuple[Op, int]]] = {}
        while heap:
            cost, state = heapq.heappop(heap)
            if self._is_goal(state):
                return self._plan(state, came)
            for action, live, then in self._moves(state) if cost == best[state] else ():
                total = cost + (float(self.graph.flops[action[1]]) if action[0] == Op.RECOMPUTE else 0.0)
                if live <= budget_bytes and total < best.get(then, math.inf):
                    best[then], came[then] = total, (state, action)
                    heapq.heappush(heap, (total, then))
        return None

    def _plan(self, state: State, came: dict[State, tuple[State, tuple[Op, int]]]) -> Plan:
        """Return the path to a state as a plan, with what the search leaves unsaid: saves, and freed gradients."""
        actions: list[tuple[Op, int]] = []
        while state in came:
            state, action = came[state][0], came[state][1]
            done, alive, _ = state
            if action[0] == Op.BACKWARD:
                actions += [(Op.FREE, v) for v, last in self._last.items() if last == action[1]]
            actions.append(action)
            if action[0] == Op.BACKWARD and not done:
                actions += [(Op.SAVE, self._first + k) for k in range(len(self._bytes)) if alive >> k & 1]
        ops, targets = np.array([(int(op), target) for op, target in actions[::-1]]).T
        return Plan.from_actions(self.graph, ops, targets, {"strategy": "brute force"})
