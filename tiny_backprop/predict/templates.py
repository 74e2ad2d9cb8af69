"""The instructions that a run of each node becomes, written once for a graph and a compiler, as arrays.

A plan is then put together from these by indices: see `unrolled`. Each node has a template; a node some of whose values
are held as soon as they are made has a second one with these holds, and so has one that planned gradients run
otherwise.
"""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.instructions import (
    BROADCAST,
    FLAT,
    HELD,
    PREDICATE,
    RECIPROCAL,
    numbered,
    shape_numbers,
)
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.predict.lowering import Lowering, Row
from tiny_backprop.schedule.holds import held_when_made
from tiny_backprop.schedule.runs import NONE

_GATHERED = -2  # XLA gathers into a shape of its own, with dimensions of 1 where slices were
_PRIMITIVES = {BROADCAST: "broadcast_in_dim", FLAT: "reshape", RECIPROCAL: "reciprocal"}


class Templates:
    """The templates of a graph as arrays.

    The first `n_nodes` are those of the nodes as they are; `when_late` gives the one of each where a planned gradient
    runs it late (`Runs.is_late`). The last rows belong to no template: `predicate_row` and, from `held_row` on, a hold
    of each value.
    """

    def __init__(self, lowering: Lowering):
        self.lowering, self.graph = lowering, lowering.facts.graph
        graph, self.facts = self.graph, lowering.facts
        self.made_at = np.full((2, graph.n_values), NONE)  # row of its template that stands for a value afterwards
        rows, lengths, self.when_late = [], [], np.arange(graph.n_nodes)
        for node in range(graph.n_nodes):
            of_node, made = lowering.rows(node)
            self._place(made, 0)
            rows += of_node
            lengths.append(len(of_node))
        self.made_at[1] = self.made_at[0]
        is_held = held_when_made(graph) & (self.made_at[0] != NONE)
        late = {*lowering.planned, *graph.value_node[is_held].tolist()}
        for node in sorted(late):
            of_node = self._rows_when_late(node, is_held)
            self.when_late[node] = len(lengths)
            rows += of_node
            lengths.append(len(of_node))
        self.predicate_row, self.held_row = len(rows), len(rows) + 1
        rows.append(Row(Kind.CHEAP, PREDICATE, NONE, ()))
        rows += [Row(Kind.HOLD, HELD, v, (), continues=True) for v in range(graph.n_values)]
        self.n_rows, self.row_start = np.array(lengths, np.int64), np.cumsum([0, *lengths])[:-1]
        self._write_columns(rows)
        self._write_operands(rows[: self.predicate_row])
        self.donated_behind = self._donated_behind()

    def _place(self, made: dict[int, int], variant: int) -> None:
        for v, row in made.items():
            self.made_at[variant, v] = row

    def _rows_when_late(self, node: int, is_held: np.ndarray) -> list[Row]:
        """Return the rows of a node as planned gradients run it late, and the hold of what is held of it."""
        rows, made = self.lowering.rows(node, is_planned=True)
        self._place(made, 1)
        held = [v for v in made if is_held[v]]
        if not held:
            return rows
        is_alias = self.facts.kinds[node] == Kind.ALIAS
        predicate, tokens = len(rows), tuple(made[v] for v in held)
        rows.append(Row(Kind.CHEAP, PREDICATE, NONE, tokens, follows=is_alias))
        for v, token in zip(held, tokens, strict=True):
            self.made_at[1, v] = len(rows)
            rows.append(Row(Kind.HOLD, HELD, v, (token, predicate), continues=token != tokens[0], follows=is_alias))
        return rows

    def _write_columns(self, rows: list[Row]) -> None:
        graph = self.graph
        self.kinds = np.array([int(r.kind) for r in rows])
        self.nodes = np.array([r.node for r in rows])
        self.values = np.array([r.value for r in rows])
        n_bytes = np.array([r.n_bytes for r in rows], np.int64)
        self.n_bytes = np.where(n_bytes, n_bytes, np.append(graph.value_bytes, 1)[self.values])  # a predicate takes 1
        self.shapes = np.append(shape_numbers(graph), NONE)[self.values]
        is_gather = np.array([r.node >= 0 and self.facts.primitives[r.node] == "gather" for r in rows], bool)
        self.shapes[is_gather] = _GATHERED
        self.is_unary = np.array([r.is_unary for r in rows])
        self.moves = np.array([r.moves for r in rows])
        self.is_shared = np.array([r.is_shared for r in rows])
        self.is_absorbed = np.array(
            [self.facts.is_absorbed[r.node] if r.node >= 0 else r.node in (BROADCAST, FLAT) for r in rows], bool
        )
        self.continues = np.array([r.continues for r in rows])
        self.follows = np.array([r.follows for r in rows])
        self.is_second = np.array([r.key_of_second is not None for r in rows])
        keys = numbered([*(r.key for r in rows), *(r.key_of_second or r.key for r in rows)])
        self.keys, self.key_of_second = keys[: len(rows)], keys[len(rows) :]
        self.is_merged = np.array([r.key is not None for r in rows])
        self.key_start = np.array([r.key_reads[0] for r in rows])
        self.n_key_reads = np.array([r.key_reads[1] for r in rows])
        names = [self.facts.primitives[r.node] if r.node >= 0 else _PRIMITIVES.get(r.node, "") for r in rows]
        self.primitive_names = tuple(dict.fromkeys(names))
        self.primitives = numbered(names)

    def _write_operands(self, rows: list[Row]) -> None:
        """Write what rows read, template after template: which row of it reads, and what (see `Row.operands`)."""
        n_operands = np.array([len(r.operands) for r in rows], np.int64)
        row_of = np.repeat(np.arange(len(rows)), n_operands)
        template_of = np.repeat(np.arange(len(self.n_rows)), self.n_rows)
        self.operands = np.array([o for r in rows for o in r.operands], np.int64)
        self.readers = row_of - self.row_start[template_of[row_of]]
        self.n_operands = np.bincount(template_of[row_of], minlength=len(self.n_rows))
        self.operand_start = np.cumsum(self.n_operands) - self.n_operands

    def _donated_behind(self) -> np.ndarray:
        """Return the donated input that each value is, or an alias of it; -1 for what is none."""
        graph, facts = self.graph, self.facts
        behind = np.full(graph.n_values, NONE)
        behind[list(graph.donated)] = graph.donated
        if graph.donated:
            for node in range(graph.n_nodes):
                if facts.kinds[node] == Kind.ALIAS and facts.reads[node]:
                    behind[facts.starts[node]] = behind[next(iter(facts.reads[node]))]
        return behind
