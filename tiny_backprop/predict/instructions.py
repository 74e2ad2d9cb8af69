"""A program as the compiler is given it: its instructions, as arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from tiny_backprop.graph import Graph

HELD, PREDICATE, COPY, BROADCAST, FLAT, RECIPROCAL, CONVERT, SCRATCH = -1, -2, -3, -4, -5, -6, -7, -8
"""Stand in `Instructions.nodes` for what no node of the graph makes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Instructions:
    """Instructions in the order of the program, as arrays with an entry for each.

    Attributes:
      graph: The graph.
      returned: The instructions that the program returns, each with its first place among the outputs.
      kinds: `Kind` of each.
      nodes: The node that makes it, or `HELD`, `PREDICATE`, `COPY`, `BROADCAST`, `FLAT`, `RECIPROCAL`, `CONVERT` or
        `SCRATCH`.
      values: The value of the graph that it stands for, -1 for a predicate.
      n_bytes: Its size.
      shapes: A number for its shape, -1 for a predicate.
      primitives: Its primitive, a number in `primitive_names`.
      primitive_names: The primitives, `""` for none.
      operand_start: Instruction i reads `operands[operand_start[i]:operand_start[i + 1]]`.
      operands: The instructions that each reads, without repeats; inputs of the graph are left out.
      steps: Its place in the program; the outputs of one node, or of one hold, have the same.
      is_unary: Whether it reads at most one array of its own rank that is no broadcast.
      moves: Whether an element of it comes from another place of its operand.
      is_shared: Whether something that the compiler expands reads it, too.
      is_absorbed: Whether a reduction that alone reads it takes it in.
      donated_readers: Instructions that read donated inputs of the graph.
      donated: The input that each of them reads.
    """

    graph: Graph
    returned: dict[int, int]
    kinds: np.ndarray
    nodes: np.ndarray
    values: np.ndarray
    n_bytes: np.ndarray
    shapes: np.ndarray
    primitives: np.ndarray
    primitive_names: tuple[str, ...]
    operand_start: np.ndarray
    operands: np.ndarray
    steps: np.ndarray
    is_unary: np.ndarray
    moves: np.ndarray
    is_shared: np.ndarray
    is_absorbed: np.ndarray
    donated_readers: np.ndarray
    donated: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)

    @functools.cached_property
    def readers(self) -> np.ndarray:
        """The instruction that reads each of `operands`."""
        return np.repeat(np.arange(len(self)), np.diff(self.operand_start))


def shape_numbers(graph: Graph) -> np.ndarray:
    """Return the number in `Instructions.shapes` of each value's shape."""
    if "shape numbers" not in graph.memo:
        graph.memo["shape numbers"] = numbered(graph.value_shapes)
    return graph.memo["shape numbers"]


def numbered(things: Iterable[Any]) -> np.ndarray:
    """Return a number for each thing, the same for equal ones."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(x, len(known)) for x in things], np.int64)
