"""`FifoCache`: a small cache whose oldest entry makes room for a new one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import ClassVar, Generic, TypeVar

_T = TypeVar("_T")


class FifoCache(Generic[_T]):
    """Keeps so many results by key, first in, first out; any thread may ask."""

    _lock: ClassVar = threading.Lock()  # one for all: what is kept with a graph can be copied and pickled

    def __init__(self, most: int):
        self._most = most
        self._made: dict[Hashable, _T] = {}

    def __len__(self) -> int:
        return len(self._made)

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what was made for a key, or make it; two threads that ask at once may both make it."""
        with self._lock:
            if key in self._made:
                return self._made[key]
        made = make()
        with self._lock:
            if len(self._made) >= self._most:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return made

    def forget(self, key: Hashable) -> None:
        """Keep no more what was made for a key."""
        with self._lock:
            self._made.pop(key, None)
