"""What the views tell of a graph and of a plan, as arrays: texts by number, lives of values, their fates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from tiny_backprop.display import plain_scope
from tiny_backprop.graph import Graph
from tiny_backprop.plan.plan import Plan

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


@functools.lru_cache(maxsize=4)  # all views of one plan ask
def lives(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return when values are in memory: a row (value, first kernel, last kernel) for each buffer that holds one.

    Values without bytes have none, nor have those in the memory of a donated argument. The bytes of the buffers whose
    rows contain a kernel, and those of the outputs that are not yet made, add up to its live bytes. Kernels are steps
    where the graph was made by hand; see `Plan.materialized`.

    Returns:
      Int32 of shape (n_lives, 3), sorted by value and kernel, and the bytes of each buffer: not always those of the
      value, where it is held in another precision, or what is held is on the way to it.
    """
    m = plan.materialized
    keep = (m.values >= 0) & (m.n_bytes > 0) & ~m.is_in_argument
    table = np.array([m.values[keep], m.first[keep], m.last[keep]], np.int32).T
    order = np.lexsort((table[:, 1], table[:, 0]))
    return table[order], m.n_bytes[keep][order]


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


@dataclasses.dataclass(frozen=True, eq=False)
class AtPeak:
    """What is in memory at a plan's peak, predicted.

    Attributes:
      values: The value that each buffer holds, the largest first; int64.
      is_copy: Whether the buffer is a copy of it: held, or in another order of dimensions.
      n_bytes: Size of each buffer.
      to_come_bytes: Bytes of outputs that are not yet made, whose memory is taken all along. With `n_bytes` they add up
        to the plan's `peak_bytes`.
    """

    values: np.ndarray
    is_copy: np.ndarray
    n_bytes: np.ndarray
    to_come_bytes: int

    @classmethod
    def of(cls, plan: Plan) -> AtPeak:
        """Return what is in memory at the peak, but for what holds nothing of the program's own or is in arguments."""
        m = plan.materialized
        alive = m.alive_at(m.peak_kernel)
        alive = alive[(m.values[alive] >= 0) & (m.n_bytes[alive] > 0) & ~m.is_in_argument[alive]]
        n_bytes = m.n_bytes[alive]
        return cls(m.values[alive], m.nodes[alive] < 0, n_bytes, m.peak_bytes - int(n_bytes.sum()))


def alive_at_peak(plan: Plan) -> pd.DataFrame:
    """Return what is in memory at the plan's peak, largest first; predicted.

    Returns:
      One row per buffer, with `value`, `is_copy`, `bytes`, `dtype`, `shape`, `node`, `primitive`, `phase`, `scope` and
      `source`. Beside them stand the outputs that are not yet made; see `AtPeak`.
    """
    graph, at_peak = plan.graph, AtPeak.of(plan)
    values = at_peak.values
    nodes = graph.value_node[values].tolist()
    return pd.DataFrame(
        {
            "value": values,
            "is_copy": at_peak.is_copy,
            "bytes": at_peak.n_bytes,
            "dtype": [graph.value_dtypes[v] for v in values.tolist()],
            "shape": [graph.value_shapes[v] for v in values.tolist()],
            "node": nodes,
            "primitive": [graph.primitives[i] if i >= 0 else "" for i in nodes],
            "phase": ["backward" if i >= graph.n_forward else "forward" for i in nodes],
            "scope": [graph.scopes[i] if i >= 0 else "" for i in nodes],
            "source": [graph.sources[i] if i >= 0 else "" for i in nodes],
        }
    )
