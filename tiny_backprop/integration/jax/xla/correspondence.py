"""How a plan's prediction and the compiled program correspond: kernels and positions, tensors and XLA's buffers.

Both go by what JAX writes into the compiled program for each equation: phase, user's scope, source line and primitive.
Known weak spots: what a hold copies bears no equation's name, and what is inside a loop none of the plan's.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections import Counter, defaultdict

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.xla.memory_map import Buffer, MemoryMap
from tiny_backprop.integration.jax.xla.op_names import scope_of, split_name
from tiny_backprop.plan.plan import Plan
from tiny_backprop.predict.instructions import HELD
from tiny_backprop.schedule.simulate import Op

_PHASES = {int(Op.RUN): "forward", int(Op.RECOMPUTE): "recomputed", int(Op.BACKWARD): "gradient"}
_MOST_PAIRS_PER_KEY, _MOST_PAIRS = 4_000, 1_000_000
_LEAST_MATCHED = 0.1
_Key = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Alike:
    """Makings of tensors by a plan, and buffers of XLA, that nothing tells apart.

    Attributes:
      values: The tensors, in the order in which they are made; one that is made again stands here again.
      buffers: Numbers of the buffers in the memory map, in that order, too.
      pairs: The tensor of each buffer.
      is_same_equation: Whether XLA names the tensors' own equation; else another one of its line.
    """

    values: tuple[int, ...]
    buffers: tuple[int, ...]
    pairs: dict[int, int]
    is_same_equation: bool

    def __str__(self) -> str:
        n_values, n_buffers = len(self.values), len(self.buffers)
        by = "by phase, scope, source line, operation and size"
        if not self.is_same_equation:
            by = "by phase, scope, source line and size: XLA names another operation of the line"
        few = "the only one" if n_buffers == 1 else f"one of {n_buffers} alike"
        if len(set(self.values)) == 1:
            return f"{few} ({by})"
        if n_values == n_buffers:
            return f"{few}, paired in the order in which they are made ({by})"
        return f"{few} where the plan has {n_values}: the nearest in time ({by})"


@dataclasses.dataclass(frozen=True, eq=False)
class BufferPairs:
    """Which of XLA's buffers hold which tensors of a plan, as far as the compiled program tells; see `pair_buffers`.

    Attributes:
      plan: The plan.
      memory_map: The map of the program that carries it out.
      groups: What corresponds.
      originals: The buffer that each copy which XLA has added is one of, as far as there is one alone.
    """

    plan: Plan
    memory_map: MemoryMap
    groups: tuple[Alike, ...]
    originals: dict[int, int]

    @functools.cached_property
    def _group_of_buffer(self) -> dict[int, Alike]:
        return {i: group for group in self.groups for i in group.buffers}

    @functools.cached_property
    def _sums(self) -> dict[int, str]:
        """The values that stand for all that a loop or branches save, or need meanwhile, and of which kind it is."""
        graph, found = self.plan.graph, {}
        for n in graph.nested:
            end = int(graph.output_start[n.forward_node + 1])
            found |= dict.fromkeys((end - 2, end - 1, int(graph.output_start[n.backward_node + 1]) - 1), n.kind)
        return found

    @functools.cached_property
    def _group_of_value(self) -> dict[int, Alike]:
        """The first group in which a tensor stands."""
        return {value: group for group in reversed(self.groups) for value in group.values}

    @functools.cached_property
    def _buffers_of(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for group in self.groups:
            for i, value in group.pairs.items():
                found[value].append(i)
        for copy, original in self.originals.items():
            if original in self._group_of_buffer:
                found[self._group_of_buffer[original].pairs[original]].append(copy)
        return found

    def value_of(self, buffer: int) -> int | None:
        """Return the tensor that a buffer of the map holds, or None."""
        buffer = self.originals.get(buffer, buffer)
        group = self._group_of_buffer.get(buffer)
        return None if group is None else group.pairs[buffer]

    def buffers_of(self, value: int) -> list[int]:
        """Return the numbers of the buffers that hold a tensor, the first made first."""
        return sorted(self._buffers_of.get(value, ()), key=lambda i: self.memory_map.buffers[i].first_use)

    def tell_buffer(self, buffer: int) -> str:
        """Say how a buffer's tensor was found, or why there is none."""
        b, value = self.memory_map.buffers[buffer], self.value_of(buffer)
        if buffer in self.originals:
            return f"a copy of {b.copies}; {self.tell_buffer(self.originals[buffer])}"
        if b.copies:
            return f"a copy of {b.copies}, whose buffer is none of its own or not the only one"
        if value is not None:
            fused = "" if self._is_predicted(value) else "; predicted to take no memory"
            return f"{self._group_of_buffer[buffer]}{fused}"
        if b.loop:
            return f"made inside {b.loop}, of which the plan has no single tensors"
        if not b.source:
            return "XLA names no equation of the program for it"
        return "no tensor of the plan is of its phase, scope, source line and size"

    def tell_value(self, value: int) -> str:
        """Say which of XLA's buffers hold a tensor, and how they were found, or why there is none."""
        buffers = self.buffers_of(value)
        if buffers:
            names: dict[str, list[str]] = defaultdict(list)
            for i in buffers:
                how = "copied into" if i in self.originals else self.tell_buffer(i)
                names[how].append(self.memory_map.buffers[i].instruction)
            copies = names.pop("copied into", [])
            told = [f"{', '.join(instructions)}: {how}" for how, instructions in names.items()]
            return "; ".join([*told, f"copied into {', '.join(copies)}"] if copies else told)
        if self.plan.graph.value_node[value] < 0:
            return "none: an argument is the caller's"
        if kind := self._sums.get(value):
            return f"none of its own: it stands for what the {kind} keeps, of which XLA has several buffers"
        if group := self._group_of_value.get(value):
            n_buffers, n_values = len(group.buffers), len(group.values)
            return f"none of its own: XLA has {n_buffers} where the plan has {n_values} alike, each nearer to another"
        if self._is_predicted(value):
            return "none: XLA fused it away, or keeps it under the name of another equation"
        return "none, as predicted: it is computed where it is read, or is never made"

    def _is_predicted(self, value: int) -> bool:
        return bool((self.plan.materialized.values == value).any())


def pair_buffers(plan: Plan, memory_map: MemoryMap) -> BufferPairs:
    """Find the tensors of a plan in the memory of the program that carries it out.

    A buffer belongs to a tensor whose equation its metadata name: one of the same phase, scope, source line, primitive
    and size; failing that, to one of the same line, phase and size. Tensors that the plan is predicted to keep in
    memory come first; those that it is predicted to compute where they are read, only where these are too few. Where
    several are alike, they are paired in the order in which they are made if there are as many buffers as makings of
    tensors; else each buffer gets the one that is made nearest to it. What was done stands in each group. A copy that
    XLA has added goes with what it copies. Takes about 0.1 s for 1,500 buffers.

    Args:
      plan: The plan.
      memory_map: The map of the program that carries it out.

    Returns:
      The pairs.

    Raises:
      MeasureError: There is no map.
    """
    positions, _ = kernels_of_positions(plan, memory_map)
    made = {
        i: float(positions[b.first_use])
        for i, b in enumerate(memory_map.buffers)
        if b.memory in ("temp", "output") and b.source and not b.copies
    }
    predicted = _predicted(plan)
    fused = _computed_where_read(plan, {making.value for making in predicted})
    groups: list[Alike] = []
    left = set(made)
    for is_same_equation in (True, False):
        buffers_of: dict[_Key, list[int]] = defaultdict(list)
        for i in sorted(left):
            buffers_of[_key_of(memory_map.buffers[i], is_same_equation)].append(i)
        first, second = _by_key(predicted, is_same_equation), _by_key(fused, is_same_equation)
        for key, buffers in buffers_of.items():
            makings = first.get(key, [])
            if len(makings) < len(buffers):
                makings = [*makings, *second.get(key, [])]
            if makings:
                groups.append(_alike(makings, buffers, made, is_same_equation))
                left.difference_update(buffers)
    return BufferPairs(plan, memory_map, tuple(groups), _originals(memory_map))


def _originals(memory_map: MemoryMap) -> dict[int, int]:
    named: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, b in enumerate(memory_map.buffers):
        if not b.copies:
            named[b.instruction, b.bytes].append(i)
    copies = {i: named.get((b.copies, b.bytes), []) for i, b in enumerate(memory_map.buffers) if b.copies}
    return {i: found[0] for i, found in copies.items() if len(found) == 1}


def _by_key(makings: list[_Making], is_same_equation: bool) -> dict[_Key, list[_Making]]:
    found: dict[_Key, list[_Making]] = defaultdict(list)
    for making in makings:
        found[making.key(is_same_equation)].append(making)
    return found


def _alike(makings: list[_Making], buffers: list[int], made: dict[int, float], is_same_equation: bool) -> Alike:
    makings = sorted(makings, key=lambda making: making.kernel)
    buffers = sorted(buffers, key=lambda i: (made[i], i))
    if len(makings) == len(buffers):
        pairs = {i: making.value for i, making in zip(buffers, makings, strict=True)}
    else:
        pairs = {i: min(makings, key=lambda making: abs(making.kernel - made[i])).value for i in buffers}
    return Alike(tuple(making.value for making in makings), tuple(buffers), pairs, is_same_equation)


@dataclasses.dataclass(frozen=True)
class _Making:
    """A tensor that is made, for the first time or again, and where on the axis of predicted kernels."""

    value: int
    kernel: float
    phase: str
    scope: str
    source: str
    primitive: str
    n_bytes: int

    @classmethod
    def of(cls, graph: Graph, value: int, kernel: float, phase: str, n_bytes: int) -> _Making:
        node = int(graph.value_node[value])
        return cls(value, kernel, phase, *_equation(graph, node), n_bytes)

    def key(self, is_same_equation: bool) -> _Key:
        return self.phase, self.scope, self.source, self.primitive if is_same_equation else "", self.n_bytes


def _key_of(b: Buffer, is_same_equation: bool) -> _Key:
    phase = "forward" if b.kind == "saved" else b.kind
    return phase, b.scope, b.source, split_name(b.op_name)[-1] if is_same_equation else "", b.bytes


def _equation(graph: Graph, node: int) -> tuple[str, str, str]:
    """Return a node's scope, source line and primitive, as the compiled program has them."""
    primitive = graph.primitives[node]
    return scope_of(f"{graph.scopes[node]}/{primitive}"), graph.sources[node], primitive


def _predicted(plan: Plan) -> list[_Making]:
    """Return the makings of what is predicted to take memory; a copy is of the phase of what it copies."""
    graph, m = plan.graph, plan.materialized
    makings: list[_Making] = []
    first: dict[int, int] = {}  # the kernel in which each node runs first
    phases: dict[int, str] = {}
    for j in np.argsort(m.first, kind="stable").tolist():
        value, kernel = int(m.values[j]), int(m.first[j])
        node = int(graph.value_node[value]) if value >= 0 else -1
        if node < 0 or m.nodes[j] == HELD:
            continue
        if m.nodes[j] >= 0:
            phases[node] = "forward" if first.setdefault(node, kernel) == kernel else "recomputed"
        phase = "gradient" if node >= graph.n_forward else phases.get(node, "forward")
        makings.append(_Making.of(graph, value, kernel, phase, int(m.n_bytes[j])))
    return makings


def _computed_where_read(plan: Plan, predicted: set[int]) -> list[_Making]:
    """Return the makings of what is predicted to take no memory, evenly over the predicted kernels."""
    graph, steps = plan.graph, plan.timeline.steps
    kernels = np.linspace(0, len(plan.materialized.kernel_nodes), len(steps))
    makings: list[_Making] = []
    has_run: set[int] = set()
    for kernel, node in zip(kernels.tolist(), steps.tolist(), strict=True):
        phase = "gradient" if node >= graph.n_forward else "recomputed" if node in has_run else "forward"
        has_run.add(node)
        for value in range(int(graph.output_start[node]), int(graph.output_start[node + 1])):
            if value not in predicted and graph.value_bytes[value]:
                makings.append(_Making.of(graph, value, kernel, phase, int(graph.value_bytes[value])))
    return makings


def kernels_of_positions(plan: Plan, memory_map: MemoryMap) -> tuple[np.ndarray, int]:
    """Return where on a plan's axis of predicted kernels the positions of a compiled schedule begin.

    A kernel and a position correspond where phase, user's scope, source line and primitive agree; of all such pairs the
    longest sequence is kept that is in order on both sides (Hunt & Szymanski 1977, doi:10.1145/359581.359603), and
    positions in between are spaced evenly. Where fewer than a tenth of the positions that name an equation find a
    kernel, the whole schedule is stretched evenly instead, and 0 matches are reported.

    Returns:
      float64 of shape (n_positions + 1,), never falling, from 0 to the number of kernels; and how many positions have
      a kernel of their own.

    Raises:
      MeasureError: There is no map.
    """
    graph, m = plan.graph, plan.materialized
    n_positions, n_kernels = len(memory_map.live_bytes), len(m.kernel_nodes)
    evenly = np.linspace(0, n_kernels, n_positions + 1)
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for kernel, (node, op) in enumerate(zip(m.kernel_nodes.tolist(), m.kernel_ops.tolist(), strict=True)):
        if node < 0:
            continue
        places[_PHASES[op], *_equation(graph, node)].append(kernel)
    keys = [
        (p.phase, scope_of(p.op_name), p.source, split_name(p.op_name)[-1]) if p.op_name else None
        for p in memory_map.schedule
    ]
    often = Counter(key for key in keys if key in places)
    useful = {key for key, n in often.items() if n * len(places[key]) <= _MOST_PAIRS_PER_KEY}
    if sum(often[key] * len(places[key]) for key in useful) > _MOST_PAIRS:
        return evenly, 0
    pairs = _in_order([places[key] if key in useful else [] for key in keys])
    if not n_positions or len(pairs) < max(1, _LEAST_MATCHED * sum(key is not None for key in keys)):
        return evenly, 0
    xs = [-1.0, *(position + 0.5 for position, _ in pairs), n_positions + 1.0]
    ys = [0.0, *(kernel + 0.5 for _, kernel in pairs), float(n_kernels)]
    found = np.interp(np.arange(n_positions + 1), xs, ys)
    found[0], found[-1] = 0, n_kernels
    return found, len(pairs)


def _in_order(candidates: list[list[int]]) -> list[tuple[int, int]]:
    """Return the longest sequence of (i, j), j among candidates[i], that rises in both; O(pairs log n)."""
    ends: list[int] = []  # the smallest j that ends a sequence of each length
    chain: list[tuple[int, int, int]] = []  # (i, j, its predecessor's place in chain)
    last: list[int] = []
    for i, places in enumerate(candidates):
        for j in reversed(places):
            length = bisect.bisect_left(ends, j)
            if length < len(ends) and ends[length] == j:
                continue
            chain.append((i, j, last[length - 1] if length else -1))
            if length == len(ends):
                ends.append(j)
                last.append(len(chain) - 1)
            else:
                ends[length], last[length] = j, len(chain) - 1
    found: list[tuple[int, int]] = []
    at = last[-1] if last else -1
    while at >= 0:
        i, j, at = chain[at]
        found.append((i, j))
    return found[::-1]
