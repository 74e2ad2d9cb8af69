"""Groups, sets and chains of instructions as arrays of numbers."""

from __future__ import annotations

import numpy as np


def starts_of(groups: np.ndarray, n: int) -> np.ndarray:
    """Return where each of `n` groups starts among sorted numbers of groups, and at the end how many there are."""
    return np.append(0, np.cumsum(np.bincount(groups, minlength=n)))


def distinct(keys: np.ndarray, n: int = 1) -> np.ndarray:
    """Return sorted keys without repeats; of those that are equal when divided by `n`, the smallest."""
    keys = np.sort(keys)
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] // n != keys[:-1] // n
    return keys[is_new]


def follow(links: np.ndarray) -> np.ndarray:
    """Return where links, each from an instruction to one or to itself, lead in the end."""
    while not np.array_equal(links, further := links[links]):
        links = further
    return links
