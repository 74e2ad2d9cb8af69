"""What XLA allocates for a plan, predicted: the plan's own liveness, corrected for what XLA makes of the program.

Plain liveness (`simulate`) counts every value from the step that makes it to the last that reads it. XLA allocates
otherwise, and this module follows it, in three steps:

- `unrolled`: the plan as instructions, with holds, copies into other orders of dimensions, and nothing computed twice
  that XLA merges;
- `fusion`: which of them take memory at all;
- here: in which order kernels run, how long each buffer lives, and which share memory.

XLA:CPU starts every kernel as soon as it can, in the order in which they become ready (a breadth-first schedule). So
what depends on arguments alone, such as the transposed weights of a convolution, is made first and lives long. What the
program returns has memory of its own for the whole run, which lends itself to temporaries, the largest first, until it
is written. A loop writes into the memory of an operand of its size that it reads last, and so does a scatter. A hold
copies what it holds, so that both copies live where the original is read later.

The rules are those of XLA:CPU (JAX 0.10, with YNNPACK's kernels), each held against it in `tests/test_materialized.py`;
`python -m benchmarks.truth` says how far the predictions are off. Known weak spots: the order in which kernels that
become ready together run; kernels in which YNNPACK takes more than a softmax in; what convolutions of images smaller
than their kernels become; values of literals, which the graph does not know; and loops count what their steps need as
if nothing were fused inside.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections import deque

import numpy as np
import pandas as pd

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.fusion import Fusion, fuse
from tiny_backprop.plan.simulate import Op, Timeline, ranges
from tiny_backprop.plan.unrolled import BROADCAST, COPY, FLAT, HELD, PREDICATE, unroll
from tiny_backprop.units import format_bytes

BACKENDS = ("cpu",)
"""Backends whose allocation is modelled."""
_NAMES = {HELD: "hold", PREDICATE: "predicate", COPY: "copy", BROADCAST: "broadcast", FLAT: "reshape"}
OP_NAMES = (*(op.name.lower() for op in Op), *_NAMES.values())
"""The word for each entry of `Materialized.kernel_ops`."""
_LEAST_LENT_BYTES = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Materialized:
    """What XLA is predicted to allocate; kernels are numbered in the order in which they are predicted to run.

    Attributes:
      graph: The graph.
      backend: The backend that was modelled; `""` where values are counted by plain liveness, each from the step that
        makes it to the last that reads it, and a kernel is a step of the plan.
      kernel_nodes: The node that each kernel ends with, or what else it is for, as in `nodes`; int64 (n_kernels,).
      n_forward_kernels: How many kernels come before the backward phase.
      live_bytes: Bytes of temporaries and outputs while each kernel runs, int64 of shape (n_kernels,); outputs count
        all along.
      peak_bytes: The largest of `live_bytes`, to be held against XLA's temporary and output bytes.
      peak_kernel: The first kernel with `peak_bytes`.
      values: The value of the graph that each buffer holds, -1 for a predicate; int64 of shape (n_buffers,).
      nodes: The node that makes each buffer, or what else does (see `unrolled`).
      n_bytes: Size of each buffer.
      first: The kernel that writes each buffer.
      last: The last kernel that needs it.
      is_output: Whether the program returns it.
      is_lent: Whether it is a temporary in the memory of an output that is written later.
    """

    graph: Graph
    backend: str
    kernel_nodes: np.ndarray
    n_forward_kernels: int
    live_bytes: np.ndarray
    peak_bytes: int
    peak_kernel: int
    values: np.ndarray
    nodes: np.ndarray
    n_bytes: np.ndarray
    first: np.ndarray
    last: np.ndarray
    is_output: np.ndarray
    is_lent: np.ndarray

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per buffer, in the order in which they are written."""
        return self._table(np.argsort(self.first, kind="stable"))

    def _table(self, buffers: np.ndarray) -> pd.DataFrame:
        graph = self.graph
        nodes = self.nodes[buffers].tolist()
        values = self.values[buffers].tolist()
        return pd.DataFrame(
            {
                "made_by": [graph.primitives[n] if n >= 0 else _NAMES[n] for n in nodes],
                "shape": [graph.value_shapes[v] if v >= 0 else () for v in values],
                "bytes": self.n_bytes[buffers],
                "first_kernel": self.first[buffers],
                "last_kernel": self.last[buffers],
                "is_output": self.is_output[buffers],
                "is_lent": self.is_lent[buffers],
                "scope": [graph.scopes[n] if n >= 0 else "" for n in nodes],
                "source": [graph.sources[n] if n >= 0 else "" for n in nodes],
            }
        )

    def at_peak(self) -> pd.DataFrame:
        """Return the buffers alive at the peak, the largest first; outputs written later are left out."""
        return self._table(self.alive_at(self.peak_kernel))

    @property
    def kernel_word(self) -> str:
        """What an entry of `live_bytes` is: a `"kernel"` of XLA, or a `"step"` of a plan."""
        return "kernel" if self.backend else "step"

    def kernels_to_pandas(self) -> pd.DataFrame:
        """Return one row per kernel: what it does, the node it ends with, predicted live bytes, scope and source."""
        graph, nodes = self.graph, self.kernel_nodes.tolist()
        return pd.DataFrame(
            {
                "action": [OP_NAMES[op] for op in self.kernel_ops.tolist()],
                "node": [n if n >= 0 else None for n in nodes],
                "primitive": [graph.primitives[n] if n >= 0 else "" for n in nodes],
                "predicted_live_bytes": self.live_bytes,
                "scope": [graph.scopes[n] if n >= 0 else "" for n in nodes],
                "source": [graph.sources[n] if n >= 0 else "" for n in nodes],
            },
            index=pd.RangeIndex(len(nodes), name=self.kernel_word),
        ).astype({"node": "Int64"})

    def alive_at(self, kernel: int) -> np.ndarray:
        """Return the numbers of the buffers that hold something while a kernel runs, the largest first."""
        alive = np.flatnonzero((self.first <= kernel) & (self.last >= kernel))
        return alive[np.argsort(-self.n_bytes[alive], kind="stable")]

    @functools.cached_property
    def kernel_ops(self) -> np.ndarray:
        """What each kernel does; uint8 of shape (n_kernels,).

        An `Op` where it ends with a node; else `Op.FREE` less what stands in `kernel_nodes`. See `OP_NAMES`.
        """
        nodes = self.kernel_nodes
        is_again = np.ones(len(nodes), bool)
        is_again[np.unique(nodes, return_index=True)[1]] = False
        ops = np.where(is_again, Op.RECOMPUTE, Op.RUN)
        ops[nodes >= self.graph.n_forward] = Op.BACKWARD
        return np.where(nodes < 0, Op.FREE - nodes, ops).astype(np.uint8)

    def __repr__(self) -> str:
        how = f"on {self.backend}, {len(self.live_bytes)} kernels" if self.backend else "by plain liveness"
        return (
            f"Materialized({self.graph.name!r}: predicted peak {format_bytes(self.peak_bytes)} {how}, "
            f"{len(self.values)} buffers)"
        )


def materialize(
    graph: Graph, steps: np.ndarray, n_forward_steps: int, *, is_planned: bool, backend: str = "cpu"
) -> Materialized:
    """Predict what XLA allocates for a gradient; some 10 ms for 1,000 nodes.

    Args:
      graph: A gradient graph.
      steps: Nodes in the order in which they run, as in `Timeline.steps`.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as `height_compressed_grad` runs it, or is JAX's own.
      backend: The backend to model; see `BACKENDS`.

    Returns:
      The prediction.

    Raises:
      PlanError: The backend is not modelled.

    Example:
      >>> import jax, jax.numpy as jnp, tiny_backprop as tb
      >>> x = jax.ShapeDtypeStruct((256, 256), "float32")
      >>> graph = tb.capture_gradient(lambda w, x: jnp.sum(jnp.exp(jnp.sin(x @ w) * 2)), x, x)
      >>> plan = tb.plan_save_everything(graph)
      >>> steps, n_forward_steps = plan.timeline.steps, plan.timeline.n_forward_steps
      >>> materialize(graph, steps, n_forward_steps, is_planned=False).peak_bytes < plan.peak_bytes
      True
    """
    if backend not in BACKENDS:
        raise PlanError(f"backend={backend!r} was asked for; what XLA allocates is modelled for {', '.join(BACKENDS)}")
    fusion = fuse(unroll(graph, steps.tolist(), n_forward_steps, is_planned))
    kernels = _kernels(fusion)
    first, last = _lives(fusion, kernels)
    buffers = np.flatnonzero(fusion.has_buffer)
    is_output = np.isin(buffers, list(fusion.returned))
    lent = _share(fusion, first, last)
    is_lent = np.isin(buffers, list(lent))
    n_bytes = np.array(fusion.instructions.n_bytes, np.int64)[buffers]
    starts, ends = np.array(first, np.int64)[buffers], np.array(last, np.int64)[buffers]
    own = ~is_output & ~is_lent
    delta = np.zeros(len(kernels) + 2, np.int64)
    np.add.at(delta, starts[own], n_bytes[own])
    np.add.at(delta, ends[own] + 1, -n_bytes[own])
    live = np.cumsum(delta)[: len(kernels)] + graph.output_bytes
    peak = int(live.argmax()) if len(live) else 0
    kernel_nodes = np.array([fusion.instructions.nodes[made[0]] for made in kernels], np.int64)
    return Materialized(
        graph=graph,
        backend=backend,
        kernel_nodes=kernel_nodes,
        n_forward_kernels=_border(kernel_nodes, graph.n_forward),
        live_bytes=live,
        peak_bytes=int(live[peak]) if len(live) else graph.output_bytes,
        peak_kernel=peak,
        values=np.array(fusion.instructions.values, np.int64)[buffers],
        nodes=np.array(fusion.instructions.nodes, np.int64)[buffers],
        n_bytes=n_bytes,
        first=starts,
        last=np.where(is_output, len(kernels) - 1, ends),
        is_output=is_output,
        is_lent=is_lent,
    )


def by_liveness(graph: Graph, ops: np.ndarray, targets: np.ndarray, timeline: Timeline) -> Materialized:
    """Return what a plan keeps in memory where every value counts from the step that makes it to where it is freed.

    Args:
      graph: Any graph.
      ops: `Op` of each action of the plan.
      targets: Node or value of each action.
      timeline: What the referee saw.
    """
    is_step = (ops != Op.SAVE) & (ops != Op.FREE)
    step_of_action = np.cumsum(is_step) - 1
    steps = timeline.steps
    n_made = np.diff(graph.output_start)[steps]
    made, made_at = ranges(graph.output_start[steps], n_made), np.repeat(np.arange(len(steps)), n_made)
    is_free = ops == Op.FREE
    freed, freed_at = targets[is_free], step_of_action[is_free]
    order, freed_order = np.lexsort((made_at, made)), np.lexsort((freed_at, freed))
    made, made_at, freed, freed_at = made[order], made_at[order], freed[freed_order], freed_at[freed_order]
    # The k-th making of a value is ended by its k-th freeing; the last may be ended by none.
    nth = np.arange(len(made)) - np.searchsorted(made, made)
    at = np.searchsorted(freed, made) + nth
    is_ended = at < np.searchsorted(freed, made, side="right")
    last = np.full(len(made), max(len(steps) - 1, 0))
    last[is_ended] = freed_at[at[is_ended]]
    return Materialized(
        graph=graph,
        backend="",
        kernel_nodes=steps,
        n_forward_kernels=timeline.n_forward_steps,
        live_bytes=timeline.live_bytes,
        peak_bytes=timeline.peak_bytes,
        peak_kernel=timeline.peak_step,
        values=made,
        nodes=graph.value_node[made],
        n_bytes=graph.value_bytes[made],
        first=made_at,
        last=last,
        is_output=np.isin(made, graph.outputs) & ~is_ended,
        is_lent=np.zeros(len(made), bool),
    )


def _border(kernel_nodes: np.ndarray, n_forward: int) -> int:
    """Return where the backward phase begins: what belongs to the other phase on either side is least.

    To it belong its nodes, holds, and nodes of the forward phase that run again.
    """
    is_late = (kernel_nodes >= n_forward) | (kernel_nodes == HELD) | (kernel_nodes == PREDICATE)
    seen = np.unique(kernel_nodes, return_index=True)[1]
    is_late |= (kernel_nodes >= 0) & ~np.isin(np.arange(len(kernel_nodes)), seen)
    n_misplaced = np.cumsum(np.r_[np.count_nonzero(~is_late), np.where(is_late, 1, -1)])
    return int(n_misplaced.argmin())


def _kernels(fusion: Fusion) -> list[list[int]]:
    """Return the instructions that each kernel writes, in the order in which kernels run: first ready, first run."""
    steps = fusion.instructions.steps
    writes: dict[int, list[int]] = {}
    for i, has_buffer in enumerate(fusion.has_buffer):
        if has_buffer:
            writes.setdefault(steps[i], []).append(i)
    waiting: dict[int, int] = {}
    readers: dict[int, list[int]] = {step: [] for step in writes}
    for step, made in writes.items():
        needed = {steps[o] for i in made for o in fusion.sources[i]} - {step}
        waiting[step] = len(needed)
        for other in needed:
            readers[other].append(step)
    ready = deque(step for step in writes if not waiting[step])
    order: list[list[int]] = []
    while ready:
        step = ready.popleft()
        order.append(writes[step])
        for other in readers[step]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    assert len(order) == len(writes), "kernels wait for each other"
    return order


def _lives(fusion: Fusion, kernels: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return the kernel that writes each buffer and the last one that reads it."""
    first, last = [-1] * len(fusion.has_buffer), [-1] * len(fusion.has_buffer)
    for position, made in enumerate(kernels):
        for i in made:
            first[i] = position
            last[i] = max(last[i], position)
            for o in fusion.sources[i]:
                last[o] = position  # kernels come in order
    return first, last


def _share(fusion: Fusion, first: list[int], last: list[int]) -> set[int]:
    """Return the temporaries in the memory of outputs, and shorten the lives of others that are written into.

    The largest come first; each goes into the smallest output that holds it and is free until it is done,
    of equal ones into the last. What is left
    may be overwritten by the loop, or the scatter, that reads it last.
    """
    n_bytes, returned = fusion.instructions.n_bytes, fusion.returned
    lent: set[int] = set()
    outputs = sorted((i for i in returned if first[i] >= 0), key=lambda i: (n_bytes[i], -returned[i]))
    sizes = [n_bytes[i] for i in outputs]
    taken: list[list[int]] = [[] for _ in outputs]
    buffers = [i for i, has_buffer in enumerate(fusion.has_buffer) if has_buffer]
    temporaries = [i for i in buffers if i not in returned and n_bytes[i] >= _LEAST_LENT_BYTES]
    for i in sorted(temporaries, key=lambda i: -n_bytes[i]):
        end = last[i]
        for k in range(bisect.bisect_left(sizes, n_bytes[i]), len(outputs)):
            written = first[outputs[k]]
            is_free = end < written or (end == written and _overwrites(fusion, outputs[k], i))
            if is_free and not any(_clash(fusion, first, last, i, j) for j in taken[k]):
                taken[k].append(i)
                lent.add(i)
                break
    for i in buffers:
        if i not in returned and i not in lent:
            for o in fusion.sources[i]:
                is_done = last[o] == first[i] > first[o] and o not in returned and o not in lent
                if is_done and _overwrites(fusion, i, o):
                    last[o] -= 1
                    break
    return lent


def _clash(fusion: Fusion, first: list[int], last: list[int], i: int, j: int) -> bool:
    """Return whether two temporaries need memory at once."""
    if first[i] > first[j]:
        i, j = j, i
    return last[i] > first[j] or (last[i] == first[j] and (first[i] == first[j] or not _overwrites(fusion, j, i)))


def _overwrites(fusion: Fusion, i: int, operand: int) -> bool:
    """Return whether an instruction may be written into an operand that it reads last: one of its size and shape."""
    of = fusion.instructions
    if operand not in fusion.sources[i] or not (fusion.sources[i][operand] or fusion.is_in_place[i]):
        return False
    if of.values[i] < 0 or of.values[operand] < 0 or of.n_bytes[i] != of.n_bytes[operand]:
        return False
    return of.graph.value_shapes[of.values[i]] == of.graph.value_shapes[of.values[operand]]
