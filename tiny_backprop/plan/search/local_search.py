"""Local search over the order of steps: keep a value instead of recomputing it where there is room, and the reverse.

A recomputation may be left out when the value's earlier making can live on until then within the budget (`fill`). A
value may be dropped over a stretch of steps that do not read it, and made again at its end (`evict`). Large
neighbourhood search alternates the two: drop some, fill what became free, keep the better schedule.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.schedule.simulate import ranges
from tiny_backprop.schedule.steps import values_read

_MOST_WORK = 60_000
"""Of a search by eviction: nodes times rounds."""

_NODES_PER_DROP = 100
"""In graphs of so many nodes more, a round of eviction drops one value more: fewer rounds, choices a little worse."""


class _Makings:
    """What each step makes and reads, as arrays with an entry for each making, in the order in which they are made.

    Attributes:
      value: The value.
      at: The step that makes it.
      previous: The making of the same value before it; -1 for none.
      n_made: How many makings each step has.
      first: The first of them, or where it would be.
      read_at: The step of each read, in order.
      operands: The making that each read reads.
    """

    def __init__(self, graph: Graph, steps: np.ndarray):
        self.n_made = np.diff(graph.output_start)[steps]
        self.value = ranges(graph.output_start[steps], self.n_made)
        self.at = np.repeat(np.arange(len(steps)), self.n_made)
        self.first = np.cumsum(self.n_made) - self.n_made
        self._stride = len(steps) + 1
        self._order = np.argsort(self.value, kind="stable")
        self._keys = self.value[self._order] * self._stride + self.at[self._order]
        self.previous = np.full(len(self.value), -1)
        follows = np.flatnonzero(np.diff(self.value[self._order]) == 0)
        self.previous[self._order[follows + 1]] = self._order[follows]
        read, self.read_at = values_read(graph, steps)
        self.operands = self._order[np.searchsorted(self._keys, read * self._stride + self.read_at) - 1]
        assert np.array_equal(self.value[self.operands], read), "a step reads what no earlier step makes"

    def latest(self, values: Sequence[int], before: int) -> np.ndarray:
        """Return the latest makings, before a step, of those of some values that are made before it."""
        wanted = np.array(values if len(self.value) else [], np.int64)
        found = self._order[np.searchsorted(self._keys, wanted * self._stride + before) - 1]
        return found[(self.value[found] == wanted) & (self.at[found] < before)]


class _Lists(dict[int, list[int]]):
    """Lists that are stretches of one array, each made when it is first asked for: few of many are."""

    def __init__(self, values: np.ndarray, bounds: np.ndarray):
        super().__init__()
        self._values, self._bounds = values.tolist(), bounds.tolist()

    def __missing__(self, i: int) -> list[int]:
        self[i] = found = self._values[self._bounds[i] : self._bounds[i + 1]]
        return found


class Tape:
    """A schedule as a list of steps with the life of every value that they make.

    A *making* is one output of one step; it lives until the last step that reads it. Recomputations can be removed in
    place; their steps then stay as gaps, so that positions do not move.
    """

    def __init__(self, graph: Graph, costs: Sequence[float], steps: Sequence[int]):
        self.graph, self.costs, self.steps = graph, costs, list(steps)
        self.sizes: list[int] = _cached(graph, "sizes", lambda: graph.value_bytes.tolist())
        self.outputs: list[range] = _cached(graph, "outputs", lambda: _outputs(graph))
        self.returned: set[int] = _cached(graph, "returned", lambda: set(graph.outputs.tolist()))
        self.primal: list[int] = _cached(
            graph, "primal", lambda: sorted(set(graph.outputs[: graph.n_primal_outputs].tolist()))
        )
        at = np.asarray(self.steps, np.int64)
        n, made = len(at), _Makings(graph, at)
        border = next(iter(np.flatnonzero(at >= graph.n_forward).tolist()), n)
        # What the function returns is there when the backward phase begins, what the program returns at the end.
        ends = made.latest(self.primal, border), made.latest(sorted(self.returned), n)
        readers = np.r_[made.read_at, np.full(len(ends[0]), border), np.full(len(ends[1]), n)]
        pairs = np.unique(np.r_[made.operands, *ends] * (n + 1) + readers)
        bounds = np.searchsorted(pairs, np.arange(len(made.value) + 1) * (n + 1))
        self.value: list[int] = made.value.tolist()
        self.made: list[int] = made.at.tolist()
        self.previous: list[int] = made.previous.tolist()
        self.first_making: list[int] = made.first.tolist()
        self.reads = _Lists(pairs % (n + 1), bounds)
        self.operands = _Lists(made.operands, np.searchsorted(made.read_at, np.arange(n + 1)))
        is_again = (at < graph.n_forward) & (made.n_made > 0)
        is_again[is_again] = made.previous[made.first[is_again]] >= 0
        self._is_again: list[bool] = is_again.tolist()
        last = made.at.copy()
        np.maximum.at(last, pairs // (n + 1), pairs % (n + 1))
        size = graph.value_bytes[made.value]
        self._worth = functools.partial(_worth, made, np.diff(bounds), last, size, is_again)
        delta = np.zeros(n + 2, np.int64)
        np.add.at(delta, made.at, size)
        np.add.at(delta, last + 1, -size)
        self.live = np.cumsum(delta)[:n]

    @functools.cached_property
    def of_value(self) -> dict[int, list[int]]:
        """The makings of each value, in order."""
        makings: dict[int, list[int]] = {}
        for k, v in enumerate(self.value):
            makings.setdefault(v, []).append(k)
        return makings

    def makings(self, p: int) -> range:
        """Return the makings of step p."""
        first = self.first_making[p]
        return range(first, first + len(self.outputs[self.steps[p]]))

    def last(self, k: int) -> int:
        """Return the last step at which making k is alive."""
        return self.reads[k][-1] if self.reads[k] else self.made[k]

    def is_alive(self, v: int, p: int) -> bool:
        """Return whether an earlier making of value v is alive when step p runs; no step may have been left out."""
        makings = self.of_value.get(v, ())
        i = bisect.bisect_left(makings, self.first_making[p])
        return i > 0 and self.last(makings[i - 1]) >= p

    def is_again(self, p: int) -> bool:
        """Return whether step p makes values that were made before."""
        return self._is_again[p] and self.steps[p] >= 0

    def again(self) -> list[int]:
        """Return the steps that make values that were made before."""
        return [p for p in np.flatnonzero(self._is_again).tolist() if self.steps[p] >= 0]

    def worth(self) -> tuple[np.ndarray, np.ndarray]:
        """Return those steps and, of each, the cost saved without it for its bytes; none may have been left out yet."""
        return self._worth(np.array([self.costs[i] for i in self.steps]))

    def cost(self) -> float:
        """Return the cost of all steps."""
        return sum(self.costs[i] for i in self.steps if i >= 0)

    def order(self) -> list[int]:
        """Return the steps without gaps."""
        return [i for i in self.steps if i >= 0]

    def peak(self) -> int:
        """Return the largest number of live bytes."""
        return int(self.live.max()) if len(self.live) else 0

    # ---- leaving recomputations out ----

    def fits_without(self, p: int, budget: int) -> bool:
        """Return whether step p, a recomputation, may be left out within the budget."""
        extended = 0
        for k in self.makings(p):
            if self.reads[k]:
                start = self.last(self._before(k)) + 1
                extended += self.sizes[self.value[k]]
                if start < p and int(self.live[start:p].max()) + extended > budget:
                    return False
        return True

    def _before(self, k: int) -> int:
        """Return the making of the same value before making k that has not been removed."""
        j = self.previous[k]
        while self.steps[self.made[j]] < 0:
            j = self.previous[j]
        self.previous[k] = j
        return j

    def remove(self, p: int) -> float:
        """Leave step p out, and what only served it; return the cost saved."""
        saved, dead = 0.0, [p]
        while dead:
            saved += self._remove_one(dead.pop(), dead)
        return saved

    def _remove_one(self, p: int, dead: list[int]) -> float:
        """Leave step p out and return its cost; append to `dead` the recomputations that nothing needs any more."""
        for k in self.makings(p):
            size, reads = self.sizes[self.value[k]], self.reads[k]
            if reads:
                j = self._before(k)
                self.live[self.last(j) + 1 : p] += size
                for r in reads:
                    if r < len(self.steps):
                        self.operands[r] = [j if x == k else x for x in self.operands[r]]
                self.reads[j] = self.reads[j] + reads
                self.reads[k] = []
            else:
                self.live[p] -= size
        node, operands = self.steps[p], self.operands[p]
        self.steps[p] = -1
        self.operands[p] = []
        for j in operands:
            reads = self.reads[j]
            was_last = reads[-1] == p
            reads.remove(p)
            if was_last:
                self.live[self.last(j) + 1 : p + 1] -= self.sizes[self.value[j]]
            q = self.made[j]
            if not reads and self.is_again(q) and q not in dead and not any(self.reads[k] for k in self.makings(q)):
                dead.append(q)
        return self.costs[node]


def _worth(
    made: _Makings, n_reads: np.ndarray, last: np.ndarray, size: np.ndarray, is_again: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `Tape.worth` does.

    Args:
      made: What steps make.
      n_reads: How many steps read each making.
      last: The last step at which each is alive.
      size: Bytes of each.
      is_again: Whether each step makes what was made before.
      costs: Cost of each step.
    """
    again = np.flatnonzero(is_again)
    # What only such a step reads is not needed without it, and neither is what only that reads.
    source = made.at[made.operands]
    is_served = is_again[made.read_at] & is_again[source] & (n_reads[made.operands] == 1)
    cost, served = costs.tolist(), [0.0] * len(costs)
    for p, q in zip(made.read_at[is_served].tolist(), source[is_served].tolist(), strict=True):
        served[p] += cost[q] + served[q]
    # Each value that is read has to live on from its making before.
    k = np.flatnonzero(is_again[made.at] & (n_reads > 0))
    area = np.zeros(len(costs), np.int64)
    np.add.at(area, made.at[k], size[k] * (made.at[k] - last[made.previous[k]]))
    return again, (costs[again] + np.array(served)[again]) / (area[again] + 1e-9)


def _cached(graph: Graph, name: str, make: Callable[[], Any]) -> Any:
    """Return what belongs to a graph and is made once."""
    key = ("search", name)
    if key not in graph.memo:
        graph.memo[key] = make()
    return graph.memo[key]


def _outputs(graph: Graph) -> list[range]:
    starts = graph.output_start.tolist()
    return [range(i, j) for i, j in itertools.pairwise(starts)]


def fill(tape: Tape, budget: int, noise: np.random.Generator | None = None) -> float:
    """Leave recomputations out where the budget allows it, those first that save most for their bytes; in place.

    Returns:
      The cost saved.
    """
    again, score = tape.worth()
    if noise is not None:
        score = score * np.exp(noise.normal(0.0, 0.7, len(score)))
    saved = 0.0
    for p in again[np.lexsort((again, score))[::-1]].tolist():
        if tape.steps[p] >= 0 and tape.fits_without(p, budget):
            saved += tape.remove(p)
    return saved


@dataclasses.dataclass(frozen=True)
class _Absence:
    """A stretch of steps in which a making may be gone, and what makes its value again at the end.

    Attributes:
      making: The making.
      before: The last step before the stretch that reads it, else the one that makes it.
      until: The first step after the stretch that reads it.
      nodes: Nodes to run before that step, in order.
      needs: Values alive then that they read.
      is_delay: Whether nothing reads the making before: its step is then left out, and only runs later.
    """

    making: int
    before: int
    until: int
    nodes: list[int]
    needs: set[int]
    is_delay: bool

    def hinders(self, value: int, other: _Absence) -> bool:
        """Return whether, in this absence of `value`, the other wants to read it."""
        return value in other.needs and self.before < other.until < self.until


def _absence(tape: Tape, k: int, at: int) -> _Absence | None:
    """Return the absence of making k around step `at`; None where it cannot be made again after that."""
    reads = tape.reads[k]
    i = bisect.bisect_right(reads, at)
    until = reads[i] if i < len(reads) else len(tape.steps)
    if until >= len(tape.steps):
        return None
    graph, gone = tape.graph, tape.value[k]
    value_node = _cached(graph, "value_node", lambda: graph.value_node.tolist())
    effects = _cached(graph, "effects", lambda: graph.has_effect.tolist())
    found, needs = {value_node[gone]}, set[int]()
    stack = list(found)
    while stack:
        node = stack.pop()
        if node >= graph.n_forward or effects[node]:
            return None
        for u in graph.read_lists[node]:
            if value_node[u] in found:
                continue
            if u != gone and tape.is_alive(u, until):
                needs.add(u)
            else:
                found.add(value_node[u])
                stack.append(value_node[u])
    before = reads[i - 1] if i else tape.made[k]
    is_delay = not i and not any(r <= at for j in tape.makings(before) for r in tape.reads[j])
    return _Absence(k, before, until, sorted(found), needs, is_delay)


def _evicted(tape: Tape, absences: Sequence[_Absence]) -> list[int]:
    """Return the order with some absences that do not hinder each other."""
    again: dict[int, set[int]] = {}
    for a in absences:
        again.setdefault(a.until, set()).update(a.nodes)
    order: list[int] = []
    start = 0
    for until, nodes in sorted(again.items()):
        order += [*tape.steps[start:until], *sorted(nodes)]
        start = until
    return _without_unread(tape, [*order, *tape.steps[start:]])


def _without_unread(tape: Tape, steps: Sequence[int]) -> list[int]:
    """Return the order without steps whose values are all made again before anything reads them."""
    read_lists, n_forward = tape.graph.read_lists, tape.graph.n_forward
    border = next(p for p, node in enumerate(steps) if node >= n_forward)
    wanted, later, kept = set(tape.returned), set[int](), list[int]()
    for p in range(len(steps) - 1, -1, -1):
        node = steps[p]
        if p == border - 1:
            wanted.update(tape.primal)
        if node in later and wanted.isdisjoint(tape.outputs[node]):
            continue
        later.add(node)
        kept.append(node)
        wanted.difference_update(tape.outputs[node])
        wanted.update(read_lists[node])
    return kept[::-1]


def evict_until(
    graph: Graph,
    costs: Sequence[float],
    steps: Sequence[int],
    budget: int,
    deadline: float = math.inf,
    noise: np.random.Generator | None = None,
) -> list[int] | None:
    """Drop values at the highest step, cheapest for their bytes first, until the budget holds.

    Returns:
      The order of steps, or None where nothing more can be dropped or the deadline (of `time.monotonic`) has passed.
    """
    tape = Tape(graph, costs, steps)
    for _ in range(_most_rounds(graph)):
        over = tape.live - budget
        if over.max() <= 0:
            return tape.order()
        order = _evict_some(tape, over, noise) if time.monotonic() < deadline else None
        if order is None:
            return None
        tape = Tape(graph, costs, order)
    return None


def _most_rounds(graph: Graph) -> int:
    """Return how many values a search may drop: each adds steps, and takes as long as there are steps."""
    n = max(graph.n_nodes, 1)
    return min(4 * n, max(30, _MOST_WORK // n))


def squeeze(
    graph: Graph, costs: Sequence[float], steps: Sequence[int], noise: np.random.Generator | None = None
) -> list[int]:
    """Return the order with the smallest peak that dropping values at the highest step comes by."""
    tape = Tape(graph, costs, steps)
    best, least, since = tape.order(), tape.peak(), 0
    for _ in range(_most_rounds(graph)):
        order = _evict_some(tape, tape.live - (least - 1), noise)
        since += 1
        if order is None or since > 50:
            break
        tape = Tape(graph, costs, order)
        if tape.peak() < least:
            best, least, since = order, tape.peak(), 0
    return best


def _evict_some(tape: Tape, over: np.ndarray, noise: np.random.Generator | None) -> list[int] | None:
    """Drop values at the step that exceeds most, the cheapest for their bytes first, until it holds what it may."""
    at = int(over.argmax())
    excess = np.maximum(over, 0)
    scored: list[tuple[float, int, _Absence]] = []
    busy = set(tape.operands[at]) | set(tape.makings(at))
    for k in range(tape.first_making[at]):
        reads = tape.reads[k]
        if k in busy or not reads or reads[-1] <= at or tape.steps[tape.made[k]] < 0:
            continue
        absence = _absence(tape, k, at)
        if absence is None:
            continue
        size = tape.sizes[tape.value[k]]
        relief = float(np.minimum(excess[absence.before + 1 : absence.until], size).sum())
        cost = sum(tape.costs[i] for i in absence.nodes) + 1e-12
        if absence.is_delay:
            cost -= tape.costs[tape.steps[absence.before]]
        score = cost / (relief + 1e-9)
        if noise is not None:
            score *= float(np.exp(noise.normal(0.0, 0.5)))
        if relief > 0:
            scored.append((score, k, absence))
    left = int(over[at])
    chosen: list[_Absence] = []
    for _, k, absence in sorted(scored, key=lambda row: row[:2]):
        value = tape.value[k]
        if any(a.hinders(tape.value[a.making], absence) or absence.hinders(value, a) for a in chosen):
            continue
        chosen.append(absence)
        left -= tape.sizes[value]
        if left <= 0 or len(chosen) > tape.graph.n_nodes // _NODES_PER_DROP:
            break
    return _evicted(tape, chosen) if chosen else None


def improve(
    graph: Graph,
    costs: Sequence[float],
    steps: Sequence[int],
    budget: int,
    *,
    seconds: float = math.inf,
    rounds: float = math.inf,
) -> list[int]:
    """Search around a schedule that fits the budget for a cheaper one, for so many seconds or rounds.

    Large neighbourhood search (Shaw 1998, doi:10.1007/3-540-49481-2_30): drop some values for some time or keep some
    too long, mend what is over the budget, fill what is free; a worse schedule is accepted now and then.
    """
    noise = np.random.default_rng(0)
    start = time.monotonic()
    tape = Tape(graph, costs, steps)
    fill(tape, budget)
    current, current_cost = tape.order(), tape.cost()
    best, best_cost = current, current_cost
    least = sum(costs)
    for done in itertools.count(1):
        spent = max((time.monotonic() - start) / seconds, done / rounds)
        if spent > 1 or best_cost <= least * (1 + 1e-12):
            break
        tape = Tape(graph, costs, current)
        order = _drop_some(tape, noise) if noise.random() < 0.5 else _keep_some(tape, noise)
        order = evict_until(graph, costs, order, budget, start + seconds, noise)
        if order is None:
            continue
        tape = Tape(graph, costs, order)
        fill(tape, budget, noise)
        cost = tape.cost()
        temperature = 0.003 * (1 - spent) * (current_cost - least)
        if cost < current_cost + noise.exponential() * temperature:
            current, current_cost = tape.order(), cost
        if cost < best_cost * (1 - 1e-12):
            best, best_cost = tape.order(), cost
    return best


def _drop_some(tape: Tape, noise: np.random.Generator) -> list[int]:
    """Drop some values that are idle around one random step, and make them again later."""
    graph, costs = tape.graph, tape.costs
    for _ in range(int(noise.integers(1, 5))):
        at = int(noise.integers(len(tape.steps)))
        idle = [
            k
            for k in range(tape.first_making[at])
            if tape.reads[k] and at < tape.reads[k][-1] < len(tape.steps) and at not in tape.reads[k]
        ]
        if idle:
            absence = _absence(tape, idle[int(noise.integers(len(idle)))], at)
            if absence is not None:
                tape = Tape(graph, costs, _evicted(tape, [absence]))
    return tape.order()


def _keep_some(tape: Tape, noise: np.random.Generator) -> list[int]:
    """Leave some recomputations out, whether that fits the budget or not."""
    again_at = tape.again()
    if again_at:
        for _ in range(int(noise.integers(1, 5))):
            p = again_at[int(noise.integers(len(again_at)))]
            if tape.steps[p] >= 0:
                tape.remove(p)
    return tape.order()
