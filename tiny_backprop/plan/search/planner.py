"""The cheapest schedule of a graph found whose peak, at every step of both phases, stays within a byte budget.

A schedule comes from the dynamic programme over blocks (`chain`) for several ways to cut the forward phase; the referee
counts its true peak, and the memory given to the programme is corrected until that fits. Room that is left is filled
by leaving recomputations out (`local_search.fill`). On request a local search goes on from there.

What is nested in the graph stays planned as it is; `budget` chooses that too.

A known weakness: a block's node cannot be split, and the backward phase keeps the order of its windows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.search.bounds import working_set_bound
from tiny_backprop.plan.search.chain import Chain, MemoryGrid
from tiny_backprop.plan.search.constraint_generation import tighten
from tiny_backprop.plan.search.local_search import Tape, evict_until, fill, improve, squeeze
from tiny_backprop.plan.search.menu import Menu, menus
from tiny_backprop.plan.search.order import better_order, permuted
from tiny_backprop.plan.search.relaxation import Phases
from tiny_backprop.plan.search.segments import Segments, cheap_cuts
from tiny_backprop.schedule.cost import Cost, node_costs
from tiny_backprop.schedule.schedule import Schedule
from tiny_backprop.schedule.steps import peak_bytes

_UNITS = 256
_MOST_WORK = 6e7  # elements that one dynamic programme may fill
_MOST_BLOCKS = 256
_MOST_TRIES = 6
_LEAST_SHARE = 0.01
_TINY = 60  # nodes up to which searching on from each plan, for so many tries, takes no time to speak of
_TINY_TRIES = 20
_SMALL = 400  # nodes up to which greedy eviction, quadratic in nodes, is worth its time
_MIDDLING = 3000  # nodes up to which room is filled in more than the cheapest schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule with its price.

    Attributes:
      steps: Nodes in the order in which they run.
      peak_bytes: Peak by the referee's count.
      cost: Cost of all steps.
    """

    steps: np.ndarray
    peak_bytes: int
    cost: float


class Planner:
    """Makes schedules for one graph and one cost, and keeps what they have in common.

    Attributes:
      graph: The graph, its nodes in a better order where one was found.
      order: The node of the original graph that each node of `graph` is.
    """

    def __init__(self, original: Graph, cost: Cost):
        self.original, self.cost = original, cost
        order = better_order(original)
        self.order = np.arange(original.n_nodes) if order is None else order
        self.graph = original if order is None else permuted(original, order)
        self.costs = node_costs(self.graph, cost)
        self.cost_list: list[float] = self.costs.tolist()
        self.least_cost = float(self.costs.sum())
        self.most_bytes = int(frontier(self.graph).max(initial=0))
        self._menus: dict[int, tuple[Segments, list[Menu]]] = {}
        self._chains: dict[tuple[int, float, float], Chain] = {}
        self._seen: dict[tuple[Chain, int], Candidate] = {}
        self._answers: dict[int, Candidate | None] = {}

    @classmethod
    def of(cls, graph: Graph, cost: Cost) -> Planner:
        """Return the planner that is kept with a graph."""
        key = ("planner", repr(cost))
        if key not in graph.memo:
            graph.memo[key] = cls(graph, cost)
        return graph.memo[key]

    def search(self, budget_bytes: int, search_seconds: float) -> Candidate | None:
        """Search on from the best schedule within the budget; what is found is remembered."""
        end = time.monotonic() + search_seconds
        found = self.best(budget_bytes)
        steps = self._search(budget_bytes, None if found is None else found.steps, end)
        self._answers[budget_bytes] = None if steps is None else self._candidate(steps)
        return self.best(budget_bytes)

    def _search(self, budget_bytes: int, steps: np.ndarray | None, end: float) -> np.ndarray | None:
        """Return the cheapest order found until the time `end`: by the integer programme, then by local search."""
        start = None if steps is None else Schedule.from_steps(self.graph, steps, {})
        seconds = (end - time.monotonic()) / 2
        found = tighten(Phases.of(self.graph), budget_bytes, self.costs, max(seconds, 0.01), start)
        if found.schedule is None:
            return None
        steps = found.schedule.steps
        left = end - time.monotonic()
        if found.is_closed or left <= 0:
            return steps
        return np.array(improve(self.graph, self.cost_list, steps.tolist(), budget_bytes, seconds=left), np.int64)

    def best(self, budget_bytes: int) -> Candidate | None:
        """Return the cheapest schedule found within the budget, room that it leaves already filled.

        What was found for other budgets is asked, too: more memory then costs no more than less did before. The nodes
        of its steps are numbered as in `graph`; see `order`.
        """
        if self.own(budget_bytes) is self.plain:
            return self.plain
        known = [c for c in self._answers.values() if c is not None and c.peak_bytes <= budget_bytes]
        return min(known, key=lambda c: (c.cost, c.peak_bytes), default=None)

    def own(self, budget_bytes: int) -> Candidate | None:
        """Return what is found for a budget whatever was asked before; see `best`."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        if budget_bytes not in self._answers:
            self._answers[budget_bytes] = self._find(budget_bytes)
        return self._answers[budget_bytes]

    def _find(self, budget_bytes: int) -> Candidate | None:
        if budget_bytes < self.bound_bytes:
            return None
        fitting = sorted(self._fitting(budget_bytes), key=lambda c: (c.cost, c.peak_bytes))
        n_filled = 8 if self._is_small else 3 if self.graph.n_nodes <= _MIDDLING else 1
        filled = [self._fill(c.steps, budget_bytes) for c in fitting[:n_filled]]
        if not filled and self.smallest.peak_bytes <= budget_bytes:
            filled.append(self._fill(self.smallest.steps, budget_bytes))
        starts = [range(self.graph.n_nodes)] if filled and self._is_small else []
        if not filled and self.graph.n_nodes <= _TINY:
            starts = [self.smallest.steps.tolist()]
        for start in starts:
            order = evict_until(self.graph, self.cost_list, start, budget_bytes)
            if order is not None:
                filled.append(self._fill(np.array(order, np.int64), budget_bytes))
        best = min(filled, key=lambda c: (c.cost, c.peak_bytes), default=None)
        if best is not None and self.graph.n_nodes <= _TINY:
            steps = improve(self.graph, self.cost_list, best.steps.tolist(), budget_bytes, rounds=_TINY_TRIES)
            best = self._candidate(np.array(steps, np.int64))
        return best

    @functools.cached_property
    def plain(self) -> Candidate:
        """The schedule that runs every node once."""
        return self._candidate(np.arange(self.graph.n_nodes))

    @functools.cached_property
    def bound_bytes(self) -> int:
        """What every plan with this order of the backward phase needs."""
        return working_set_bound(self.graph)

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The schedule with the smallest peak that the planner can reach."""
        if not self._has_choice:
            return self.plain
        found = [self.plain]
        for chain in self._chains_for(self.most_bytes):
            found += [self._run(chain, units) for units in chain.useful_units[:4].tolist()]
        least = min(found, key=lambda c: (c.peak_bytes, c.cost))
        for seed in range(_TINY_TRIES if self.graph.n_nodes <= _TINY else 1):
            noise = np.random.default_rng(seed) if seed else None
            start = np.arange(self.graph.n_nodes) if seed % 2 else least.steps
            steps = squeeze(self.graph, self.cost_list, start.tolist(), noise)
            least = min(least, self._candidate(np.array(steps, np.int64)), key=lambda c: (c.peak_bytes, c.cost))
        return least

    def tightest(self, memory_bytes: int) -> Candidate | None:
        """Return a schedule for a memory that no peak by the referee's count need fit.

        XLA fuses, so that it needs less than the referee counts. Below the smallest peak, the programmes are asked with
        windows taken to need only a share of their bytes. None where even that finds nothing.
        """
        smallest = self.smallest.peak_bytes
        if memory_bytes >= smallest or not self._has_choice:
            return self.best(memory_bytes)
        share = (memory_bytes / smallest) ** 2
        while share > _LEAST_SHARE:
            options = []
            for chain in self._chains_for(self.most_bytes, share):
                units = min(int(memory_bytes / chain.grid.unit_bytes), chain.grid.n_units)
                options.append((float(chain.costs()[units]), len(options), chain, units))
            cost, _, chain, units = min(options)
            if math.isfinite(cost):
                return self._candidate(chain.steps(units))
            share *= 0.7
        return None

    @property
    def _has_choice(self) -> bool:
        """Whether there is something to run again, and something to run it again for."""
        return 0 < self.graph.n_forward < self.graph.n_nodes

    @property
    def _is_small(self) -> bool:
        return self.graph.n_nodes <= _SMALL

    # ---- candidates ----

    def _candidate(self, steps: np.ndarray) -> Candidate:
        return Candidate(steps, peak_bytes(self.graph, steps), float(self.costs[steps].sum()))

    def _run(self, chain: Chain, units: int) -> Candidate:
        key = (chain, units)
        if key not in self._seen:
            self._seen[key] = self._candidate(chain.steps(units))
        return self._seen[key]

    def _chains_for(self, budget_bytes: int, window_share: float = 1.0) -> list[Chain]:
        """Return the programmes to ask; few bytes are counted exactly where sizes allow it, many to a grid's unit."""
        grid = MemoryGrid.of(self.graph.value_bytes, self.most_bytes, _UNITS)
        if grid.is_exact:
            asked = 2 ** math.ceil(math.log2(max(2.0, budget_bytes / grid.unit_bytes + 1)))
            if asked <= _UNITS // 2 or self._is_small:
                grid = dataclasses.replace(grid, n_units=min(grid.n_units, asked))
            else:
                grid = MemoryGrid.coarse(self.most_bytes, _UNITS)
        return [
            self._chain(starts, grid, window_share)
            for starts in self._cuts
            if len(starts) ** 3 / 6 * grid.n_units <= _MOST_WORK
        ]

    @functools.cached_property
    def _cuts(self) -> list[np.ndarray]:
        """Ways to cut the forward phase, each as the first nodes of its blocks."""
        if not self._has_choice:
            return []
        n = self.graph.n_forward
        counts = (8, 16, 32, 64) if self._is_small else (12, 24, 48) if n <= 2000 else (16, 48)
        cuts = {len(starts): starts for starts in (cheap_cuts(self.graph, count) for count in (*counts, n))}
        return [starts for length, starts in cuts.items() if length <= _MOST_BLOCKS]

    def _chain(self, starts: np.ndarray, grid: MemoryGrid, window_share: float) -> Chain:
        """Return the programme for a cut, a larger one where that is known already."""
        key = len(starts), window_share, grid.unit_bytes
        if key not in self._chains or self._chains[key].grid.n_units < grid.n_units:
            if len(starts) not in self._menus:
                segments = Segments(self.graph, starts)
                self._menus[len(starts)] = segments, menus(segments, self.costs)
            self._chains[key] = Chain(*self._menus[len(starts)], grid, window_share)
        return self._chains[key]

    def _fitting(self, budget_bytes: int) -> list[Candidate]:
        """Return schedules within the budget: of each programme the one with the most memory whose true peak fits.

        A programme that cannot beat what was found already is not asked further.
        """
        fitting: list[Candidate] = []
        for chain in self._chains_for(budget_bytes):
            units, costs = chain.useful_units, chain.costs()
            low, high = -1, len(units)
            guess = int(np.searchsorted(units, budget_bytes / chain.grid.unit_bytes))
            for _ in range(_MOST_TRIES):
                if high - low <= 1 or self._is_beaten(float(costs[units[high - 1]]), fitting):
                    break
                guess = min(max(guess, low + 1), high - 1)
                found = self._run(chain, int(units[guess]))
                if found.peak_bytes <= budget_bytes:
                    low = guess
                    fitting.append(found)
                else:
                    high = guess
                off = (budget_bytes - found.peak_bytes) / chain.grid.unit_bytes
                guess = int(np.searchsorted(units, units[guess] + off, side="right")) - 1
        return fitting

    def _is_beaten(self, predicted_cost: float, fitting: list[Candidate]) -> bool:
        """Return whether a schedule of so much recomputation is no better than what fits; small graphs try all."""
        least = min((c.cost for c in fitting), default=math.inf)
        return not self._is_small and self.least_cost + predicted_cost >= least

    def _fill(self, steps: np.ndarray, budget_bytes: int) -> Candidate:
        """Return the schedule without the recomputations that it has room to leave out."""
        tape = Tape(self.graph, self.cost_list, steps.tolist())
        fill(tape, budget_bytes)
        return Candidate(np.array(tape.order(), np.int64), tape.peak(), tape.cost())
