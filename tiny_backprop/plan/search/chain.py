"""The exact dynamic programme over blocks: which to retain, where to checkpoint, and what to run again.

It is the programme of rotor for heterogeneous chains (Beaumont et al. 2019, arXiv:1911.13214) with a menu of partial
saves per block. A *sweep* over blocks s to t runs them forward; each is either *retained* (an option of its menu is
left for its window) or *passed* up to a checkpoint at a later block, whereupon the passed ones get a sweep of their own
when the backward phase comes to them. Recomputation so nests as deep as memory wants it.

Bytes are counted in units of `MemoryGrid`. Values that skip blocks make the chain an approximation; the referee then
counts what a schedule really takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from tiny_backprop.plan.search.menu import Menu, Option, Pieces
from tiny_backprop.plan.search.segments import Segments
from tiny_backprop.schedule.steps import Rerun

_MOST_EXACT_UNITS = 512


@dataclasses.dataclass(frozen=True)
class MemoryGrid:
    """Bytes as a whole number of units.

    Attributes:
      unit_bytes: Bytes of one unit.
      n_units: Number of units.
      is_exact: Whether all sizes are multiples of the unit.
    """

    unit_bytes: float
    n_units: int
    is_exact: bool

    @classmethod
    def of(cls, sizes: np.ndarray, most_bytes: int, n_units: int) -> MemoryGrid:
        """Return the exact grid where it needs few units, else one of `n_units` up to `most_bytes`."""
        common = max(1, math.gcd(*sizes.tolist())) if len(sizes) else 1
        if most_bytes // common <= _MOST_EXACT_UNITS:
            return cls(float(common), most_bytes // common, True)
        return cls.coarse(most_bytes, n_units)

    @classmethod
    def coarse(cls, most_bytes: int, n_units: int) -> MemoryGrid:
        """Return a grid of `n_units` up to `most_bytes`, whatever the sizes."""
        return cls(max(1.0, most_bytes / n_units), n_units, False)

    def units(self, n_bytes: np.ndarray | int, index: np.ndarray | int = 0) -> np.ndarray:
        """Return bytes in units; what rounding does at consecutive `index` cancels, and the referee has the last word.

        Many small sizes, each rounded to the nearest, would vanish; so the place where rounding turns from down to up
        goes through a low-discrepancy sequence (Weyl's, by the golden ratio).
        """
        turn = np.mod(0.5 + np.asarray(index) * 0.6180339887498949, 1.0)
        return np.floor(np.asarray(n_bytes) / self.unit_bytes + turn).astype(np.int64)


class Chain:
    """Solves the programme for every amount of memory at once and turns its answers into schedules.

    Takes O(n_blocks² · (n_blocks + options) · units). With a `window_share` below 1, a window is taken to need only
    that share of its bytes: an allowance for what XLA fuses, whose schedules exceed the memory by the referee's count.
    """

    def __init__(self, segments: Segments, menus: Sequence[Menu], grid: MemoryGrid, window_share: float = 1.0):
        self.segments, self.menus, self.grid, self._share = segments, menus, grid, window_share
        n = segments.n_blocks
        self._inc = grid.units(segments.crossing, np.arange(n + 1)[None, :])
        self._pass = np.r_[0.0, np.cumsum([m.pass_cost for m in menus])]
        live, starts = segments.backward_live, segments.window_starts - segments.graph.n_forward
        ends = np.r_[segments.graph.n_backward, starts[:-1]]
        self._live = [live[i:j] for i, j in zip(starts.tolist(), ends.tolist(), strict=True)]
        # What is alive when a window begins, apart from what its first node makes.
        self._entry = [int(live[max(0, i - 1) : i + 1].min(initial=NO_BYTES)) for i in starts.tolist()]
        self.retained = [self._prune(b, m.retained, True) for b, m in enumerate(menus)]
        self.leaf = [self._prune(b, m.leaf, False) for b, m in enumerate(menus)]
        self._solve(n)

    def _need(self, b: int, option: Option) -> int:
        live = option.window_bytes + self._live[b] if len(option.window_bytes) else np.zeros(1, np.int64)
        entry = self._entry[b] if self._entry[b] != NO_BYTES else 0
        return round(self._share * max(option.start_bytes + entry, int(live.max(initial=0))))

    def _prune(self, b: int, options: Iterable[Option], retained: bool) -> list[tuple[Option, int, int]]:
        """Return the options, each with its bytes to keep and its bytes needed in units, without dominated ones."""
        rows = []
        for o in options:
            need = self.grid.units(self._need(b, o))
            keep = self.grid.units(o.keep_bytes, b) if retained else 0
            rows.append((o, int(keep), int(need)))
        out: list[tuple[Option, int, int]] = []
        for o, keep, need in sorted(rows, key=lambda r: (r[0].again_cost, r[1], r[2], r[0].pieces)):
            total = o.again_cost + o.sweep_cost
            if not any(
                p.again_cost <= o.again_cost and p.again_cost + p.sweep_cost <= total and k <= keep and m <= need
                for p, k, m in out
            ):
                out.append((o, keep, need))
        return out

    def _solve(self, n: int) -> None:
        width = self.grid.n_units + 1
        # Column 0 stands for "less than nothing" and costs infinity; column 1 + m is memory m.
        self._again = np.full((n, n, width + 1), np.inf, np.float64)
        self._first = np.full((n + 1, width + 1), np.inf, np.float64)
        self._choice = np.zeros((n, n, width), np.int16)
        self._first_choice = np.zeros((n, width), np.int16)
        memory = np.arange(width)
        for b in range(n):
            row, choice = self._again[b, b, 1:], self._choice[b, b]
            for i, (o, _, need) in enumerate(self.leaf[b]):
                better = (memory >= need) & (o.again_cost + o.sweep_cost < row)
                row[better], choice[better] = (o.again_cost + o.sweep_cost), -1 - i
        for length in range(1, n):
            self._solve_length(length, n, memory)
        last = n - 1
        for i, (o, _, need) in enumerate(self.leaf[last]):
            row, choice = self._first[last, 1:], self._first_choice[last]
            better = (memory >= need) & (o.again_cost < row)
            row[better], choice[better] = o.again_cost, -1 - i
        for s in range(n - 2, -1, -1):
            row, choice = self._first[s, 1:], self._first_choice[s]
            for c in range(s + 1, n):
                index = np.maximum(memory - self._inc[s, c], -1) + 1
                cost = self._first[c, index] + self._again[s, c - 1, 1:]
                better = cost < row
                row[better], choice[better] = cost[better], c - s
            for i, (o, keep, need) in enumerate(self.retained[s]):
                index = np.maximum(memory - keep - self._inc[s, s + 1], -1) + 1
                cost = np.where(memory >= need, self._first[s + 1, index] + o.again_cost, np.inf)
                better = cost <= row
                row[better], choice[better] = cost[better], -1 - i

    def _solve_length(self, length: int, n: int, memory: np.ndarray) -> None:
        """Solve all sweeps over `length + 1` blocks."""
        starts = np.arange(n - length)
        best = np.full((len(starts), len(memory)), np.inf)
        choice = np.zeros(best.shape, np.int16)
        for d in range(1, length + 1):
            c = starts + d
            index = np.maximum(memory[None, :] - self._inc[starts, c][:, None], -1) + 1
            cost = self._again[c[:, None], (starts + length)[:, None], index]
            cost += self._again[starts, c - 1, 1:]
            cost += (self._pass[c] - self._pass[starts])[:, None]
            better = cost < best
            np.copyto(best, cost, where=better)
            choice[better] = d
        for i in range(max(len(r) for r in self.retained)):
            has = [s for s in starts.tolist() if i < len(self.retained[s])]
            if not has:
                break
            some = np.array(has)
            options = [self.retained[s][i] for s in has]
            keep = np.array([k for _, k, _ in options]) + self._inc[some, some + 1]
            need = np.array([m for _, _, m in options])
            price = np.array([o.again_cost + o.sweep_cost for o, _, _ in options])
            index = np.maximum(memory[None, :] - keep[:, None], -1) + 1
            cost = self._again[(some + 1)[:, None], (some + length)[:, None], index] + price[:, None]
            cost[memory[None, :] < need[:, None]] = np.inf
            here = best[some]
            better = cost <= here
            here[better] = cost[better]
            best[some] = here
            chosen = choice[some]
            chosen[better] = -1 - i
            choice[some] = chosen
        self._again[starts, starts + length, 1:] = best
        self._choice[starts, starts + length] = choice

    # ---- answers ----

    def costs(self) -> np.ndarray:
        """Return the recompute cost that the programme predicts for each memory in units; inf where none fits."""
        return self._first[0, 1:]

    @functools.cached_property
    def useful_units(self) -> np.ndarray:
        """The memories, in units, at which the best cost changes; increasing int64."""
        costs = self.costs()
        return np.flatnonzero(np.isfinite(costs) & (costs < np.r_[np.inf, costs[:-1]]))

    def steps(self, units: int) -> np.ndarray:
        """Return the order in which nodes run in the best schedule for a memory of `units`.

        Raises:
          ValueError: The programme has no schedule for so little memory.
        """
        if not np.isfinite(self.costs()[units]):
            raise ValueError(f"no schedule for {units} units")
        return _Player(self).play(units)

    def choose(self, s: int, t: int, units: int, is_first: bool) -> int:
        """Return what the best sweep over blocks s to t does with block s: a distance to pass, or -1 - option."""
        return int(self._first_choice[s, units] if is_first else self._choice[s, t, units])

    def crossing_units(self, s: int, c: int) -> int:
        """Return the units of what blocks s to c - 1 make for block c and later ones."""
        return int(self._inc[s, c])


NO_BYTES = np.iinfo(np.int64).max


class _Player:
    """Lists the nodes of a schedule; knows which values are there for a recomputation to start from."""

    def __init__(self, chain: Chain):
        self.chain, self.segments = chain, chain.segments
        graph = self.graph = chain.segments.graph
        self.output_start = graph.output_start.tolist()
        self.rerun = Rerun(graph)
        self.there = self.rerun.there
        self.out: list[int] = []
        self.kept = self.segments.is_kept.astype(int).tolist()

    def play(self, units: int) -> np.ndarray:
        graph = self.graph
        kept = np.flatnonzero(self.segments.is_kept).tolist()
        effects = np.flatnonzero(graph.has_effect[: graph.n_forward]).tolist()
        self._sweep(0, self.segments.n_blocks - 1, units, True, kept, effects)
        out = self.out
        backward = [k for k, i in enumerate(out) if i >= graph.n_forward]
        if not backward:
            return np.array([*out, *range(graph.n_forward, graph.n_nodes)], np.int64)
        # The first windows may be empty: what a sweep over their blocks has made anew, nobody reads.
        return np.array([*out[: backward[-1] + 1], *range(out[backward[-1]] + 1, graph.n_nodes)], np.int64)

    def _sweep(
        self, s: int, t: int, units: int, is_first: bool, wanted: Iterable[int] = (), nodes: Iterable[int] = ()
    ) -> None:
        """Run blocks s to t forward, then their windows."""
        chain = self.chain
        wanted = list(wanted)
        passed: list[tuple[int, int, int, list[int]]] = []
        b, left = s, units
        while True:
            choice = chain.choose(b, t, left, is_first)
            if choice > 0:
                c = b + choice
                crossing = self.segments.crossing_values(b, c, t)
                wanted += crossing
                passed.append((b, c - 1, left, crossing))
                left -= chain.crossing_units(b, c)
                b = c
                continue
            options = chain.leaf[b] if b == t else chain.retained[b]
            option, keep, _ = options[-1 - choice]
            first = int(self.graph.output_start[self.segments.bounds[b]])
            wanted += [first + v for v in option.keep]
            if b < t:
                wanted += self.segments.crossing_values(b, b + 1, t)
            passed.append((b, -1 - option.pieces, left, []))
            if b == t:
                break
            left -= keep + chain.crossing_units(b, b + 1)
            b += 1
        self.out += self.rerun.make(wanted, nodes)
        block, required = self.segments.value_block, self.segments.is_required
        for b, end, left, crossing in reversed(passed):
            if end < 0:
                self._window(b, Pieces(-1 - end))
            else:
                for v in crossing:  # what the next window reads is still there then
                    self.there[v] = self.kept[v] or int(block[v] == end and required[v])
                self._sweep(b, end, left, False)

    def _window(self, b: int, pieces: Pieces) -> None:
        """Run the backward nodes of a block, and before them what they read and is not there."""
        graph, segments, there = self.graph, self.segments, self.there
        starts, reads, out = self.output_start, graph.read_lists, self.out
        start = int(segments.window_starts[b])
        end = int(segments.window_starts[b - 1]) if b else graph.n_nodes
        missing = [v for v in segments.required_values[b] if not there[v]]
        borrowed: list[int] = []
        if pieces is Pieces.ONE:
            out += self.rerun.make(missing)
        # What the window itself makes is there when it is read: only what is not there now can be absent then.
        there[starts[start] : starts[end]] = b"\1" * (starts[end] - starts[start])
        for i in self._lacking(start, end):
            absent = [v for v in reads[i] if not there[v]]
            if absent:
                nodes = self.rerun.make(absent)
                out += range(start, i)
                out += nodes
                start = i
                if pieces is Pieces.LATE:
                    made = [v for n in nodes for v in range(starts[n], starts[n + 1])]
                    borrowed += [v for v in made if not there[v]]
                    for v in made:
                        there[v] = 1
        out += range(start, end)
        for v in borrowed:
            there[v] = 0

    def _lacking(self, start: int, end: int) -> list[int]:
        """Return the nodes from `start` to `end` that read something which is not there."""
        node, value = self.graph.reads
        first, last = np.searchsorted(node, (start, end)).tolist()
        is_absent = np.frombuffer(self.there, np.uint8)[value[first:last]] == 0
        return np.unique(node[first:last][is_absent]).tolist()
