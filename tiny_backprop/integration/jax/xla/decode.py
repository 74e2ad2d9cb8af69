"""Decode a compiled program into its memory map: text, buffer assignment and lifetimes, put together and checked."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Sequence

from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.xla.assignment import Assignment, read_assignment
from tiny_backprop.integration.jax.xla.hlo import Computation, HloError, HloModule, Instruction, Shape, parse_hlo
from tiny_backprop.integration.jax.xla.lifetimes import Lifetimes, follow
from tiny_backprop.integration.jax.xla.memory_map import Buffer, MemoryMap, Position, Program
from tiny_backprop.integration.jax.xla.op_names import phase_of, scope_of, split_name

_CONTROL_FLOW = ("parameter", "while", "conditional", "call")
_MOVES = ("bitcast", "broadcast", "convert", "copy", "reshape")
_ADDED_BY_XLA = ("broadcast", "get-tuple-element", "tuple", *_CONTROL_FLOW)


def decode(program: Program) -> MemoryMap:
    """Decode a program into its memory map; about 0.1 ms per instruction.

    Returns:
      The map; where something is missing or does not fit together, one with XLA's totals alone that says what.
    """
    try:
        return _decoded(program)
    except (HloError, MeasureError) as error:
        reason = str(error).rstrip(".")
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        reason = f"this version of tiny_backprop cannot follow the program: {type(error).__name__}: {error}"
    name = program.hlo_text.partition(",")[0].removeprefix("HloModule ")[:200]
    return MemoryMap(name, program.temp_bytes, program.output_bytes, program.argument_bytes, missing=reason)


def _decoded(program: Program) -> MemoryMap:
    module = parse_hlo(program.hlo_text)
    assignment = _assignment_of(program, module)
    lives = follow(module, assignment)
    describe = _Describer(module, lives)
    buffers, overlaps = _share(sorted(_buffers(assignment, lives, describe), key=lambda b: (b.memory, b.first_use)))
    doubts = list(lives.doubts)
    if overlaps:
        doubts.append(f"{len(overlaps)} pairs of buffers overlap in place and time, first {overlaps[0]}")
    if not module.is_scheduled:
        doubts.append("the program does not say that its instructions stand in the order in which they run")
    found = MemoryMap(
        module.name,
        program.temp_bytes,
        program.output_bytes,
        program.argument_bytes,
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
            copied, copies = self.at(read[0]) if read and self._copies(instruction) else None, ""
            if copied and copied.op_name:  # the copy of a tensor is that tensor
                op_name, source, phase = copied.op_name, copied.source, copied.phase
                copies = copied.copies or copied.instruction
            elif phase == "other" and instruction.operands:
                phase = phases.get(instruction.operands[0], "other")
            elif phase == "forward" and depends:
                phase = "recomputed"
            if depends or (phase == "gradient" and read):
                after_backward.update(made.get(instruction.name, ()))
            phases[instruction.name] = phase
            self.positions.append(Position(instruction.name, instruction.opcode, op_name, source, phase, copies))

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
        copies=told[best].copies,
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
