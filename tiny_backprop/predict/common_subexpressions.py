"""What a compiler merges as common subexpressions: it stands once.

Only merging goes through a program row by row, and only through those that may have an equal.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 3  # how deep rows are told apart before they are merged one by one


def merge(rows: np.ndarray, keys: np.ndarray, operands: np.ndarray, starts: np.ndarray, n: int) -> list[int]:
    """Return the number that stands for each of `n` after equal rows are merged: the first of them.

    Args:
      rows: Numbers of the rows that may be merged, in order.
      keys: A number for what tells each, beside its operands.
      operands: Numbers below `n` of what they are told by, row after row.
      starts: Where those of each row start, and at the end how many there are.
      n: How many numbers there are, of rows and of other things.
    """
    alike = _alike(rows, keys, operands, starts, n)
    stands = list(range(n))
    known: dict[tuple[int, ...], int] = {}
    operand_list = operands.tolist()
    columns = (c[alike].tolist() for c in (rows, keys, starts[:-1], starts[1:]))
    for row, key, start, end in zip(*columns, strict=True):
        stands[row] = known.setdefault((key, *[stands[o] for o in operand_list[start:end]]), row)
    return stands


def _alike(rows: np.ndarray, keys: np.ndarray, operands: np.ndarray, starts: np.ndarray, n: int) -> np.ndarray:
    """Return which rows may be equal to another, by a hash of what they and their operands are, some deep."""
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
