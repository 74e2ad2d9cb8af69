"""The report on a graph: its frontier, what makes its peak, bounds, and whether it is height-compressible."""

from __future__ import annotations

import dataclasses
import functools
import html
from typing import TYPE_CHECKING

import numpy as np

from tiny_backprop.display import frontier_svg, guarded, plain_scope, short_path, table
from tiny_backprop.door import door
from tiny_backprop.errors import GraphError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.liveness import frontier, live_ranges
from tiny_backprop.plan.blocks import plan_jax_gradient, plan_save_everything
from tiny_backprop.plan.checkpointed_calls import CheckpointedCalls, checkpointed_calls
from tiny_backprop.plan.left_alone import LeftAlone, left_alone
from tiny_backprop.plan.loops.front import lower_bound_bytes
from tiny_backprop.plan.loops.frontier import LoopFrontier, loop_frontier
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.tree import best_tree
from tiny_backprop.predict.nested import NestedPlan, nested_plans
from tiny_backprop.record import Record
from tiny_backprop.units import format_bytes, format_flops

if TYPE_CHECKING:
    import pandas as pd

_OCTAVES_BY_LEVELS = {1: (0.0, 1.0, 2.0), 2: (0.5, 2.0), 3: (0.5, 2.0)}


@dataclasses.dataclass(frozen=True)
class FrontierSummary:
    """The frontier of a program that runs every node once, in order; bytes are predicted, by plain liveness.

    Attributes:
      n_steps: Number of steps.
      peak_bytes: Largest number of live bytes at any step; inputs of the graph are not counted.
      peak_step: The first step with that many.
      mean_bytes: Mean over the steps.
      final_bytes: Live bytes at the last step.
      forward_end_bytes: Live bytes when the forward phase ends: what the backward phase is left with.
    """

    n_steps: int
    peak_bytes: int
    peak_step: int
    mean_bytes: float
    final_bytes: int
    forward_end_bytes: int

    def to_pandas(self) -> pd.DataFrame:
        """Return the summary as one row."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(self)])

    def __repr__(self) -> str:
        return (
            f"FrontierSummary({self.n_steps} steps, peak by liveness {format_bytes(self.peak_bytes)} at step "
            f"{self.peak_step}, mean {format_bytes(self.mean_bytes)})"
        )


@dataclasses.dataclass(frozen=True)
class LiveValue:
    """A value that is alive at the peak.

    Attributes:
      value: Number of the value.
      bytes: Its size.
      shape: Its shape.
      dtype: Name of its dtype.
      node: The node that makes it.
      primitive: That node's primitive.
      last_step: The last step that needs it.
      scope: Name stack.
      source: Source line.
    """

    value: int
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    node: int
    primitive: str
    last_step: int
    scope: str
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Compressibility:
    """How far recomputation takes the peak down; everything here is predicted, by plain liveness.

    Attributes:
      plans: The best plan found with one level (blocks), and with two and three.
      save_everything_bytes: Peak when nothing is recomputed.
      lower_bound_bytes: No plan needs less, with this order of the backward phase.
      fraction: How much of what lies between those two the best plan takes away, 0 to 1.
    """

    plans: tuple[Plan, ...]
    save_everything_bytes: int
    lower_bound_bytes: int
    fraction: float

    @property
    def is_height_compressible(self) -> bool:
        """Whether the best plan takes away at least half of what can be taken away at all."""
        return self.fraction >= 0.5

    @property
    def best(self) -> Plan:
        """The plan with the smallest peak."""
        return min(self.plans, key=lambda p: p.liveness_peak_bytes)

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        best, plain = self.best.liveness_peak_bytes, self.save_everything_bytes
        word = "height-compressible" if self.is_height_compressible else "hardly height-compressible"
        levels = self.best.meta["levels"]
        return (
            f"{word}: peak by liveness {format_bytes(plain)} → {format_bytes(best)} ({best / max(plain, 1):.2f} ×) "
            f"with {levels} level{'s' * (levels != 1)} of blocks of {self.best.meta['block_size']} nodes and "
            f"+{self.best.recompute_fraction:.0%} FLOPs; no plan needs less than "
            f"{format_bytes(self.lower_bound_bytes)}"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per plan, save-everything first."""
        import pandas as pd

        plain = {"levels": 0, "block_size": 0, "peak_bytes": self.save_everything_bytes, "recompute_flops": 0.0}
        rows = [plain] + [
            {
                "levels": p.meta["levels"],
                "block_size": p.meta["block_size"],
                "peak_bytes": p.liveness_peak_bytes,
                "recompute_flops": p.recompute_flops,
            }
            for p in self.plans
        ]
        frame = pd.DataFrame(rows)
        frame["peak_ratio"] = frame.peak_bytes / max(self.save_everything_bytes, 1)
        return frame


@dataclasses.dataclass(frozen=True, eq=False)
class LoopReport:
    """What is inside a loop, or branches, of a graph, as the graph has them planned; all predicted.

    Attributes:
      kind: `"scan"` or `"cond"`.
      plan: How it is reversed.
      scope: Name stack.
      source: Source line.
      frontier: Live bytes over its steps; None for branches.
      bodies: The report on one step, or on each branch.
    """

    kind: str
    plan: NestedPlan
    scope: str
    source: str
    frontier: LoopFrontier | None
    bodies: tuple[GraphReport, ...]

    @property
    def title(self) -> str:
        """What it is and what it takes, in one line."""
        plan = self.plan
        size = f"scan of {plan.nested.length:,} steps" if plan.is_loop else f"cond of {len(self.bodies)} branches"
        again = f", {plan.n_again:,} steps run again" if plan.n_again else ""
        return (
            f"{size}: saves {format_bytes(plan.saved_bytes)}, needs {format_bytes(plan.backward_scratch_bytes)} more "
            f"while it is reversed (predicted){again}"
        )

    def __repr__(self) -> str:
        return f"LoopReport({self.title})"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        picture = (
            ""
            if self.frontier is None
            else (
                f"live bytes over its steps, forward (blue) and then backward (orange), at most "
                f"{format_bytes(int(self.frontier.live_bytes.max(initial=0)))} (predicted):<br>"
                + frontier_svg(self.frontier.live_bytes, self.frontier.n_forward_steps)
                + "<br>"
            )
        )
        word = "one step" if self.plan.is_loop else "a branch"
        bodies = "".join(f"<details><summary>{word}</summary>{body._html()}</details>" for body in self.bodies)
        source = html.escape(short_path(self.source))
        return f"<div><b>{html.escape(self.title)}</b> {source}<br>{picture}{bodies}</div>"


@dataclasses.dataclass(frozen=True, eq=False)
class GraphReport(Record):
    """What `analyze_graph` found; every number is predicted, for a program that runs every node once, in order.

    Attributes:
      graph: The graph.
      frontier_bytes: Live bytes at each step, int64 of shape (n_nodes,).
      summary: The frontier in a few numbers.
      live_at_peak: The values alive at the peak, largest first.
      activation_bytes: Bytes of everything that the forward phase makes.
      lower_bound_bytes: No plan needs less, with this order of the backward phase; see `plan.bounds`.
      compressibility: How far recomputation takes the peak down; None for a graph without backward phase.
      loops: What is inside its loops and branches.
    """

    graph: Graph
    frontier_bytes: np.ndarray
    summary: FrontierSummary
    live_at_peak: tuple[LiveValue, ...]
    activation_bytes: int
    lower_bound_bytes: int
    compressibility: Compressibility | None
    loops: tuple[LoopReport, ...]

    @property
    def left_alone(self) -> tuple[LeftAlone, ...]:
        """What holds memory and runs as JAX has it, whatever the plan, the largest first."""
        return left_alone(self.graph)

    @property
    def checkpointed_calls(self) -> tuple[CheckpointedCalls, ...]:
        """What the program's own calls under `jax.checkpoint` save, offload and run again, as JAX has them."""
        return checkpointed_calls(self.graph)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """Peak that XLA is predicted to allocate; see `Plan.peak_bytes`."""
        return plan_save_everything(self.graph).peak_bytes

    @property
    def liveness_peak_bytes(self) -> int:
        """Width of the frontier, the largest number of live bytes at any step."""
        return self.summary.peak_bytes

    @property
    def gap(self) -> float:
        """The program's peak in proportion to the lower bound, both by liveness."""
        return self.liveness_peak_bytes / self.lower_bound_bytes if self.lower_bound_bytes else 1.0

    @property
    def verdict(self) -> str:
        """Whether and how far the computation is height-compressible, in one sentence."""
        if self.compressibility is None:
            return "no backward phase captured: capture_gradient(fun, *args) tells how far it is height-compressible"
        return self.compressibility.verdict

    def to_pandas(self) -> pd.DataFrame:
        """Return the values alive at the peak, one row each, largest first."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(v) for v in self.live_at_peak])

    def __repr__(self) -> str:
        return (
            f"GraphReport({self.graph.name!r}: predicted peak {format_bytes(self.peak_bytes)}; by liveness "
            f"{format_bytes(self.liveness_peak_bytes)} at node "
            f"{self.summary.peak_step}, {self.gap:.1f} × its lower bound; {self.verdict})"
        )

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        picture = frontier_svg(self.frontier_bytes, self.graph.n_forward)
        as_jax = plan_jax_gradient(self.graph).peak_bytes if self.graph.has_checkpoints else None
        rows = [
            ("peak (predicted)", format_bytes(self.peak_bytes)),
            *([("peak with its jax.checkpoint (predicted)", format_bytes(as_jax))] if as_jax is not None else []),
            (
                "peak by liveness, nothing fused",
                f"{format_bytes(self.liveness_peak_bytes)} at node {self.summary.peak_step}",
            ),
            ("lower bound", f"{format_bytes(self.lower_bound_bytes)}; the peak by liveness is {self.gap:.1f} × that"),
            ("activations", format_bytes(self.activation_bytes)),
            ("work", format_flops(float(self.graph.flops.sum()))),
            ("verdict", self.verdict),
            *(("jax.checkpoint", str(x)) for x in self.checkpointed_calls),
            *(("left as JAX has it", str(x)) for x in self.left_alone),
        ]
        at_peak = [
            (format_bytes(v.bytes), v.primitive, v.node, plain_scope(v.scope), short_path(v.source))
            for v in self.live_at_peak[:10]
        ]
        header = ("alive at the peak by liveness", "primitive", "node", "scope", "source")
        name, loops = html.escape(self.graph.name), "".join(loop._html() for loop in self.loops)
        return f"<div><b>{name}</b><br>{picture}{table(rows)}{table(at_peak, header)}{loops}</div>"


@door(GraphError, graph=GRAPH)
def summarize_frontier(graph: Graph) -> FrontierSummary:
    """Return the frontier of a graph in a few numbers; linear in nodes and edges.

    Args:
      graph: Any graph, with or without backward phase.

    Returns:
      The summary, in predicted bytes.

    Example:
      >>> graph = Graph.from_nodes([dict(name="a", bytes=8), dict(name="b", bytes=4, reads=["a"])], outputs=["b"])
      >>> summarize_frontier(graph).peak_bytes
      12
    """
    return _summary(frontier(graph), graph.n_forward)


def _summary(live: np.ndarray, n_forward: int) -> FrontierSummary:
    if not len(live):
        return FrontierSummary(0, 0, 0, 0.0, 0, 0)
    peak = int(live.argmax())
    end = int(live[n_forward - 1]) if n_forward else 0
    return FrontierSummary(len(live), int(live[peak]), peak, float(live.mean()), int(live[-1]), end)


@door(GraphError, graph=GRAPH)
def analyze_graph(graph: Graph) -> GraphReport:
    """Tell where the memory of a program goes and how far plans can take it down.

    The verdict depends on the computation alone: the same program with a `jit` around each layer, or without, has the
    same graph. Takes under half a second for 10,000 nodes.

    Args:
      graph: Any graph. One without backward phase gets no verdict on height compression.

    Returns:
      The report.

    Raises:
      GraphError: The argument is no graph.

    Example:
      >>> graph = Graph.from_nodes([dict(name="a", bytes=8), dict(name="b", bytes=4, reads=["a"])], outputs=["b"])
      >>> analyze_graph(graph).gap
      1.0
    """
    live = frontier(graph)
    summary = _summary(live, graph.n_forward)
    bound = lower_bound_bytes(graph)
    return GraphReport(
        graph=graph,
        frontier_bytes=live,
        summary=summary,
        live_at_peak=_live_at(graph, summary.peak_step),
        activation_bytes=graph.activation_bytes,
        lower_bound_bytes=bound,
        compressibility=_compressibility(graph, summary.peak_bytes, bound) if graph.n_backward else None,
        loops=loop_reports(graph),
    )


@door(GraphError, graph=GRAPH)
def loop_reports(graph: Graph) -> tuple[LoopReport, ...]:
    """Return what is inside the loops and branches of a graph, as it has them planned.

    Args:
      graph: Any graph; that of a plan, `plan.graph`, has them planned as the plan does.
    """
    return tuple(
        LoopReport(
            kind=plan.nested.kind,
            plan=plan,
            scope=graph.scopes[plan.nested.forward_node],
            source=graph.sources[plan.nested.forward_node],
            frontier=loop_frontier(plan) if plan.is_loop else None,
            bodies=tuple(_kept_report(g) for g in dict.fromkeys(p.step.graph for p in plan.parts)),
        )
        for plan in nested_plans(graph)
    )


def _kept_report(graph: Graph) -> GraphReport:
    """Return the report on a body, which stays the same while the loop around it is planned again and again."""
    if "report" not in graph.memo:
        graph.memo["report"] = analyze_graph(graph)
    return graph.memo["report"]


def _live_at(graph: Graph, step: int) -> tuple[LiveValue, ...]:
    first, last = live_ranges(graph)
    alive = np.flatnonzero((first <= step) & (last >= step) & (first >= 0))
    alive = alive[np.argsort(-graph.value_bytes[alive], kind="stable")]
    return tuple(
        LiveValue(
            value=v,
            bytes=int(graph.value_bytes[v]),
            shape=graph.value_shapes[v],
            dtype=graph.value_dtypes[v],
            node=(i := int(graph.value_node[v])),
            primitive=graph.primitives[i],
            last_step=int(last[v]),
            scope=graph.scopes[i],
            source=graph.sources[i],
        )
        for v in alive.tolist()
    )


def _compressibility(graph: Graph, plain_bytes: int, bound_bytes: int) -> Compressibility:
    plans = tuple(
        Plan.of(best_tree(graph, levels, octaves, peak_bytes=lambda made: made.liveness_peak_bytes))
        for levels, octaves in _OCTAVES_BY_LEVELS.items()
    )
    best = min(p.liveness_peak_bytes for p in plans)
    room = plain_bytes - bound_bytes
    return Compressibility(plans, plain_bytes, bound_bytes, max(0.0, (plain_bytes - best) / room) if room else 0.0)
