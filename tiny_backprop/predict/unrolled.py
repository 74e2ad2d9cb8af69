"""A plan as the program that XLA is given: instructions, with what a plan holds apart and what XLA copies and merges.

Each time that a plan runs a node it becomes one instruction for each of its outputs. To these come the holds of the
planned gradient (see `integration/jax/rewrite.py`, whose rules are told again here in terms of the graph alone; a test
holds the two against each other), copies into the order of dimensions that contractions read, and the broadcasts that
JAX leaves unwritten where sizes of 1 meet larger ones. What XLA merges as common subexpressions stands once.

All of it is put together from the `templates` of the graph by array operations; only merging goes through the program
instruction by instruction, and only through those that may have an equal.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.predict.templates import HELD as HELD
from tiny_backprop.predict.templates import NONE, Templates
from tiny_backprop.schedule.simulate import ranges

_ROUNDS = 3  # how deep instructions are told apart before they are merged one by one


@dataclasses.dataclass(frozen=True, eq=False)
class Instructions:
    """Instructions in the order of the program, as arrays with an entry for each.

    Attributes:
      graph: The graph.
      returned: The instructions that the program returns, each with its first place among the outputs.
      kinds: `Kind` of each.
      nodes: The node that makes it, or `HELD`, `PREDICATE`, `COPY`, `BROADCAST`, `FLAT`,
        `RECIPROCAL`, `CONVERT` or `SCRATCH`.
      values: The value of the graph that it stands for, -1 for a predicate.
      n_bytes: Its size.
      shapes: A number for its shape, -1 for a predicate.
      primitives: Its primitive, a number in `primitive_names`.
      primitive_names: The primitives, `""` for none.
      operand_start: Instruction i reads `operands[operand_start[i]:operand_start[i + 1]]`.
      operands: The instructions that each reads, without repeats; inputs of the graph are left out.
      steps: Its place in the program; the outputs of one node, or of one hold, have the same.
      is_unary: Whether it reads at most one array of its own rank that is no broadcast.
      moves: Whether an element of it comes from another place of its operand.
      is_shared_exp: Whether it is the exponential that XLA also computes for an `erfc` of the same operand.
      is_narrow: Whether its value is a float of 16 bits.
      donated_readers: Instructions that read donated inputs of the graph.
      donated: The input that each of them reads.
    """

    graph: Graph
    returned: dict[int, int]
    kinds: np.ndarray
    nodes: np.ndarray
    values: np.ndarray
    n_bytes: np.ndarray
    shapes: np.ndarray
    primitives: np.ndarray
    primitive_names: tuple[str, ...]
    operand_start: np.ndarray
    operands: np.ndarray
    steps: np.ndarray
    is_unary: np.ndarray
    moves: np.ndarray
    is_shared_exp: np.ndarray
    is_narrow: np.ndarray
    donated_readers: np.ndarray
    donated: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)

    @functools.cached_property
    def readers(self) -> np.ndarray:
        """The instruction that reads each of `operands`."""
        return np.repeat(np.arange(len(self)), np.diff(self.operand_start))


def unroll(graph: Graph, steps: Sequence[int] | np.ndarray, n_forward_steps: int, is_planned: bool) -> Instructions:
    """Return the instructions of a gradient.

    Args:
      graph: A gradient graph.
      steps: Nodes in the order in which they run.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as planned, with holds, or as JAX's own.
    """
    runs = _Runs(Templates.of(graph), np.asarray(steps, np.int64))
    holds = _holds(runs, n_forward_steps) if is_planned else _no_holds(runs)
    return _Program(runs, holds, n_forward_steps, is_planned).instructions()


class _Runs:
    """The runs of nodes, in order, and what each reads: the last run before it that made the value, if any did."""

    def __init__(self, templates: Templates, steps: np.ndarray):
        self.templates, self.graph, self.steps = templates, templates.graph, steps
        self.order = np.argsort(steps, kind="stable")
        self.keys = steps[self.order] * (len(steps) + 1) + self.order
        self.before = np.full(len(steps), NONE)  # the run of the same node before each
        self.final = np.full(self.graph.n_nodes + 1, NONE)  # the last run of each node, and -1 for that of an input
        self.final[steps] = np.arange(len(steps))
        again = np.flatnonzero(np.diff(steps[self.order]) == 0)
        self.before[self.order[again + 1]] = self.order[again]
        self.n_reads = templates.n_reads[steps]
        self.read_start = np.cumsum(self.n_reads) - self.n_reads
        self.values = templates.reads[ranges(templates.read_start[steps], self.n_reads)]
        self.readers = np.repeat(np.arange(len(steps)), self.n_reads)
        self.makers = self.last(self.values, self.readers)

    def last(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return the last run before another that made each value, -1 where none did."""
        nodes = self.graph.value_node[values]
        last = self.final[nodes]
        later = np.flatnonzero(last >= before)
        if len(later):
            wanted = nodes[later]
            run = self.order[np.searchsorted(self.keys, wanted * (len(self.steps) + 1) + before[later]) - 1]
            last[later] = np.where((self.steps[run] == wanted) & (run < before[later]), run, NONE)
        return last


# ---- holds ----


@dataclasses.dataclass(frozen=True, eq=False)
class _Holds:
    """What the segments of a backward phase hold of the forward phase, segment after segment.

    Attributes:
      starts: The runs with which segments begin.
      runs: The run before which each value is held.
      values: The values held.
      of_read: Which of them each read of a run reads, -1 for none.
      token_runs: The run before which a hold waits for a value.
      tokens: The values that the holds wait for.
    """

    starts: np.ndarray
    runs: np.ndarray
    values: np.ndarray
    of_read: np.ndarray
    token_runs: np.ndarray
    tokens: np.ndarray


def _no_holds(runs: _Runs) -> _Holds:
    none = np.zeros(0, np.int64)
    return _Holds(none, none, none, np.full(len(runs.values), NONE), none, none)


def _segment_starts(runs: _Runs, n_forward_steps: int) -> np.ndarray:
    """Return where the segments of a backward phase start: where it turns to the forward phase, or repeats a node."""
    steps, first = runs.steps, n_forward_steps
    is_forward = steps < runs.graph.n_forward
    turns = is_forward.copy()
    turns[1:] &= ~is_forward[:-1]
    turns[: first + 1] = False
    last_turn = np.maximum.accumulate(np.where(turns, np.arange(len(steps)), first))
    repeats = is_forward & (runs.before >= last_turn) & ~turns
    repeats[: first + 1] = False
    starts = [first]
    for i in np.flatnonzero(turns | repeats).tolist():
        if turns[i] or runs.before[i] >= starts[-1]:
            starts.append(i)
    return np.array(starts, np.int64)


def _holds(runs: _Runs, n_forward_steps: int) -> _Holds:
    """Return what is held: what a segment that begins in the forward phase reads of it and has not made."""
    graph, n_steps = runs.graph, len(runs.steps)
    starts = _segment_starts(runs, n_forward_steps)
    bounds = np.append(starts, n_steps)
    waits = np.append(runs.steps, graph.n_nodes)[starts] < graph.n_forward
    segment = np.searchsorted(starts, np.arange(n_steps), side="right") - 1  # -1 in the forward phase
    of_read = segment[runs.readers]
    border, n_values = graph.output_start[graph.n_forward], graph.n_values
    handed_on = [graph.output_start[n.forward_node + 1] - 2 for n in graph.nested]  # by a loop to its reverse
    is_read = (of_read >= 0) & np.append(waits, False)[of_read]
    is_read &= (runs.values >= graph.n_inputs) & (runs.values < border) & ~np.isin(runs.values, handed_on)
    is_read &= runs.makers < bounds[of_read]
    reads = np.flatnonzero(is_read)
    keys, first = np.unique(of_read[reads] * n_values + runs.values[reads], return_index=True)
    inputs = _inputs_to_hold(runs, np.flatnonzero((segment >= 0) & np.append(waits, False)[segment]), segment)
    # In the order in which they are first read; that of an input comes after all else that its node reads.
    places = np.array([2 * (runs.read_start[i] + runs.n_reads[i]) - 1 for i, _ in inputs], np.int64)
    input_keys = np.array([segment[i] * n_values + v for i, v in inputs], np.int64)
    keys, places = np.append(keys, input_keys), np.append(2 * reads[first], places)
    order = np.argsort(places, kind="stable")
    keys = keys[order]
    tokens, token_segments = _tokens(runs, bounds, segment, np.unique(keys // n_values))
    return _Holds(
        starts=starts,
        runs=starts[keys // n_values],
        values=keys % n_values,
        of_read=_find(keys, np.where(is_read | (runs.values < graph.n_inputs), of_read * n_values + runs.values, NONE)),
        token_runs=starts[token_segments],
        tokens=tokens,
    )


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted key stands among keys, -1 for nowhere."""
    order = np.argsort(keys)
    place = np.searchsorted(keys, wanted, sorter=order)
    found = np.append(order, NONE)[place]
    return np.where(np.append(keys, NONE)[found] == wanted, found, NONE) if len(keys) else np.full(len(wanted), NONE)


def _inputs_to_hold(runs: _Runs, waiting: np.ndarray, segment: np.ndarray) -> list[tuple[int, int]]:
    """Return, for runs in segments that wait, the input held: the smallest, where a node reads inputs alone.

    Constants that the segment makes anew, but for small ones, are merged with those of the first run and tell nothing
    apart.
    """
    templates, found, known = runs.templates, [], set[tuple[int, int]]()
    n_inputs = runs.graph.n_inputs
    smallest = templates.smallest_input[runs.steps[waiting]]
    is_wanted = (smallest != NONE) & (runs.steps[waiting] < runs.graph.n_forward)
    for i, v in zip(waiting[is_wanted].tolist(), smallest[is_wanted].tolist(), strict=True):
        at = int(segment[i])
        reads = runs.values[runs.read_start[i] : runs.read_start[i] + runs.n_reads[i]].tolist()
        if not _reads_constants(runs, i, segment):
            continue
        if not any((at, u) in known for u in reads if u < n_inputs):
            known.add((at, v))
            found.append((i, v))
    return found


def _reads_constants(runs: _Runs, i: int, segment: np.ndarray) -> bool:
    """Return whether all that a run reads, but for inputs, are constants that its own segment has made."""
    for k in range(runs.read_start[i], runs.read_start[i] + runs.n_reads[i]):
        maker = runs.makers[k]
        if runs.values[k] >= runs.graph.n_inputs:
            is_own = maker >= 0 and segment[maker] == segment[i] and runs.templates.is_constant[runs.steps[maker]]
            if not is_own or not _reads_constants(runs, int(maker), segment):
                return False
    return True


def _tokens(runs: _Runs, bounds: np.ndarray, segment: np.ndarray, holding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the holds of segments wait for, and their segments.

    It is what the segment before made in the backward phase and they read, or else the last that it made.
    """
    graph = runs.graph
    is_holding = np.zeros(len(bounds), bool)
    is_holding[holding] = True
    of_read = segment[runs.readers]
    is_token = is_holding[of_read] & (of_read > 0) & (runs.values >= graph.output_start[graph.n_forward])
    is_token &= (runs.makers >= 0) & (segment[runs.makers] == of_read - 1)
    made = np.unique(runs.makers[is_token] * graph.n_values + runs.values[is_token])
    tokens, segments = made % graph.n_values, segment[made // graph.n_values] + 1
    n_made = graph.output_start[runs.steps + 1] - graph.output_start[runs.steps]
    for s in np.setdiff1d(holding, segments).tolist():
        start, end = (int(bounds[s - 1]) if s else int(bounds[0]) - 1), int(bounds[s])
        before = np.flatnonzero(n_made[max(start, 0) : end]) + max(start, 0)
        if len(before):
            tokens = np.append(tokens, graph.output_start[runs.steps[before[-1]] + 1] - 1)
            segments = np.append(segments, s)
    return tokens, segments


# ---- the program ----


class _Program:
    """Rows of templates one after the other, in the order of the program, before any is merged or left out."""

    def __init__(self, runs: _Runs, holds: _Holds, n_forward_steps: int, is_planned: bool):
        self.runs, self.holds, self.templates, self.graph = runs, holds, runs.templates, runs.graph
        self.n_forward_steps = n_forward_steps
        is_again = (runs.steps >= self.graph.n_forward) | (runs.before != NONE)
        self.variant = (is_again & is_planned).astype(np.int64)
        self.run_templates = np.where(self.variant == 1, self.templates.when_held[runs.steps], runs.steps)
        self._lay_out()
        self._resolve()
        self._write_operands()

    def _lay_out(self) -> None:
        """Give each row its place: a hold's predicate and its values before the run that they are for."""
        templates, holds, n_steps = self.templates, self.holds, len(self.runs.steps)
        held_runs, n_held = np.unique(holds.runs, return_counts=True)
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
        self.token_predicates = self.predicates[np.searchsorted(held_runs, holds.token_runs)]
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
        operands = [operands, self._now(holds.values, holds.runs), self.predicate_of]
        operands.append(self._now(holds.tokens, holds.token_runs))
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
        alike = _alike(rows, keys, operands, starts, n + self.graph.n_values)
        stands = list(range(n + self.graph.n_values))
        known: dict[tuple[int, ...], int] = {}
        operand_list = operands.tolist()
        columns = (c[alike].tolist() for c in (rows, keys, starts[:-1], starts[1:]))
        for row, key, start, end in zip(*columns, strict=True):
            stands[row] = known.setdefault((key, *[stands[o] for o in operand_list[start:end]]), row)
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
            is_shared_exp=templates.is_shared_exp[rows],
            is_narrow=templates.is_narrow[rows],
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


def starts_of(groups: np.ndarray, n: int) -> np.ndarray:
    """Return where each of `n` groups starts among sorted numbers of groups, and at the end how many there are."""
    return np.append(0, np.cumsum(np.bincount(groups, minlength=n)))


def distinct(keys: np.ndarray, n: int = 1) -> np.ndarray:
    """Return sorted keys without repeats; of those that are equal when divided by `n`, the smallest."""
    keys = np.sort(keys)
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] // n != keys[:-1] // n
    return keys[is_new]


def _alike(rows: np.ndarray, keys: np.ndarray, operands: np.ndarray, starts: np.ndarray, n: int) -> np.ndarray:
    """Return which rows may be equal to another, by a hash of what they and their operands are, some deep.

    Args:
      rows: Numbers of the rows.
      keys: A number for what tells each, beside its operands.
      operands: Numbers below `n` of what they are told by, row after row.
      starts: Where those of each row start, and at the end how many there are.
      n: How many numbers there are.
    """
    place = np.arange(len(operands)) - np.repeat(starts[:-1], np.diff(starts))
    weights = _mixed(place + 1)
    told = _mixed(np.arange(n))
    told[rows] = own = _mixed(-1 - keys)
    for _ in range(_ROUNDS if len(rows) else 0):
        sums = np.append(np.uint64(0), np.cumsum(told[operands] * weights))
        told[rows] = _mixed(own + sums[starts[1:]] - sums[starts[:-1]])
    order = np.argsort(told[rows])
    found = told[rows[order]]
    is_alike = np.zeros(len(rows) + 1, bool)
    is_alike[:-2] = found[1:] == found[:-1]
    is_alike[1:-1] |= is_alike[:-2].copy()
    return np.sort(order[is_alike[:-1]])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each number (the finalizer of SplitMix64)."""
    x = numbers.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
