"""What a block may save, and what each choice costs: a menu by minimum cuts.

Which of a block's values to save so that saved bytes and the cost of recomputing the rest are least together is a
minimum cut: a needed value is either saved, which costs its bytes, or its node runs again, which costs time and needs
the node's operands. Sweeping the price of a byte gives the menu. Blocks that look alike share one.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from tiny_backprop.plan.search.segments import Segments

_CAPACITY = 1 << 29  # all finite capacities together; `maximum_flow` counts in int32
_UNBOUNDED = 1 << 30
_PRICES = 9
_MOST_STEPS = 1000  # of a window, beside twice the nodes of its block: more are not worth their time


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
    blocks = [_Block.cut_out(segments, costs, b) for b in range(segments.n_blocks)]
    keys = [block.key() for block in blocks]
    unique = dict(zip(keys, blocks, strict=True))
    asked = [_Question.of(block, is_leaf) for block in unique.values() for is_leaf in (False, True)]
    options = [tuple(_options(q, keeps)) for q, keeps in zip(asked, _cut_all(asked), strict=True)]
    made = {
        key: Menu(retained, leaf, q.block.cost(q.block.closure(q.crossing, q.kept)))
        for key, q, retained, leaf in zip(unique, asked[::2], options[::2], options[1::2], strict=True)
    }
    return [made[key] for key in keys]


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
    def cost_list(self) -> list[float]:
        return self.costs.tolist()

    @functools.cached_property
    def chosen_sizes(self) -> list[int]:
        """Bytes of each value that a plan may choose to keep or not; 0 for those that are there anyway."""
        return np.where(self.kept, 0, self.sizes).tolist()

    @functools.cached_property
    def makes(self) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in self.reads]
        for v, maker in enumerate(self.makers_list):
            out[maker].append(v)
        return out

    def cost(self, nodes: list[int]) -> float:
        return float(self.costs[nodes].sum())


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """What a block may keep for its window, later blocks running before it or not.

    Attributes:
      block: The block.
      kept: Values that are there anyway.
      crossing: Values that cross into later blocks, where those run first; they are there too, then.
      required: What else the window reads.
      nodes: Nodes that make it.
    """

    block: _Block
    kept: set[int]
    crossing: list[int]
    required: list[int]
    nodes: list[int]

    @classmethod
    def of(cls, block: _Block, is_leaf: bool) -> _Question:
        kept = set(np.flatnonzero(block.kept).tolist())
        crossing = [] if is_leaf else np.flatnonzero(block.crossing).tolist()
        free = kept.union(crossing)
        required = [v for v in np.flatnonzero(block.required).tolist() if v not in free]
        return cls(block, kept, crossing, required, block.closure(required, free))

    @property
    def free(self) -> set[int]:
        return self.kept.union(self.crossing)

    @property
    def has_choice(self) -> bool:
        return len(self.nodes) > 1 and self.block.sizes[self.required].sum() > 0 and self.block.cost(self.nodes) > 0


def _options(question: _Question, keeps: Iterable[tuple[int, ...]]) -> list[Option]:
    """Return the options for some sets of values to keep."""
    block, free = question.block, question.free
    out = []
    for keep in keeps:
        held = [*keep, *question.crossing]
        sweep_cost = block.cost(block.closure(held, question.kept))
        there = free.union(keep)
        missing = [v for v in question.required if v not in there]
        for pieces in Pieces if missing else (Pieces.ONE,):
            steps = _steps(block, there, missing, pieces)
            if steps is None:
                continue
            again, start_bytes, window_bytes = _live(block, steps)
            start_bytes = max(start_bytes, int(block.sizes[held].sum()))
            keep_bytes = int(block.sizes[list(keep)].sum())
            out.append(Option(keep, pieces, keep_bytes, sweep_cost, again, start_bytes, window_bytes))
    return out


def _steps(block: _Block, there: set[int], missing: list[int], pieces: Pieces) -> list[tuple[int, int]] | None:
    """Return the steps of a window as pairs of its backward node, -1 before the first, and a forward node or -1.

    None where pieces make each other's operands again so often that no plan would take them.
    """
    there = set(there)
    steps: list[tuple[int, int]] = []
    if pieces is Pieces.ONE:
        steps += [(-1, n) for n in block.closure(missing, there)]
        there.update(missing)
    wanted = set(missing)
    most = _MOST_STEPS + 2 * (len(block.reads) + len(block.window))
    for i, reads in enumerate(block.window):
        absent = [v for v in reads if v in wanted and v not in there]
        if absent:
            nodes = block.closure(absent, there)
            there.update(absent)
            if pieces is Pieces.LATE:
                there.update(v for n in nodes for v in block.makes[n])
            steps += [(i, n) for n in nodes]
            if len(steps) > most:
                return None
        steps.append((i, -1))
    return steps


def _live(block: _Block, steps: list[tuple[int, int]]) -> tuple[float, int, np.ndarray]:
    """Return what a window costs: cost of its recomputation, live bytes before it, live bytes at each of its nodes."""
    costs, sizes, born, last = block.cost_list, block.chosen_sizes, dict[int, int](), dict[int, int]()
    delta = [0] * (len(steps) + 1)
    cost = 0.0
    for at, (i, node) in enumerate(steps):
        for v in block.window[i] if node < 0 else block.reads[node]:
            last[v] = at
        if node >= 0:
            cost += costs[node]
            for v in block.makes[node]:
                if v in last:  # what was made before, or there from the start, ends with its last read
                    delta[born.get(v, 0)] += sizes[v]
                    delta[last[v] + 1] -= sizes[v]
                born[v] = last[v] = at
    for v, at in last.items():
        delta[born.get(v, 0)] += sizes[v]
        delta[at + 1] -= sizes[v]
    before, live, window = 0, 0, [0] * len(block.window)
    for (i, _), change in zip(steps, delta, strict=False):
        live += change
        if i < 0:
            before = max(before, live)
        elif live > window[i]:
            window[i] = live
    return cost, before, np.array(window, np.int64)


def _cut_all(questions: Sequence[_Question]) -> list[list[tuple[int, ...]]]:
    """Return for each question sets of values to keep, from all that the window reads to none."""
    found = [{tuple(q.required): None, (): None} for q in questions]
    open_questions = [i for i, q in enumerate(questions) if q.has_choice]
    if open_questions:
        network = _Network([questions[i] for i in open_questions])
        for price in np.logspace(-2.5, 2.0, _PRICES):
            for i, keep in zip(open_questions, network.cut(price), strict=True):
                found[i][keep] = None
    return [list(keeps) for keeps in found]


class _Network:
    """The network whose minimum cuts are the best choices between saving and running again, for many questions at once.

    Vertices: source, sink, each value of a question ("it is needed"), each of its nodes ("it runs again"). A cut
    through value -> node saves the value; one through node -> sink runs the node again.
    """

    def __init__(self, questions: Sequence[_Question]):
        bound: list[tuple[int, int]] = []
        save: list[tuple[int, int]] = []
        run: list[tuple[int, int]] = []
        sizes: list[np.ndarray] = []
        costs: list[np.ndarray] = []
        self.values: list[list[int]] = []
        self.vertices: list[tuple[list[int], list[int]]] = []  # of each question's values, and of the nodes making them
        n = 2
        for q in questions:
            block, inside, free = q.block, set(q.nodes), q.free
            values = [v for v, node in enumerate(block.makers_list) if node in inside and v not in free]
            vertex = {v: n + i for i, v in enumerate(values)}
            node_vertex = {node: n + len(values) + i for i, node in enumerate(q.nodes)}
            n += len(values) + len(q.nodes)
            bound += [(0, vertex[v]) for v in q.required]
            bound += [(node_vertex[node], vertex[v]) for node in q.nodes for v in block.reads[node] if v in vertex]
            makers = [node_vertex[block.makers_list[v]] for v in values]
            save += zip(vertex.values(), makers, strict=True)
            run += [(v, 1) for v in node_vertex.values()]
            # In proportion: what all required values cost to save, and all nodes to run.
            sizes.append(block.sizes[values] / block.sizes[q.required].sum())
            costs.append(block.costs[q.nodes] / block.cost(q.nodes))
            self.values.append(values)
            self.vertices.append((list(vertex.values()), makers))
        edges = np.array([*bound, *save, *run], np.int64)
        self.order = np.lexsort((edges[:, 1], edges[:, 0]))
        edges = edges[self.order]
        self.indices = edges[:, 1].astype(np.int32)
        self.indptr = np.searchsorted(edges[:, 0], np.arange(n + 1)).astype(np.int32)
        self.n_vertices, self.n_bound = n, len(bound)
        self.sizes, self.costs = np.concatenate(sizes), np.concatenate(costs)

    def cut(self, price: float) -> list[tuple[int, ...]]:
        """Return, for each question, the values to keep where saving all that is required costs `price` of running."""
        finite = np.r_[price * self.sizes, self.costs]
        finite = np.maximum(finite * (_CAPACITY / finite.sum()), 1.0)
        capacities = np.r_[np.full(self.n_bound, _UNBOUNDED), finite].astype(np.int32)[self.order]
        shape = (self.n_vertices, self.n_vertices)
        graph = sparse.csr_array((capacities, self.indices, self.indptr), shape=shape)
        residual = graph - maximum_flow(graph, 0, 1).flow
        residual.data[residual.data < 0] = 0
        residual.eliminate_zeros()
        reached = np.zeros(self.n_vertices, bool)
        reached[breadth_first_order(residual, 0, return_predecessors=False)] = True
        out = []
        for values, (at, makers) in zip(self.values, self.vertices, strict=True):
            is_kept = reached[at] & ~reached[makers]
            out.append(tuple(v for v, kept in zip(values, is_kept.tolist(), strict=True) if kept))
        return out
