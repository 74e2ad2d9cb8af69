"""The memory map of a compiled program: every buffer's place in XLA's arena, its life, and the line it comes from."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import html
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tiny_backprop.display import guarded, live_svg, table
from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.assignment import Assignment, read_assignment
from tiny_backprop.integration.jax.hlo import Computation, HloError, HloModule, Instruction, Shape, parse_hlo
from tiny_backprop.integration.jax.lifetimes import Lifetimes, Loop, follow
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


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """One instruction in the order in which they run.

    Attributes:
      instruction: Its name.
      opcode: Its operation.
      op_name: Name stack and primitive of the equation it comes from, or `""`.
      source: `file:line (function)`, or `""`.
      phase: `forward`, `gradient` or `recomputed`; `other` where XLA does not tell, or there is no gradient.
    """

    instruction: str
    opcode: str
    op_name: str
    source: str
    phase: str


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

    def plot(self, ax: Any = None, *, color_by: str = "kind") -> Any:
        """Draw the arena, offset over schedule position; see `tiny_backprop_widgets.plot_memory_map`.

        Args:
          ax: The matplotlib axes to draw into; by default those of a new figure.
          color_by: `"kind"` or `"scope"`.

        Returns:
          The axes.

        Raises:
          MeasureError: There is no map.
        """
        return importlib.import_module("tiny_backprop_widgets").plot_memory_map(self, ax=ax, color_by=color_by)

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
        at_peak = [(format_bytes(b.bytes), b.kind, b.shape, b.scope, b.source or b.op_name) for b in shown[:10]]
        if len(shown) > 10:
            rest = sum(b.bytes for b in shown[10:])
            at_peak.append((format_bytes(rest), f"{len(shown) - 10} more", "", "", ""))
        header = ("alive at the peak", "kind", "shape", "scope", "source")
        doubts = "".join(f"<p>Doubtful: {html.escape(doubt)}.</p>" for doubt in self.doubts)
        return f"<div>{title}<br>{picture}{table(rows)}{table(at_peak, header)}{doubts}</div>"


def decode(program: Program) -> MemoryMap:
    """Decode a program into its memory map; about 0.1 ms per instruction.

    Returns:
      The map; where something is missing or does not fit together, one with XLA's totals alone that says what.
    """
    name = program.hlo_text.partition(",")[0].removeprefix("HloModule ")[:200]
    totals = (program.temp_bytes, program.output_bytes, program.argument_bytes)
    try:
        module = parse_hlo(program.hlo_text)
        assignment = _assignment_of(program, module)
        lives = follow(module, assignment)
    except (HloError, MeasureError) as error:
        return MemoryMap(name, *totals, missing=str(error).rstrip("."))
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        reason = f"this version of tiny_backprop cannot follow the program: {type(error).__name__}: {error}"
        return MemoryMap(name, *totals, missing=reason)
    describe = _Describer(module, lives)
    buffers, overlaps = _share(sorted(_buffers(assignment, lives, describe), key=lambda b: (b.memory, b.first_use)))
    doubts = list(lives.doubts)
    if overlaps:
        doubts.append(f"{len(overlaps)} pairs of buffers overlap in place and time, first {overlaps[0]}")
    if not module.is_scheduled:
        doubts.append("the program does not say that its instructions stand in the order in which they run")
    found = MemoryMap(
        module.name,
        *totals,
        constant_bytes=assignment.total_bytes("constant"),
        buffers=buffers,
        schedule=tuple(describe.positions),
        loops=lives.loops,
    )
    if found.extent_bytes != found.temp_bytes:
        doubts.append(
            f"the buffers reach {found.extent_bytes} bytes into the arenas, which have {found.temp_bytes} bytes"
        )
    return dataclasses.replace(found, doubts=tuple(doubts))


def _assignment_of(program: Program, module: HloModule) -> Assignment:
    """Return the buffer assignment, once it is clear that it belongs to the program."""
    if not program.assignment:
        raise MeasureError(
            "the backend gives no buffer assignment of this program; CPU does, compilers for an absent device do not"
        )
    assignment = read_assignment(program.assignment, program.names)
    for memory, total in (("temp", program.temp_bytes), ("output", program.output_bytes)):
        found = assignment.total_bytes(memory)
        if found != total:
            raise MeasureError(
                f"the buffer assignment has {found} bytes of memory for {memory}, XLA's totals have {total}: they are "
                "not of the same compilation, or in a format that this version cannot read"
            )
    shapes = {i.name: i.shape for c in module.computations.values() for i in c.instructions}
    for b in assignment.buffers.values():
        if b.instruction not in shapes:
            raise MeasureError(f"the buffer assignment speaks of {b.instruction}, which the HLO text does not have")
        at = shapes[b.instruction]
        for i in b.index:
            if i >= len(at.parts):
                raise MeasureError(f"the buffer assignment speaks of part {b.index} of {b.instruction}: {_text(at)}")
            at = at.parts[i]
        if at.dtype != "tuple" and not _fits(at, b.bytes):
            raise MeasureError(
                f"the buffer assignment gives {b.bytes} bytes to {b.instruction}, which is {_text(at)}: they are not "
                "of the same compilation"
            )
    return assignment


_BITS = re.compile(r"(?:pred|[a-z]+?(\d+))(?:e\d.*)?$")


def _fits(shape: Shape, n_bytes: int) -> bool:
    """Return whether a buffer can hold a shape: exactly, or with padding where the layout has tiles."""
    match = _BITS.match(shape.dtype)
    if match is None:
        return True
    bits_each = int(match[1] or 8)
    dense_bytes = bits_each * shape.num_elements // 8
    if bits_each < 8 or "(" in shape.layout:  # packed or not, padded or not
        return n_bytes >= dense_bytes
    return n_bytes == dense_bytes


def _text(shape: Shape) -> str:
    if shape.dtype == "tuple":
        return f"({', '.join(map(_text, shape.parts[:4]))}{', …' if len(shape.parts) > 4 else ''})"
    return f"{shape.dtype}[{','.join(map(str, shape.dims))}]"


# --- describing ------------------------------------------------------------------------------------------------------

_CONTROL_FLOW = ("parameter", "while", "conditional", "call")
_MOVES = ("bitcast", "broadcast", "convert", "copy", "reshape")
_ADDED_BY_XLA = ("broadcast", "get-tuple-element", "tuple", *_CONTROL_FLOW)
_CONTROL = re.compile(
    r"while|body|cond|closed_call|checkpoint|rematted_computation|remat\d?|custom_[jv][vj]p_call|shard_map|"
    r"branch_\d+_fun|mean_trips_\d+_of_\d+|p?jit\(.*\)"
)
_TRANSFORM = re.compile(r"(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)", re.DOTALL)


def split_name(op_name: str) -> list[str]:
    """Return the parts of an op name, which slashes inside parentheses do not separate."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[()/]", op_name):
        if match[0] == "/" and not depth:
            parts.append(op_name[start : match.start()])
            start = match.end()
        depth = max(0, depth + {"(": 1, ")": -1, "/": 0}[match[0]])
    return [*parts, op_name[start:]]


@functools.lru_cache(maxsize=65536)
def scope_of(op_name: str) -> str:
    """Return the user's scopes in an op name: without primitive, transformations, calls and control flow.

    Example:
      >>> scope_of("jit(loss)/transpose(jvp(block0))/while/body/attention/dot_general")
      'block0/attention'
    """
    kept: list[str] = []
    for part in split_name(op_name)[:-1]:
        while match := _TRANSFORM.fullmatch(part):
            part = match[1]
        kept += [p for p in split_name(part) if p and not _CONTROL.fullmatch(p)]
    return "/".join(kept)


@functools.lru_cache(maxsize=65536)
def phase_of(op_name: str) -> str:
    """Return the phase that an op name tells: `forward`, `gradient`, `recomputed` or `other`.

    What `jvp` marks inside something transposed is a forward phase that runs again, and so is what JAX and planned
    gradients mark as `rematted_computation`.
    """
    phase = "other"
    for part in split_name(op_name):
        part = re.sub(r"^(?:vmap\()+", "", part)
        if part.startswith("transpose("):
            phase = "gradient"
        elif part.startswith("jvp("):
            phase = "recomputed" if phase in ("gradient", "recomputed") else "forward"
        if "rematted_computation" in part:
            phase = "recomputed"
    return phase


class _Describer:
    """Tells where instructions come from and which phase they belong to."""

    def __init__(self, module: HloModule, lives: Lifetimes):
        self.module = module
        self.lives = lives
        self.loops = _innermost(lives)
        self.positions: list[Position] = []
        self._describe_all()

    def at(self, buffer: int) -> Position:
        """Return the position that defines a buffer."""
        return self.positions[self.lives.made_at(buffer)]

    def _describe_all(self) -> None:
        phases: dict[str, str] = {}
        after_backward: set[int] = set()  # buffers that depend on the backward phase
        made: dict[str, list[int]] = {}
        for i, name in self.lives.made.items():
            made.setdefault(name, []).append(i)
        for instruction, read in zip(self.lives.schedule, self.lives.read, strict=True):
            op_name, source = self._origin(instruction)
            phase = phase_of(op_name)
            depends = not after_backward.isdisjoint(read)
            copied = self.at(read[0]) if read and self._copies(instruction) else None
            if copied and copied.op_name:  # the copy of a tensor is that tensor
                op_name, source, phase = copied.op_name, copied.source, copied.phase
            elif phase == "other" and instruction.operands:
                phase = phases.get(instruction.operands[0], "other")
            elif phase == "forward" and depends:
                phase = "recomputed"
            if depends or (phase == "gradient" and read):
                after_backward.update(made.get(instruction.name, ()))
            phases[instruction.name] = phase
            self.positions.append(Position(instruction.name, instruction.opcode, op_name, source, phase))

    def _copies(self, instruction: Instruction) -> bool:
        """Return whether an instruction copies a tensor and no equation asked for that."""
        if instruction.opcode == "fusion" and split_name(instruction.op_name)[-1] in ("", "cond", "while"):
            inside = self.module.computations[instruction.called[0]].instructions
            return all(i.opcode in ("parameter", "copy", "bitcast") for i in inside)
        return instruction.opcode in ("copy", "bitcast")

    def _origin(self, instruction: Instruction) -> tuple[str, str]:
        """Return op name and source line of an instruction, or of what a fusion is made of.

        An array that is filled slice by slice, as a loop fills what it keeps, comes from where its slices do.
        """
        inside = self.module.computations[instruction.called[0]] if instruction.opcode == "fusion" else None
        slices = self._slices(instruction, inside)
        if slices[0]:
            return slices
        if inside is None or instruction.op_name:
            return self._own(instruction)
        named = (i for i in (inside.root, *reversed(inside.instructions)) if i.op_name and i.opcode != "parameter")
        return self._own(next(named, instruction))

    def _slices(self, instruction: Instruction, inside: Computation | None) -> tuple[str, str]:
        """Return where the slices come from that an instruction writes into an array, or two empty texts."""
        root = inside.root if inside else instruction
        if inside and root.opcode == "bitcast":
            root = inside.by_name[root.operands[0]]
        if root.opcode != "dynamic-update-slice":
            return "", ""
        name = root.operands[1]
        while inside:
            made = inside.by_name[name]
            if made.opcode == "parameter":
                name = instruction.operands[int(made.argument_text)]
                break
            if made.opcode not in _MOVES:
                return self._own(made)
            name = made.operands[0]
        position = self.positions[self.lives.position[name]]
        return position.op_name, position.source

    def _own(self, instruction: Instruction) -> tuple[str, str]:
        return instruction.op_name, self.module.source_line(instruction)


def _innermost(lives: Lifetimes) -> list[str]:
    """Return the innermost loop of each position, or `""`."""
    names = [""] * len(lives.schedule)
    for loop in lives.loops:  # inner ones come later
        names[loop.first : loop.last + 1] = [loop.name] * (loop.last + 1 - loop.first)
    return names


def _buffers(assignment: Assignment, lives: Lifetimes, describe: _Describer) -> Iterable[Buffer]:
    """Yield a buffer for each unbroken life of the arrays that must share their memory."""
    groups: dict[int, list[int]] = {}
    for i in lives.first:
        if assignment.buffers[i].bytes:
            groups.setdefault(assignment.group[i], []).append(i)
    for members in groups.values():
        members.sort(key=lambda i: (lives.first[i], i))
        run, end = [members[0]], lives.last[members[0]]
        for i in members[1:]:
            if lives.first[i] > end + 1:
                yield _buffer(run, end, assignment, lives, describe)
                run = []
            run.append(i)
            end = max(end, lives.last[i])
        yield _buffer(run, end, assignment, lives, describe)


def _buffer(run: list[int], end: int, assignment: Assignment, lives: Lifetimes, describe: _Describer) -> Buffer:
    logical = assignment.buffers[run[0]]
    memory = assignment.allocations[logical.allocation].memory
    makers = [lives.schedule[lives.made_at(i)] for i in run]
    told = [describe.at(i) for i in run]
    best = _most_telling(told)
    op_name, source = told[best].op_name, told[best].source
    if not op_name and makers[0].operands:  # something that XLA added: say what it was made from
        read = describe.positions[lives.position[makers[0].operands[0]]]
        op_name, source = read.op_name, read.source
    start = lives.first[run[0]]
    shape = makers[0].shape
    for i in logical.index:
        shape = shape.parts[i]
    always = memory in ("argument", "constant")
    return Buffer(
        memory=memory,
        kind=memory if always else _kind(run, told, told[best], lives, describe.positions),
        bytes=logical.bytes,
        offset_bytes=logical.offset_bytes,
        allocation=logical.allocation,
        first_use=0 if always else start,
        last_use=len(lives.schedule) - 1 if always else end,
        freed_at=len(lives.schedule) if always else end + 1,
        shape=_text(shape),
        instruction=makers[best].name,
        opcode=makers[best].opcode,
        op_name=op_name,
        scope=scope_of(op_name),
        source=source,
        loop=describe.loops[start],
    )


def _most_telling(told: Sequence[Position]) -> int:
    """Return which of some instructions that share a buffer tells most: one that computes and has an equation."""
    order = [(not p.op_name, p.opcode in _ADDED_BY_XLA, p.opcode in _CONTROL_FLOW, k) for k, p in enumerate(told)]
    return min(order)[-1]


def _kind(
    run: Sequence[int], told: Sequence[Position], best: Position, lives: Lifetimes, at: Sequence[Position]
) -> str:
    """Return what a buffer is to the gradient; a copy of an argument is nothing to it."""
    phase = best.phase
    if phase == "other" and best.opcode != "copy":
        phase = next((p.phase for p in told if p.phase != "other"), phase)
    if phase != "forward":
        return phase
    readers = (at[reader].phase for i in run for reader in lives.readers.get(i, ()))
    return "saved" if any(p in ("gradient", "recomputed") for p in readers) else "forward"


def _share(buffers: Sequence[Buffer]) -> tuple[tuple[Buffer, ...], list[str]]:
    """Return the buffers, each freed where another takes its bytes over, and the pairs that overlap otherwise."""
    freed = [b.freed_at for b in buffers]
    overlaps: list[str] = []
    alive: dict[int, list[tuple[int, int]]] = {}  # by allocation: (offset, which), sorted
    for k in sorted(range(len(buffers)), key=lambda k: buffers[k].first_use):
        b = buffers[k]
        own = alive.setdefault(b.allocation, [])
        at = bisect.bisect_left(own, (b.offset_bytes, -1))
        while at and freed[own[at - 1][1]] <= b.first_use:
            del own[at - 1]
            at -= 1
        before = at - 1 if at else at
        while before < len(own) and own[before][0] < b.offset_bytes + b.bytes:
            other = own[before][1]
            if freed[other] > b.first_use and own[before][0] + buffers[other].bytes > b.offset_bytes:
                if buffers[other].last_use > b.first_use:
                    overlaps.append(f"{buffers[other].instruction} and {b.instruction}")
                    before += 1
                    continue
                freed[other] = b.first_use
            if freed[other] <= b.first_use:
                del own[before]
            else:
                before += 1
        bisect.insort(own, (b.offset_bytes, k))
    changed = (
        b if f == b.freed_at else dataclasses.replace(b, freed_at=f) for b, f in zip(buffers, freed, strict=True)
    )
    return tuple(changed), overlaps


def _frame(buffers: Sequence[Buffer]) -> pd.DataFrame:
    import pandas as pd

    names = [f.name for f in dataclasses.fields(Buffer)]
    return pd.DataFrame([[getattr(b, n) for n in names] for b in buffers], columns=pd.Index(names))
