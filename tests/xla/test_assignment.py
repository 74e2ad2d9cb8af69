"""Numbers of instructions as modules of several versions write them."""

import pytest

from tiny_backprop import MeasureError
from tiny_backprop.integration.jax.xla.assignment import instruction_names

KIB = 1024


def test_numbers_of_older_modules_are_read_too():
    """Field 35 holds numbers that are unique in the program, or within the computation, whose number is field 5."""

    def message(*fields):
        """Serialize fields: (number, int or bytes)."""
        out = b""
        for number, value in fields:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                out += varint(number << 3 | 2) + varint(len(value)) + value
        return out

    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    def module(*ids):
        instructions = [(2, message((1, f"i{k}".encode()), (35, i))) for k, i in enumerate(ids)]
        return message((3, message(*instructions, (5, 9))))

    assert instruction_names(module(1, 2))[(9 << 32) + 2] == "i1"
    assert instruction_names(module(1, 2))[2] == "i1"
    assert instruction_names(module((9 << 32) + 5)) == {(9 << 32) + 5: "i0"}
    with pytest.raises(MeasureError, match="HloModuleProto of 3 bytes cannot be read"):
        instruction_names(b"\x1a\x7f\x01")
