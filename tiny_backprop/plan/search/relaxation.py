"""An integer programme that every plan within a byte budget satisfies, whatever it recomputes and when.

It relaxes the programme of Checkmate (Jain et al. 2020, arXiv:1910.02653), which has a stage per node: here memory is
counted only at some *moments*, each the run of one backward node, and a node that runs at all between two moments is
paid once. So it holds for every order of the forward phase and for any number of re-runs, but for one order of the
backward phase. With one moment and without integrality it is the Lagrangian bound of a minimum cut.

A few moments are enough: where a solution takes too much at another position, that position becomes a moment
(`tiny_backprop.plan.exact`). What a plan needs *while* it recomputes is seen only in stages that are asked for, and
only in part, so that nested recomputation is underestimated: for a chain the bound grows no faster than one more run
of every node.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np
import scipy.sparse

from tiny_backprop.graph import Graph

NEVER = np.iinfo(np.int64).max

_TOLERANCE = 1e-7
"""Of the cost of every node once: what HiGHS may err by in the bound of a branch and bound."""

_GAP = 1e-5
"""Branch and bound stops this close to the optimum, in proportion to the cost of every run."""


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
    def first_backward_value(self) -> int:
        """Values below this one are inputs or made by forward nodes."""
        return int(self.graph.output_start[self.graph.n_forward])

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
        mask = (node >= self.graph.n_forward) & (value < self.first_backward_value)
        return self.position[node[mask]], value[mask]

    @functools.cached_property
    def returned(self) -> np.ndarray:
        """Forward values that must be alive when the plan ends."""
        outputs = np.unique(self.graph.outputs[self.graph.outputs >= self.graph.n_inputs])
        return outputs[outputs < self.first_backward_value]

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
        made = np.arange(self.first_backward_value, graph.n_values)
        first = np.full(graph.n_values, -1)
        first[made] = self.position[graph.value_node[made]]
        last = first.copy()
        node, value = graph.reads
        np.maximum.at(last, value, self.position[node])
        last[graph.outputs[graph.outputs >= 0]] = end
        delta = np.zeros(end + 2, np.int64)
        np.add.at(delta, first[made], graph.value_bytes[made])
        np.add.at(delta, last[made] + 1, -graph.value_bytes[made])
        return np.cumsum(delta)[:-1]

    @functools.cached_property
    def plain_peak(self) -> int:
        """The position with the most live bytes when every node runs once and nothing is recomputed."""
        position, value = self.reads
        last = np.full(self.graph.n_values, -1)
        np.maximum.at(last, value, position)
        last[self.returned] = self.end
        kept = np.flatnonzero(last >= 0)
        delta = np.zeros(self.end + 2, np.int64)
        delta[0] = self.graph.value_bytes[kept].sum()
        np.add.at(delta, last[kept] + 1, -self.graph.value_bytes[kept])
        return int((np.cumsum(delta)[: self.end] + self.held_bytes[: self.end]).argmax())

    @functools.cached_property
    def due(self) -> np.ndarray:
        """The position by whose run each forward node must have run, NEVER where it need not run at all.

        0 for what the function returns and for effects, `end` for what only the end of the plan needs; a backward node
        needs all that it depends on; int64 of shape (n_forward,).
        """
        graph, n = self.graph, self.graph.n_forward
        makers = graph.value_node
        due = np.full(n, NEVER)
        due[makers[self.returned]] = self.end
        position, value = self.reads
        np.minimum.at(due, makers[value], position)
        due[makers[self.primal]] = 0
        due[graph.has_effect[:n]] = 0
        due, makers = due.tolist(), makers.tolist()
        for i in range(n - 1, -1, -1):
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
        needed = np.append(self.held_bytes[:-1], graph.output_bytes)
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


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """What branch and bound came to.

    Attributes:
      bound: No plan within the budget has less recompute cost; infinite where there is none.
      keep: For each moment, whether each value is alive then, bool of shape (n_values,); None where none was found.
      is_optimal: Whether the search ended by itself.
    """

    bound: float
    keep: list[np.ndarray] | None
    is_optimal: bool


class Relaxation:
    """The programme for some moments and a budget.

    Stage s ends with moment s, the run of the backward node at position `moments[s]`; a last stage follows. Variables,
    each 0 or 1 in a plan: keep[s, v], value v is alive at moment s; run[s, i], forward node i runs in stage s.
    """

    def __init__(
        self,
        phases: Phases,
        moments: Collection[int],
        budget_bytes: int | np.ndarray,
        costs: np.ndarray,
        inner: Collection[int] = (),
    ):
        """Build the programme; linear in moments times nodes and edges.

        Args:
          phases: The graph and its order.
          moments: Positions at which memory is counted.
          budget_bytes: The budget, or one for each position.
          costs: Cost of each node.
          inner: Moments before which also the memory during recomputation is counted; the position before each must be
            a moment too.
        """
        self.phases, self.moments = phases, sorted(moments)
        self._budgets = np.broadcast_to(np.asarray(budget_bytes), (phases.end + 1,))
        self._unit = max(int(self._budgets.max()), 1)
        self._rows, self._lower, self._n_x = _Rows(), [], 0
        self.scale = float(costs.sum()) or 1.0
        self._prepare()
        self.keep: list[np.ndarray] = []
        run: list[np.ndarray] = []
        before, kept = -1, np.full(len(self._maker), -1)
        for moment in [*self.moments, phases.end]:
            stage_run, keep = self._stage(before, kept, moment, moment in inner)
            run.append(stage_run)
            self.keep.append(keep)
            before, kept = moment, keep
        self._price(run, costs[: phases.graph.n_forward] / self.scale)
        self._matrix = self._rows.matrix(self._n_x)
        self._limits, self._box = self._rows.limits(), np.concatenate(self._lower)

    @property
    def n_variables(self) -> int:
        """Size of the programme."""
        return self._n_x

    def _prepare(self) -> None:
        graph, n = self.phases.graph, self.phases.graph.n_forward
        self._base = graph.n_inputs
        made = slice(self._base, self.phases.first_backward_value)
        self._maker, self._late, self._bytes = graph.value_node[made], self.phases.late[made], graph.value_bytes[made]
        node, value = graph.reads
        self._node, self._operand = node[node < n], value[node < n] - self._base
        self._position, self._read = self.phases.reads[0], self.phases.reads[1] - self._base
        self._last_use = np.full(n, -1)
        np.maximum.at(self._last_use, self._maker, self._late)
        self._needed = self.phases.due < NEVER

    def _variables(self, mask: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """Return the numbers of new variables where `mask`, else -1; those where `fixed` are 1."""
        index = np.where(mask, np.cumsum(mask) - 1 + self._n_x, -1)
        self._n_x += int(mask.sum())
        self._lower.append(fixed[mask].astype(float))
        return index

    def _stage(self, before: int, kept: np.ndarray, moment: int, is_inner: bool) -> tuple[np.ndarray, np.ndarray]:
        """Add the stage between two moments; return its variables run and keep."""
        phases, rows, maker = self.phases, self._rows, self._maker
        must = np.zeros(len(maker), bool)
        must[self._read[self._position == moment]] = True
        must[phases.returned - self._base] |= moment == phases.end
        must[phases.primal - self._base] |= moment == 0
        # Up to the first moment all that is due runs, and every effect; no effect runs later.
        is_first = before < 0
        due = (phases.due <= moment) & is_first
        may_repeat = ~phases.graph.has_effect[: len(due)] | is_first
        run = self._variables(self._needed & ((self._last_use > before) & may_repeat | due), due)
        keep = self._variables((self._needed[maker] & (self._late > moment)) | must, must)
        # What is alive was alive at the moment before or made since; so is what a node that runs reads.
        through = self._through(kept, run, before, moment) if is_inner and not is_first else kept
        rows.add([(keep, 1), (through, -1), (run[maker], -1)], 0, keep >= 0)
        node, operand = self._node, self._operand
        rows.add([(run[node], 1), (kept[operand], -1), (run[maker[operand]], -1)], 0, run[node] >= 0)
        between = np.unique(self._read[(self._position > before) & (self._position < moment)])
        rows.add([(kept[between], -1), (run[maker[between]], -1)], -1, np.ones(len(between), bool))
        if moment < phases.end:
            alive = keep[keep >= 0]
            room = self._room(moment, int(phases.held_bytes[moment]))
            rows.add_sum(alive, self._bytes[keep >= 0] / self._unit, room)
        return run, keep

    def _room(self, position: int, held_bytes: int) -> float:
        # Bytes are whole numbers, so that half a byte on top gives nothing away and swallows rounding.
        return (int(self._budgets[position]) + 0.5 - held_bytes) / self._unit

    def _through(self, kept: np.ndarray, run: np.ndarray, before: int, moment: int) -> np.ndarray:
        """Count memory during recomputation; return the variables "alive all through the stage".

        Whenever node i runs in the stage, its operands and outputs are alive, and so is what stays alive all through
        the stage; an output of i does not, since it is made anew. True however often, and in what order, nodes run.
        """
        phases, graph = self.phases, self.phases.graph
        assert before == moment - 1
        held = int(phases.held_bytes[moment])
        if moment < phases.end:
            held -= int(graph.node_bytes[phases.backward[moment]])
        through = self._variables(kept >= 0, np.zeros(len(kept), bool))
        self._rows.add([(through, 1), (kept, -1)], 0, through >= 0)
        self._rows.add([(through, 1), (run[self._maker], 1)], 1, (through >= 0) & (run[self._maker] >= 0))
        room = self._room(moment, held)
        bounds = np.searchsorted(self._node, np.arange(graph.n_forward + 1))
        for i in np.flatnonzero(run >= 0).tolist():
            operands = self._operand[bounds[i] : bounds[i + 1]]
            stays = through >= 0
            stays[operands] = False
            needs = self._bytes[operands].sum() + graph.node_bytes[i]
            self._rows.add_sum(np.r_[through[stays], run[i]], np.r_[self._bytes[stays], needs] / self._unit, room)
        return through

    def _price(self, run: list[np.ndarray], costs: np.ndarray) -> None:
        """Set the objective, every run but the first, and have each node run when it is due."""
        stages = np.stack(run)
        cost = np.zeros(self._n_x)
        used = stages >= 0
        cost[stages[used]] = np.broadcast_to(costs, stages.shape)[used]
        self._cost, self._constant = cost, -float(costs[self._needed].sum())
        ends = np.searchsorted(self.moments, self.phases.due)
        for i in np.flatnonzero(self._needed & (ends > 0)).tolist():
            columns = stages[: ends[i] + 1, i]
            columns = columns[columns >= 0]
            self._rows.add_sum(columns, -np.ones(len(columns)), -1)

    def linear_bound(self) -> float:
        """Return a recompute cost that no plan is below, without integrality; infinite where no plan fits.

        The solver's multipliers y <= 0 are only a proposal: y·limits + min over the box of (costs - y·matrix)·x is a
        bound for any y, so that the solver's tolerances cannot make it wrong (Neumaier & Shcherbina 2004,
        doi:10.1007/s10107-003-0433-3).
        """
        bounds = np.stack([self._box, np.ones(self._n_x)], axis=1)
        method = "highs-ipm" if self._n_x > 10_000 else "highs-ds"
        import scipy.optimize  # takes as long to load as all of ours together, and few plans ask for it

        solved = scipy.optimize.linprog(self._cost, A_ub=self._matrix, b_ub=self._limits, bounds=bounds, method=method)
        if solved.status == 2:
            return np.inf
        if solved.status != 0:
            return 0.0
        y = np.minimum(solved.ineqlin.marginals, 0)
        reduced = self._cost - self._matrix.T @ y
        bound = float(y @ self._limits + np.minimum(reduced * self._box, reduced).sum() + self._constant)
        return max(bound, 0.0) * self.scale

    def solve(self, seconds: float) -> Solution:
        """Solve by branch and bound (HiGHS), for at most about so many seconds."""
        import scipy.optimize

        solved = scipy.optimize.milp(
            self._cost,
            constraints=(self._matrix, -np.inf, self._limits),
            integrality=np.ones(self._n_x),
            bounds=(self._box, 1),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": _GAP},
        )
        if solved.status == 2:
            return Solution(np.inf, None, True)
        proven = solved.mip_dual_bound
        bound = 0.0 if proven is None else max(proven + self._constant - _TOLERANCE, 0.0) * self.scale
        if solved.x is None:
            return Solution(bound, None, False)
        keep = []
        for index in self.keep[:-1]:
            alive = np.zeros(self.phases.graph.n_values, bool)
            alive[self._base : self._base + len(index)] = (index >= 0) & (solved.x[index] > 0.5)
            keep.append(alive)
        return Solution(bound, keep, solved.status == 0)


class _Rows:
    """Rows of a sparse matrix, gathered in COO form; a column of -1 stands for a variable that is 0."""

    def __init__(self):
        self._row: list[np.ndarray] = []
        self._column: list[np.ndarray] = []
        self._entry: list[np.ndarray] = []
        self._limit: list[np.ndarray] = []
        self._n = 0

    def add(self, terms: list[tuple[np.ndarray, float]], limit: float, mask: np.ndarray) -> None:
        """Add one row for each True of `mask`: sum of coefficient * x[columns] <= limit."""
        at = np.cumsum(mask) - 1 + self._n
        for columns, coefficient in terms:
            used = mask & (columns >= 0)
            self._row.append(at[used])
            self._column.append(columns[used])
            self._entry.append(np.full(int(used.sum()), float(coefficient)))
        self._limit.append(np.full(int(mask.sum()), float(limit)))
        self._n += int(mask.sum())

    def add_sum(self, columns: np.ndarray, entries: np.ndarray, limit: float) -> None:
        """Add the row entries·x[columns] <= limit."""
        self._row.append(np.full(len(columns), self._n))
        self._column.append(columns)
        self._entry.append(entries)
        self._limit.append(np.array([float(limit)]))
        self._n += 1

    def limits(self) -> np.ndarray:
        """Return the right-hand sides."""
        return np.concatenate(self._limit) if self._limit else np.zeros(0)

    def matrix(self, n_columns: int) -> scipy.sparse.csr_matrix:
        """Return the rows."""
        if not self._row:
            return scipy.sparse.csr_matrix((0, n_columns))
        at = np.concatenate(self._row), np.concatenate(self._column)
        return scipy.sparse.csr_matrix((np.concatenate(self._entry), at), (self._n, n_columns))
