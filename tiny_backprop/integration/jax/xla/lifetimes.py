"""When each buffer of a compiled program is alive: the schedule with loops opened once, and values followed through it.

The rules are those by which XLA itself lays out its arena (`HloDataflowAnalysis` and `HloLiveRange` of OpenXLA): a
buffer lives from the instruction that defines it to the last one that uses it or hands it on; a loop's condition and
body, a conditional's branches and a call's body are put before the instruction that runs them; what enters a loop lives
until its body begins, what a computation returns until it ends.

Known weak spot: what is known of instructions that XLA runs asynchronously (on GPU and TPU) comes from hand-written
texts only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.xla.assignment import Assignment
from tiny_backprop.integration.jax.xla.hlo import Computation, HloModule, Instruction, Shape

_OPENED = ("while", "call", "conditional", "async-start")
_PASSES_ON = ("bitcast", "opt-barrier", "optimization-barrier", "domain", "add-dependency", "while", "async-update")


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """A loop, branch or call whose instructions are shown inside it.

    Attributes:
      name: Its instruction, and which part of it: `while.3 body`, `conditional.1 branch 0`.
      first: The first position in it.
      last: The last one.
      depth: How many others it lies in.
      trip_count: How often a loop's body runs, None where that is not known or it is no loop's body.
    """

    name: str
    first: int
    last: int
    depth: int
    trip_count: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """The buffers behind a value: the array's or the tuple's own, and those of a tuple's parts."""

    buffer: int | None
    parts: tuple[Tree, ...] = ()

    def all(self) -> Iterator[int]:
        """Yield the numbers of all its buffers."""
        if self.buffer is not None:
            yield self.buffer
        for part in self.parts:
            yield from part.all()


_NOTHING = Tree(None)


@dataclasses.dataclass(frozen=True)
class Lifetimes:
    """A program's schedule, and from when to when each of its buffers is alive.

    Attributes:
      schedule: The instructions in the order in which they run, opened computations once, before their caller.
      position: Position of each instruction by its name.
      loops: Opened computations, outer ones first.
      made: For each buffer, the instruction that defines it.
      first: For each buffer, the position from which it is alive.
      last: The last position at which it is.
      readers: For each buffer, the positions that read it.
      read: For each position, the buffers that it reads.
      doubts: What could not be followed, in sentences.
    """

    schedule: tuple[Instruction, ...]
    position: dict[str, int]
    loops: tuple[Loop, ...]
    made: dict[int, str]
    first: dict[int, int]
    last: dict[int, int]
    readers: dict[int, list[int]]
    read: tuple[tuple[int, ...], ...]
    doubts: tuple[str, ...]

    def made_at(self, buffer: int) -> int:
        """Return the position of the instruction that defines a buffer."""
        return self.position[self.made[buffer]]


def follow(module: HloModule, assignment: Assignment) -> Lifetimes:
    """Return the schedule of a program and the lifetimes of its buffers; about 20 µs per instruction.

    Raises:
      MeasureError: An instruction reads what none before it makes.
    """
    return _Follower(module, assignment).lifetimes()


class _Follower:
    """Walks the schedule once, opened computations inside, and keeps the buffers behind each instruction's value."""

    def __init__(self, module: HloModule, assignment: Assignment):
        self.module = module
        self.defined: dict[str, dict[tuple[int, ...], int]] = {}
        for b in assignment.buffers.values():
            if assignment.allocations[b.allocation].memory != "thread-local":
                self.defined.setdefault(b.instruction, {})[b.index] = b.id
        self.schedule: list[Instruction] = []
        self.position: dict[str, int] = {}
        self.trees: dict[str, Tree] = {}
        self.loops: list[Loop] = []
        self.read: list[tuple[int, ...]] = []
        self.made: dict[int, str] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        self.opened: set[str] = set()
        self.called_twice: dict[str, None] = {}
        self.lost: dict[str, int] = {}

    def lifetimes(self) -> Lifetimes:
        self._open(self.module.entry, {}, 0)
        end = len(self.schedule) - 1
        for i in self.last:
            self.last[i] = min(max(self.last[i], self.first[i]), end)
        doubts = [f"{name} is called from several places and shown at the first one" for name in self.called_twice]
        doubts += [
            f"what {n} instructions {opcode!r} hand on could not be followed: lifetimes of their operands may be longer"
            for opcode, n in self.lost.items()
        ]
        return Lifetimes(
            tuple(self.schedule),
            self.position,
            tuple(sorted(self.loops, key=lambda loop: (loop.depth, loop.first))),
            self.made,
            self.first,
            self.last,
            self.readers,
            tuple(self.read),
            tuple(doubts),
        )

    def _open(self, computation: Computation, arguments: dict[str, Tree], depth: int) -> Tree:
        """Schedule a computation's instructions and return the buffers of its result."""
        self.opened.add(computation.name)
        start = len(self.schedule)
        for instruction in computation.instructions:
            for name in instruction.operands:
                if name not in self.trees:
                    raise MeasureError(f"{instruction.name} reads {name}, which the HLO text does not make before it")
            results = self._open_called(instruction, depth) if instruction.opcode in _OPENED else []
            at = len(self.schedule)
            self.schedule.append(instruction)
            self.position[instruction.name] = at
            handed = arguments.get(instruction.name) or self._handed_on(instruction, results)
            tree = self._tree(instruction.shape, handed, self.defined.get(instruction.name, {}), ())
            self.trees[instruction.name] = tree
            self._note_lost(instruction, tree)
            self._define(instruction, at, start)
            self._extend_all(tree.all(), at)  # also where it is only handed on
            self._use(instruction, at)
        root = self.trees[computation.root.name]
        for i in root.all():  # what lives out lives to the end, which is the position after the last instruction
            self._extend(i, len(self.schedule))
        return root

    def _open_called(self, instruction: Instruction, depth: int) -> list[Tree]:
        """Schedule what an instruction runs and return the results."""
        operands = [self.trees[name] for name in instruction.operands]
        results = []
        for computation, part, its_operands in self._called(instruction, operands):
            if computation.name in self.opened:
                self.called_twice[computation.name] = None
                results.append(self.trees[computation.root.name])
                continue
            parameters = sorted(
                (i for i in computation.instructions if i.opcode == "parameter"), key=lambda i: int(i.argument_text)
            )
            arguments = {p.name: tree for p, tree in zip(parameters, its_operands, strict=False)}
            first = len(self.schedule)
            results.append(self._open(computation, arguments, depth + 1))
            if part == "body":  # what enters the loop is needed until its body begins
                for i in its_operands[0].all():
                    self._extend(i, self.position[parameters[0].name])
            name = f"{instruction.name} {part}".strip()
            trips = instruction.trip_count if part == "body" else None
            self.loops.append(Loop(name, first, len(self.schedule) - 1, depth, trips))
        return results

    def _called(self, instruction: Instruction, operands: list[Tree]) -> Iterator[tuple[Computation, str, list[Tree]]]:
        """Yield what an instruction runs, in order, which part of it that is, and the operands it gets."""
        computations = [self.module.computations[name] for name in instruction.called]
        if instruction.opcode == "while":
            for part, computation in zip(("condition", "body"), computations, strict=True):
                yield computation, part, operands
        elif instruction.opcode == "conditional":
            for i, computation in enumerate(computations):
                yield computation, f"branch {i}", operands[i + 1 : i + 2]
        else:
            for computation in computations:
                yield computation, "", operands

    def _handed_on(self, instruction: Instruction, results: list[Tree]) -> Tree:
        """Return the buffers that an instruction hands on instead of making them."""
        opcode = instruction.opcode
        operands = [self.trees[name] for name in instruction.operands]
        first = operands[0] if operands else _NOTHING
        if opcode == "get-tuple-element":
            return self._part(first, int(instruction.attribute_text.removeprefix("index=").partition(",")[0]))
        if opcode == "tuple":
            return Tree(None, tuple(operands))
        if opcode in _PASSES_ON or opcode == "copy":
            return first
        if opcode in ("call", "conditional"):
            return results[0] if results else _NOTHING
        if opcode == "async-start":
            return Tree(None, (Tree(None, tuple(operands)), results[0] if results else _NOTHING))
        if opcode == "copy-start":
            return Tree(None, (_NOTHING, first))
        if opcode in ("all-gather-start", "collective-permute-start", "send", "recv"):
            return Tree(None, (first,))
        if opcode in ("copy-done", "recv-done"):
            return self._part(first, 0) if opcode == "copy-done" else Tree(None, (self._part(first, 0),))
        if opcode in ("async-done", "all-gather-done", "collective-permute-done"):
            return self._part(first, 1)
        return first if opcode == "all-reduce-done" else _NOTHING

    @staticmethod
    def _part(tree: Tree, i: int) -> Tree:
        return tree.parts[i] if i < len(tree.parts) else _NOTHING

    def _tree(self, shape: Shape, handed: Tree, defined: dict[tuple[int, ...], int], index: tuple[int, ...]) -> Tree:
        """Return the buffers behind a shape: those defined there, else those handed on."""
        if not defined and shape.dtype != "tuple":
            return handed
        buffer = defined.get(index, handed.buffer)
        if shape.dtype != "tuple":
            return Tree(buffer)
        parts = (
            self._tree(part, handed.parts[i] if i < len(handed.parts) else _NOTHING, defined, (*index, i))
            for i, part in enumerate(shape.parts)
        )
        return Tree(buffer, tuple(parts))

    def _note_lost(self, instruction: Instruction, tree: Tree) -> None:
        """Count an instruction behind some array of whose value no buffer is known."""
        if instruction.opcode in ("parameter", "constant") and not self.defined:
            return
        stack = [(instruction.shape, tree)]
        while stack:
            shape, t = stack.pop()
            if shape.dtype == "tuple":
                stack += zip(shape.parts, t.parts, strict=True)
            elif t.buffer is None and shape.num_elements and shape.dtype not in ("token", "opaque"):
                self.lost[instruction.opcode] = self.lost.get(instruction.opcode, 0) + 1
                return

    def _define(self, instruction: Instruction, at: int, start: int) -> None:
        """Begin the lives of what an instruction defines; parameters are there from the start of their computation."""
        for i in self.defined.get(instruction.name, {}).values():
            self.made[i] = instruction.name
            self.first[i] = start if instruction.opcode == "parameter" else at

    def _use(self, instruction: Instruction, at: int) -> None:
        """Keep alive what an instruction reads; taking tuples apart and making them reads no arrays."""
        read: tuple[int, ...] = ()
        if instruction.opcode not in ("tuple", "domain"):
            trees = [self.trees[name] for name in instruction.operands]
            if instruction.opcode in ("get-tuple-element", "copy"):
                read = tuple(t.buffer for t in trees if t.buffer is not None)
            else:
                read = tuple(i for t in trees for i in t.all())
            for i in read:
                self.readers.setdefault(i, []).append(at)
            if instruction.opcode != "while":
                self._extend_all(read, at)
        self.read.append(read)

    def _extend_all(self, buffers: Iterable[int], at: int) -> None:
        for i in buffers:
            self._extend(i, at)

    def _extend(self, buffer: int, at: int) -> None:
        if at > self.last.get(buffer, -1):
            self.last[buffer] = at
