"""What no plan can beat: a peak that every plan needs, and a recompute cost that every plan within a budget pays.

All bounds here hold for one order of the backward phase (a plan's own, or the program's), for every order of the
forward phase, and however often forward nodes run. They relax the integer programme of Checkmate (Jain et al. 2020,
arXiv:1910.02653): memory is counted only at some *moments*, each the run of one backward node, and between two moments
a node that runs at all is paid once. So what a plan needs while it recomputes is not seen, and where a budget forces
nested recomputation the bound is weak: for a chain it grows no faster than one more run of every node.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import working_set

NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True, eq=False)
class Phases:
    """What a graph with one order of its backward phase forces on every plan.

    Attributes:
      graph: The graph.
      backward: Its backward nodes in the order in which they run; int64 of shape (n_backward,).
    """

    graph: Graph
    backward: np.ndarray

    @classmethod
    def of(cls, graph: Graph, backward: np.ndarray | None = None) -> Phases:
        """Return the phases of a graph, by default in the program's own order."""
        return cls(graph, np.arange(graph.n_forward, graph.n_nodes) if backward is None else np.asarray(backward))

    @property
    def end(self) -> int:
        """The position after all backward nodes."""
        return len(self.backward)

    @functools.cached_property
    def n_forward_values(self) -> int:
        """Values below `n_inputs + n_forward_values` are inputs or made by forward nodes."""
        return int(self.graph.output_start[self.graph.n_forward]) - self.graph.n_inputs

    @functools.cached_property
    def position(self) -> np.ndarray:
        """Position of each backward node in `backward`, -1 for forward nodes; int64 of shape (n_nodes,)."""
        position = np.full(self.graph.n_nodes, -1)
        position[self.backward] = np.arange(self.end)
        return position

    @functools.cached_property
    def reads(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (position, value) of what backward nodes read of the forward phase."""
        node, value = self.graph.reads
        mask = (node >= self.graph.n_forward) & (value < self.graph.output_start[self.graph.n_forward])
        return self.position[node[mask]], value[mask]

    @functools.cached_property
    def returned(self) -> np.ndarray:
        """Forward values that must be alive when the plan ends."""
        outputs = np.unique(self.graph.outputs[self.graph.outputs >= self.graph.n_inputs])
        return outputs[outputs < self.graph.output_start[self.graph.n_forward]]

    @functools.cached_property
    def primal(self) -> np.ndarray:
        """Forward values that must be alive when the first backward node runs: what the function itself returns."""
        return np.intersect1d(self.graph.outputs[: self.graph.n_primal_outputs], self.returned)

    @functools.cached_property
    def held_bytes(self) -> np.ndarray:
        """Bytes of backward values alive at each position, what the node there reads and makes included.

        Backward nodes run once, so that their values live at least until their last read. The last of the `end + 1`
        entries is what of them the program returns.
        """
        graph, end = self.graph, self.end
        first = self.position[graph.value_node]
        last = first.copy()
        node, value = graph.reads
        np.maximum.at(last, value, self.position[node])
        last[graph.outputs[graph.outputs >= 0]] = end
        made = np.arange(graph.output_start[graph.n_forward], graph.n_values)
        delta = np.zeros(end + 2, np.int64)
        np.add.at(delta, first[made], graph.value_bytes[made])
        np.add.at(delta, last[made] + 1, -graph.value_bytes[made])
        return np.cumsum(delta)[:-1]

    @functools.cached_property
    def due(self) -> np.ndarray:
        """The position by whose run each forward node must have run, NEVER where it need not run at all.

        0 for what the function returns and for effects, `end` for what only the end of the plan needs; a backward node
        needs what it depends on; int64 of shape (n_forward,).
        """
        graph = self.graph
        makers = graph.value_node
        due = np.full(graph.n_nodes, NEVER)
        due[makers[self.returned]] = self.end
        position, value = self.reads
        np.minimum.at(due, makers[value], position)
        due[makers[self.primal]] = 0
        due[: graph.n_forward][graph.has_effect[: graph.n_forward]] = 0
        due = due[: graph.n_forward].tolist()
        makers = makers.tolist()
        for i in range(graph.n_forward - 1, -1, -1):
            for v in graph.read_lists[i]:
                due[makers[v]] = min(due[makers[v]], due[i])
        return np.array(due, np.int64)

    @functools.cached_property
    def late(self) -> np.ndarray:
        """The last position that may read each forward value, itself or to recompute; `end` for what is returned.

        -1 where no backward node depends on it; int64 of shape (n_values,).
        """
        graph = self.graph
        late = np.full(graph.n_values, -1)
        position, value = self.reads
        np.maximum.at(late, value, position)
        late[self.returned] = self.end
        late, starts = late.tolist(), graph.output_start.tolist()
        for i in range(graph.n_forward - 1, -1, -1):
            latest = max(late[starts[i] : starts[i + 1]], default=-1)
            for v in graph.read_lists[i]:
                late[v] = max(late[v], latest)
        return np.array(late, np.int64)

    @functools.cached_property
    def needed_bytes(self) -> np.ndarray:
        """Bytes that are alive at each position whatever the plan; int64 of shape (end + 1,).

        What is held of the backward phase, what the node reads of the forward phase, and forward values that nobody can
        make again because their node has an effect. At the border, also what the function returns.
        """
        graph, end = self.graph, self.end
        needed = np.append(self.held_bytes[:-1], self.graph.output_bytes)
        position, value = self.reads
        once = graph.has_effect[graph.value_node[value]]
        np.add.at(needed, position[~once], graph.value_bytes[value[~once]])
        last = np.full(graph.n_values, -1)
        np.maximum.at(last, value[once], position[once])
        last[self.returned[graph.has_effect[graph.value_node[self.returned]]]] = end - 1
        pinned = np.flatnonzero(last >= 0)
        delta = np.zeros(end + 1, np.int64)
        delta[0] = graph.value_bytes[pinned].sum()
        np.add.at(delta, last[pinned] + 1, -graph.value_bytes[pinned])
        needed[:-1] += np.cumsum(delta)[:-1]
        if end:
            border = np.setdiff1d(self.primal, np.r_[pinned, value[position == 0]])
            needed[0] += graph.value_bytes[border].sum()
        return needed


def working_set_bound(graph: Graph, backward: np.ndarray | None = None) -> int:
    """Return bytes that every plan needs at some step, however much it recomputes; linear in nodes and edges.

    The largest of: what each node that must run reads and makes; for a backward node also the backward values that are
    needed later, since those are made once, and results of effects; and all that the program returns, at the end.

    Args:
      graph: Any graph; forward nodes that nothing needs do not count.
      backward: Backward nodes in the order in which they run; by default the program's.

    Returns:
      The bound in bytes; inputs of the graph are not counted.
    """
    phases = Phases.of(graph, backward)
    forward = working_set(graph)[: graph.n_forward][phases.due < NEVER]
    return max(int(forward.max(initial=0)), int(phases.needed_bytes.max()))


@dataclasses.dataclass(frozen=True, eq=False)
class _Programme:
    """min costs·x + constant, matrix·x <= limits, lower <= x <= 1; every variable is 0 or 1 in a plan."""

    costs: np.ndarray
    constant: float
    matrix: scipy.sparse.csr_matrix
    limits: np.ndarray
    lower: np.ndarray


def _relaxation(phases: Phases, moments: Sequence[int], budget_bytes: int, costs: np.ndarray) -> _Programme:
    """Return the programme that every plan within the budget satisfies.

    Stage s ends with moment s, the run of the backward node at position moments[s]; a last stage follows. Variables:
    keep[s, v], value v is alive at moment s; run[s, i], forward node i runs in stage s at least once.
    """
    graph = phases.graph
    n, base, n_values = graph.n_forward, graph.n_inputs, phases.n_forward_values
    maker = graph.value_node[base : base + n_values]
    late = phases.late[base : base + n_values]
    n_bytes = graph.value_bytes[base : base + n_values]
    node, value = graph.reads
    node, value = node[node < n], value[node < n] - base
    position, read = phases.reads[0], phases.reads[1] - base
    last_use = np.full(n, -1)
    np.maximum.at(last_use, maker, late)
    needed = phases.due < NEVER
    rows, lower, n_x = _Rows(), [], 0

    def variables(mask: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        nonlocal n_x
        index = np.where(mask, np.cumsum(mask) - 1 + n_x, -1)
        n_x += int(mask.sum())
        lower.append(fixed[mask].astype(float))
        return index

    kept, before, runs, windows = np.full(n_values, -1), -1, [], []
    for s, moment in enumerate([*moments, phases.end]):
        must = np.zeros(n_values, bool)
        must[read[position == moment]] = True
        if moment == phases.end:
            must[phases.returned - base] = True
        elif s == 0:
            must[phases.primal - base] = True
        first = phases.due == 0 if s == 0 else np.zeros(n, bool)
        again = (last_use > before) & ~(graph.has_effect[:n] & (s > 0))
        run = variables(needed & (again | first), first)
        runs.append(run)
        keep = variables((needed[maker] & (late > moment)) | must, must)
        # What is alive was alive at the moment before or made since; so is what a node that runs reads.
        rows.add([(keep, 1), (kept, -1), (run[maker], -1)], 0, keep >= 0)
        rows.add([(run[node], 1), (kept[value], -1), (run[maker[value]], -1)], 0, run[node] >= 0)
        inner = np.unique(read[(position > before) & (position < moment)])
        rows.add([(kept[inner], -1), (run[maker[inner]], -1)], -1, np.ones(len(inner), bool))
        if moment < phases.end:
            # Bytes are whole, so that half a byte on top loses nothing and swallows rounding.
            room = (budget_bytes + 0.5 - phases.held_bytes[moment]) / max(budget_bytes, 1)
            rows.add_sum(keep[keep >= 0], n_bytes[keep >= 0] / max(budget_bytes, 1), room)
            mask = needed & (last_use > moment) & ~graph.has_effect[:n]
            since = variables(mask, np.zeros(n, bool))
            rows.add([(since[node], 1), (keep[value], -1), (since[maker[value]], -1)], 0, since[node] >= 0)
            wanted = np.unique(np.r_[read[position > moment], phases.returned - base])
            rows.add([(keep[wanted], -1), (since[maker[wanted]], -1)], -1, np.ones(len(wanted), bool))
            windows.append(since)
        kept, before = keep, moment
    for s, since in enumerate(windows):
        later = [(run, -1) for run in runs[s + 1 :]]
        rows.add([(since, 1), *later], 0, since >= 0)
    cost, constant = np.zeros(n_x), 0.0
    ends = np.searchsorted(moments, phases.due)
    for i in np.flatnonzero(needed).tolist():
        mine = np.array([run[i] for run in runs if run[i] >= 0])
        cost[mine] += costs[i]
        constant -= costs[i]
        by = np.array([run[i] for run in runs[: ends[i] + 1] if run[i] >= 0])
        rows.add_sum(by, -np.ones(len(by)), -1)
    return _Programme(cost, constant, rows.matrix(n_x), np.concatenate(rows.limits), np.concatenate(lower))


class _Rows:
    """Rows of a sparse matrix, gathered in COO form; a column of -1 stands for a variable that is 0."""

    def __init__(self):
        self._row: list[np.ndarray] = []
        self._column: list[np.ndarray] = []
        self._entry: list[np.ndarray] = []
        self.limits: list[np.ndarray] = []
        self._n = 0

    def add(self, terms: list[tuple[np.ndarray, float]], limit: float, mask: np.ndarray) -> None:
        """Add one row for each True of `mask`: sum of coefficient * x[columns] <= limit."""
        at = np.cumsum(mask) - 1 + self._n
        for columns, coefficient in terms:
            used = mask & (columns >= 0)
            self._row.append(at[used])
            self._column.append(columns[used])
            self._entry.append(np.full(int(used.sum()), float(coefficient)))
        self.limits.append(np.full(int(mask.sum()), float(limit)))
        self._n += int(mask.sum())

    def add_sum(self, columns: np.ndarray, entries: np.ndarray, limit: float) -> None:
        """Add the row entries·x[columns] <= limit."""
        self._row.append(np.full(len(columns), self._n))
        self._column.append(columns)
        self._entry.append(entries)
        self.limits.append(np.array([float(limit)]))
        self._n += 1

    def matrix(self, n_columns: int) -> scipy.sparse.csr_matrix:
        """Return the rows."""
        at = np.concatenate(self._row), np.concatenate(self._column)
        return scipy.sparse.csr_matrix((np.concatenate(self._entry), at), (self._n, n_columns))


def _linear_bound(programme: _Programme, method: str = "highs") -> float:
    """Return a value that no point of the programme is below; infinite where it has no point.

    The solver's multipliers y <= 0 are only a proposal: y·limits + min over the box of (costs - y·matrix)·x is a bound
    for any y, so that the solver's tolerances cannot make it wrong (Neumaier & Shcherbina 2004,
    doi:10.1007/s10107-003-0433-3).
    """
    p = programme
    bounds = np.stack([p.lower, np.ones(len(p.lower))], axis=1)
    solved = scipy.optimize.linprog(p.costs, A_ub=p.matrix, b_ub=p.limits, bounds=bounds, method=method)
    if solved.status == 2:
        return np.inf
    y = np.minimum(solved.ineqlin.marginals, 0)
    reduced = p.costs - p.matrix.T @ y
    return float(y @ p.limits + np.minimum(reduced * p.lower, reduced).sum() + p.constant)
