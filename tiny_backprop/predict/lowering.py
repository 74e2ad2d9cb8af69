"""The instructions that a run of a node becomes: rows of its template.

What holds for every XLA compiler stands here: aliases, the broadcasts that JAX leaves unwritten where sizes of 1 meet
larger ones, and what the loops of planned gradients wait for. What a compiler writes around a node beside, a class that
is derived adds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from tiny_backprop.predict.instructions import BROADCAST, PREDICATE
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.predict.node_facts import NodeFacts
from tiny_backprop.schedule.runs import NONE


class Row(NamedTuple):
    """An instruction of a template.

    Attributes:
      kind: Its kind.
      node: The node that makes it, or what else does.
      value: The value that it stands for, -1 for a predicate.
      operands: What it reads: the number of a row of its template, or ~k for the k-th read of its node.
      key: What tells its result, together with `key_reads`; None where it is never merged with another one.
      key_reads: First and number of the reads of its node by which it is told.
      is_unary: See `Instructions`.
      moves: See `Instructions`.
      is_shared: See `Instructions`.
      continues: Whether it is made together with the row before it.
      follows: Whether it is there only where its first operand is: an alias of an input is an input.
      key_of_second: What tells it where its node's first read is none of an input, where that is something else.
      n_bytes: Its size where that is not the value's, else 0.
    """

    kind: Kind
    node: int
    value: int
    operands: tuple[int, ...]
    key: Any = None
    key_reads: tuple[int, int] = (0, 0)
    is_unary: bool = True
    moves: bool = True
    is_shared: bool = False
    continues: bool = False
    follows: bool = False
    key_of_second: Any = None
    n_bytes: int = 0


class Lowering:
    """What a compiler makes of each node of a graph.

    Attributes:
      facts: What is known of each node.
      planned: Nodes that planned gradients run otherwise than JAX's own do.
    """

    facts: NodeFacts
    planned: Collection[int] = ()

    def __init__(self, facts: NodeFacts):
        self.facts = facts

    def rows(self, node: int, is_planned: bool = False) -> tuple[list[Row], dict[int, int]]:
        """Return the rows of a node: what it reads, itself, what is made of its results; and the row of each result.

        Args:
          node: The node.
          is_planned: Whether it is run as planned gradients do where they run it late.
        """
        facts = self.facts
        start, end = facts.starts[node], facts.starts[node + 1]
        if facts.kinds[node] == Kind.ALIAS:
            operands = (~0,) if facts.reads[node] else ()
            key, moves = ("alias", facts.shapes[start]), node not in facts.cancelled
            return [Row(Kind.ALIAS, node, start, operands, key, (0, 1), moves=moves, follows=True)], {start: 0}
        rows, operands = self._operands(node)
        if node in facts.waits_for:
            place = {v: k for k, v in enumerate(facts.reads[node])}
            tokens = tuple(~place[v] for v in dict.fromkeys(facts.waits_for[node]))
            operands = (*operands, len(rows))
            rows.append(Row(Kind.CHEAP, PREDICATE, NONE, tokens))
        operands = self._stages(rows, node, operands, is_planned)
        key = self._key(node) if facts.is_merged[node] else None
        traits = facts.is_unary[node], facts.moves[node], facts.is_shared[node]
        made: dict[int, int] = {}
        for v in range(start, end):
            made[v] = len(rows)
            reads, n_bytes = (0, len(facts.reads[node])), self._own_bytes(node, v)
            kind = facts.kinds[node]
            rows.append(Row(kind, node, v, operands, key, reads, *traits, continues=v > start, n_bytes=n_bytes))
        for v in range(start, end):
            made[v] = self._result(rows, node, v, made[v])
        return rows, made

    def _key(self, node: int) -> tuple[Any, ...]:
        """Return what tells the result of a node, together with what it reads."""
        facts, start = self.facts, self.facts.starts[node]
        return facts.primitives[node], len(facts.reads[node]), facts.shapes[start], facts.dtypes[start]

    def _operands(self, node: int) -> tuple[list[Row], tuple[int, ...]]:
        """Return rows for what a node reads, and what it then reads."""
        rows: list[Row] = []
        return rows, tuple(self._widened(rows, node, k, v, ~k) for k, v in enumerate(self.facts.reads[node]))

    def _widened(self, rows: list[Row], node: int, k: int, v: int, operand: int, key: Any = None) -> int:
        """Repeat what is smaller than the result of an element-wise node, and return what the node then reads.

        Args:
          rows: The rows so far.
          node: The node.
          k: Which of its reads it is.
          v: The value that is read.
          operand: The row that stands for it, or ~k.
          key: What tells that row.
        """
        facts, out = self.facts, self.facts.starts[node]
        if not (facts.is_widened[node] and 1 < facts.sizes[v] < facts.sizes[out]):
            return operand
        told = ("broadcast", key, facts.shapes[out], facts.shapes[v])
        rows.append(Row(Kind.CHEAP, BROADCAST, out, (operand,), told, (k, 1)))
        return len(rows) - 1

    def _stages(self, rows: list[Row], node: int, operands: tuple[int, ...], is_planned: bool) -> tuple[int, ...]:
        """Add what is made on the way to a node, and return what the node then reads."""
        return operands

    def _own_bytes(self, node: int, v: int) -> int:
        """Return the bytes of a result as the node itself makes it, 0 where these are the value's."""
        return 0

    def _result(self, rows: list[Row], node: int, v: int, row: int) -> int:
        """Add what is made of a result, and return the row that stands for it afterwards."""
        return row
