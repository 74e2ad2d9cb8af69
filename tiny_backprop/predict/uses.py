"""Which instructions read which: the edges of a program, both ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tiny_backprop.predict.instructions import Instructions


class Uses:
    """Who reads what.

    Attributes:
      of: The instructions.
      n: How many there are.
      n_bytes: Size of each.
      reader: The first reader of each, itself where it has none.
      operand: The first operand of each, itself where it has none.
      n_readers: How many readers each has.
      n_operands: How many operands each has.
      edge_reader: The reader of each read.
      edge_operand: What is read.
      is_returned: Whether the program returns it.
    """

    def __init__(self, instructions: Instructions):
        self.of, self.n, self.n_bytes = instructions, len(instructions), instructions.n_bytes
        self._names, self._primitives = instructions.primitive_names, instructions.primitives
        self.edge_reader, self.edge_operand = instructions.readers, instructions.operands
        self.n_operands = np.diff(instructions.operand_start)
        self.n_readers = np.bincount(self.edge_operand, minlength=self.n)
        self._read_by = self.edge_reader[np.argsort(self.edge_operand, kind="stable")]
        self._read_by_start = np.cumsum(np.append(0, self.n_readers))
        self.operand, self.reader = np.arange(self.n), np.arange(self.n)
        self.operand[self.edge_reader[::-1]] = self.edge_operand[::-1]
        self.reader[self.edge_operand[::-1]] = self.edge_reader[::-1]
        self.is_returned = np.zeros(self.n, bool)
        self.is_returned[list(instructions.returned)] = True

    def name(self, i: int) -> str:
        """Return the primitive of an instruction."""
        return self._names[self._primitives[i]]

    def is_named(self, test: Callable[[str], bool]) -> np.ndarray:
        """Return which instructions have a primitive that passes a test."""
        return np.array([test(p) for p in self._names], bool)[self._primitives]

    def operands(self, i: int) -> list[int]:
        """Return what an instruction reads."""
        start = self.of.operand_start
        return self.edge_operand[start[i] : start[i + 1]].tolist()

    def readers(self, i: int) -> list[int]:
        """Return what reads an instruction."""
        return self._read_by[self._read_by_start[i] : self._read_by_start[i + 1]].tolist()

    def any_reader(self, test: np.ndarray) -> np.ndarray:
        """Return which instructions have a reader that passes a test."""
        found = np.zeros(self.n, bool)
        found[self.edge_operand[test[self.edge_reader]]] = True
        return found
