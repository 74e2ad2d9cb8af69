"""What a block may save, and what each choice costs: a menu by minimum cuts.

Which of a block's values to save so that saved bytes and the cost of recomputing the rest are least together is a
minimum cut: a needed value is either saved, which costs its bytes, or its node runs again, which costs time and needs
the node's operands. Sweeping the price of a byte gives the menu. Blocks that look alike share one.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from tiny_backprop.plan.segments import Segments

_CAPACITY = 1 << 28  # all finite capacities together stay below; `maximum_flow` counts in int32
_UNBOUNDED = 1 << 29
_PRICES = 9


class Pieces(enum.IntEnum):
    """How a window recomputes what is missing.

    * `ONE`: all at once, before the window's first backward node.
    * `LATE`: each node once, as late as a backward node needs it.
    * `APART`: for each backward node what it needs, and nothing is kept for the next: least memory, nodes run often.
    """

    ONE = 0
    LATE = 1
    APART = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Option:
    """One line of a menu.

    Attributes:
      keep: The values of the block that the forward phase leaves for its window, local numbers.
      pieces: How its window recomputes what is missing.
      keep_bytes: Bytes of `keep`; what crosses into later blocks is not among it.
      sweep_cost: Cost of running the block so that it makes `keep` and what crosses.
      again_cost: Cost of what its window recomputes.
      start_bytes: Largest live bytes of the block's values before its window's first backward node.
      window_bytes: Live bytes of the block's values at each backward node of its window.
    """

    keep: tuple[int, ...]
    pieces: Pieces
    keep_bytes: int
    sweep_cost: float
    again_cost: float
    start_bytes: int
    window_bytes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Menu:
    """What a block may do.

    Attributes:
      retained: Options where later blocks run before the block's window, so that what crosses into them is there.
      leaf: Options where the block's window follows at once, and nothing is there but what the option keeps.
      pass_cost: Cost of running the block only for what crosses into later blocks.
    """

    retained: tuple[Option, ...]
    leaf: tuple[Option, ...]
    pass_cost: float


def menus(segments: Segments, costs: np.ndarray) -> list[Menu]:
    """Return the menu of each block.

    Args:
      segments: The blocks.
      costs: Cost of each node, shape (n_nodes,).

    Returns:
      One menu per block; blocks with equal structure share one object.
    """
    made: dict[bytes, Menu] = {}
    out = []
    for b in range(segments.n_blocks):
        block = _Block.cut_out(segments, costs, b)
        key = block.key()
        if key not in made:
            made[key] = _menu(block)
        out.append(made[key])
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """A block with local numbers: nodes from 0, values of the block from 0.

    Attributes:
      costs: Cost of each node.
      makers: Node that makes each value.
      reads: Values of the block that each node reads.
      sizes: Bytes of each value.
      required: Values that the window reads.
      crossing: Values that later blocks need.
      kept: Values that are there anyway.
      window: Values of the block that each backward node of the window reads.
    """

    costs: np.ndarray
    makers: np.ndarray
    reads: tuple[tuple[int, ...], ...]
    sizes: np.ndarray
    required: np.ndarray
    crossing: np.ndarray
    kept: np.ndarray
    window: tuple[tuple[int, ...], ...]

    @classmethod
    def cut_out(cls, segments: Segments, costs: np.ndarray, b: int) -> _Block:
        graph = segments.graph
        first, end = int(segments.bounds[b]), int(segments.bounds[b + 1])
        low, high = int(graph.output_start[first]), int(graph.output_start[end])
        window_start = int(segments.window_starts[b])
        window_end = int(segments.window_starts[b - 1]) if b else graph.n_nodes

        def local(nodes: range) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(v - low for v in graph.read_lists[i] if low <= v < high) for i in nodes)

        return cls(
            costs=np.where(graph.feeds_backward[first:end], costs[first:end], 0.0),
            makers=graph.value_node[low:high] - first,
            reads=local(range(first, end)),
            sizes=graph.value_bytes[low:high],
            required=segments.is_required[low:high],
            crossing=(segments.needed_until[low:high] > b) & ~segments.is_kept[low:high],
            kept=segments.is_kept[low:high],
            window=local(range(window_start, window_end)),
        )

    def key(self) -> bytes:
        flat = [self.costs, self.makers, self.sizes, self.required, self.crossing, self.kept]
        return b"|".join(np.ascontiguousarray(a).tobytes() for a in flat) + repr((self.reads, self.window)).encode()

    def closure(self, wanted: Iterable[int], there: set[int]) -> list[int]:
        """Return, in order, the nodes to run for `wanted` where the values `there` are available."""
        makers, reads = self.makers_list, self.reads
        found = {makers[v] for v in wanted if v not in there}
        stack = list(found)
        while stack:
            for v in reads[stack.pop()]:
                if v not in there and makers[v] not in found:
                    found.add(makers[v])
                    stack.append(makers[v])
        return sorted(found)

    @functools.cached_property
    def makers_list(self) -> list[int]:
        return self.makers.tolist()

    @functools.cached_property
    def makes(self) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in self.reads]
        for v, maker in enumerate(self.makers_list):
            out[maker].append(v)
        return out

    def cost(self, nodes: list[int]) -> float:
        return float(self.costs[nodes].sum())


def _menu(block: _Block) -> Menu:
    crossing = np.flatnonzero(block.crossing).tolist()
    kept = set(np.flatnonzero(block.kept).tolist())
    retained = _options(block, kept | set(crossing), crossing)
    leaf = _options(block, kept, [])
    return Menu(tuple(retained), tuple(leaf), block.cost(block.closure(crossing, kept)))


def _options(block: _Block, free: set[int], crossing: list[int]) -> list[Option]:
    """Return the undominated options where the values `free` need not be paid for."""
    required = [v for v in np.flatnonzero(block.required).tolist() if v not in free]
    kept = set(np.flatnonzero(block.kept).tolist())
    out = []
    for keep in _cuts(block, required, free):
        sweep_cost = block.cost(block.closure([*keep, *crossing], kept))
        there = free | set(keep)
        missing = [v for v in required if v not in there]
        for pieces in Pieces if missing else (Pieces.ONE,):
            again, start_bytes, window_bytes = _play(block, there, missing, pieces)
            option = Option(
                tuple(keep),
                pieces,
                int(block.sizes[list(keep)].sum()),
                sweep_cost,
                again,
                max(start_bytes, int(block.sizes[[*keep, *crossing]].sum())),
                window_bytes,
            )
            out.append(option)
    return out


def _play(block: _Block, there: set[int], missing: list[int], pieces: Pieces) -> tuple[float, int, np.ndarray]:
    """Return what a window costs: cost of its recomputation, live bytes before it, live bytes at each of its nodes."""
    there = set(there)
    steps: list[tuple[int, int]] = []  # (backward node of the window, forward node or -1)
    if pieces is Pieces.ONE:
        steps += [(-1, n) for n in block.closure(missing, there)]
        there.update(missing)
    wanted = set(missing)
    for i, reads in enumerate(block.window):
        nodes = block.closure([v for v in reads if v in wanted], there)
        if nodes:
            there.update(v for v in reads if v in wanted)
            if pieces is Pieces.LATE:
                there.update(v for n in nodes for v in block.makes[n])
        steps += [(i, n) for n in nodes]
        steps.append((i, -1))
    return _live(block, steps)


def _live(block: _Block, steps: list[tuple[int, int]]) -> tuple[float, int, np.ndarray]:
    n = len(steps)
    born: dict[int, int] = {}
    spans: list[tuple[int, int, int]] = []  # value, from, to
    last: dict[int, int] = {}
    cost = 0.0
    for at, (i, node) in enumerate(steps):
        for v in block.window[i] if node < 0 else block.reads[node]:
            last[v] = at
        if node >= 0:
            cost += float(block.costs[node])
            for v in block.makes[node]:
                if v in last or v in born:
                    spans.append((v, born.get(v, 0), last.get(v, born.get(v, 0))))
                born[v], last[v] = at, at
    spans += [(v, born.get(v, 0), at) for v, at in last.items()]
    delta = np.zeros(n + 1, np.int64)
    for v, first, end in spans:
        if not block.kept[v]:
            delta[first] += block.sizes[v]
            delta[end + 1] -= block.sizes[v]
    live = np.cumsum(delta)[:n]
    index = np.array([i for i, _ in steps], np.int64)
    window = np.zeros(len(block.window), np.int64)
    np.maximum.at(window, index[index >= 0], live[index >= 0])
    return cost, int(live[index < 0].max(initial=0)), window


def _cuts(block: _Block, required: list[int], free: set[int]) -> list[tuple[int, ...]]:
    """Return sets of values to keep, from all that the window reads to none."""
    everything = tuple(required)
    nodes = block.closure(required, free)
    sizes, costs = block.sizes, block.costs[nodes] if nodes else np.zeros(0)
    found = {everything: None, (): None}
    if len(nodes) > 1 and sizes[required].sum() and costs.sum():
        network = _Network(block, nodes, required, free)
        ratio = costs.sum() / sizes[required].sum()
        for price in ratio * np.logspace(-2.5, 2.0, _PRICES):
            found[network.cut(price)] = None
    return list(found)


class _Network:
    """The network whose minimum cuts are the best choices between saving and running again.

    Vertices: source, sink, each local value ("it is needed"), each local node ("it runs again"). A cut through
    value -> node saves the value; one through node -> sink runs the node again.
    """

    def __init__(self, block: _Block, nodes: list[int], required: list[int], free: set[int]):
        self.block = block
        inside = set(nodes)
        values = [v for v, n in enumerate(block.makers_list) if n in inside and v not in free]
        vertex = {v: 2 + i for i, v in enumerate(values)}
        node_vertex = {n: 2 + len(values) + i for i, n in enumerate(nodes)}
        bound = [(0, vertex[v]) for v in required]
        bound += [(node_vertex[n], vertex[v]) for n in nodes for v in block.reads[n] if v in vertex]
        save = [(vertex[v], node_vertex[block.makers_list[v]]) for v in values]
        run = [(node_vertex[n], 1) for n in nodes]
        edges = np.array([*bound, *save, *run], np.int64)
        self.n_vertices = 2 + len(values) + len(nodes)
        self.order = np.lexsort((edges[:, 1], edges[:, 0]))
        edges = edges[self.order]
        self.indices = edges[:, 1].astype(np.int32)
        self.indptr = np.searchsorted(edges[:, 0], np.arange(self.n_vertices + 1)).astype(np.int32)
        self.n_bound = len(bound)
        self.sizes = block.sizes[values].astype(float)
        self.costs = block.costs[nodes]
        self.values = values

    def cut(self, price: float) -> tuple[int, ...]:
        """Return the values to keep where a byte costs `price`."""
        save, run = price * self.sizes, self.costs
        scale = _CAPACITY / (save.sum() + run.sum())
        finite = np.maximum(np.r_[save, run] * scale, 1.0)
        capacities = np.r_[np.full(self.n_bound, _UNBOUNDED), finite].astype(np.int32)[self.order]
        shape = (self.n_vertices, self.n_vertices)
        graph = sparse.csr_array((capacities, self.indices, self.indptr), shape=shape)
        residual = graph - maximum_flow(graph, 0, 1).flow
        residual.data[residual.data < 0] = 0
        residual.eliminate_zeros()
        reached = np.zeros(self.n_vertices, bool)
        reached[breadth_first_order(residual, 0, return_predecessors=False)] = True
        makers = self.block.makers_list
        first_node = 2 + len(self.values)
        nodes = sorted({makers[v] for v in self.values})
        at = {n: first_node + i for i, n in enumerate(nodes)}
        return tuple(v for i, v in enumerate(self.values) if reached[2 + i] and not reached[at[makers[v]]])
