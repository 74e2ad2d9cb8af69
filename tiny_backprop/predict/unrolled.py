"""A plan as the program that a compiler is given: instructions, with what the plan holds apart and what is merged.

Each time that a plan runs a node it becomes one instruction for each of its outputs. To these come the holds of the
planned gradient (`tiny_backprop.schedule.holds`), and what the compiler writes around nodes (`lowering`). What it
merges as common subexpressions stands once.

Of the holds two things are left out here, which take no memory to speak of: those of keys and scalars that are made
anew, and the value at the border of the phases that is waited for where all else is constant.

All of it is put together from the `templates` of the graph by array operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiny_backprop.predict.arrays import distinct, starts_of
from tiny_backprop.predict.common_subexpressions import merge
from tiny_backprop.predict.instructions import Instructions
from tiny_backprop.predict.templates import Templates
from tiny_backprop.schedule.checkpointed import find_barriers, jax_schedule
from tiny_backprop.schedule.holds import Holds, find_holds, no_holds
from tiny_backprop.schedule.runs import NONE, Runs
from tiny_backprop.schedule.simulate import ranges


def unroll(
    templates: Templates,
    steps: Sequence[int] | np.ndarray,
    n_forward_steps: int,
    is_planned: bool,
    has_barriers: bool = False,
) -> Instructions:
    """Return the instructions of a gradient.

    Args:
      templates: What each node of its graph becomes.
      steps: Nodes in the order in which they run.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as planned, with holds, or as JAX runs it.
      has_barriers: Whether it is JAX's own, whose calls under `jax.checkpoint` have barriers; the steps are then those
        of `jax_schedule`.
    """
    graph = templates.graph
    runs = Runs(graph, np.asarray(steps, np.int64))
    handed_on = [graph.output_start[n.forward_node + 1] - 2 for n in graph.nested]  # by a loop to its reverse
    if is_planned:
        holds = find_holds(runs, n_forward_steps, handed_on)
    else:
        holds = find_barriers(runs, jax_schedule(graph)) if has_barriers else no_holds(runs)
    return _Program(templates, runs, holds, n_forward_steps, is_planned).instructions()


class _Program:
    """Rows of templates one after the other, in the order of the program, before any is merged or left out."""

    def __init__(self, templates: Templates, runs: Runs, holds: Holds, n_forward_steps: int, is_planned: bool):
        self.runs, self.holds, self.templates, self.graph = runs, holds, templates, runs.graph
        self.n_forward_steps = n_forward_steps
        self.variant = (runs.is_late & is_planned).astype(np.int64)
        self.run_templates = np.where(self.variant == 1, templates.when_late[runs.steps], runs.steps)
        self._lay_out()
        self._resolve()
        self._write_operands()

    def _lay_out(self) -> None:
        """Give each row its place: a hold's predicate and its values before the run that they are for."""
        templates, holds, n_steps = self.templates, self.holds, len(self.runs.steps)
        held_runs, n_held = np.unique(holds.steps, return_counts=True)
        before = np.zeros(n_steps + 1, np.int64)
        before[held_runs] = n_held + 1
        n_rows = templates.n_rows[self.run_templates]
        ends = np.cumsum(before[:-1] + n_rows)
        self.base = ends - n_rows
        self.n = int(ends[-1]) if n_steps else 0
        self.rows = np.empty(self.n, np.int64)
        self.run_of = np.full(self.n, NONE)
        places = ranges(self.base, n_rows)
        self.rows[places] = ranges(templates.row_start[self.run_templates], n_rows)
        self.run_of[places] = np.repeat(np.arange(n_steps), n_rows)
        self.predicates = self.base[held_runs] - n_held - 1
        self.held = ranges(self.predicates + 1, n_held)
        self.rows[self.predicates] = templates.predicate_row
        self.rows[self.held] = templates.held_row + holds.values
        self.predicate_of = np.repeat(self.predicates, n_held)
        self.is_waited_for = np.isin(holds.token_steps, held_runs)
        waiting = holds.token_steps[self.is_waited_for]
        self.token_predicates = self.predicates[np.searchsorted(held_runs, waiting)]
        self.is_new_step = ~templates.continues[self.rows]
        self.is_new_step[self.predicates + 1] = True

    def _made(self, makers: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the row that stands for each value after the run that made it, -1 for none."""
        if not len(self.base):
            return np.full(len(values), NONE)
        at = self.templates.made_at[self.variant[makers], values]
        return np.where((makers >= 0) & (at >= 0), self.base[makers] + at, NONE)

    def _resolve(self) -> None:
        """Find the row that each run reads: a hold of its segment, or what the last run made."""
        of_read = self.holds.of_read
        made = self._made(self.runs.makers, self.runs.values)
        self.read_rows = np.where(of_read >= 0, np.append(self.held, NONE)[of_read], made)

    def _now(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        return self._made(self.runs.last(values, before), values)

    def _write_operands(self) -> None:
        """Write pairs of rows that read and are read, and find which rows are there at all."""
        templates, runs, holds = self.templates, self.runs, self.holds
        n_operands = templates.n_operands[self.run_templates]
        entries = ranges(templates.operand_start[self.run_templates], n_operands)
        base = np.repeat(self.base, n_operands)
        within = templates.operands[entries]
        reads = np.where(within < 0, np.repeat(runs.read_start, n_operands) + ~within, -1)
        operands = np.where(within >= 0, base + within, np.append(self.read_rows, NONE)[reads])
        readers = [base + templates.readers[entries], self.held, self.held, self.token_predicates]
        operands = [operands, self._now(holds.values, holds.steps), self.predicate_of]
        operands.append(self._now(holds.tokens[self.is_waited_for], holds.token_steps[self.is_waited_for]))
        self.readers, self.operands = np.concatenate(readers), np.concatenate(operands)
        order = np.argsort(self.readers, kind="stable")
        self.readers, self.operands = self.readers[order], self.operands[order]
        self.is_there = self._found()
        if self.graph.donated:
            values = [np.append(runs.values, NONE)[reads], holds.values]
            values.append(np.full(len(order) - sum(map(len, values)), NONE))
            self.donated = self._donated(np.concatenate(values)[order])
        self.read_rows[~self.is_there[self.read_rows]] = NONE
        self.operands[~self.is_there[self.operands]] = NONE

    def _found(self) -> np.ndarray:
        """Return which rows are there; the last entry is that of -1, an input."""
        follows = np.flatnonzero(self.templates.follows[self.rows])
        first = np.searchsorted(self.readers, follows)
        has_operand = np.append(self.readers, NONE)[first] == follows
        root = np.append(np.arange(self.n), NONE)
        root[follows] = np.where(has_operand, np.append(self.operands, NONE)[first], NONE)
        while not np.array_equal(root[follows], further := root[root[follows]]):
            root[follows] = further
        is_there = root != NONE
        is_there[self.predicates] = False
        is_token = np.isin(self.readers, self.predicates) & is_there[self.operands]
        is_there[self.readers[is_token]] = True
        return is_there

    def _donated(self, values: np.ndarray) -> np.ndarray:
        """Return the donated input that each of `operands` is, or an alias of it; -1 for what is none.

        Args:
          values: The values that are read, -1 for rows of the reader's own template.
        """
        found = np.append(self.templates.donated_behind, NONE)[values]
        found[self.is_there[self.operands]] = NONE
        through = np.full(self.n + 1, NONE)
        is_alias = ~self.is_there[self.readers]
        through[self.readers[is_alias]] = found[is_alias]
        return np.where(values < 0, through[self.operands], found)

    def _merged(self) -> np.ndarray:
        """Return the row that stands for each after equal ones are merged; the last entry is that of -1."""
        templates, n = self.templates, self.n
        rows = np.flatnonzero(templates.is_merged[self.rows] & self.is_there[:-1])
        entries, first_read = self.rows[rows], self.runs.read_start[self.run_of[rows]]
        n_reads = templates.n_key_reads[entries]
        reads = ranges(first_read + templates.key_start[entries], n_reads)
        # An input is told by its value.
        operands = np.where(self.read_rows[reads] >= 0, self.read_rows[reads], n + self.runs.values[reads])
        is_second = templates.is_second[entries]
        is_second[is_second] = self.read_rows[first_read[is_second]] >= 0
        keys = np.where(is_second, templates.key_of_second[entries], templates.keys[entries])
        starts = np.append(0, np.cumsum(n_reads))
        stands = merge(rows, keys, operands, starts, n + self.graph.n_values)
        return np.array([*stands[:n], NONE], np.int64)

    def instructions(self) -> Instructions:
        """Return what is there and has not been merged with a row before it."""
        templates, stands = self.templates, self._merged()
        is_kept = self.is_there[:-1] & (stands[:-1] == np.arange(self.n))
        number = np.append(np.where(is_kept, np.cumsum(is_kept) - 1, NONE), NONE)
        now = number[stands]
        reads = is_kept[self.readers] & (now[self.operands] >= 0)
        pairs = number[self.readers[reads]] * (self.n + 1) + now[self.operands[reads]]
        if len(distinct(pairs)) < len(pairs):
            pairs = pairs[np.sort(np.unique(pairs, return_index=True)[1])]
        kept = np.flatnonzero(is_kept)
        rows = self.rows[kept]
        of_donated = np.flatnonzero(is_kept[self.readers] & (self.donated != NONE)) if self.graph.donated else kept[:0]
        return Instructions(
            graph=self.graph,
            returned=self._returned(now),
            kinds=templates.kinds[rows],
            nodes=templates.nodes[rows],
            values=templates.values[rows],
            n_bytes=templates.n_bytes[rows],
            shapes=templates.shapes[rows],
            primitives=templates.primitives[rows],
            primitive_names=templates.primitive_names,
            operand_start=starts_of(pairs // (self.n + 1), len(kept)),
            operands=pairs % (self.n + 1),
            steps=np.cumsum(self.is_new_step)[kept],
            is_unary=templates.is_unary[rows],
            moves=templates.moves[rows],
            is_shared=templates.is_shared[rows],
            is_absorbed=templates.is_absorbed[rows],
            donated_readers=number[self.readers[of_donated]],
            donated=self.donated[of_donated] if self.graph.donated else kept[:0],
        )

    def _returned(self, now: np.ndarray) -> dict[int, int]:
        """Return the instructions that the program returns: the function's own results as the forward phase ends."""
        outputs = self.graph.outputs
        is_primal = np.arange(len(outputs)) < self.graph.n_primal_outputs
        when = np.where(is_primal, self.n_forward_steps, len(self.runs.steps))
        made = np.flatnonzero(outputs >= 0)
        rows = self._now(outputs[made], when[made])
        returned: dict[int, int] = {}
        for k, i in zip(made.tolist(), now[rows].tolist(), strict=True):
            if i >= 0:
                returned.setdefault(i, k)
        return returned
