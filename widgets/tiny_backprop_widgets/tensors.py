"""What the views tell of a graph and of a plan, as arrays: texts by number, lives of values, their fates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from tiny_backprop.graph import Graph
from tiny_backprop.plan import Op, Plan
from tiny_backprop.units import format_bytes

TRANSIENT, SAVED, RECOMPUTED, GRADIENT = range(4)
FATES = ("forward, freed at once", "saved", "recomputed", "gradient")
_MOST_LETTERS = 300


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a graph, each kept once.

    Attributes:
      strings: The texts, none longer than 300 letters.
      value_table: Rows (node, text of dtype and shape) of each value; the node is -1 for inputs. Int32 (n_values, 2).
      node_table: Rows (text of primitive, scope, source; whether backward) of each node. Int32 (n_nodes, 4).
    """

    strings: list[str]
    value_table: np.ndarray
    node_table: np.ndarray

    @classmethod
    def of(cls, graph: Graph) -> Texts:
        """Return the texts of a graph; they are kept with it."""
        if ("texts",) not in graph.memo:
            graph.memo[("texts",)] = cls._make(graph)
        return graph.memo[("texts",)]

    @classmethod
    def _make(cls, graph: Graph) -> Texts:
        numbers: dict[str, int] = {}

        def number(texts: Iterable[str]) -> list[int]:
            return [numbers.setdefault(t[:_MOST_LETTERS], len(numbers)) for t in texts]

        types = number(value_type(graph, v) for v in range(graph.n_values))
        columns = [number(graph.primitives), number(map(plain_scope, graph.scopes)), number(graph.sources)]
        nodes = np.array([*columns, graph.is_backward.astype(np.int64)], np.int32).T.reshape(-1, 4)
        values = np.array([graph.value_node, types], np.int32).T
        return cls(list(numbers), values, nodes)


def value_type(graph: Graph, v: int) -> str:
    """Return a value's dtype and shape, such as "float32[8,16]", or what it stands for at a loop or branches."""
    for n in graph.nested:
        end = graph.output_start[n.forward_node + 1]
        if v == end - 2:
            return f"all that the {n.kind} saves"
        if v in (end - 1, graph.output_start[n.backward_node + 1] - 1):
            return f"scratch space of the {n.kind}"
    return f"{graph.value_dtypes[v]}[{','.join(map(str, graph.value_shapes[v]))}]"


@functools.lru_cache(maxsize=4096)
def plain_scope(scope: str) -> str:
    """Return a name stack without what differentiation wraps around its parts; the phase is told elsewhere."""
    while (i := max(scope.find("jvp("), scope.find("transpose("))) >= 0:
        begin = scope.index("(", i)
        end = _closing(scope, begin)
        if end < 0:
            return scope
        scope = scope[:i] + scope[begin + 1 : end] + scope[end + 1 :]
    return "/".join(part for part in scope.split("/") if part)


def _closing(text: str, begin: int) -> int:
    """Return where the parenthesis that opens at `begin` closes, -1 where it does not."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return -1


@functools.lru_cache(maxsize=4)  # all views of one plan ask
def lives(plan: Plan) -> np.ndarray:
    """Return when values are alive: a row (value, first step, last step) for each time that one is made.

    Values without bytes have none. The bytes of the rows that contain a step add up to its live bytes.

    Returns:
      Int32 of shape (n_lives, 3), sorted by value and step.
    """
    graph = plan.graph
    ops, targets = plan.ops, plan.targets
    is_step = (ops != Op.SAVE) & (ops != Op.FREE)
    step_of_action = np.cumsum(is_step) - 1
    nodes, steps = targets[is_step], np.arange(int(is_step.sum()))
    n_made = np.diff(graph.output_start)[nodes]
    offsets = np.arange(int(n_made.sum())) - np.repeat(np.cumsum(n_made) - n_made, n_made)
    made, made_at = np.repeat(graph.output_start[nodes], n_made) + offsets, np.repeat(steps, n_made)
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
    keep = graph.value_bytes[made] > 0
    return np.array([made[keep], made_at[keep], last[keep]], np.int32).T


@functools.lru_cache(maxsize=4)
def fates(plan: Plan) -> np.ndarray:
    """Return what the plan does with each value: `SAVED`, `RECOMPUTED`, `GRADIENT` or `TRANSIENT`; uint8 (n_values,).

    Everything that the backward phase makes is called gradient; a value is recomputed when its node runs, again or for
    the first time, after the backward phase has begun.
    """
    graph, timeline = plan.graph, plan.timeline
    fate = np.zeros(graph.n_values, np.uint8)
    is_late = np.zeros(graph.n_nodes, bool)
    is_late[timeline.steps[timeline.n_forward_steps :]] = True
    fate[graph.n_inputs :][is_late[graph.value_node[graph.n_inputs :]]] = RECOMPUTED
    fate[graph.output_start[graph.n_forward] :] = GRADIENT
    fate[plan.saved] = SAVED
    return fate


def alive_at(plan: Plan, step: int) -> np.ndarray:
    """Return the values alive at a step of a plan, largest first; int64. Those without bytes are left out."""
    table = lives(plan)
    values = np.unique(table[(table[:, 1] <= step) & (step <= table[:, 2]), 0]).astype(np.int64)
    return values[np.argsort(-plan.graph.value_bytes[values], kind="stable")]


def alive_at_peak(plan: Plan) -> pd.DataFrame:
    """Return the values alive at the plan's peak, largest first; their bytes add up to `plan.peak_bytes`.

    Returns:
      One row per value, with `value`, `bytes`, `dtype`, `shape`, `node`, `primitive`, `phase`, `scope` and `source`.
    """
    graph = plan.graph
    values = alive_at(plan, plan.timeline.peak_step)
    nodes = graph.value_node[values].tolist()
    return pd.DataFrame(
        {
            "value": values,
            "bytes": graph.value_bytes[values],
            "dtype": [graph.value_dtypes[v] for v in values.tolist()],
            "shape": [graph.value_shapes[v] for v in values.tolist()],
            "node": nodes,
            "primitive": [graph.primitives[i] for i in nodes],
            "phase": ["backward" if graph.is_backward[i] else "forward" for i in nodes],
            "scope": [graph.scopes[i] for i in nodes],
            "source": [graph.sources[i] for i in nodes],
        }
    )


def plan_name(plan: Plan) -> str:
    """Return how a plan was asked for, such as "blocks, levels 1, block size 64" or "byte budget, 24 MiB"."""
    meta = plan.meta
    if "budget_bytes" in meta:
        return f"{meta.get('strategy', 'plan')}, {format_bytes(meta['budget_bytes'])}"
    parts = [f"{k.replace('_', ' ')} {meta[k]}" for k in ("levels", "block_size") if k in meta]
    return ", ".join([str(meta.get("strategy", "plan")), *parts])
