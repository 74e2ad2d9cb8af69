"""Compiled HLO as text: a parser."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from tiny_backprop.errors import TinyBackpropError


class HloError(TinyBackpropError, ValueError):
    """A text is not the HLO of a compiled program."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of an HLO value: an array, or a tuple of shapes.

    Attributes:
      dtype: XLA's name (`f32`, `pred`, `s4`, `token`, …), `tuple` for a tuple.
      dims: Sizes of an array's dimensions.
      layout: What stands in braces after the dimensions (`1,0`), empty where nothing does.
      parts: A tuple's shapes.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    layout: str = ""
    parts: tuple[Shape, ...] = ()

    @property
    def leaves(self) -> tuple[Shape, ...]:
        """The arrays in it, itself if it is one."""
        return tuple(leaf for part in self.parts for leaf in part.leaves) if self.dtype == "tuple" else (self,)

    @property
    def num_elements(self) -> int:
        """Elements of an array; the sum over a tuple."""
        return math.prod(self.dims) if self.dtype != "tuple" else sum(part.num_elements for part in self.parts)


@dataclass(frozen=True)
class Instruction:
    """One HLO instruction.

    Attributes:
      name: Its name without `%`, unique in the program.
      shape: The shape of its value.
      opcode: The operation, as HLO spells it (`dot`, `get-tuple-element`, …).
      argument_text: What stands between the parentheses: operands, a parameter's number, a constant's value.
      attribute_text: What follows the parentheses.
      is_root: Whether it is its computation's result.
    """

    name: str
    shape: Shape
    opcode: str
    argument_text: str
    attribute_text: str
    is_root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions it reads, in order; none for constants and parameters."""
        if self.opcode in ("constant", "parameter", "iota"):
            return ()
        items = _split(_COMMENT.sub("", self.argument_text))
        return tuple(item.split()[-1].lstrip("%") for item in items)

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Attributes by name, as text: `window`, `metadata`, `backend_config`, `calls` and so on."""
        pairs = (item.partition("=") for item in _split(self.attribute_text))
        return {key.strip(): value for key, _, value in pairs}

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls, branches in order."""
        found = dict(_CALLED.findall(_QUOTED.sub("", self.attribute_text)))
        return tuple(name.lstrip("%") for key in _CALLING if key in found for name in _NAME.findall(found[key]))

    @cached_property
    def op_name(self) -> str:
        """The name stack and primitive of the equation it came from, such as `jit(f)/jvp(block0)/tanh`, or `""`."""
        match = _OP_NAME.search(self.attribute_text)
        return re.sub(r"\\(.)", r"\1", match[1]) if match else ""

    @property
    def trip_count(self) -> int | None:
        """How often a `while` runs its body, None where XLA has not written it down."""
        known = _TRIP_COUNT.search(self.attribute_text)
        return int(known[1]) if known else None


@dataclass(frozen=True)
class Computation:
    """A function of HLO: its instructions in their printed order, which is the schedule if the module has one."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction that gives its result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """Shapes of what one of its instructions reads."""
        return tuple(self.by_name[name].shape for name in instruction.operands)


@dataclass(frozen=True)
class HloModule:
    """A parsed program: its computations by name, which of them is the entry, and the text before the first one."""

    name: str
    entry_name: str
    computations: dict[str, Computation]
    preamble: str = ""

    @property
    def entry(self) -> Computation:
        """Where the program starts."""
        return self.computations[self.entry_name]

    @property
    def is_scheduled(self) -> bool:
        """Whether instructions stand in the order in which they run."""
        return "is_scheduled=true" in self.preamble

    def source_line(self, instruction: Instruction) -> str:
        """Return `file:line (function)` of the user's code that an instruction came from, or `""`."""
        frame = _FRAME_ID.search(instruction.attribute_text)
        if frame:
            return self._frames.get(int(frame[1]), "")
        written = _SOURCE.search(instruction.attribute_text)  # as older versions of XLA write it
        return f"{written[1]}:{written[2]}" if written else ""

    @cached_property
    def _frames(self) -> dict[int, str]:
        """Source line of each stack frame, from the tables before the first computation."""
        tables: dict[str, dict[int, str]] = {}
        rows: dict[int, str] = {}
        for line in self.preamble.splitlines():
            if line in _TABLES:
                rows = tables[line] = {}
            elif match := _ROW.match(line):
                rows[int(match[1])] = match[2]
        files, functions = ({i: row.strip('"') for i, row in tables.get(t, {}).items()} for t in _TABLES[:2])
        places: dict[int, str] = {}
        for i, row in tables.get(_TABLES[2], {}).items():
            field = {key: int(n) for key, n in _FIELD.findall(row)}
            file, function = files.get(field.get("file_name_id", 0)), functions.get(field.get("function_name_id", 0))
            if file is not None:
                places[i] = f"{file}:{field.get('line', 0)}" + (f" ({function})" if function else "")
        found = ((i, dict(_FIELD.findall(row))) for i, row in tables.get(_TABLES[3], {}).items())
        lines = {i: places.get(int(field.get("file_location_id", 0)), "") for i, field in found}
        # A frame of ours means that the equation has lost its own, as inside a library's cached jit.
        return {i: "" if line.startswith(_OURS) else line for i, line in lines.items()}


_MODULE = re.compile(r"HloModule ([^\s,]+)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) ?.*\{\s*$")
_FIRST_COMPUTATION = re.compile(r"^(?:ENTRY )?%?[^\s(]+ ?.*\{\s*$", re.MULTILINE)
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%?[\w.\-]+")
_DELIMITER = re.compile(r'"(?:[^"\\]|\\.)*"|[()\[\]{},]')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_CALLING = ("calls", "to_apply", "called_computations", "branch_computations", "true_computation", "false_computation")
_CALLING += ("condition", "body", "select", "scatter")
_CALLED = re.compile(rf"(?:^|[\s,])({'|'.join(_CALLING)})=(\{{[^}}]*\}}|[^\s,]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")
_SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_OURS = str(Path(__file__).parents[3]) + os.sep
_ROW = re.compile(r"(\d+) (.*)")
_FIELD = re.compile(r"(\w+)=(\d+)")


def parse_hlo(hlo_text: str) -> HloModule:
    """Parse the text of a compiled program, `compiled.as_text()`.

    Linear in the length of the text, about 10 µs per instruction; operands and attributes are parsed when first asked
    for. File names and stack frames before the first computation are skipped.

    Args:
      hlo_text: HLO in its long text form, of one module.

    Returns:
      The module.

    Raises:
      HloError: There is no entry computation, or a line cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry_name = ""
    for is_entry, name, lines in _split_computations(hlo_text):
        computations[name] = Computation(name, tuple(map(_parse_instruction, lines)))
        entry_name = name if is_entry else entry_name
    if not entry_name:
        raise HloError(
            f"no ENTRY computation in a text of {len(hlo_text)} characters that starts {hlo_text[:40]!r}: "
            "expected compiled.as_text() of a jax.stages.Compiled."
        )
    module = _MODULE.match(hlo_text)
    first = _FIRST_COMPUTATION.search(hlo_text)
    preamble = hlo_text[: first.start()] if first else ""
    return HloModule(module[1] if module else "", entry_name, computations, preamble)


def parse_shape(text: str) -> Shape:
    """Parse the text of a shape, such as `(f32[2,3]{1,0}, s32[])`.

    Args:
      text: The shape alone.

    Returns:
      The shape.

    Raises:
      HloError: The text is not a shape.

    Example:
      >>> parse_shape("f32[2,3]{1,0}").dims
      (2, 3)
    """
    return _parse_shape(_COMMENT.sub("", text).strip())


@lru_cache(maxsize=16384)
def _parse_shape(text: str) -> Shape:
    if text.startswith("(") and text.endswith(")"):
        return Shape("tuple", parts=tuple(map(parse_shape, _split(text[1:-1]))))
    match = _ARRAY.match(text)
    if match is None:
        raise HloError(f"cannot read the shape {text!r}: expected for instance f32[2,3]{{1,0}} or a tuple of such.")
    dims = tuple(int(d.lstrip(" <=")) for d in match[2].split(",") if d.strip())
    return Shape(match[1], dims, match[3] or "")


def _split_computations(hlo_text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """Yield (is entry, name, instruction texts), an instruction on several lines joined."""
    lines: list[str] | None = None
    head: re.Match[str] | None = None
    for line in hlo_text.splitlines():
        if lines is None:
            head = _COMPUTATION.match(line) if line.endswith("{") else None
            lines = None if head is None else []
        elif line.startswith("}"):
            assert head is not None
            yield head[1] is not None, head[2], lines
            lines = None
        elif _INSTRUCTION.match(line) or not lines:
            lines.append(line)
        else:
            lines[-1] += " " + line.strip()


def _parse_instruction(line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    try:
        assert match is not None
        start = match.end()
        stop = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
        opening = line.index("(", stop)
        closing = _closing(line, opening)
        shape, opcode = parse_shape(line[start:stop]), line[stop:opening].strip()
    except (AssertionError, ValueError, IndexError) as error:
        raise HloError(f"cannot read the HLO line {line.strip()[:200]!r}.") from error
    attribute_text = line[closing + 1 :].lstrip(", ")
    return Instruction(match[2], shape, opcode, line[opening + 1 : closing], attribute_text, match[1] is not None)


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`; quoted strings are passed over."""
    closing = text.find(")", start)
    if "(" not in text[start + 1 : closing] and '"' not in text[start:closing]:
        return closing if closing >= 0 else len(text)
    depth = 0
    for match in _DELIMITER.finditer(text, start):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
            if not depth:
                return match.start()
    raise ValueError("unbalanced brackets")


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and strings."""
    parts, start, depth = [], 0, 0
    for match in _DELIMITER.finditer(text):
        mark = match[0]
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
        elif mark == "," and not depth:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
