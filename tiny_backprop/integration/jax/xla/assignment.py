"""XLA's record of where every buffer lies, read from the protocol buffers that a compiled program hands out.

The messages are those of `xla/service/hlo.proto` (OpenXLA), cut down to the fields read here; protobuf skips the
others. They are described when this module is imported, in a pool of their own, and not by a generated `_pb2.py`: such
a file runs only with the one or two major versions of protobuf that it was generated for, and the pool cannot clash
with a TensorFlow in the same process, which registers the full messages under their own names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tiny_backprop.errors import MeasureError

_PACKAGE = "tiny_backprop.xla"
# Message → field → (number, type); a type in brackets is repeated, one with a capital is a message.
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "BufferAssignmentProto": {
        "logical_buffers": (1, "[LogicalBufferProto]"),
        "buffer_aliases": (2, "[BufferAlias]"),
        "buffer_allocations": (3, "[BufferAllocationProto]"),
    },
    "LogicalBufferProto": {"id": (1, "int64"), "size": (2, "int64"), "defined_at": (3, "Location")},
    "Location": {"instruction_name": (2, "string"), "shape_index": (3, "[int64]"), "instruction_id": (4, "int64")},
    "BufferAlias": {"source_buffer_id": (1, "int64"), "location": (2, "Location")},
    "BufferAllocationProto": {
        "index": (1, "int64"),
        "size": (2, "int64"),
        "is_thread_local": (3, "bool"),
        "is_entry_computation_parameter": (5, "bool"),
        "maybe_live_out": (7, "bool"),
        "assigned": (9, "[Assigned]"),
        "is_constant": (12, "bool"),
    },
    "Assigned": {"logical_buffer_id": (1, "int64"), "offset": (2, "int64"), "size": (3, "int64")},
    "HloModuleProto": {"computations": (3, "[HloComputationProto]")},
    "HloComputationProto": {"instructions": (2, "[HloInstructionProto]"), "id": (5, "int64")},
    "HloInstructionProto": {"name": (1, "string"), "id": (35, "int64")},
}


def _described() -> descriptor_pool.DescriptorPool:
    """Return a pool that knows the messages of `_FIELDS`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": field_type.TYPE_INT64, "bool": field_type.TYPE_BOOL, "string": field_type.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(name="tiny_backprop/xla.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = field_type.LABEL_REPEATED if kind.startswith("[") else field_type.LABEL_OPTIONAL
            kind = kind.strip("[]")
            if kind in scalars:
                message.field.add(name=field, number=number, label=label, type=scalars[kind])
            else:
                type_name = f".{_PACKAGE}.{kind}"
                message.field.add(
                    name=field, number=number, label=label, type=field_type.TYPE_MESSAGE, type_name=type_name
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _described()


@dataclasses.dataclass(frozen=True, slots=True)
class LogicalBuffer:
    """One array (or table of a tuple's pointers) that an instruction defines, and where XLA put it.

    Attributes:
      id: XLA's number.
      instruction: Name of the instruction that defines it.
      index: Where in the instruction's shape: `()`, or the path into a tuple.
      allocation: Index of the allocation that it lies in.
      offset_bytes: Where it begins there.
      bytes: Its size.
    """

    id: int
    instruction: str
    index: tuple[int, ...]
    allocation: int
    offset_bytes: int
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Allocation:
    """One piece of memory.

    Attributes:
      index: XLA's number.
      bytes: Its size.
      memory: `temp` (an arena of temporaries), `output` (also where an argument was donated for it), `argument`,
        `constant` or `thread-local` (scalars on the stack, which XLA does not count).
    """

    index: int
    bytes: int
    memory: str


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A program's allocations, and what lies in them.

    Attributes:
      allocations: By index.
      buffers: By number.
      group: For each buffer, the least number among those that must share its memory with it.
    """

    allocations: dict[int, Allocation]
    buffers: dict[int, LogicalBuffer]
    group: dict[int, int]

    def total_bytes(self, memory: str) -> int:
        """Return the bytes of all allocations of one kind."""
        return sum(a.bytes for a in self.allocations.values() if a.memory == memory)


def read_assignment(serialized: bytes, names: dict[int, str]) -> Assignment:
    """Read a serialized `BufferAssignmentProto`.

    Args:
      serialized: `compiled.memory_analysis().serialized_buffer_assignment_proto`.
      names: Name of each instruction by its number, see `instruction_names`.

    Raises:
      MeasureError: The bytes are damaged, or speak of an instruction or a buffer that they or `names` do not know.
    """
    message = _parse("BufferAssignmentProto", serialized)
    allocations = {a.index: Allocation(a.index, a.size, _memory(a)) for a in message.buffer_allocations}
    defined = {b.id: b.defined_at for b in message.logical_buffers}
    buffers: dict[int, LogicalBuffer] = {}
    for allocation in message.buffer_allocations:
        for a in allocation.assigned:
            if a.logical_buffer_id not in defined:
                raise MeasureError(
                    f"the buffer assignment places buffer {a.logical_buffer_id}, which it does not define"
                )
            if a.offset < 0 or a.size < 0 or a.offset + a.size > allocation.size:
                raise MeasureError(
                    f"the buffer assignment places bytes {a.offset} to {a.offset + a.size} in allocation "
                    f"{allocation.index} of {allocation.size} bytes"
                )
            at = defined[a.logical_buffer_id]
            index = tuple(at.shape_index)
            name = _name(at, names)
            buffers[a.logical_buffer_id] = LogicalBuffer(
                a.logical_buffer_id, name, index, allocation.index, a.offset, a.size
            )
    return Assignment(allocations, buffers, _groups(message, buffers, names))


def instruction_names(serialized_module: bytes) -> dict[int, str]:
    """Return the name of each instruction by its number, from a serialized `HloModuleProto`.

    Buffer assignments know instructions by numbers, which the text of a program does not have.

    Raises:
      MeasureError: The bytes are damaged.
    """
    names: dict[int, str] = {}
    for computation in _parse("HloModuleProto", serialized_module).computations:
        # Numbers are unique in the program: older versions of XLA number instructions so, later ones within their
        # computation, whose number then takes the upper half.
        upper = computation.id << 32
        names.update((i.id if i.id >> 32 else upper | i.id, i.name) for i in computation.instructions)
        names.update((i.id, i.name) for i in computation.instructions if not i.id >> 32 and i.id not in names)
    return names


def _parse(message_name: str, serialized: bytes) -> Any:
    message = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{message_name}"))()
    try:
        message.ParseFromString(serialized)
    except DecodeError as error:
        raise MeasureError(f"the {message_name} of {len(serialized)} bytes cannot be read: {error}") from error
    return message


def _memory(allocation: Any) -> str:
    """Return the kind of an allocation, told as XLA tells them for its totals."""
    if allocation.maybe_live_out:
        return "output"
    if allocation.is_entry_computation_parameter:
        return "argument"
    if allocation.is_constant:
        return "constant"
    return "thread-local" if allocation.is_thread_local else "temp"


def _name(location: Any, names: dict[int, str]) -> str:
    name = location.instruction_name or names.get(location.instruction_id)
    if name is None and not names:
        raise MeasureError(
            "the backend does not tell which numbers its instructions have, by which the buffer assignment knows them"
        )
    if name is None:
        raise MeasureError(
            f"the buffer assignment speaks of instruction {location.instruction_id}, which the program does not have: "
            "they are not of the same compilation"
        )
    return name


def _groups(message: Any, buffers: dict[int, LogicalBuffer], names: dict[int, str]) -> dict[int, int]:
    """Return for each buffer the least number among those that must share its memory with it."""
    at = {(b.instruction, b.index): i for i, b in buffers.items()}
    group = {i: i for i in buffers}
    for alias in message.buffer_aliases:
        other = at.get((_name(alias.location, names), tuple(alias.location.shape_index)))
        if other is not None and alias.source_buffer_id in group:
            group[alias.source_buffer_id] = min(group[alias.source_buffer_id], other)
    return group
