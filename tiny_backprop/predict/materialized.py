"""What XLA allocates for a plan, predicted: the plan's own liveness, corrected for what XLA makes of the program.

Plain liveness (`simulate`) counts every value from the step that makes it to the last that reads it. XLA allocates
otherwise, and this module follows it, in four steps:

- `unrolled`: the plan as instructions, with what the compiler writes around nodes (`lowering`), with holds, and with
  nothing computed twice that is merged;
- `fusion`: which of them take memory at all;
- here: in which kernels, and so how long, each buffer lives, in the order that the compiler starts kernels in;
- `sharing`: which buffers share memory.

What the program returns has memory of its own for the whole run, which lends itself to temporaries, the largest first,
until it is written. A loop writes into the memory of an operand of its size that it reads last, and so does a scatter.
A hold copies what it holds, so that both copies live where the original is read later. A `scan` or a `while` keeps its
carries in the memory of their first values, if nobody reads these later, and leaves out what it stacks up and nobody
reads; what passes through it is lent no memory of outputs. What its steps need is `step_memory`'s to say.

What one compiler does beside stands in its own package, `xla_cpu`: what XLA:CPU (of JAX 0.10 and 0.12, with YNNPACK's
kernels) copies and converts for contractions and writes as several kernels, what its library kernels take in, and the
order of its kernels. Each rule is held against it in `tests/predict/test_materialized.py`; `python -m benchmarks.truth`
says how far the predictions are off. Known weak spots: the order in which kernels that become ready together run, where
passes of XLA change it (attention written as `einsum`); kernels in which YNNPACK takes more than a softmax in; what XLA
makes of 16-bit floats that the program itself turns into float32; planned loops over stacks of 16-bit floats on JAX
0.10, whose steps read copies in float32; masks of ragged dots, which XLA may keep; what convolutions of images smaller
than their kernels become; factorizations (LU, QR, SVD) and sorts, whose operands XLA copies or overwrites; what
`associative_scan` keeps; values of literals, of which the graph knows no more than which are equal; and room that XLA
leaves between buffers.

What holds for all plans of a graph is found once and kept with it (`node_facts`, `templates`). From then on a plan of
1,000 nodes takes some 3 ms, one of 10,000 nodes 20 to 30 ms: `python -m benchmarks.figures --only planning`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from tiny_backprop.fifo_cache import FifoCache
from tiny_backprop.graph import Graph, Nested
from tiny_backprop.predict.backends import compiler_of
from tiny_backprop.predict.donation import taking_over, with_copies
from tiny_backprop.predict.fusion import Fusion, fuse
from tiny_backprop.predict.instructions import (
    BROADCAST,
    CONVERT,
    COPY,
    FLAT,
    HELD,
    PREDICATE,
    RECIPROCAL,
    SCRATCH,
    Instructions,
)
from tiny_backprop.predict.kernel_work import KernelWork, kernel_work
from tiny_backprop.predict.sharing import share
from tiny_backprop.predict.unrolled import unroll
from tiny_backprop.schedule.checkpointed import jax_schedule
from tiny_backprop.schedule.simulate import Op, Timeline, ranges
from tiny_backprop.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

_MOST_FUSIONS = 4  # of one graph that are kept
_NAMES = {
    HELD: "hold",
    PREDICATE: "predicate",
    COPY: "copy",
    BROADCAST: "broadcast",
    FLAT: "reshape",
    RECIPROCAL: "reciprocal",
    CONVERT: "convert",
    SCRATCH: "scratch",
}
OP_NAMES = (*(op.name.lower() for op in Op), *_NAMES.values())
"""The word for each entry of `Materialized.kernel_ops`."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedProgram:
    """What runs, as `materialize` is given it."""

    graph: Graph
    steps: np.ndarray
    n_forward_steps: int
    is_planned: bool
    backend: str = "cpu"
    has_barriers: bool = False

    @functools.cached_property
    def work(self) -> KernelWork:
        """What its kernels do."""
        work = kernel_work(self.fused())
        self._fusions.forget(self)
        return work

    def fused(self) -> Fusion:
        """Return what of it takes memory, and what is computed inside its readers.

        It is large: those of the latest few programs are kept with the graph until their `work` has been asked for.
        """
        return self._fusions.get(self, self._fused)

    def _fused(self) -> Fusion:
        compiler = compiler_of(self.backend, self.graph.jax_version)
        program = unroll(
            compiler.templates(self.graph), self.steps, self.n_forward_steps, self.is_planned, self.has_barriers
        )
        if self.is_planned:
            return with_copies(_without_unread(fuse(program, compiler.fusion)))
        fusion = fuse(_with_jax_loops(program), compiler.fusion)
        return with_copies(_without_unread(_through_barriers(fusion)))

    @property
    def _fusions(self) -> FifoCache[Fusion]:
        return self.graph.memo.setdefault("latest fusions", FifoCache(_MOST_FUSIONS))


@dataclasses.dataclass(frozen=True, eq=False)
class Materialized:
    """What XLA is predicted to allocate; kernels are numbered in the order in which they are predicted to run.

    Attributes:
      graph: The graph.
      backend: The backend that was modelled; `""` where values are counted by plain liveness, each from the step that
        makes it to the last that reads it, and a kernel is a step of the plan.
      program: What runs.
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
      is_in_argument: Whether it is in the memory of a donated argument, which does not count: an output or a temporary.
    """

    graph: Graph
    backend: str
    program: PlannedProgram
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
    is_in_argument: np.ndarray

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per buffer, in the order in which they are written."""
        return self._table(np.argsort(self.first, kind="stable"))

    def _table(self, buffers: np.ndarray) -> pd.DataFrame:
        import pandas as pd

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
                "is_in_argument": self.is_in_argument[buffers],
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
        import pandas as pd

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
    graph: Graph,
    steps: np.ndarray,
    n_forward_steps: int,
    *,
    is_planned: bool,
    backend: str = "cpu",
    lends: bool = True,
    has_barriers: bool = False,
) -> Materialized:
    """Predict what XLA allocates for a gradient.

    Takes some 3 ms for 1,000 nodes and 20 to 30 ms for 10,000, and for the first plan of a graph about 10 ms more for
    each 1,000 nodes.

    Args:
      graph: A gradient graph.
      steps: Nodes in the order in which they run, as in `Timeline.steps`.
      n_forward_steps: How many of them come before the backward phase.
      is_planned: Whether the gradient runs as `height_compressed_grad` runs it, or as JAX does.
      backend: The backend to model, one of `backends.BACKENDS`.
      lends: Whether outputs lend their memory to temporaries, as those of a program do; those of a loop's body do not.
      has_barriers: Whether it is JAX's own gradient, whose calls under `jax.checkpoint` have barriers; the steps are
        then those of `jax_schedule`.

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
      >>> materialize(graph, steps, n_forward_steps, is_planned=False).peak_bytes < plan.liveness_peak_bytes
      True
    """
    compiler = compiler_of(backend, graph.jax_version)
    program = PlannedProgram(graph, steps, n_forward_steps, is_planned, backend, has_barriers)
    fusion = program.fused()
    of, buffers = fusion.instructions, np.flatnonzero(fusion.has_buffer)
    n_kernels, first = compiler.order(fusion, buffers)
    last = first.copy()
    np.maximum.at(last, fusion.sources, first[fusion.readers])
    place = share(fusion, first, last, lends)[buffers]
    starts, ends, n_bytes = first[buffers], last[buffers], of.n_bytes[buffers]
    own, is_output = place < 0, place == buffers
    delta = np.zeros(n_kernels + 2, np.int64)
    np.add.at(delta, starts[own], n_bytes[own])
    np.add.at(delta, ends[own] + 1, -n_bytes[own])
    live = np.cumsum(delta)[:n_kernels] + graph.new_output_bytes
    peak = int(live.argmax()) if n_kernels else 0
    kernel_nodes = np.empty(n_kernels, np.int64)
    kernel_nodes[starts[::-1]] = of.nodes[buffers[::-1]]  # of several buffers, the first one's
    return Materialized(
        graph=graph,
        backend=backend,
        program=program,
        kernel_nodes=kernel_nodes,
        n_forward_kernels=_border(kernel_nodes, graph.n_forward),
        live_bytes=live,
        peak_bytes=int(live[peak]) if n_kernels else graph.new_output_bytes,
        peak_kernel=peak,
        values=of.values[buffers],
        nodes=of.nodes[buffers],
        n_bytes=n_bytes,
        first=starts,
        last=np.where(is_output, n_kernels - 1, ends),
        is_output=is_output,
        is_lent=~own & ~is_output,
        is_in_argument=np.isin(place, list(taking_over(fusion))),
    )


def _with_jax_loops(program: Instructions) -> Instructions:
    """Let loops hand on what JAX's own do: a value that is the next carry, and read in both steps, is saved twice."""
    graph, n_bytes = program.graph, program.n_bytes.copy()
    for n in graph.nested:
        if n.kind == "scan":
            saved = graph.output_start[n.forward_node + 1] - 2
            handed_on = program.values == saved
            n_bytes[handed_on] = n_bytes[handed_on] * _saved_by_jax(n) // max(graph.value_bytes[saved], 1)
    return dataclasses.replace(program, n_bytes=n_bytes)


def _saved_by_jax(loop: Nested) -> int:
    """Return the bytes that JAX's own loop saves for the backward phase, loops inside of it included."""
    (body,) = loop.bodies
    n_bytes = body.value_bytes.copy()
    for n in body.nested:
        if n.kind == "scan":
            n_bytes[body.output_start[n.forward_node + 1] - 2] = _saved_by_jax(n)
    as_jax = jax_schedule(body)
    carries = np.arange(loop.first_carry, loop.first_carry + len(loop.carries))
    late = np.zeros(body.n_nodes, bool)
    late[as_jax.steps[as_jax.n_forward_steps :]] = True
    read = np.unique(body.operands[late[body.operand_node]])
    saved = np.append(np.array(as_jax.kept, np.int64), carries[np.isin(carries, read)])
    return int(loop.length * n_bytes[saved].sum())


def _through_barriers(fusion: Fusion) -> Fusion:
    """Let what a barrier hands on stay where it is: unlike a hold, a barrier copies nothing."""
    of = fusion.instructions
    is_barrier = (of.nodes == HELD) & fusion.has_buffer
    if not is_barrier.any():
        return fusion
    given = is_barrier[fusion.readers] & (of.nodes[fusion.sources] != PREDICATE)
    source_of = np.full(len(of), -1)
    source_of[fusion.readers[given]] = fusion.sources[given]
    through = is_barrier[fusion.sources] & (source_of[fusion.sources] >= 0)
    readers = np.append(fusion.readers, fusion.readers[through])
    sources = np.append(fusion.sources, source_of[fusion.sources[through]])
    is_same_place = np.append(fusion.is_same_place, fusion.is_same_place[through])
    order = np.lexsort((sources, readers))
    return dataclasses.replace(
        fusion,
        instructions=dataclasses.replace(of, n_bytes=np.where(is_barrier, 0, of.n_bytes)),
        readers=readers[order],
        sources=sources[order],
        is_same_place=is_same_place[order],
    )


def _without_unread(fusion: Fusion) -> Fusion:
    """Take the memory from what a loop stacks up and nobody reads: XLA removes it from the loop."""
    of, graph = fusion.instructions, fusion.instructions.graph
    is_stacked = np.zeros(graph.n_values + 1, bool)
    for n in graph.nested:
        if n.kind == "scan":
            start, end = graph.output_start[n.forward_node : n.forward_node + 2]
            is_stacked[start + len(n.carries) : end - 2] = True
    is_unread = is_stacked[of.values] & fusion.has_buffer
    is_unread[fusion.sources] = False
    is_unread[list(fusion.returned)] = False
    if not is_unread.any():
        return fusion
    stays = ~is_unread[fusion.readers]
    return dataclasses.replace(
        fusion,
        has_buffer=fusion.has_buffer & ~is_unread,
        readers=fusion.readers[stays],
        sources=fusion.sources[stays],
        is_same_place=fusion.is_same_place[stays],
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
        program=PlannedProgram(graph, steps, timeline.n_forward_steps, is_planned=False),
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
        is_in_argument=np.zeros(len(made), bool),
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
