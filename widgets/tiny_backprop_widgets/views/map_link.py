"""What is chosen together in the views of a plan and in the memory map of its program, and what is said of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from tiny_backprop.integration.jax.xla.correspondence import kernels_of_positions, pair_buffers
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.plan.plan import Plan
from tiny_backprop_widgets.content.tensors import value_type
from tiny_backprop_widgets.views.memory_map_view import by_weight, listed_position
from tiny_backprop_widgets.views.view import packed

_MOST_LETTERS = 1000
_PART = re.compile(r"(?<=[:;.] )")


class MapLink:
    """Finds the tensor of a plan for a buffer of XLA's, and the other way round.

    The explorer asks it; a report, which has no Python, carries all its answers (`packed_answers`).

    Args:
      plan: The plan.
      memory_map: The map of the program that carries it out.

    Attributes:
      plan: The plan.
      memory_map: The map.
      pairs: What corresponds, and how it was found.

    Raises:
      MeasureError: There is no map.
    """

    def __init__(self, plan: Plan, memory_map: MemoryMap):
        self.plan, self.memory_map = plan, memory_map
        self.pairs = pair_buffers(plan, memory_map)

    def buffers_of(self, value: int) -> list[int]:
        """Return the numbers of the buffers that hold a tensor, the one that takes most bytes for longest first."""
        return by_weight(self.memory_map, self.pairs.buffers_of(value))

    def value_of(self, buffer: int) -> int | None:
        """Return the tensor that a buffer holds, or None."""
        return self.pairs.value_of(buffer)

    def note_of_value(self, value: int) -> str:
        """Say which tensor of the plan is chosen, and which of XLA's buffers hold it."""
        graph = self.plan.graph
        node = int(graph.value_node[value])
        made = graph.primitives[node] if node >= 0 else "the caller"
        name = f"tensor {value}, {value_type(graph, value)}, made by {made}"
        return f"In the plan: {name}. In XLA's memory: {self.pairs.tell_value(value)}."

    def note_of_buffer(self, buffer: int) -> str:
        """Say which tensor of the plan a buffer holds, or why none was found."""
        value = self.value_of(buffer)
        return f"In the plan: none; {self.pairs.tell_buffer(buffer)}." if value is None else self.note_of_value(value)

    @functools.cached_property
    def measured_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the positions of the program lie in the plan, from 0 to 1, and XLA's live bytes there."""
        positions, _ = kernels_of_positions(self.plan, self.memory_map)
        live_bytes = self.memory_map.live_bytes + self.memory_map.live_output_bytes
        return positions[:-1] / max(len(self.plan.materialized.live_bytes), 1), live_bytes

    def packed_answers(self) -> dict[str, Any]:
        """Return what is to be chosen, and said, for each tensor and each buffer, as `page.js` reads it."""
        n_values, n_buffers = self.plan.graph.n_values, len(self.memory_map.buffers)
        found = [self.buffers_of(v) for v in range(n_values)]
        positions = [listed_position(self.memory_map, buffers[0]) if buffers else None for buffers in found]
        values = [self.value_of(i) for i in range(n_buffers)]
        # Notes of the tensors, and then of the buffers that hold none.
        notes = [self.note_of_value(v) for v in range(n_values)]
        notes += ["" if value is not None else self.note_of_buffer(i) for i, value in enumerate(values)]
        return {
            "_starts": packed(_starts(found), np.int32),
            "_buffers": packed([i for buffers in found for i in buffers], np.int32),
            "_positions": packed([-1 if p is None else p for p in positions], np.int32),
            "_values": packed([-1 if v is None else v for v in values], np.int32),
            **_packed_texts(notes),
        }


def _packed_texts(texts: Iterable[str]) -> dict[str, Any]:
    """Return texts as numbers of the parts that they are made of; most parts stand in many of them."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(part, len(numbers)) for part in _PART.split(t[:_MOST_LETTERS])] for t in texts]
    return {
        "_parts": list(numbers),
        "_note_starts": packed(_starts(rows), np.int32),
        "_notes": packed([i for row in rows for i in row], np.int32),
    }


def _starts(rows: Iterable[list[int]]) -> np.ndarray:
    return np.cumsum([0, *map(len, rows)])
