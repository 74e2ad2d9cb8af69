"""`MemoryMapView`: XLA's arena over the schedule of a compiled program, to zoom, pan, hover and click."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets

import tiny_backprop_widgets.assets as assets
from tiny_backprop.integration.jax.xla.memory_map import Buffer, MemoryMap
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.plots.figure import render
from tiny_backprop_widgets.plots.memory_map import KIND_NAMES, bases_of, by_kind, by_scope, check_map, plot_memory_map
from tiny_backprop_widgets.views.view import View, packed

_TEXTS = ("memory", "kind", "shape", "instruction", "op_name", "scope", "source", "loop")  # as memory_map.js has them
_MOST_LETTERS = 300
_MOST_LOOPS = 2000


class MemoryMapView(View):
    """Where XLA keeps each tensor, and from when to when: offset over schedule position; all measured by XLA.

    Hover over a rectangle to see its tensor; click it to choose it, and to list below what is alive at that position.
    Drag to pan; zoom by the buttons, the keys + and -, or the wheel with the control key held. `plot_memory_map` tells
    what the picture shows.

    Args:
      memory_map: `measure(fun, *args).memory_map`.
      color_by: `"kind"` or `"scope"`.

    Attributes:
      memory_map: The map.
      value: Number of the chosen tensor among `memory_map.buffers`, or None; `observe` it, or assign to it.
      position: The position whose tensors are listed, or None for that of the peak; `memory_map.alive_at` has the same.
      color_by: `"kind"` (saved, recomputed, gradient, …) or `"scope"` (the outermost of the user's named scopes).
      marked: Numbers of further tensors to outline.
      note: A text below the picture.

    Raises:
      DisplayError: `memory_map` is no map.
      MeasureError: The map could not be decoded; `memory_map.missing` says why.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tiny_backprop import measure
      >>> loss = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum()
      >>> m = measure(jax.grad(loss), jnp.ones((64, 64)), jnp.ones((8, 64)))
      >>> view = MemoryMapView(m.memory_map, color_by="scope")
      >>> view.value is None
      True
    """

    kind = "memory_map"
    _esm = assets.module(f"views/{kind}")
    _css = assets.style()

    value = traitlets.Int(None, allow_none=True).tag(sync=True)
    position = traitlets.Int(None, allow_none=True).tag(sync=True)
    color_by = traitlets.Enum(("kind", "scope"), "kind").tag(sync=True)
    marked = traitlets.List(traitlets.Int()).tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    _strings = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _texts = traitlets.Bytes().tag(sync=True)
    _lives = traitlets.Bytes().tag(sync=True)
    _places = traitlets.Bytes().tag(sync=True)
    _groups = traitlets.Bytes().tag(sync=True)
    _schedule = traitlets.Bytes().tag(sync=True)
    _live_bytes = traitlets.Bytes().tag(sync=True)
    _facts = traitlets.Dict().tag(sync=True)

    def __init__(self, memory_map: MemoryMap, *, color_by: str = "kind"):
        check_map("a MemoryMapView", memory_map, color_by)
        self.memory_map = memory_map
        super().__init__(color_by=color_by, **_state(memory_map))

    @traitlets.validate("value")
    def _check_value(self, proposal: Any) -> Any:
        return _in_range("value", "tensor", proposal["value"], len(self.memory_map.buffers))

    @traitlets.validate("position")
    def _check_position(self, proposal: Any) -> Any:
        return _in_range("position", "position", proposal["value"], len(self.memory_map.schedule))

    def choose(self, buffers: Sequence[int], note: str = "") -> None:
        """Choose the tensor that takes most bytes for longest, outline the others, and say why.

        Args:
          buffers: Numbers of tensors among `memory_map.buffers`; none chooses none.
          note: The text below the picture.
        """
        first, *others = by_weight(self.memory_map, buffers) or [None]
        with self.hold_sync():
            self.value, self.note, self.marked = first, note, others
            if first is not None:
                self.position = listed_position(self.memory_map, first)

    def _writers(self) -> Mapping[str, Any]:
        def draw(path: Path) -> None:
            path.write_bytes(self._rendered(path.suffix.lower()[1:]))

        def table(path: Path) -> None:
            self.memory_map.to_pandas().to_csv(path, index=False, lineterminator="\n")

        return {".png": draw, ".svg": draw, ".pdf": draw, ".csv": table}

    def _rendered(self, suffix: str) -> bytes:
        figure = plot_memory_map(self.memory_map, color_by=self.color_by).get_figure(root=True)
        assert figure is not None
        return render(figure, suffix)

    def to_png(self) -> bytes:
        """Return the picture as a PNG file."""
        return self._rendered("png")

    def _pictures(self) -> dict[str, str]:
        return {"image/png": base64.b64encode(self.to_png()).decode()}

    def __repr__(self) -> str:
        return f"MemoryMapView({self.memory_map!r})"


def by_weight(memory_map: MemoryMap, buffers: Sequence[int]) -> list[int]:
    """Return numbers of a map's buffers, the one that takes most bytes for longest first."""

    def weight(buffer: int) -> int:
        b = memory_map.buffers[buffer]
        return b.bytes * (b.freed_at - b.first_use)

    return sorted(buffers, key=weight, reverse=True)


def listed_position(memory_map: MemoryMap, buffer: int) -> int | None:
    """Return the position whose tensors are listed where a buffer is chosen: None, the peak's, if it is alive then."""
    b = memory_map.buffers[buffer]
    return None if b.first_use <= memory_map.peak_position < b.freed_at else b.first_use


def _in_range(trait: str, noun: str, number: int | None, n: int) -> int | None:
    if number is not None and not 0 <= number < n:
        raise traitlets.TraitError(f"{trait} is the number of a {noun}, 0 to {n - 1}; found {number}")
    return number


def _state(memory_map: MemoryMap) -> dict[str, Any]:
    """Return what the page needs of a map: numbers as bytes, each text once."""
    bases = bases_of(memory_map)
    shown = [(i, b) for i, b in enumerate(memory_map.buffers) if b.allocation in bases]
    buffers = [b for _, b in shown]
    numbers: dict[str, int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(text[:_MOST_LETTERS], len(numbers))

    texts = [[number(getattr(b, name)) for name in _TEXTS] for b in buffers]
    schedule = [[number(p.instruction), number(p.op_name)] for p in memory_map.schedule]
    kinds, scopes = _grouped(buffers, by_kind(buffers)[0]), _grouped(buffers, by_scope(buffers)[0])
    names = {"kind": [KIND_NAMES[kind] for kind in kinds[0]], "scope": [s[:_MOST_LETTERS] for s in scopes[0]]}
    places = [[bases[b.allocation] + b.offset_bytes, b.bytes, b.offset_bytes] for b in buffers]
    return {
        "_strings": list(numbers),
        "_texts": packed(texts, np.int32),
        "_lives": packed([[i, b.first_use, b.last_use, b.freed_at] for i, b in shown], np.int32),
        "_places": packed(places, np.float64),
        "_groups": packed(np.stack([kinds[1], scopes[1]], axis=1), np.uint8),
        "_schedule": packed(schedule, np.int32),
        "_live_bytes": packed(memory_map.live_bytes, np.float64),
        "_facts": _facts(memory_map, names),
    }


def _grouped(buffers: Sequence[Buffer], groups: Mapping[str, Sequence[Buffer]]) -> tuple[list[str], np.ndarray]:
    """Return the names of groups, and the number of each buffer's."""
    group = {id(b): g for g, members in enumerate(groups.values()) for b in members}
    return list(groups), np.array([group[id(b)] for b in buffers], np.uint8)


def _facts(memory_map: MemoryMap, groups: Mapping[str, list[str]]) -> dict[str, Any]:
    loops = sorted(memory_map.loops, key=lambda loop: loop.first - loop.last)[:_MOST_LOOPS]
    return {
        "title": f"{memory_map.name[:_MOST_LETTERS]}: temporaries {format_bytes(memory_map.temp_bytes)}, at most "
        f"{format_bytes(memory_map.peak_live_bytes)} of them live; outputs {format_bytes(memory_map.output_bytes)}; "
        f"arguments {format_bytes(memory_map.argument_bytes)}, not shown; measured by XLA",
        "doubts": [doubt[:_MOST_LETTERS] for doubt in memory_map.doubts],
        "n_positions": len(memory_map.schedule),
        "top_bytes": memory_map.temp_bytes + memory_map.output_bytes,
        "temp_extent_bytes": memory_map.extent_bytes,
        "output_bytes": memory_map.output_bytes,
        "peak_position": memory_map.peak_position,
        "peak_live_bytes": memory_map.peak_live_bytes,
        "groups": dict(groups),
        "loops": [
            {
                "name": loop.name[:_MOST_LETTERS],
                "first": loop.first,
                "last": loop.last,
                "depth": loop.depth,
                "trip_count": loop.trip_count,
            }
            for loop in loops
        ],
    }
