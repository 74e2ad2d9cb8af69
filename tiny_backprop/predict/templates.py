"""The instructions that a run of each node becomes, written once for a graph, as arrays.

A plan is then put together from these by indices: see `unrolled`. Each node has a template; a node some of whose values
are held as soon as they are made has a second one with these holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tiny_backprop.graph import COPIED, Graph
from tiny_backprop.predict.node_facts import FIRST, NARROW, OPERANDS, SECOND, Expansion, Kind, NodeFacts

HELD, PREDICATE, COPY, BROADCAST, FLAT, RECIPROCAL, CONVERT, SCRATCH = -1, -2, -3, -4, -5, -6, -7, -8
"""Stand in `Instructions.nodes` for what no node of the graph makes."""
NONE = -1
_GATHERED = -2  # XLA gathers into a shape of its own, with dimensions of 1 where slices were
_PRIMITIVES = {BROADCAST: "broadcast_in_dim", FLAT: "reshape", RECIPROCAL: "reciprocal"}


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
      is_shared_exp: See `Instructions`.
      continues: Whether it is made together with the row before it.
      follows: Whether it is there only where its first operand is: an alias of an input is an input.
      is_second: Whether it is the copy of what its node reads second, of a first that is not copied.
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
    is_shared_exp: bool = False
    continues: bool = False
    follows: bool = False
    is_second: bool = False
    n_bytes: int = 0


class Templates:
    """The templates of a graph as arrays, kept with it.

    The first `n_nodes` are those of the nodes as they are; `when_held` gives the other one of each. The last rows
    belong to no template: `predicate_row` and, from `held_row` on, a hold of each value.
    """

    def __init__(self, graph: Graph):
        facts = NodeFacts.of(graph)
        self.graph, self.facts = graph, facts
        self.made_at = np.full((2, graph.n_values), NONE)  # row of its template that stands for a value afterwards
        rows, lengths, self.when_held = [], [], np.arange(graph.n_nodes)
        for node in range(graph.n_nodes):
            of_node = self._rows(node)
            rows += of_node
            lengths.append(len(of_node))
        self.made_at[1] = self.made_at[0]
        for node in range(graph.n_nodes):
            with_holds = self._rows_with_holds(node)
            if with_holds:
                self.when_held[node] = len(lengths)
                rows += with_holds
                lengths.append(len(with_holds))
        self.predicate_row, self.held_row = len(rows), len(rows) + 1
        rows.append(Row(Kind.CHEAP, PREDICATE, NONE, ()))
        rows += [Row(Kind.HOLD, HELD, v, (), continues=True) for v in range(graph.n_values)]
        self.n_rows, self.row_start = np.array(lengths, np.int64), np.cumsum([0, *lengths])[:-1]
        self._write_columns(rows)
        self._write_operands(rows[: self.predicate_row])
        self._write_reads(facts.reads)
        self.donated_behind = self._donated_behind()

    @classmethod
    def of(cls, graph: Graph) -> Templates:
        """Return the templates that are kept with a graph."""
        if "templates" not in graph.memo:
            graph.memo["templates"] = cls(graph)
        return graph.memo["templates"]

    # ---- rows ----

    def _rows(self, node: int, when_held: bool = False) -> list[Row]:
        """Return the rows of a node: copies and broadcasts of what it reads, itself, copies of what it makes."""
        facts = self.facts
        start, end = facts.starts[node], facts.starts[node + 1]
        if facts.kinds[node] == Kind.ALIAS:
            self.made_at[0, start] = 0
            operands = (~0,) if facts.reads[node] else ()
            key, moves = ("alias", facts.shapes[start]), node not in facts.cancelled
            return [Row(Kind.ALIAS, node, start, operands, key, (0, 1), moves=moves, follows=True)]
        rows, operands = self._prepared(node)
        if node in facts.literals:
            operands = (*operands, len(rows))
            key = ("literal", facts.literals[node], facts.shapes[start], facts.dtypes[start])
            rows.append(Row(Kind.CHEAP, BROADCAST, start, (), key))
        if node in facts.waits_for:
            place = {v: k for k, v in enumerate(facts.reads[node])}
            tokens = tuple(~place[v] for v in dict.fromkeys(facts.waits_for[node]))
            operands = (*operands, len(rows))
            rows.append(Row(Kind.CHEAP, PREDICATE, NONE, tokens))
        expansions = facts.held_expansions if when_held else facts.expansions
        if node in expansions:
            operands = self._expand(rows, expansions[node], start, operands)
        key = None
        if facts.is_merged[node]:
            key = (facts.primitives[node], len(facts.reads[node]), facts.shapes[start], facts.dtypes[start])
        traits = facts.is_unary[node], facts.moves[node], facts.is_shared_exp[node]
        for v in range(start, end):
            self.made_at[0, v] = len(rows)
            reads = (0, len(facts.reads[node]))
            n_bytes = facts.in_float32(v) if facts.is_in_float32[node] else 0
            kind = facts.kinds[node]
            rows.append(Row(kind, node, v, operands, key, reads, *traits, continues=v > start, n_bytes=n_bytes))
        for v in range(start, end):
            self._finish(rows, v, facts.is_in_float32[node])
        return rows

    def _finish(self, rows: list[Row], v: int, is_in_float32: bool) -> None:
        """Add what XLA makes of a result: a copy in another order of dimensions, and one in its own dtype."""
        made, facts = self.made_at[0], self.facts
        n_bytes = facts.in_float32(v) if is_in_float32 else 0
        if self.graph.relaid_values[v]:
            rows.append(Row(Kind.CHEAP, COPY, v, (int(made[v]),), n_bytes=n_bytes))
            made[v] = len(rows) - 1
        if n_bytes:
            kind = Kind.EXPENSIVE if facts.dtypes[v] == "bfloat16" else Kind.CHEAP
            rows.append(Row(kind, CONVERT, v, (int(made[v]),), moves=False))
            made[v] = len(rows) - 1

    def _expand(self, rows: list[Row], expansion: Expansion, value: int, operands: tuple[int, ...]) -> tuple[int, ...]:
        """Add what XLA makes on the way to a node, and return what the node then reads."""
        made: list[tuple[int, ...]] = []

        def read(stages: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(i for s in stages for i in (of_node[s] if s in of_node else made[s]))

        of_node = {OPERANDS: operands, FIRST: operands[:1], SECOND: operands[1:]}

        for stage in expansion.stages:
            made.append(tuple(range(len(rows), len(rows) + stage.n_buffers)))
            rows += [
                Row(Kind.KERNEL, SCRATCH, value, read(stage.reads), continues=i > 0, n_bytes=stage.n_bytes)
                for i in range(stage.n_buffers)
            ]
        return read(expansion.reads)

    def _prepared(self, node: int) -> tuple[list[Row], tuple[int, ...]]:
        """Return copies, reciprocals and broadcasts of what a node reads, and what it then reads."""
        facts, out = self.facts, self.facts.starts[node]
        rows, operands = [], []
        for k, (v, how) in enumerate(facts.reads[node].items()):
            operands.append(len(rows))
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
                key = ("copy", is_dot, is_wide, any(r.node == COPY for r in rows))
                is_second = k > 0 and not key[-1]
                rows.append(Row(Kind.CHEAP, COPY, v, (read,), key, (k, 1), is_second=is_second, n_bytes=n_bytes))
            elif how:
                key = ("flat", n_bytes > 0)
                rows.append(Row(Kind.ALIAS, FLAT, v, (read,), key, (k, 1), follows=True, n_bytes=n_bytes))
            elif not n_bytes:
                operand, is_inverse = ~k, facts.reciprocals.get(node, (NONE,))[0] == v
                if is_inverse:
                    operand = len(rows)
                    rows.append(Row(Kind.EXPENSIVE, RECIPROCAL, facts.reciprocals[node][1], (~k,), ("1/x",), (k, 1)))
                if facts.is_widened[node] and 1 < facts.sizes[v] < facts.sizes[out]:
                    key = ("broadcast", is_inverse, facts.shapes[out], facts.shapes[v])
                    rows.append(Row(Kind.CHEAP, BROADCAST, out, (operand,), key, (k, 1)))
                    operand = len(rows) - 1
                operands[-1] = operand
        return rows, tuple(operands)

    def _rows_with_holds(self, node: int) -> list[Row]:
        """Return the rows of a node and the hold of what it makes, empty where nothing of it is held when made."""
        facts = self.facts
        made = range(facts.starts[node], facts.starts[node + 1])
        held = [v for v in made if facts.is_held_when_made[v] and facts.varies[v] and self.made_at[0, v] != NONE]
        if not held and node not in facts.held_expansions:
            return []
        at_once = self.made_at[0, made.start : made.stop].copy()
        rows, is_alias = self._rows(node, when_held=True), facts.kinds[node] == Kind.ALIAS
        self.made_at[1, made.start : made.stop] = self.made_at[0, made.start : made.stop]
        self.made_at[0, made.start : made.stop] = at_once
        if not held:
            return rows
        predicate, tokens = len(rows), tuple(self.made_at[1, held].tolist())
        rows.append(Row(Kind.CHEAP, PREDICATE, NONE, tokens, follows=is_alias))
        for v, token in zip(held, tokens, strict=True):
            self.made_at[1, v] = len(rows)
            rows.append(Row(Kind.HOLD, HELD, v, (token, predicate), continues=token != tokens[0], follows=is_alias))
        return rows

    # ---- arrays ----

    def _write_columns(self, rows: list[Row]) -> None:
        graph = self.graph
        self.kinds = np.array([int(r.kind) for r in rows])
        self.nodes = np.array([r.node for r in rows])
        self.values = np.array([r.value for r in rows])
        n_bytes = np.array([r.n_bytes for r in rows], np.int64)
        self.n_bytes = np.where(n_bytes, n_bytes, np.append(graph.value_bytes, 1)[self.values])  # a predicate takes 1
        self.shape_of = _numbers(graph.value_shapes)
        self.shapes = np.append(self.shape_of, NONE)[self.values]
        is_gather = np.array([r.node >= 0 and self.facts.primitives[r.node] == "gather" for r in rows], bool)
        self.shapes[is_gather] = _GATHERED
        self.is_unary = np.array([r.is_unary for r in rows])
        self.moves = np.array([r.moves for r in rows])
        self.is_shared_exp = np.array([r.is_shared_exp for r in rows])
        self.is_narrow = np.append([d in NARROW for d in graph.value_dtypes], False)[self.values]
        self.continues = np.array([r.continues for r in rows])
        self.follows = np.array([r.follows for r in rows])
        self.is_second = np.array([r.is_second for r in rows])
        keys = [r.key for r in rows]
        self.keys = _numbers(keys)
        self.key_of_second = _numbers([*keys, *((*k[:-1], True) if k and k[0] == "copy" else k for k in keys)])[
            len(keys) :
        ]
        self.is_merged = np.array([r.key is not None for r in rows])
        self.key_start = np.array([r.key_reads[0] for r in rows])
        self.n_key_reads = np.array([r.key_reads[1] for r in rows])
        names = [self.facts.primitives[r.node] if r.node >= 0 else _PRIMITIVES.get(r.node, "") for r in rows]
        self.primitive_names = tuple(dict.fromkeys(names))
        self.primitives = _numbers(names)

    def _write_operands(self, rows: list[Row]) -> None:
        """Write what rows read, template after template: which row of it reads, and what (see `Row.operands`)."""
        n_operands = np.array([len(r.operands) for r in rows], np.int64)
        row_of = np.repeat(np.arange(len(rows)), n_operands)
        template_of = np.repeat(np.arange(len(self.n_rows)), self.n_rows)
        self.operands = np.array([o for r in rows for o in r.operands], np.int64)
        self.readers = row_of - self.row_start[template_of[row_of]]
        self.n_operands = np.bincount(template_of[row_of], minlength=len(self.n_rows))
        self.operand_start = np.cumsum(self.n_operands) - self.n_operands

    def _write_reads(self, reads: list[dict[int, int]]) -> None:
        """Write what each node reads, without repeats, and the smallest input of those that read no more than such."""
        self.n_reads = np.array([len(r) for r in reads], np.int64)
        self.read_start = np.cumsum(self.n_reads) - self.n_reads
        self.reads = np.array([v for r in reads for v in r], np.int64)
        self.is_constant = np.array(self.facts.is_constant, bool)
        self.smallest_input = np.array([self._smallest_input(r) for r in reads], np.int64)

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

    def _smallest_input(self, reads: Iterable[int]) -> int:
        makers = self.facts.makers
        inputs = [v for v in reads if makers[v] < 0]
        if not all(makers[v] < 0 or self.facts.is_constant[makers[v]] for v in reads):
            return NONE
        return min(inputs, key=self.facts.n_bytes.__getitem__, default=NONE)


def _numbers(things: Iterable[Any]) -> np.ndarray:
    """Return a number for each thing, the same for equal ones."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(x, len(known)) for x in things], np.int64)
