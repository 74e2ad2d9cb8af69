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
copies what it holds, so that both copies live where the original is read later. A `scan` or a `while` keeps its
carries in the memory of their first values, if nobody reads these later, and leaves out what it stacks up and nobody
reads; what passes through it is lent no memory of outputs. What its steps need is `step_memory`'s to say.

The rules are those of XLA:CPU (JAX 0.10, with YNNPACK's kernels), each held against it in `tests/test_materialized.py`;
`python -m benchmarks.truth` says how far the predictions are off. Known weak spots: the order in which kernels that
become ready together run; kernels in which YNNPACK takes more than a softmax in; what convolutions of images smaller
than their kernels become; values of literals, which the graph does not know; and room that XLA leaves between buffers.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque

import numpy as np
import pandas as pd

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph
from tiny_backprop.plan.fusion import Fusion, fuse
from tiny_backprop.plan.unrolled import BROADCAST, COPY, FLAT, HELD, PREDICATE, unroll
from tiny_backprop.units import format_bytes

BACKENDS = ("cpu",)
"""Backends whose allocation is modelled."""
_NAMES = {HELD: "hold", PREDICATE: "predicate", COPY: "copy", BROADCAST: "broadcast", FLAT: "reshape"}
_LEAST_LENT_BYTES = 1024
_LOOPS = ("scan", "while")


@dataclasses.dataclass(frozen=True, eq=False)
class Materialized:
    """What XLA is predicted to allocate; kernels are numbered in the order in which they are predicted to run.

    Attributes:
      graph: The graph.
      backend: The backend that was modelled.
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
        graph = self.graph
        nodes = self.nodes.tolist()
        values = self.values.tolist()
        table = pd.DataFrame(
            {
                "made_by": [graph.primitives[n] if n >= 0 else _NAMES[n] for n in nodes],
                "shape": [graph.value_shapes[v] if v >= 0 else () for v in values],
                "bytes": self.n_bytes,
                "first_kernel": self.first,
                "last_kernel": self.last,
                "is_output": self.is_output,
                "is_lent": self.is_lent,
                "scope": [graph.scopes[n] if n >= 0 else "" for n in nodes],
                "source": [graph.sources[n] if n >= 0 else "" for n in nodes],
            }
        )
        return table.sort_values("first_kernel", kind="stable", ignore_index=True)

    def at_peak(self) -> pd.DataFrame:
        """Return the buffers alive at the peak, the largest first; outputs written later are left out."""
        table = self.to_pandas()
        alive = table.loc[(table.first_kernel <= self.peak_kernel) & (table.last_kernel >= self.peak_kernel)]
        return alive.sort_values("bytes", ascending=False, kind="stable", ignore_index=True)

    def __repr__(self) -> str:
        return (
            f"Materialized({self.graph.name!r}: predicted peak {format_bytes(self.peak_bytes)} on {self.backend}, "
            f"{len(self.live_bytes)} kernels, {len(self.values)} buffers)"
        )


def materialize(
    graph: Graph, steps: np.ndarray, n_forward_steps: int, *, is_planned: bool, backend: str = "cpu", lends: bool = True
) -> Materialized:
    """Predict what XLA allocates for a gradient; some 10 ms for 1,000 nodes.

    Args:
      graph: A gradient graph.
      steps: Nodes in the order in which they run, as in `Timeline.steps`.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as `height_compressed_grad` runs it, or is JAX's own.
      backend: The backend to model; see `BACKENDS`.
      lends: Whether outputs lend their memory to temporaries, as those of a program do; those of a loop's body do not.

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
    _drop_unread(fusion)
    kernels = _kernels(fusion)
    first, last = _lives(fusion, kernels)
    buffers = np.flatnonzero(fusion.has_buffer)
    is_output = np.isin(buffers, list(fusion.returned))
    lent = _share(fusion, first, last, lends)
    is_lent = np.isin(buffers, list(lent))
    n_bytes = np.array(fusion.instructions.n_bytes, np.int64)[buffers]
    starts, ends = np.array(first, np.int64)[buffers], np.array(last, np.int64)[buffers]
    own = ~is_output & ~is_lent
    delta = np.zeros(len(kernels) + 2, np.int64)
    np.add.at(delta, starts[own], n_bytes[own])
    np.add.at(delta, ends[own] + 1, -n_bytes[own])
    live = np.cumsum(delta)[: len(kernels)] + graph.output_bytes
    peak = int(live.argmax()) if len(live) else 0
    return Materialized(
        graph=graph,
        backend=backend,
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


def _drop_unread(fusion: Fusion) -> None:
    """Take the memory from what a loop stacks up and nobody reads: XLA removes it from the loop."""
    of, graph = fusion.instructions, fusion.instructions.graph
    stacked = {
        v
        for n in graph.nested
        if n.kind == "scan"
        for v in range(graph.output_start[n.forward_node] + len(n.carries), graph.output_start[n.forward_node + 1] - 2)
    }
    if stacked:
        read = {o for sources in fusion.sources for o in sources}
        for i, v in enumerate(of.values):
            if v in stacked and i not in read and i not in fusion.returned:
                fusion.has_buffer[i] = False


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


def _share(fusion: Fusion, first: list[int], last: list[int], lends: bool) -> set[int]:
    """Return the temporaries in the memory of outputs, and shorten the lives of others that are written into.

    The largest come first; each goes into the smallest output that holds it and is free until it is done, of equal
    ones into the last. What is left may be overwritten by the loop, or the scatter, that reads it last. What passes
    through a `scan` or a `while` is neither lent memory nor overwritten, but for carries, by those after the last step.
    """
    n_bytes, returned = fusion.instructions.n_bytes, fusion.returned
    lent: set[int] = set()
    outputs = sorted((i for i in returned if first[i] >= 0), key=lambda i: (n_bytes[i], -returned[i]))
    sizes = [n_bytes[i] for i in outputs]
    first_written = [_first_written(fusion, first, i) for i in outputs]
    taken: list[list[int]] = [[] for _ in outputs]
    buffers = [i for i, has_buffer in enumerate(fusion.has_buffer) if has_buffer]
    temporaries = [i for i in buffers if i not in returned and n_bytes[i] >= _LEAST_LENT_BYTES]
    in_loops = _in_loops(fusion)
    for i in sorted(temporaries, key=lambda i: -n_bytes[i]) if lends else ():
        end = last[i]
        for k in range(bisect.bisect_left(sizes, n_bytes[i]), len(outputs)):
            written = first_written[k]
            is_over = end == first[outputs[k]] and _overwrites(fusion, outputs[k], i)
            is_free = is_over or (end < written and i not in in_loops)
            if is_free and not any(_clash(fusion, first, last, i, j) for j in taken[k]):
                taken[k].append(i)
                lent.add(i)
                break
    for i in buffers:
        is_loop = fusion.instructions.primitive(i) in _LOOPS
        if not lends or (i not in returned and i not in lent):
            for o in fusion.sources[i]:
                is_done = last[o] == first[i] > first[o] and o not in returned and o not in lent
                if is_done and (is_loop or o not in in_loops) and _overwrites(fusion, i, o):
                    last[o] -= 1
                    break
    return lent


def _first_written(fusion: Fusion, first: list[int], output: int) -> int:
    """Return the kernel that first writes into an output: before a loop, as soon as it is told to, it makes room."""
    of = fusion.instructions
    if of.primitive(output) not in _LOOPS:
        return first[output]
    told = (first[o] for o in fusion.sources[output] if of.nodes[o] == PREDICATE)
    return min([first[output], *told])


def _in_loops(fusion: Fusion) -> set[int]:
    """Return what loops read or make: it passes through all of their steps."""
    of, found = fusion.instructions, set[int]()
    for i, sources in enumerate(fusion.sources):
        if of.primitive(i) in _LOOPS:
            found.add(i)
            found.update(sources)
    return found


def _overwritten(graph: Graph) -> dict[int, int]:
    """Return, for each result of a loop that is a carry at its end, what it is at the start."""
    if "overwritten" not in graph.memo:
        outs, operands = graph.output_start.tolist(), graph.operand_start.tolist()
        graph.memo["overwritten"] = {
            outs[node] + out: int(graph.operands[operands[node] + operand])
            for nested in graph.nested
            for node, pairs in zip((nested.forward_node, nested.backward_node), nested.overwrites, strict=True)
            for operand, out in pairs
        }
    return graph.memo["overwritten"]


def _clash(fusion: Fusion, first: list[int], last: list[int], i: int, j: int) -> bool:
    """Return whether two temporaries need memory at once."""
    if first[i] > first[j]:
        i, j = j, i
    return last[i] > first[j] or (last[i] == first[j] and (first[i] == first[j] or not _overwrites(fusion, j, i)))


def _overwrites(fusion: Fusion, i: int, operand: int) -> bool:
    """Return whether an instruction may be written into an operand that it reads last: one of its size and shape."""
    of = fusion.instructions
    if of.primitive(i) in _LOOPS:
        return _overwritten(of.graph).get(of.values[i]) == of.values[operand]
    if operand not in fusion.sources[i] or not (fusion.sources[i][operand] or fusion.is_in_place[i]):
        return False
    if of.values[i] < 0 or of.values[operand] < 0 or of.n_bytes[i] != of.n_bytes[operand]:
        return False
    return of.graph.value_shapes[of.values[i]] == of.graph.value_shapes[of.values[operand]]
