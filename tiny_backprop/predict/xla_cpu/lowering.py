"""What XLA:CPU writes around nodes.

Contractions read copies of operands in the order of dimensions that their kernels want, and of 16-bit floats in
float32; what they make is copied back and rounded. To these come reciprocals of what is repeated in a division, arrays
of literals that several instructions share, and the kernels on the way to nodes that become several.
"""

from __future__ import annotations

from typing import Any

from tiny_backprop.graph import COPIED
from tiny_backprop.predict.instructions import BROADCAST, CONVERT, COPY, FLAT, RECIPROCAL, SCRATCH
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.predict.lowering import Lowering, Row
from tiny_backprop.predict.xla_cpu.expansions import FIRST, OPERANDS, SECOND
from tiny_backprop.predict.xla_cpu.facts import CpuFacts
from tiny_backprop.schedule.runs import NONE


class CpuLowering(Lowering):
    """What XLA:CPU makes of each node of a graph."""

    facts: CpuFacts

    def __init__(self, facts: CpuFacts):
        super().__init__(facts)
        self.planned = facts.planned_expansions

    def _operands(self, node: int) -> tuple[list[Row], tuple[int, ...]]:
        """Return copies, reciprocals, broadcasts and literals that a node reads, and what it then reads."""
        facts = self.facts
        rows, operands = [], []
        for k, (v, how) in enumerate(facts.reads[node].items()):
            operands.append(len(rows))
            if copies := facts.copied_for_loops.get(node, {}).get(v):
                rows.append(Row(Kind.CHEAP, CONVERT, v, (~k,), ("float32",), (k, 1), moves=False, n_bytes=copies[0]))
                if copies[1]:
                    operands.append(len(rows))
                    rows.append(Row(Kind.KERNEL, CONVERT, v, (operands[-2],), n_bytes=copies[1]))
                continue
            read, n_bytes = ~k, facts.in_float32(v) if facts.is_in_float32[node] else 0
            if n_bytes:
                read = len(rows)
                rows.append(Row(Kind.CHEAP, CONVERT, v, (~k,), ("float32",), (k, 1), moves=False, n_bytes=n_bytes))
                operands[-1] += how > 0
            if how >= COPIED:
                is_dot, is_wide = facts.primitives[node] == "dot_general", n_bytes > 0
                if how > COPIED:  # the order of dimensions is known, or how much there is with an edge
                    key = ("copy", is_dot, is_wide, how)
                    rows.append(Row(Kind.CHEAP, COPY, v, (read,), key, (k, 1), n_bytes=n_bytes))
                    continue
                is_first = not any(r.node == COPY for r in rows)
                key, second = ("copy", is_dot, is_wide, not is_first), ("copy", is_dot, is_wide, True)
                second = second if k > 0 and is_first else None  # the second that is read, of a first that is no copy
                rows.append(Row(Kind.CHEAP, COPY, v, (read,), key, (k, 1), key_of_second=second, n_bytes=n_bytes))
            elif how:
                key = ("flat", n_bytes > 0)
                rows.append(Row(Kind.ALIAS, FLAT, v, (read,), key, (k, 1), follows=True, n_bytes=n_bytes))
            elif not n_bytes:
                operand, is_inverse = ~k, facts.reciprocals.get(node, (NONE,))[0] == v
                if is_inverse:
                    operand = len(rows)
                    rows.append(Row(Kind.EXPENSIVE, RECIPROCAL, facts.reciprocals[node][1], (~k,), ("1/x",), (k, 1)))
                operands[-1] = self._widened(rows, node, k, v, operand, is_inverse)
        if node in facts.literals:
            operands.append(len(rows))
            rows.append(self._literal(node))
        return rows, tuple(operands)

    def _key(self, node: int) -> tuple[Any, ...]:
        is_first = self.facts.is_first
        return self._first_key(node, is_first[node]) if node in is_first else super()._key(node)

    def _first_key(self, node: int, operation: str) -> tuple[Any, ...]:
        """Return what tells an operation of 16-bit floats that others begin with."""
        start = self.facts.starts[node]
        return operation, self.facts.shapes[start], self.facts.dtypes[start]

    def _literal(self, node: int) -> Row:
        """Return the array of the literal that a node scales or shifts by."""
        facts, out = self.facts, self.facts.starts[node]
        key = ("literal", facts.literals[node], facts.shapes[out], facts.dtypes[out])
        return Row(Kind.CHEAP, BROADCAST, out, (), key)

    def _stages(self, rows: list[Row], node: int, operands: tuple[int, ...], is_planned: bool) -> tuple[int, ...]:
        """Add the kernels on the way to a node that XLA writes as several, and return what the node then reads."""
        facts = self.facts
        if node in facts.begins_with:
            start, key = facts.starts[node], self._first_key(node, facts.begins_with[node])
            rows.append(Row(Kind.EXPENSIVE, SCRATCH, start, operands[:1], key, (0, 1)))
            return (*operands, len(rows) - 1)
        expansions = facts.planned_expansions if is_planned else facts.expansions
        if node not in expansions:
            return operands
        expansion, value = expansions[node], facts.starts[node]
        of_node = {OPERANDS: operands, FIRST: operands[:1], SECOND: operands[1:]}
        made: list[tuple[int, ...]] = []

        def read(stages: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(i for s in stages for i in (of_node[s] if s in of_node else made[s]))

        for stage in expansion.stages:
            made.append(tuple(range(len(rows), len(rows) + stage.n_buffers)))
            kind, reads = Kind.CHEAP if stage.is_loop else Kind.KERNEL, read(stage.reads)
            rows += [
                Row(kind, SCRATCH, value, reads, continues=i > 0, n_bytes=stage.n_bytes) for i in range(stage.n_buffers)
            ]
        return read(expansion.reads)

    def _own_bytes(self, node: int, v: int) -> int:
        return self.facts.in_float32(v) if self.facts.is_in_float32[node] else 0

    def _result(self, rows: list[Row], node: int, v: int, row: int) -> int:
        """Add what XLA makes of a result: a copy in another order of dimensions, and one in its own dtype."""
        facts, n_bytes = self.facts, self._own_bytes(node, v)
        if facts.graph.relaid_values[v]:
            rows.append(Row(Kind.CHEAP, COPY, v, (row,), n_bytes=n_bytes))
            row = len(rows) - 1
        if n_bytes:
            kind = Kind.EXPENSIVE if facts.dtypes[v] == "bfloat16" else Kind.CHEAP
            rows.append(Row(kind, CONVERT, v, (row,), moves=False))
            row = len(rows) - 1
        return row
