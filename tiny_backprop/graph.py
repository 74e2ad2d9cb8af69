"""The captured program as pure data: nodes in execution order, values with bytes, no JAX.

Values are numbered: first the graph's inputs (arguments and constants), then the outputs of node 0, of node 1, and so
on. Forward nodes come first, backward nodes after them, each phase in its own execution order.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tiny_backprop.display import guarded, table
from tiny_backprop.door import AMOUNT, BYTES, MAPPING, MOST_BYTES, TEXT, TEXTS, Kind, found, instance, one_of
from tiny_backprop.errors import GraphError
from tiny_backprop.json_text import read_json, write_json
from tiny_backprop.record import Record
from tiny_backprop.units import format_bytes, format_flops

if TYPE_CHECKING:
    import pandas as pd

LITERAL = -1
"""Stands in `Graph.operands` and `Graph.outputs` where a number is written into the program."""

TRANSPOSED, FLATTENED, COPIED = -1, 1, 2
"""In `Graph.relaid_operands`: transposed by a dot itself, read as a matrix, or copied into another order of dimensions;
see `copied`."""
ONE = 1
"""In `Graph.relaid_operands`: the number of a literal 1."""

_FORMAT = "tiny_backprop.graph"
_VERSION = 7


@dataclasses.dataclass(frozen=True)
class Value:
    """One input of a graph or one output of a node.

    Attributes:
      index: Number of the value in its graph.
      shape: Shape; `()` for a scalar.
      dtype: Name of the dtype, such as `"float32"` or `"key<fry>"`.
      bytes: Size in bytes.
      node: Index of the node that makes it, or None for an input of the graph.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    node: int | None


@dataclasses.dataclass(frozen=True)
class Node:
    """One equation of the program.

    Attributes:
      index: Position in execution order.
      primitive: Name of the primitive, such as `"dot_general"`.
      is_backward: Whether it belongs to the backward phase.
      operands: Values read, in operand order; None where the operand is a literal.
      outputs: Values made.
      flops: Floating-point operations, by the cost model.
      bytes_moved: Bytes read and written, by the cost model.
      source: `file:line (function)` in the user's code, or `""`.
      scope: Name stack, such as `"block3/attention"`.
      has_effect: Whether it may run only once (it prints, or calls back to the host).
    """

    index: int
    primitive: str
    is_backward: bool
    operands: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    flops: float
    bytes_moved: float
    source: str
    scope: str
    has_effect: bool

    @property
    def bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(v.bytes for v in self.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Nested:
    """Control flow that is one node in each phase: a loop, or branches of which one runs.

    What its steps or branches keep for the backward phase is planned like a program of its own. In the graph it stands
    as one value, the last but one that the forward node makes; the last value of each of the two nodes stands for the
    scratch space that it needs.

    Attributes:
      kind: `"scan"` or `"cond"`.
      forward_node: The node that runs it.
      backward_node: The node that reverses it.
      length: Steps of a loop; 1 for branches.
      bodies: The gradient graph of one step of the loop, or of each branch.
      carries: Which outputs of a step are carries of the next; none for branches.
      first_carry: Which input of a step's graph is its first carry; the others follow, then elements of stacked
        operands.
      carry_bytes: Bytes of all carries together.
      overwrites: Of the forward and of the backward node, pairs of places: of an operand, and of the output that is
        written over it, step by step.
      choice: How it is planned, as plain data; see `tiny_backprop.plan.loops.nested`.
    """

    kind: str
    forward_node: int
    backward_node: int
    length: int
    bodies: tuple[Graph, ...]
    carries: tuple[int, ...]
    first_carry: int
    carry_bytes: int
    overwrites: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    choice: Mapping[str, Any]

    def to_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "bodies": [body.to_data() for body in self.bodies]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Nested:
        """Return what `to_data` returned as plain data."""
        if set(data) != {f.name for f in dataclasses.fields(cls)}:
            raise GraphError(f"the saved graph is damaged: a loop or branches have the fields {sorted(data)}")
        one_of("scan", "cond").check(GraphError, "the kind of a loop or branches", data["kind"])
        for name in ("forward_node", "backward_node", "length", "first_carry", "carry_bytes"):
            BYTES.check(GraphError, f"{name} of a loop or branches", data[name])
        _check_choice(data["choice"])
        bodies = tuple(map(Graph.from_data, _all_of("bodies", data["bodies"], dict)))
        pairs = [_all_of("overwrites", p, list, tuple) for p in _all_of("overwrites", data["overwrites"], list, tuple)]
        forward, backward = (
            tuple((int(i), int(j)) for i, j in (_all_of("overwrites", x, int) for x in p)) for p in pairs
        )
        carries = tuple(_all_of("carries", data["carries"], int))
        made = cls(**{**data, "bodies": bodies, "carries": carries, "overwrites": (forward, backward)})
        made._check_bodies()
        return made

    def _check_bodies(self) -> None:
        """Refuse bodies that are not those of what it is."""
        if not self.bodies or (self.kind == "scan" and len(self.bodies) != 1):
            raise GraphError(f"a scan has one body, branches one each; found a {self.kind} with {len(self.bodies)}")
        for body in self.bodies:
            if not all(0 <= i < body.n_primal_outputs for i in self.carries):
                raise GraphError(f"carries of a {self.kind} must be outputs of its body; found {self.carries}")
            if self.first_carry + len(self.carries) > body.n_inputs:
                raise GraphError(f"a {self.kind} has its first carry at {self.first_carry} of {body.n_inputs} inputs")
            if max(self.length, 1) * float(body.value_bytes.sum(dtype=float)) >= 2.0**63:
                raise GraphError(f"a {self.kind} of {self.length} steps has more bytes than can be counted")


def _pairs(plain: Sequence[Any]) -> list[Sequence[int]]:
    return [_all_of("overwrites", pair, int) for pair in plain]


def _check_choice(choice: Any) -> None:
    """Refuse what cannot say how loops or branches are planned: `tiny_backprop.predict.nested` reads it."""
    MAPPING.check(GraphError, "choice of a loop or branches", choice)
    for part in _all_of("parts", choice.get("parts"), dict):
        _all_of("kept", part.get("kept"), int)
        if part.get("backward") is not None:
            _all_of("backward", part["backward"], int)
        if part.get("schedule") is not None:
            MAPPING.check(GraphError, "schedule of a loop", part["schedule"])
            _all_of("schedule", list(part["schedule"].values()), int, bool)
        for inner in _all_of("nested", part.get("nested"), dict):
            _check_choice(inner)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A call under `jax.checkpoint` in the program of a gradient, as the user wrote it.

    JAX's own gradient runs what is inside of it again before the backward phase first reads something of it, but for
    what its policy saves. Plans are free of it.

    Attributes:
      policy: Its policy, such as `"dots_saveable"`.
      source: `file:line (function)` of the call in the user's code, or `""`.
      parent: The call that it stands in, a place in `Graph.checkpoints`; -1 for none.
      nodes: The nodes of both phases that come from inside of it.
      saved: The forward nodes among them whose results the policy saves.
      offloaded: Those whose results it moves to other memory.
    """

    policy: str
    source: str
    parent: int
    nodes: tuple[int, ...]
    saved: tuple[int, ...]
    offloaded: tuple[int, ...]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Checkpoint:
        """Return what `dataclasses.asdict` returned."""
        if set(data) != {f.name for f in dataclasses.fields(cls)}:
            raise GraphError(f"the saved graph is damaged: a checkpoint has the fields {sorted(data)}")
        for name in ("policy", "source"):
            TEXT.check(GraphError, f"{name} of a checkpoint", data[name])
        _all_of("parent", [data["parent"]], int)
        return cls(**{**data, **{k: tuple(_all_of(k, data[k], int)) for k in ("nodes", "saved", "offloaded")}})


def copied(order: Sequence[int]) -> int:
    """Return what stands in `Graph.relaid_operands` for a copy into an order of dimensions, another for each order."""
    return COPIED + sum(d << 4 * i for i, d in enumerate(order))


class _Nodes(Sequence[Node]):
    """`Graph.nodes`: nodes are made when asked for, so that a graph of 10,000 of them stays cheap."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def __len__(self) -> int:
        return self._graph.n_nodes

    @overload
    def __getitem__(self, i: int) -> Node: ...
    @overload
    def __getitem__(self, i: slice) -> list[Node]: ...
    def __getitem__(self, i: int | slice) -> Node | list[Node]:
        if isinstance(i, slice):
            return [self._graph.node(j) for j in range(*i.indices(len(self)))]
        return self._graph.node(i)

    def __repr__(self) -> str:
        return f"<{len(self)} nodes>"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph(Record):
    """A program, or the gradient of one, as arrays.

    Make one with `capture_graph_jaxpr`, `capture_gradient`, `Graph.from_nodes` or `Graph.from_json`.

    Attributes:
      name: Name of the captured function.
      primitives: Name of the primitive of each node.
      is_backward: Whether each node belongs to the backward phase; forward nodes come first.
      flops: Floating-point operations of each node.
      bytes_moved: Bytes that each node reads and writes.
      rerun_flops: Those of the FLOPs of each node that run again what ran before: steps of a planned loop.
      rerun_bytes_moved: Those of the bytes that each node moves to run that again.
      has_effect: Whether each node may run only once.
      sources: Source line of each node, or `""`.
      scopes: Name stack of each node.
      operand_start: Node i reads `operands[operand_start[i]:operand_start[i + 1]]`.
      operands: Numbers of the values read, in operand order; `LITERAL` for a literal.
      relaid_operands: What XLA:CPU does to each of `operands` for the node that reads it: nothing (0),
        `TRANSPOSED`, `FLATTENED`, or what `copied` returns; for a copy with an edge, `COPIED` and how many elements it
        has; for the kernel of a convolution with a group for each result, `COPIED` and the number of groups. For a
        literal that an array is scaled or shifted by, a number for its value, `ONE` for 1.
      output_start: Node i makes the values `output_start[i]` to `output_start[i + 1] - 1`.
      value_shapes: Shape of each value, inputs first.
      value_dtypes: Dtype name of each value.
      value_bytes: Size of each value in bytes.
      relaid_values: Which values XLA:CPU copies after their node has made them: into another order of dimensions, or
        with something else for what was out of bounds.
      input_names: Name of each input; there are `n_inputs` of them.
      outputs: Numbers of the values that the program returns; `LITERAL` for a literal.
      n_primal_outputs: How many of `outputs` the function itself returns; the others are its gradients.
      nested: The loops and branches that are planned as programs of their own.
      backend: The backend of XLA whose allocation predictions are about, `"cpu"` for what was captured from JAX; `""`
        for a graph made by hand, whose values are counted by plain liveness.
      jax_version: The version of JAX that it was captured with, as (0, 12): predictions are about the XLA that came
        with it. () for the newest that is modelled.
      donated: Numbers of the inputs that the program is given for its own use, in order; see `donate_argnums` of
        `jax.jit`.
      left_alone: Nodes that hold programs of their own and run as the framework has them, and why, in words.
      checkpoints: The calls under `jax.checkpoint` in the program, which JAX's own gradient keeps to; those inside of
        loops and branches are in their bodies.
    """

    name: str
    primitives: tuple[str, ...]
    is_backward: np.ndarray
    flops: np.ndarray
    bytes_moved: np.ndarray
    rerun_flops: np.ndarray
    rerun_bytes_moved: np.ndarray
    has_effect: np.ndarray
    sources: tuple[str, ...]
    scopes: tuple[str, ...]
    operand_start: np.ndarray
    operands: np.ndarray
    relaid_operands: np.ndarray
    output_start: np.ndarray
    value_shapes: tuple[tuple[int, ...], ...]
    value_dtypes: tuple[str, ...]
    value_bytes: np.ndarray
    relaid_values: np.ndarray
    input_names: tuple[str, ...]
    outputs: np.ndarray
    n_primal_outputs: int
    nested: tuple[Nested, ...] = ()
    backend: str = ""
    jax_version: tuple[int, ...] = ()
    donated: tuple[int, ...] = ()
    left_alone: tuple[tuple[int, str], ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()

    def __post_init__(self):
        _check(self)

    # ---- sizes and views ----

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.primitives)

    @property
    def n_inputs(self) -> int:
        """Number of inputs (arguments and constants)."""
        return len(self.input_names)

    @property
    def n_values(self) -> int:
        """Number of values, inputs included."""
        return len(self.value_bytes)

    @functools.cached_property
    def n_forward(self) -> int:
        """Number of forward nodes; nodes `n_forward` and later are backward."""
        return int(self.n_nodes - np.count_nonzero(self.is_backward))

    @property
    def n_backward(self) -> int:
        """Number of backward nodes; 0 for a graph of the forward program alone."""
        return self.n_nodes - self.n_forward

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes in execution order."""
        return _Nodes(self)

    @functools.cached_property
    def value_node(self) -> np.ndarray:
        """The node that makes each value, -1 for inputs; int64 of shape (n_values,)."""
        made = np.repeat(np.arange(self.n_nodes), np.diff(self.output_start))
        return np.concatenate([np.full(self.n_inputs, -1), made])

    @functools.cached_property
    def operand_node(self) -> np.ndarray:
        """The node that reads each entry of `operands`; int64 of shape (len(operands),)."""
        return np.repeat(np.arange(self.n_nodes), np.diff(self.operand_start))

    @functools.cached_property
    def reads(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (node, value) of every read of a value that a node made, without repeats, sorted by node."""
        mask = self.operands >= self.n_inputs
        pairs = np.unique(self.operand_node[mask] * self.n_values + self.operands[mask])
        return pairs // self.n_values, pairs % self.n_values

    @functools.cached_property
    def read_lists(self) -> list[list[int]]:
        """For each node, the values it reads that another node made, without repeats."""
        node, value = self.reads
        bounds = np.searchsorted(node, np.arange(self.n_nodes + 1)).tolist()
        values = value.tolist()
        return [values[i:j] for i, j in itertools.pairwise(bounds)]

    @functools.cached_property
    def node_bytes(self) -> np.ndarray:
        """Bytes that each node makes, all its outputs together; int64 of shape (n_nodes,)."""
        totals = np.concatenate([[0], np.cumsum(self.value_bytes)])
        return totals[self.output_start[1:]] - totals[self.output_start[:-1]]

    @property
    def output_bytes(self) -> int:
        """Bytes of the values that the program returns and a node made, each counted once."""
        made = np.unique(self.outputs[self.outputs >= self.n_inputs])
        return int(self.value_bytes[made].sum())

    @functools.cached_property
    def taken_over(self) -> dict[int, int]:
        """The donated input whose memory an output gets, by the output's place in `outputs`.

        JAX gives each output the first input of its shape and dtype that is left; inputs that nothing reads, it drops.
        """
        is_read = np.isin(self.donated, self.operands) | np.isin(self.donated, self.outputs)
        kinds = list(zip(self.value_shapes, self.value_dtypes, strict=True))
        left = [v for v, read in zip(self.donated, is_read.tolist(), strict=True) if read]
        found = {}
        for place, v in enumerate(self.outputs.tolist()):
            i = next((i for i in left if v != LITERAL and kinds[i] == kinds[v]), None)
            if i is not None:
                left.remove(i)
                found[place] = i
        return found

    @property
    def new_output_bytes(self) -> int:
        """Bytes of those outputs of `output_bytes` that do not get the memory of a donated input."""
        made = {v for place in self.taken_over if (v := int(self.outputs[place])) >= self.n_inputs}
        return self.output_bytes - int(self.value_bytes[list(made)].sum())

    @property
    def activation_bytes(self) -> int:
        """Bytes of everything that the forward phase makes."""
        return int(self.value_bytes[self.n_inputs : self.output_start[self.n_forward]].sum())

    @functools.cached_property
    def has_checkpoints(self) -> bool:
        """Whether it has calls under `jax.checkpoint`, those inside of loops and branches included."""
        return bool(self.checkpoints) or any(body.has_checkpoints for n in self.nested for body in n.bodies)

    @functools.cached_property
    def residuals(self) -> np.ndarray:
        """Numbers of the forward values that some backward node reads, in order."""
        node, value = self.reads
        return np.unique(value[(node >= self.n_forward) & (value < self.output_start[self.n_forward])])

    @functools.cached_property
    def feeds_backward(self) -> np.ndarray:
        """Whether a residual depends on each node, so that it may be recomputed; bool of shape (n_nodes,)."""
        needed = bytearray(self.n_nodes)
        makers = self.value_node.tolist()
        for v in self.residuals.tolist():
            needed[makers[v]] = 1
        for i in range(self.n_forward - 1, -1, -1):
            if needed[i]:
                for v in self.read_lists[i]:
                    needed[makers[v]] = 1
        return np.frombuffer(needed, np.uint8).astype(bool)

    @functools.cached_property
    def memo(self) -> dict[Any, Any]:
        """What planners derive from the graph and keep with it, such as menus; it is neither compared nor saved."""
        return {}

    def value(self, i: int) -> Value:
        """Return value number `i`.

        Raises:
          GraphError: There is no such value.
        """
        if not 0 <= i < self.n_values:
            raise GraphError(f"value {i} was asked for; the graph has values 0 to {self.n_values - 1}")
        node = int(self.value_node[i])
        return Value(
            i, self.value_shapes[i], self.value_dtypes[i], int(self.value_bytes[i]), None if node < 0 else node
        )

    def node(self, i: int) -> Node:
        """Return node `i`; negative indices count from the end.

        Raises:
          IndexError: There is no such node.
        """
        if not -self.n_nodes <= i < self.n_nodes:
            raise IndexError(f"node {i} was asked for; the graph has {self.n_nodes} nodes")
        i = int(i) % self.n_nodes
        operands = self.operands[self.operand_start[i] : self.operand_start[i + 1]].tolist()
        return Node(
            index=i,
            primitive=self.primitives[i],
            is_backward=bool(self.is_backward[i]),
            operands=tuple(None if v == LITERAL else self.value(v) for v in operands),
            outputs=tuple(self.value(v) for v in range(self.output_start[i], self.output_start[i + 1])),
            flops=float(self.flops[i]),
            bytes_moved=float(self.bytes_moved[i]),
            source=self.sources[i],
            scope=self.scopes[i],
            has_effect=bool(self.has_effect[i]),
        )

    # ---- identity ----

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what a plan depends on (nodes, edges, shapes, dtypes, loops; not names, lines and costs)."""
        h = hashlib.sha256()
        h.update(json.dumps([self.primitives, self.value_shapes, self.value_dtypes, self.n_inputs]).encode())
        for a in (
            self.is_backward,
            self.has_effect,
            self.operand_start,
            self.operands,
            self.output_start,
            self.value_bytes,
        ):
            h.update(np.ascontiguousarray(a, np.int64).tobytes() + b"|")
        h.update(np.ascontiguousarray(self.outputs, np.int64).tobytes() + str(self.n_primal_outputs).encode())
        for n in self.nested:
            h.update(json.dumps([n.kind, n.length, [body.fingerprint for body in n.bodies], n.choice]).encode())
        return h.hexdigest()[:16]

    # ---- making, saving, showing ----

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[Mapping[str, Any]],
        *,
        inputs: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
        n_primal_outputs: int | None = None,
        name: str = "graph",
    ) -> Graph:
        """Build a graph that did not come from JAX.

        Args:
          nodes: In execution order, forward nodes first. Each is a mapping with `name`; `bytes` (of its one output);
            and, all optional, `reads` (names of nodes or inputs), `flops`, `bytes_moved`, `is_backward`, `has_effect`,
            `primitive`, `source` and `scope`.
          inputs: Name and bytes of each input.
          outputs: Names of the nodes whose value the program returns.
          n_primal_outputs: How many of `outputs` belong to the function itself; by default those made by forward nodes.
          name: Name of the graph.

        Returns:
          The graph; every value has the shape `(bytes,)` and dtype `uint8`.

        Raises:
          GraphError: A name is unknown or used twice, a node reads a later one, a size is negative, or a forward node
            follows a backward one.

        Example:
          >>> graph = Graph.from_nodes(
          ...     [dict(name="h", bytes=8, flops=1), dict(name="dh", bytes=8, reads=["h"], is_backward=True)],
          ...     outputs=["dh"],
          ... )
          >>> graph.n_forward, graph.n_backward
          (1, 1)
        """
        Kind("nodes in a row", lambda x: isinstance(x, Iterable)).check(GraphError, "nodes", nodes)
        nodes = [_checked_node(i, n) for i, n in enumerate(nodes)]
        MAPPING.or_none().check(GraphError, "inputs", inputs)
        inputs = dict(inputs or {})
        for k, n_input_bytes in inputs.items():
            TEXT.check(GraphError, "the name of an input", k)
            BYTES.check(GraphError, f"the size of the input {k!r}", n_input_bytes)
        TEXTS.check(GraphError, "outputs", outputs)
        BYTES.or_none().check(GraphError, "n_primal_outputs", n_primal_outputs)
        number = {k: i for i, k in enumerate(inputs)}
        operands: list[list[int]] = []
        for n in nodes:
            for r in n.get("reads", ()):
                if r not in number:
                    raise GraphError(f"node {n['name']!r} reads {r!r}, which is no input and no earlier node")
            operands.append([number[r] for r in n.get("reads", ())])
            if n["name"] in number:
                raise GraphError(f"the name {n['name']!r} is used twice")
            number[n["name"]] = len(number)
        unknown = [o for o in outputs if o not in number]
        if unknown:
            raise GraphError(f"the outputs {unknown} are no nodes of the graph")
        n_bytes = [*inputs.values(), *(n["bytes"] for n in nodes)]
        backward = np.array([bool(n.get("is_backward", False)) for n in nodes], bool)
        out = np.array([number[o] for o in outputs], np.int64)
        if n_primal_outputs is None:
            n_primal_outputs = int(np.count_nonzero(out < len(inputs) + np.count_nonzero(~backward)))
        return cls(
            name=name,
            primitives=tuple(str(n.get("primitive", n["name"])) for n in nodes),
            is_backward=backward,
            flops=np.array([n.get("flops", 0.0) for n in nodes], float),
            bytes_moved=np.array([n.get("bytes_moved", 0.0) for n in nodes], float),
            rerun_flops=np.zeros(len(nodes)),
            rerun_bytes_moved=np.zeros(len(nodes)),
            has_effect=np.array([bool(n.get("has_effect", False)) for n in nodes], bool),
            sources=tuple(str(n.get("source", "")) for n in nodes),
            scopes=tuple(str(n.get("scope", "")) for n in nodes),
            operand_start=np.cumsum([0, *map(len, operands)]),
            operands=np.array([v for vs in operands for v in vs], np.int64),
            relaid_operands=np.zeros(sum(map(len, operands)), np.int64),
            output_start=len(inputs) + np.arange(len(nodes) + 1),
            value_shapes=tuple((int(b),) for b in n_bytes),
            value_dtypes=("uint8",) * len(n_bytes),
            value_bytes=np.array(n_bytes, np.int64),
            relaid_values=np.zeros(len(n_bytes), bool),
            input_names=tuple(inputs),
            outputs=out,
            n_primal_outputs=n_primal_outputs,
        )

    def to_json(self) -> str:
        """Return the graph as JSON text; `Graph.from_json` reads it back."""
        return write_json(_FORMAT, _VERSION, self.to_data())

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read a graph that `to_json` wrote.

        Raises:
          GraphError: The text is not such a graph, or was written by another version of the format.
        """
        return cls.from_data(read_json(text, _FORMAT, _VERSION, GraphError))

    def to_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        checkpoints = [dataclasses.asdict(c) for c in self.checkpoints]
        return {**plain, "nested": [n.to_data() for n in self.nested], "checkpoints": checkpoints}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Graph:
        """Return the graph that `to_data` returned as plain data.

        Raises:
          GraphError: The data are not those of a graph.
        """
        MAPPING.check(GraphError, "a saved graph", data)
        names = {f.name for f in dataclasses.fields(cls)}
        if set(data) != names:
            raise GraphError(f"the saved graph has the fields {sorted(set(data) ^ names)} too few or too many")
        try:
            made = {"nested": Nested.from_data, "checkpoints": Checkpoint.from_data}
            fields = {k: _as_array(k, v) for k, v in data.items() if k not in made}
            fields |= {k: tuple(map(make, _all_of(k, data[k], dict))) for k, make in made.items()}
            return cls(**fields)
        except (TypeError, ValueError, OverflowError, IndexError, KeyError) as e:
            raise e if isinstance(e, GraphError) else GraphError(f"the saved graph is damaged: {e}") from None

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per node: primitive, phase, shapes, bytes, FLOPs, source and scope."""
        import pandas as pd

        starts = self.output_start.tolist()
        spans = list(itertools.pairwise(starts))
        operand_names = np.where(self.operands == LITERAL, "literal", np.char.add("v", self.operands.astype(str)))
        bounds = self.operand_start.tolist()
        return pd.DataFrame(
            {
                "primitive": self.primitives,
                "phase": np.where(self.is_backward, "backward", "forward"),
                "operands": [" ".join(operand_names[i:j]) for i, j in itertools.pairwise(bounds)],
                "outputs": [
                    " ".join(f"v{v}:{self.value_dtypes[v]}{list(self.value_shapes[v])}" for v in range(i, j))
                    for i, j in spans
                ],
                "output_bytes": self.node_bytes,
                "flops": self.flops,
                "bytes_moved": self.bytes_moved,
                "has_effect": self.has_effect,
                "scope": self.scopes,
                "source": self.sources,
            },
            index=pd.RangeIndex(self.n_nodes, name="node"),
        )

    def __repr__(self) -> str:
        phases = f"{self.n_forward} forward + {self.n_backward} backward" if self.n_backward else f"{self.n_nodes}"
        return f"Graph({self.name!r}, {phases} nodes, {format_flops(self.flops.sum())}, fingerprint {self.fingerprint})"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        common = ", ".join(f"{n} {p}" for p, n in Counter(self.primitives).most_common(8))
        largest = np.argsort(-self.node_bytes, kind="stable")[:5]
        rows = [
            (i, n.primitive, "backward" if n.is_backward else "forward", format_bytes(n.bytes), n.scope, n.source)
            for i, n in ((int(i), self.node(int(i))) for i in largest)
        ]
        return (
            f"<div><b>{html.escape(self.name)}</b>: {self.n_forward} forward and {self.n_backward} backward nodes, "
            f"{format_flops(float(self.flops.sum()))} and {format_bytes(self.activation_bytes)} of activations "
            f"(predicted)<br>{html.escape(common)}<br>Largest nodes:"
            + table(rows, ("node", "primitive", "phase", "bytes", "scope", "source"))
            + "</div>"
        )


GRAPH = instance(Graph, "Capture one: capture_gradient(fun, *args)")

_NODE = {
    "name": TEXT,
    "bytes": BYTES,
    "reads": TEXTS,
    "flops": AMOUNT,
    "bytes_moved": AMOUNT,
    "primitive": TEXT,
    "source": TEXT,
    "scope": TEXT,
}


def _checked_node(i: int, node: Any) -> dict[str, Any]:
    """Return a node of `Graph.from_nodes`, held against what it must have."""
    MAPPING.check(GraphError, f"node {i}", node)
    if "name" not in node or "bytes" not in node:
        raise GraphError(f"each node needs a name and bytes; found only {sorted(map(str, node))}")
    for key, kind in _NODE.items():
        if key in node:
            kind.check(GraphError, f"{key} of node {i}", node[key])
    return dict(node)


_INT_ARRAYS = ("operand_start", "operands", "relaid_operands", "output_start", "value_bytes", "outputs")
_TEXTS = ("primitives", "sources", "scopes", "value_dtypes", "input_names")
_BOOL_ARRAYS = ("is_backward", "has_effect", "relaid_values")
_FLOAT_ARRAYS = ("flops", "bytes_moved", "rerun_flops", "rerun_bytes_moved")


def _as_array(name: str, plain: Any) -> Any:
    """Return a field of a graph from plain data: an array, a tuple (of tuples), or what it is."""
    for names, dtype, kinds in (
        (_INT_ARRAYS, np.int64, (int,)),
        (_BOOL_ARRAYS, bool, (bool,)),
        (_FLOAT_ARRAYS, float, (int, float)),
    ):
        if name in names:
            return np.array(_all_of(name, plain, *kinds), dtype)
    if name in _TEXTS:
        return tuple(_all_of(name, plain, str))
    if name == "value_shapes":
        return tuple(tuple(_all_of(name, shape, int)) for shape in _all_of(name, plain, list, tuple))
    if name in ("donated", "jax_version"):
        return tuple(_all_of(name, plain, int))
    if name == "left_alone":
        return tuple(tuple(_all_of(name, pair, int, str)) for pair in _all_of(name, plain, list, tuple))
    return _all_of(name, [plain], *((int,) if name == "n_primal_outputs" else (str,)))[0]


def _all_of(name: str, plain: Any, *kinds: type) -> Sequence[Any]:
    """Return what must be a list, each of its elements of one of some types; whole numbers are 63 bits and a sign."""
    if not isinstance(plain, (list, tuple)):
        raise GraphError(f"the saved graph is damaged: {name} is no list; found {found(plain)}")
    for x in plain:
        if type(x) not in kinds or (type(x) is int and abs(x) > MOST_BYTES):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise GraphError(f"the saved graph is damaged: {name} holds {found(x)}, which is no {wanted} of 64 bits")
    return plain


def _check(g: Graph) -> None:
    """Refuse arrays that do not make a graph; everything downstream relies on these invariants."""
    n, v = g.n_nodes, g.n_values
    costs = (g.flops, g.bytes_moved, g.rerun_flops, g.rerun_bytes_moved)
    per_node = (g.is_backward, *costs, g.has_effect, g.sources, g.scopes)
    if any(len(a) != n for a in per_node) or len(g.operand_start) != n + 1 or len(g.output_start) != n + 1:
        raise GraphError(f"a graph of {n} nodes needs {n} entries in every array per node")
    if (
        len(g.value_shapes) != v
        or len(g.relaid_values) != v
        or len(g.value_dtypes) != v
        or g.output_start[0] != g.n_inputs
        or g.output_start[-1] != v
    ):
        raise GraphError(
            f"a graph of {v} values needs {v} shapes and dtypes, inputs first and then each node's outputs"
        )
    if (
        np.any(np.diff(g.operand_start) < 0)
        or np.any(np.diff(g.output_start) < 0)
        or g.operand_start[-1] != len(g.operands)
    ):
        raise GraphError("operand_start and output_start must not fall, and must end where their arrays end")
    if len(g.relaid_operands) != len(g.operands):
        raise GraphError("relaid_operands needs an entry for each of operands")
    if g.operand_start[0] != 0 or g.outputs.ndim != 1 or not 0 <= g.n_primal_outputs <= len(g.outputs):
        raise GraphError("operand_start must begin with 0, and n_primal_outputs be at most the number of outputs")
    if not all(np.all(np.isfinite(a)) for a in costs):
        raise GraphError("FLOPs and bytes moved must be finite numbers")
    if float(g.value_bytes.sum(dtype=float)) >= 2.0**63:
        n_bytes = g.value_bytes.sum(dtype=float)
        raise GraphError(f"all values together have {n_bytes:.3g} bytes; more than 2**63 - 1 cannot be counted")
    if any(size < 0 for shape in g.value_shapes for size in shape):
        raise GraphError("sizes in shapes are 0 or more; found a smaller one")
    if v and g.value_bytes.min() < 0:
        raise GraphError(
            f"value {int(g.value_bytes.argmin())} has {int(g.value_bytes.min())} bytes; sizes are 0 or more"
        )
    if np.any(np.diff(g.is_backward.astype(int)) < 0):
        i = int(np.flatnonzero(np.diff(g.is_backward.astype(int)) < 0)[0]) + 1
        raise GraphError(f"forward node {i} ({g.primitives[i]}) follows a backward node; put forward nodes first")
    late = g.operands >= g.output_start[g.operand_node]
    if np.any(late):
        i = int(g.operand_node[np.flatnonzero(late)[0]])
        raise GraphError(f"node {i} ({g.primitives[i]}) reads a value that is made only later")
    if np.any(g.operands < LITERAL) or np.any(g.outputs < LITERAL) or np.any(g.outputs >= v):
        raise GraphError(f"operands and outputs must be {LITERAL} (a literal) or the number of a value below {v}")
    if any(not 0 <= x < g.n_inputs for x in g.donated) or list(g.donated) != sorted(set(g.donated)):
        raise GraphError(f"donated must be numbers of inputs below {g.n_inputs}, rising; found {g.donated}")
    if not all(len(x) == 2 and x[0] in range(n) and isinstance(x[1], str) for x in g.left_alone):
        raise GraphError(f"left_alone needs pairs of a node below {n} and a reason; found {g.left_alone}")
    for k, x in enumerate(g.checkpoints):
        if not (-1 <= x.parent < k and {*x.saved, *x.offloaded} <= set(x.nodes) and set(x.nodes) <= set(range(n))):
            raise GraphError(f"checkpoint {k} must have nodes of the graph and a parent before it; found {x}")
    if not all(0 <= x.forward_node < g.n_forward <= x.backward_node < n for x in g.nested):
        found = [(x.forward_node, x.backward_node) for x in g.nested]
        raise GraphError(f"a loop or branches need a forward and a backward node of the graph; found {found}")
