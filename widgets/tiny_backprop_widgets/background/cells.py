"""Whether the notebook runs a cell: what is done in the background waits meanwhile."""

from __future__ import annotations

import functools
import time
from typing import Any

from IPython.core.getipython import get_ipython


class Cells:
    """Follows an IPython shell; to be made by code that a cell runs."""

    def __init__(self, shell: Any):
        self._n_running, self._last_ended = 1, 0.0  # a cell may run others
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)

    @property
    def last_ran(self) -> float:
        """When a cell ran last, by `time.monotonic`: now, if one does."""
        return time.monotonic() if self._n_running else self._last_ended

    def _begin(self, _: Any) -> None:
        self._n_running += 1

    def _end(self, _: Any) -> None:
        self._n_running, self._last_ended = max(self._n_running - 1, 0), time.monotonic()


def follow_cells() -> Cells | None:
    """Return what follows the cells of the IPython that this runs in; None elsewhere."""
    shell = get_ipython()
    return None if shell is None else _cells_of(shell)


_cells_of = functools.cache(Cells)
