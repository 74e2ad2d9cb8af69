"""What XLA:CPU does not compute again inside each of the loops that read it.

4. A `CHEAP` instruction with memory of its own that is not unary is computed again only where all that lies between it
   and its readers is fused.
10. What is concatenated along the last dimension, into rows of 64 bytes or more, takes memory, and so do more than
    eight arrays along any; the result is computed in the loop that reads it.
14. A pad or a concatenation takes memory where loops would compute it more than once, and anything where one loop would
    do so more than 15 times: once for each way of finding its elements.

The numbers are those of `fusion`'s rules.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from tiny_backprop.predict.kinds import Kind, names
from tiny_backprop.predict.uses import Uses

_BRANCHES = names("pad concatenate stack")
_JOINS = names("concatenate stack")
_MOST_JOINED, _LEAST_ROW_BYTES, _LEAST_JOINED_BYTES = 8, 64, 2048
_MOST_TIMES = 15
_CHEAP, _EXPENSIVE, _REDUCTION = int(Kind.CHEAP), int(Kind.EXPENSIVE), int(Kind.REDUCTION)


def joins_rows(uses: Uses) -> np.ndarray:
    """Return which instructions concatenate along the last dimension, or more than a few arrays (rule 10)."""
    joins, shapes, values = np.zeros(uses.n, bool), uses.of.graph.value_shapes, uses.of.values
    for i in np.flatnonzero(uses.is_named(_JOINS.__contains__) & (uses.n_operands > 0)).tolist():
        operand, out = shapes[values[uses.operand[i]]], shapes[values[i]]
        is_last = len(operand) == len(out) > 1 and operand[-1] != out[-1]
        row_bytes = uses.n_bytes[i] // max(math.prod(out[:-1]), 1)
        joins[i] = is_last and row_bytes >= _LEAST_ROW_BYTES and uses.n_bytes[i] >= _LEAST_JOINED_BYTES
        joins[i] |= uses.n_operands[i] > _MOST_JOINED
    return joins


def kept(uses: Uses, kinds: np.ndarray) -> np.ndarray:
    """Return the cheap instructions, not unary, that XLA does not compute again for each reader (rule 4).

    It does so only where all that lies between one and its readers can be computed there as well.
    """
    is_shared = (kinds <= _CHEAP) & ~uses.of.is_unary & (uses.n_readers > 1)
    is_kept = is_shared & uses.any_reader(kinds >= _REDUCTION)
    last_reader = np.arange(uses.n)
    last_reader[uses.edge_operand] = uses.edge_reader
    # Only the instructions from an open one to its last reader matter.
    is_open = is_shared & ~is_kept
    sources = np.flatnonzero(is_open)
    depth = np.zeros(uses.n + 1, np.int64)
    depth[sources] = 1
    np.add.at(depth, last_reader[sources], -1)
    is_between = np.cumsum(depth)[:-1] > 0
    edges = np.flatnonzero(is_between[uses.edge_operand])
    is_stop = (kinds > _EXPENSIVE) | ((kinds == _EXPENSIVE) & (uses.n_readers > 1))
    # For each instruction a bit for each source that it depends on, and for each that it does through a stop.
    bit = {o: 1 << k for k, o in enumerate(sources.tolist())}
    below: dict[int, int] = {}
    behind: dict[int, int] = {}
    reach = (uses.edge_reader[edges], uses.edge_operand[edges], is_stop[uses.edge_operand[edges]])
    for i, o, stops in zip(*(a.tolist() for a in reach), strict=True):
        through = below.get(o, 0)
        own = bit.get(o, 0)
        if through or own:
            below[i] = below.get(i, 0) | through | own
            behind[i] = behind.get(i, 0) | (through if stops else behind.get(o, 0))
    for o in sources.tolist():
        is_kept[o] = any(behind.get(r, 0) & bit[o] for r in uses.readers(o))
    return is_kept


def add_repeated(uses: Uses, kinds: np.ndarray, needed: np.ndarray, is_plain: np.ndarray) -> None:
    """Give memory to pads and concatenations computed more than once, and to all that is often (rule 14).

    A loop computes an instruction once for each way of finding its elements: readers that keep the place share
    one, each of the others has its own, for each way of its own.

    Args:
      uses: Who reads what.
      kinds: `Kind` of each instruction.
      needed: Which instructions have memory; changed in place.
      is_plain: Which can be computed inside loops.
    """
    is_inner, of = is_plain & ~needed, uses.of
    is_pad = is_inner & uses.is_named(_BRANCHES.__contains__)
    if not is_pad.any():
        return
    is_copied = is_plain & needed & (kinds < _EXPENSIVE) & of.is_unary
    passes, ways, counts = is_inner | is_copied, dict[int, set[int]](), dict[int, Counter[int]]()

    def root(i: int) -> set[int]:
        counts[i + uses.n] = Counter({i: 1})
        return {i + uses.n}

    is_sliced = is_inner & uses.any_reader(of.moves) & (uses.n_readers > 1)
    for i in _region(uses, is_pad | is_sliced, passes):
        ways[i] = set() if is_inner[i] else root(i)
        for r in uses.readers(i):
            if not is_plain[r]:
                continue
            of_reader = ways[r] if passes[r] else root(r)
            if not of.moves[r] and of.shapes[r] == of.shapes[i]:
                ways[i] |= of_reader
            else:
                counts[r] = sum((counts[w] for w in of_reader), Counter[int]())
                ways[i].add(r)
        n_times = sum((counts[w] for w in ways[i]), Counter[int]())
        if (is_pad[i] and n_times.total() > 1) or max(n_times.values(), default=0) > _MOST_TIMES:
            needed[i], ways[i] = True, root(i)


def _region(uses: Uses, is_start: np.ndarray, passes: np.ndarray) -> list[int]:
    """Return some instructions and what reads them through others that are computed inside, last ones first."""
    waiting = np.flatnonzero(is_start).tolist()
    region, inside = set(waiting), passes.tolist()
    while waiting:
        further = {r for r in uses.readers(waiting.pop()) if inside[r]} - region
        region |= further
        waiting += further
    return sorted(region, reverse=True)
