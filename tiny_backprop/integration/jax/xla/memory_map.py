"""The memory map of a compiled program: every buffer's place in XLA's arena, its life, and the line it comes from.

`tiny_backprop.integration.jax.xla.decode` makes one of what XLA hands out.
"""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tiny_backprop.display import guarded, live_svg, short_path, table
from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.xla.lifetimes import Loop
from tiny_backprop.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

GAP = "no buffer"


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """What a compiled program tells of itself, as bytes and text, so that nothing on a device is kept alive.

    Attributes:
      hlo_text: Its scheduled HLO.
      assignment: Its serialized buffer assignment, empty where the backend has none.
      names: Name of each instruction by its number, empty where the backend does not tell.
      temp_bytes: XLA's total of the temporaries.
      output_bytes: That of the outputs, those that share an argument's buffer included.
      argument_bytes: That of the arguments.
    """

    hlo_text: str
    assignment: bytes
    names: dict[int, str]
    temp_bytes: int
    output_bytes: int
    argument_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """A range of bytes that belongs to one tensor for a while.

    Instructions that must share their memory, such as the steps of a loop that update one array, are one buffer, which
    is named after the first of them that comes from an equation.

    Attributes:
      memory: `temp` (XLA's arena), `output`, `argument` or `constant`.
      kind: `saved` (made in the forward phase, read in the backward phase), `forward` (made and read there),
        `recomputed` (of the forward phase, made again), `gradient` (made in the backward phase); `other` where XLA does
        not tell, or there is no gradient.
      bytes: Its size.
      offset_bytes: Where it begins in its allocation.
      allocation: XLA's number of the allocation; temporaries have one or a few arenas.
      first_use: The position in the schedule where it is made.
      last_use: The last position that needs it.
      freed_at: The first position at which the bytes are no longer its: the one after `last_use`, or `last_use` itself
        where the instruction there writes its result over it.
      shape: Dtype and dimensions, such as `f32[8,32]`.
      instruction: The HLO instruction that makes it.
      opcode: That instruction's operation.
      op_name: Name stack and primitive of the equation it comes from, such as `jit(f)/jvp(block0)/tanh`.
      scope: The user's part of that: named scopes.
      source: `file:line (function)` of the user's code, or `""`.
      loop: The innermost loop in which it is made, such as `while.3 body`, or `""`.
      copies: The instruction whose result it is a copy of, where no equation asked for that; else `""`.
    """

    memory: str
    kind: str
    bytes: int
    offset_bytes: int
    allocation: int
    first_use: int
    last_use: int
    freed_at: int
    shape: str
    instruction: str
    opcode: str
    op_name: str
    scope: str
    source: str
    loop: str
    copies: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """One instruction in the order in which they run.

    Attributes:
      instruction: Its name.
      opcode: Its operation.
      op_name: Name stack and primitive of the equation it comes from, or `""`.
      source: `file:line (function)`, or `""`.
      phase: `forward`, `gradient` or `recomputed`; `other` where XLA does not tell, or there is no gradient.
      copies: The instruction whose result it copies, where no equation asked for that; else `""`.
    """

    instruction: str
    opcode: str
    op_name: str
    source: str
    phase: str
    copies: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MemoryMap:
    """Where XLA keeps each tensor of a compiled program, and from when to when; everything here is measured by XLA.

    The schedule opens loops, branches and calls: their instructions have positions of their own, once, before that of
    the instruction that runs them. A map that could not be decoded has totals only, and says why in `missing`; asking
    it for more raises `MeasureError`.

    Attributes:
      name: Name of the program.
      temp_bytes: Bytes of the arenas of temporaries, as XLA's `temp_size_in_bytes` has it.
      output_bytes: Bytes of the outputs.
      argument_bytes: Bytes of the arguments.
      constant_bytes: Bytes of the constants, which XLA counts nowhere; 0 where there is no map.
      buffers: All buffers by memory and first use.
      schedule: All positions.
      loops: Spans of the schedule that are loops, branches or calls, outer ones first.
      missing: Why there is no map, or `""`.
      doubts: What about the map may be wrong, in sentences; empty where all agrees.
    """

    name: str
    temp_bytes: int
    output_bytes: int
    argument_bytes: int
    constant_bytes: int = 0
    buffers: tuple[Buffer, ...] = ()
    schedule: tuple[Position, ...] = ()
    loops: tuple[Loop, ...] = ()
    missing: str = ""
    doubts: tuple[str, ...] = ()

    @functools.cached_property
    def live_bytes(self) -> np.ndarray:
        """Bytes of the arenas that belong to some tensor, at each position; int64 of shape (n_positions,)."""
        return self._live("temp")

    @functools.cached_property
    def live_output_bytes(self) -> np.ndarray:
        """Bytes of the output buffers that belong to some tensor, be it an output or a temporary that is lent one."""
        return self._live("output")

    @property
    def peak_position(self) -> int:
        """The first position with the most live bytes in the arenas; 0 for a program without instructions."""
        live = self.live_bytes
        return int(live.argmax()) if len(live) else 0

    @property
    def peak_live_bytes(self) -> int:
        """The largest of `live_bytes`."""
        return int(self.live_bytes.max(initial=0))

    @property
    def gap_bytes(self) -> int:
        """Bytes of the arenas that belong to no tensor even at the peak: `temp_bytes - peak_live_bytes`."""
        return self.temp_bytes - self.peak_live_bytes

    @functools.cached_property
    def extent_bytes(self) -> int:
        """How far the buffers reach into the arenas, all arenas together; equal to `temp_bytes`."""
        self._check()
        reach: dict[int, int] = {}
        for b in self.buffers:
            if b.memory == "temp":
                reach[b.allocation] = max(reach.get(b.allocation, 0), b.offset_bytes + b.bytes)
        return sum(reach.values())

    def alive_at(self, position: int, memory: str = "temp") -> tuple[Buffer, ...]:
        """Return the buffers of one memory that hold a tensor at a position, largest first.

        Raises:
          MeasureError: There is no map.
        """
        self._check()
        alive = (b for b in self.buffers if b.memory == memory and b.first_use <= position < b.freed_at)
        return tuple(sorted(alive, key=lambda b: -b.bytes))

    def at_peak(self, memory: str = "temp") -> pd.DataFrame:
        """Return the tensors alive at the peak of the arenas, largest first, with their source lines.

        The last row, of kind `no buffer`, is what lies between and above them, so that `bytes` add up to `temp_bytes`
        exactly (to `output_bytes` for outputs).

        Args:
          memory: `"temp"`, or `"output"` for what lies in the output buffers at that position.

        Returns:
          One row per tensor, with the columns of `to_pandas` that matter here.

        Raises:
          MeasureError: There is no map, or `memory` is neither of these.
        """
        totals = {"temp": self.temp_bytes, "output": self.output_bytes}
        if memory not in totals:
            raise MeasureError(f"at_peak({memory!r}): expected 'temp' or 'output'.")
        import pandas as pd

        alive = self.alive_at(self.peak_position, memory)
        columns = ["bytes", "kind", "shape", "scope", "source", "op_name", "instruction", "loop"]
        rows = [[getattr(b, c) for c in columns] for b in alive]
        rows.append([totals[memory] - sum(b.bytes for b in alive), GAP, *[""] * 6])
        return pd.DataFrame(rows, columns=pd.Index(columns))

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per buffer; the columns are the attributes of `Buffer`.

        Raises:
          MeasureError: There is no map.
        """
        self._check()
        return _frame(self.buffers)

    def _live(self, memory: str) -> np.ndarray:
        self._check()
        own = [b for b in self.buffers if b.memory == memory]
        delta = np.zeros(len(self.schedule) + 1, np.int64)
        np.add.at(delta, [b.first_use for b in own], [b.bytes for b in own])
        np.add.at(delta, [b.freed_at for b in own], [-b.bytes for b in own])
        return np.cumsum(delta)[:-1]

    def _check(self) -> None:
        if self.missing:
            raise MeasureError(
                f"no memory map of {self.name}: {self.missing}. XLA's totals are known: temporaries "
                f"{format_bytes(self.temp_bytes)}, outputs {format_bytes(self.output_bytes)}, arguments "
                f"{format_bytes(self.argument_bytes)}."
            )

    def __repr__(self) -> str:
        totals = f"temp {format_bytes(self.temp_bytes)}, outputs {format_bytes(self.output_bytes)}"
        if self.missing:
            return f"MemoryMap({self.name}: {totals}; no map: {self.missing})"
        n_doubts = f"; {len(self.doubts)} doubts" if self.doubts else ""
        return (
            f"MemoryMap({self.name}: {totals}, {len(self.buffers)} buffers over {len(self.schedule)} instructions, "
            f"at most {format_bytes(self.peak_live_bytes)} live at position {self.peak_position}, measured by XLA"
            f"{n_doubts})"
        )

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        rows = [
            ("temporaries", format_bytes(self.temp_bytes)),
            ("outputs", format_bytes(self.output_bytes)),
            ("arguments", format_bytes(self.argument_bytes)),
        ]
        title = f"<b>Memory map of {html.escape(self.name)}</b>, measured by XLA"
        if self.missing:
            return f"<div>{title}{table(rows)}<p>No map: {html.escape(self.missing)}.</p></div>"
        rows[0] = (
            "temporaries",
            f"{format_bytes(self.temp_bytes)}: at most {format_bytes(self.peak_live_bytes)} live, at position "
            f"{self.peak_position} of {len(self.schedule)}, and {format_bytes(self.gap_bytes)} between them",
        )
        rows.append(("constants", f"{format_bytes(self.constant_bytes)}, which XLA counts nowhere"))
        picture = live_svg(self.live_bytes, f"bytes of temporaries over {len(self.schedule)} instructions, by XLA")
        shown = self.alive_at(self.peak_position)
        at_peak = [
            (format_bytes(b.bytes), b.kind, b.shape, b.scope, short_path(b.source) or b.op_name) for b in shown[:10]
        ]
        if len(shown) > 10:
            rest = sum(b.bytes for b in shown[10:])
            at_peak.append((format_bytes(rest), f"{len(shown) - 10} more", "", "", ""))
        header = ("alive at the peak", "kind", "shape", "scope", "source")
        doubts = "".join(f"<p>Doubtful: {html.escape(doubt)}.</p>" for doubt in self.doubts)
        return f"<div>{title}<br>{picture}{table(rows)}{table(at_peak, header)}{doubts}</div>"


def _frame(buffers: Sequence[Buffer]) -> pd.DataFrame:
    import pandas as pd

    names = [f.name for f in dataclasses.fields(Buffer)]
    return pd.DataFrame([[getattr(b, n) for n in names] for b in buffers], columns=pd.Index(names))
