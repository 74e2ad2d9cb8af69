"""The cheapest plan of a tiny graph by brute force: Dijkstra over everything that may be alive.

Knows the rules of `simulate` and nothing of planners or bounds. Exponential: for about ten nodes.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterator

import numpy as np

from tiny_backprop import Graph, Op, Plan


@dataclasses.dataclass(frozen=True)
class Scope:
    """Which plans are searched; by default every plan that the referee lets pass, backward nodes in program order.

    Attributes:
      anchored: Only plans whose first runs are in the program's order (deferrable nodes apart, which may run at any
        time) and that, between two of those, run a node at most once, and nodes in the program's order; what the
        function returns stays alive through the backward phase.
      max_runs: How often a node may run.
    """

    anchored: bool = False
    max_runs: int | None = None


ANY = Scope()


class _State(tuple[int, int, int, tuple[int, ...]]):
    """(anchors done, last node run since then, alive forward values as bits, runs of each forward node, capped)."""


class Oracle:
    """Searches the plans of one graph; make one and ask it about several budgets."""

    def __init__(self, graph: Graph, scope: Scope = ANY):
        self.graph, self.scope = graph, scope
        g = graph
        self.n_forward, self.n_backward = g.n_forward, g.n_backward
        self.base = g.n_inputs
        self.n_values = int(g.output_start[g.n_forward]) - g.n_inputs
        self.made = [self._bits(range(g.output_start[i], g.output_start[i + 1])) for i in range(g.n_nodes)]
        self.read = [self._bits(vs) for vs in g.read_lists]
        returned = set(g.outputs[g.outputs >= g.n_inputs].tolist())
        primal = [int(v) for v in g.outputs[: g.n_primal_outputs] if v >= g.n_inputs]
        self.primal, self.returned = self._bits(primal), self._bits(returned)
        self.possible = all(v < self.base + self.n_values for v in primal)
        self.effects = [i for i in range(self.n_forward) if g.has_effect[i]]
        self.run_cap = scope.max_runs or 1
        # Bytes of backward values alive before backward node b runs; freeing them at once is never worse.
        last = {v: g.n_nodes if v in returned else int(g.value_node[v]) for v in range(g.output_start[g.n_forward], g.n_values)}
        for i in range(g.n_nodes):
            for v in g.read_lists[i]:
                if v in last:
                    last[v] = max(last[v], i)
        self.backward_bytes = [
            sum(int(g.value_bytes[v]) for v, end in last.items() if g.value_node[v] < i <= end)
            for i in range(g.n_forward, g.n_nodes + 1)
        ]
        self.anchors = self._anchors() if scope.anchored else list(range(g.n_forward, g.n_nodes))
        self.border = len(self.anchors) - self.n_backward

    def _bits(self, values) -> int:
        """Forward values as bits; backward values have none."""
        return sum(1 << (v - self.base) for v in set(map(int, values)) if v - self.base < self.n_values)

    def _anchors(self) -> list[int]:
        """Forward nodes that must run before the backward phase, and the backward nodes."""
        must = set(self.effects)
        for i in range(self.n_forward):
            if self.made[i] & self.primal or (not self.n_backward and self.made[i] & self.returned):
                must.add(i)
            if self.n_backward and self.made[i] & self.read[self.n_forward]:
                must.add(i)
        for i in reversed(range(self.n_forward)):
            if i in must:
                must |= {j for j in range(i) if self.made[j] & self.read[i]}
        return [*sorted(must), *range(self.n_forward, self.graph.n_nodes)]

    @functools.cache  # noqa: B019  one graph, one oracle
    def _bytes(self, bits: int) -> int:
        return sum(int(self.graph.value_bytes[self.base + k]) for k in range(self.n_values) if bits >> k & 1)

    def _n_backward_done(self, done: int) -> int:
        return max(0, done - self.border)

    def _moves(self, state: tuple) -> Iterator[tuple[tuple[int, int], int, bool, tuple]]:
        """Yield (action, live bytes during it, whether it is a re-run, next state)."""
        done, last, alive, runs = state
        anchored = self.scope.anchored
        b = self._n_backward_done(done)
        held = self.backward_bytes[b]
        fixed = self.primal if anchored and b else 0
        for k in range(self.n_values):
            if alive & ~fixed >> k & 1 if False else (alive & ~fixed) >> k & 1:
                yield (Op.FREE, self.base + k), 0, False, (done, last, alive & ~(1 << k), runs)
        after = self._bytes(alive) + held
        for i in range(self.n_forward):
            again = runs[i] > 0
            is_anchor = anchored and done < len(self.anchors) and self.anchors[done] == i
            if alive & self.made[i] or self.read[i] & ~alive:
                continue
            if again and (self.graph.has_effect[i] or (self.scope.max_runs and runs[i] >= self.scope.max_runs)):
                continue
            if i in self.effects and b:
                continue
            if anchored and not is_anchor and (i <= last or (i in self.anchors and not again)):
                continue
            more = (*runs[:i], min(runs[i] + 1, self.run_cap), *runs[i + 1 :])
            then = (done + 1, -1) if is_anchor else (done, i if anchored else -1)
            action = (Op.RECOMPUTE if again else Op.RUN, i)
            yield action, after + int(self.graph.node_bytes[i]), again, (*then, alive | self.made[i], more)
        i = self.n_forward + b
        if done < len(self.anchors) and self.anchors[done] == i and not self.read[i] & ~alive:
            if b == 0 and (self.primal & ~alive or any(not runs[e] for e in self.effects)):
                return
            yield (Op.BACKWARD, i), after + int(self.graph.node_bytes[i]), False, (done + 1, -1, alive, runs)

    def _is_goal(self, state: tuple) -> bool:
        done, _, alive, runs = state
        return done == len(self.anchors) and not self.returned & ~alive and all(runs[e] for e in self.effects)

    def _start(self) -> tuple:
        return (0, -1, 0, (0,) * self.n_forward)

    def cheapest(self, budget_bytes: int, costs: np.ndarray | None = None) -> tuple[float, Plan] | None:
        """Return the least recompute cost within a budget and a plan that has it, or None where there is no plan."""
        costs = self.graph.flops if costs is None else costs
        price, best, came = [float(c) for c in costs], {self._start(): 0.0}, {}
        heap = [(0.0, 0, self._start())] if self.possible else []
        n = 0
        while heap:
            cost, _, state = heapq.heappop(heap)
            if cost > best[state]:
                continue
            if self._is_goal(state):
                return cost, self._plan(state, came)
            for action, live, again, then in self._moves(state):
                total = cost + (price[action[1]] if again else 0.0)
                if live <= budget_bytes and total < best.get(then, np.inf):
                    best[then], came[then], n = total, (state, action), n + 1
                    heapq.heappush(heap, (total, n, then))
        return None

    def smallest_peak(self) -> int:
        """Return the smallest peak that any plan has."""
        best = {self._start(): 0}
        heap = [(0, 0, self._start())]
        n = 0
        while heap:
            peak, _, state = heapq.heappop(heap)
            if peak > best[state]:
                continue
            if self._is_goal(state):
                return peak
            for _, live, _, then in self._moves(state):
                if max(peak, live) < best.get(then, np.inf):
                    best[then], n = max(peak, live), n + 1
                    heapq.heappush(heap, (best[then], n, then))
        raise AssertionError("the graph has no plan")

    def _plan(self, state: tuple, came: dict) -> Plan:
        actions, alive = [], []
        while state in came:
            alive.append(came[state][0][2])
            state, action = came[state]
            actions.append(action)
        actions, alive = actions[::-1], alive[::-1]
        border = next((k for k, (op, _) in enumerate(actions) if op == Op.BACKWARD), None)
        if border is not None:
            kept = [(Op.SAVE, self.base + k) for k in range(self.n_values) if alive[border] >> k & 1]
            actions[border:border] = kept
        # Backward values are freed by nobody: the search counts them as freed at once, and so must the plan.
        return Plan.from_actions(self.graph, *self._free_backward(actions), {"strategy": "brute force"})

    def _free_backward(self, actions: list) -> tuple[np.ndarray, np.ndarray]:
        g = self.graph
        out = []
        returned = set(g.outputs.tolist())
        for op, target in actions:
            out.append((op, target))
            if op == Op.BACKWARD:
                mine = [v for v in range(g.output_start[g.n_forward], g.output_start[target + 1]) if v not in returned]
                last = {v: max([int(g.value_node[v]), *(i for i in range(g.n_nodes) if v in g.read_lists[i])]) for v in mine}
                out += [(Op.FREE, v) for v in mine if last[v] == target]
        return np.array([o for o, _ in out], np.int64), np.array([t for _, t in out], np.int64)
