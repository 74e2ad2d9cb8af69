"""What the planned backward phase holds: which values, before which step, and what the holds wait for.

A *hold* is an identity that a compiler does not see through: what reads the held value is neither merged with what
reads the value itself nor run before the *tokens* of the hold are there. The gradient that runs has its holds from
here (`integration/jax/run/rewrite.py`), and so has the program whose memory is predicted (`predict/unrolled.py`).

The backward phase falls into *segments*: a segment begins where the schedule turns from backward nodes to forward ones,
or repeats a node. What a segment that begins with forward nodes reads of the forward phase, saved or recomputed
earlier, is held until the cotangents that the segment before has just made are there, so that the recomputation is
neither merged with what it repeats nor started early. The backward nodes of the segment read the held values too:
otherwise XLA would share, say, the broadcast of a saved row sum between forward and backward and keep the broadcast
alive.

Inputs are the caller's, so most reads of them need no hold. But a recomputed node that reads nothing else would be
merged with its first run: its smallest operand is held. Recomputed constants are merged and tell nothing apart, but for
keys and scalars made of literals alone: whatever grows from one would be merged with its first run, so that it is held
after it is made anew. Larger constants are not: they would have to be stored, where now XLA fuses them. What a loop
hands on to its reverse needs no hold either, nobody else reads it; and it may be large.

What the backward phase makes for a contraction and for something else too is held as soon as it is made: otherwise XLA
fuses its making into each reader anew and keeps everything that it is made from alive for all of them. So is the result
of a primitive that XLA expands into many operations, such as `erfc`, when it is recomputed for several readers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.schedule.runs import NONE, Reads, Runs

_CONTRACTIONS = ("dot_general", "conv_general_dilated")
EXPANDED = ("erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e")
"""Primitives that XLA expands into 30 cheap operations or more: it takes the whole for cheap, and repeats it."""
_LEAST_SHARED_BYTES = 4096  # below that a hold costs more than it spares
_SMALL_BYTES = 64  # keys and scalars
_NOT_ARGUMENTS = ("constant ", "cotangent ")  # how the names of such inputs begin


@dataclasses.dataclass(frozen=True, eq=False)
class Holds:
    """What the segments of a backward phase hold of the forward phase, segment after segment.

    Attributes:
      steps: The step before which each value is held.
      values: The values held, in the order in which they are first read.
      of_read: Which of them each read of `Runs` reads, -1 for none.
      token_steps: The step before which a hold waits for a value.
      tokens: The values that the holds wait for.
      constant_steps: Runs of nodes that make a key or a scalar of literals alone: what they make is held at once.
      constant_starts: The step before which the tokens of each of these holds are.
    """

    steps: np.ndarray
    values: np.ndarray
    of_read: np.ndarray
    token_steps: np.ndarray
    tokens: np.ndarray
    constant_steps: np.ndarray
    constant_starts: np.ndarray


def no_holds(runs: Runs) -> Holds:
    """Return the holds of JAX's own gradient: none."""
    none = np.zeros(0, np.int64)
    return Holds(none, none, np.full(len(runs.values), NONE), none, none, none, none)


def find_holds(
    runs: Runs, n_forward_steps: int, handed_on: Sequence[int] | np.ndarray, saved: Sequence[int] = ()
) -> Holds:
    """Return what is held of the forward phase; about linear in the number of steps.

    Where all that the holds of a segment would wait for is constant, as the first cotangents of a sum are, the latest
    value at the border of the phases is a token too: XLA would fold a predicate made of constants.

    Args:
      runs: The runs of a gradient.
      n_forward_steps: How many of them come before the backward phase.
      handed_on: The values that loops hand on to their reverses.
      saved: The values that cross from one phase into the other, in order; without them, the latest value at the border
        is an argument.
    """
    graph, nodes, n_values, n_steps = runs.graph, _Nodes.of(runs.graph), runs.graph.n_values, len(runs.steps)
    starts = _segment_starts(runs, n_forward_steps)
    bounds = np.append(starts, n_steps)
    waits = np.append(runs.steps, graph.n_nodes)[starts] < graph.n_forward
    waits[0] = False  # there is no segment before
    segment = np.searchsorted(starts, np.arange(n_steps), side="right") - 1  # -1 in the forward phase
    tokens, token_segments = _tokens(runs, bounds, segment, np.flatnonzero(waits), saved)
    waits &= np.isin(np.arange(len(starts)), token_segments)
    is_waiting = np.append(waits, False)[segment]
    of_read = segment[runs.readers]
    border = graph.output_start[graph.n_forward]
    is_read = is_waiting[runs.readers] & (runs.values >= graph.n_inputs) & (runs.values < border)
    is_read &= ~np.isin(runs.values, handed_on) & (runs.makers < bounds[of_read])
    reads = np.flatnonzero(is_read)
    keys, first = np.unique(of_read[reads] * n_values + runs.values[reads], return_index=True)
    inputs = _inputs_to_hold(runs, np.flatnonzero(is_waiting), segment)
    # In the order in which they are first read; that of an input comes after all else that its node reads.
    places = np.array([2 * (runs.read_start[i] + runs.n_reads[i]) - 1 for i, _ in inputs], np.int64)
    input_keys = np.array([segment[i] * n_values + v for i, v in inputs], np.int64)
    keys, places = np.append(keys, input_keys), np.append(2 * reads[first], places)
    keys = keys[np.argsort(places, kind="stable")]
    constants = np.flatnonzero(is_waiting & (runs.before != NONE) & nodes.makes_small_constant[runs.steps])
    return Holds(
        steps=starts[keys // n_values],
        values=keys % n_values,
        of_read=_find(keys, np.where(is_read | (runs.values < graph.n_inputs), of_read * n_values + runs.values, NONE)),
        token_steps=starts[token_segments],
        tokens=tokens,
        constant_steps=constants,
        constant_starts=starts[segment[constants]],
    )


def held_when_made(graph: Graph) -> np.ndarray:
    """Return which values are held as soon as a run that `Runs.is_late` makes them; bool of shape (n_values,).

    Constants are none of them: the hold would be folded.
    """
    return _Nodes.of(graph).is_held_when_made


def _segment_starts(runs: Runs, n_forward_steps: int) -> np.ndarray:
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


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted key stands among keys, -1 for nowhere."""
    order = np.argsort(keys)
    place = np.searchsorted(keys, wanted, sorter=order)
    found = np.append(order, NONE)[place]
    return np.where(np.append(keys, NONE)[found] == wanted, found, NONE) if len(keys) else np.full(len(wanted), NONE)


def _inputs_to_hold(runs: Runs, waiting: np.ndarray, segment: np.ndarray) -> list[tuple[int, int]]:
    """Return, for runs in segments that wait, the input held: the smallest, where a node reads inputs alone.

    Constants that the segment makes anew, but for small ones, are merged with those of the first run and tell nothing
    apart.
    """
    nodes, found, known = _Nodes.of(runs.graph), [], set[tuple[int, int]]()
    n_inputs = runs.graph.n_inputs
    smallest = nodes.smallest_input[runs.steps[waiting]]
    is_wanted = (smallest != NONE) & (runs.steps[waiting] < runs.graph.n_forward)
    for i, v in zip(waiting[is_wanted].tolist(), smallest[is_wanted].tolist(), strict=True):
        at = int(segment[i])
        reads = runs.values[runs.read_start[i] : runs.read_start[i] + runs.n_reads[i]].tolist()
        if not _reads_constants(runs, nodes, i, segment):
            continue
        if not any((at, u) in known for u in reads if u < n_inputs):
            known.add((at, v))
            found.append((i, v))
    return found


def _reads_constants(runs: Runs, nodes: _Nodes, i: int, segment: np.ndarray) -> bool:
    """Return whether all that a run reads, but for inputs, are constants that its own segment has made."""
    for k in range(runs.read_start[i], runs.read_start[i] + runs.n_reads[i]):
        maker = runs.makers[k]
        if runs.values[k] >= runs.graph.n_inputs:
            is_own = maker >= 0 and segment[maker] == segment[i] and nodes.is_constant[runs.steps[maker]]
            if not is_own or not _reads_constants(runs, nodes, int(maker), segment):
                return False
    return True


def _tokens(
    runs: Runs, bounds: np.ndarray, segment: np.ndarray, waiting: np.ndarray, saved: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the holds of segments wait for, and their segments.

    It is what the segment before made in the backward phase and they read, or else the last that it made.
    """
    graph, varies = runs.graph, _Nodes.of(runs.graph).varies
    is_waiting = np.zeros(len(bounds), bool)
    is_waiting[waiting] = True
    of_read = segment[runs.readers]
    is_token = is_waiting[of_read] & (of_read > 0) & (runs.values >= graph.output_start[graph.n_forward])
    is_token &= (runs.makers >= 0) & (segment[runs.makers] == of_read - 1)
    made = np.unique(runs.makers[is_token] * graph.n_values + runs.values[is_token])
    tokens, segments = made % graph.n_values, segment[made // graph.n_values] + 1
    n_made = graph.output_start[runs.steps + 1] - graph.output_start[runs.steps]
    for s in np.setdiff1d(waiting, segments).tolist():
        before = np.flatnonzero(n_made[bounds[s - 1] : bounds[s]]) + bounds[s - 1]
        if len(before):
            tokens = np.append(tokens, graph.output_start[runs.steps[before[-1]] + 1] - 1)
            segments = np.append(segments, s)
    at_border = [v for v in (*range(graph.n_inputs), *saved) if varies[v]][-1:]
    constant = np.setdiff1d(waiting, segments[varies[tokens]])
    if at_border and len(constant):
        tokens = np.append(tokens, np.full(len(constant), at_border[0]))
        segments = np.append(segments, constant)
    return tokens, segments


class _Nodes:
    """What the rules need to know of a graph, whatever the schedule, kept with it.

    Attributes:
      varies: Which values depend on an argument; inputs named `constant` and `cotangent` are none.
      is_constant: Which forward nodes read nothing but what such nodes make: XLA merges them with their first run.
      makes_small_constant: Which forward nodes make a key or a scalar of literals alone.
      smallest_input: The smallest input of nodes that read nothing but inputs and constants, -1 for others.
      is_held_when_made: See `held_when_made`.
    """

    def __init__(self, graph: Graph):
        reads = Reads.of(graph)
        starts, values, of_node = reads.start.tolist(), reads.values.tolist(), reads.n.tolist()
        read_lists = [values[i : i + n] for i, n in zip(starts, of_node, strict=True)]
        self.varies = _varies(graph, read_lists)
        is_forward = np.arange(graph.n_nodes) < graph.n_forward
        self.makes_small_constant = is_forward & (reads.n == 0) & (graph.node_bytes <= _SMALL_BYTES)
        makers, is_small = graph.value_node.tolist(), self.makes_small_constant.tolist()
        is_constant = [False] * graph.n_nodes
        for i in range(graph.n_forward):
            is_constant[i] = not is_small[i] and all(makers[v] >= 0 and is_constant[makers[v]] for v in read_lists[i])
        self.is_constant = np.array(is_constant, bool)
        n_bytes = graph.value_bytes.tolist()
        self.smallest_input = np.full(graph.n_nodes, NONE)
        for i, of_node in enumerate(read_lists):
            if all(makers[v] < 0 or is_constant[makers[v]] for v in of_node):
                inputs = [v for v in of_node if makers[v] < 0]
                self.smallest_input[i] = min(inputs, key=n_bytes.__getitem__, default=NONE)
        self.is_held_when_made = _is_shared(graph) & self.varies

    @classmethod
    def of(cls, graph: Graph) -> _Nodes:
        if "nodes for holds" not in graph.memo:
            graph.memo["nodes for holds"] = cls(graph)
        return graph.memo["nodes for holds"]


def _varies(graph: Graph, read_lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Return which values depend on an argument; bool of shape (n_values,)."""
    varies = [not name.startswith(_NOT_ARGUMENTS) for name in graph.input_names]
    varies += [False] * (graph.n_values - len(varies))
    starts = graph.output_start.tolist()
    for i, reads in enumerate(read_lists):
        if any(varies[v] for v in reads):
            varies[starts[i] : starts[i + 1]] = [True] * (starts[i + 1] - starts[i])
    return np.array(varies, bool)


def _is_shared(graph: Graph) -> np.ndarray:
    """Return which values several nodes read that XLA should not make anew for each; bool of shape (n_values,)."""
    node, value = graph.reads
    is_contraction = np.isin(graph.primitives, _CONTRACTIONS)
    n_readers = np.bincount(value, minlength=graph.n_values)
    n_contractions = np.bincount(value[is_contraction[node]], minlength=graph.n_values)
    is_backward = graph.value_node >= graph.n_forward
    is_expanded = np.isin(graph.primitives, EXPANDED)[graph.value_node] if graph.n_nodes else is_backward
    is_large = graph.value_bytes >= _LEAST_SHARED_BYTES
    return is_large & (n_readers >= 2) & (is_backward & (n_contractions >= 1) | is_expanded)
