"""What of a gradient's memory no plan can touch: loops and the like that run as the framework has them."""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.display import short_path
from tiny_backprop.graph import Graph
from tiny_backprop.units import format_bytes


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """A node that holds a program of its own and runs as the framework has it.

    Attributes:
      node: Number of the node, in the graph of the program or of a loop's step.
      primitive: What it is, such as `"scan"`.
      bytes: Bytes that it makes and the backward phase reads; inside a loop, those of one step.
      source: `file:line (function)` in the user's code, or `""`.
      scope: Name stack.
      reason: Why it is left alone, in words.
    """

    node: int
    primitive: str
    bytes: int
    source: str
    scope: str
    reason: str

    def __str__(self) -> str:
        where = short_path(self.source) or self.scope or f"node {self.node}"
        return f"{self.primitive} at {where} holds {format_bytes(self.bytes)}: {self.reason}"


def left_alone(graph: Graph) -> tuple[LeftAlone, ...]:
    """Return what is left as the framework has it and holds memory for the backward phase, the largest first.

    Args:
      graph: A gradient graph; what is inside its loops and branches is looked at, too.
    """
    found = [x for node, why in graph.left_alone if (x := _of_node(graph, node, why)).bytes]
    found += [x for nested in graph.nested for body in nested.bodies for x in left_alone(body)]
    return tuple(sorted(found, key=lambda x: -x.bytes))


def _of_node(graph: Graph, node: int, why: str) -> LeftAlone:
    made = np.arange(graph.output_start[node], graph.output_start[node + 1])
    n_bytes = int(graph.value_bytes[made[np.isin(made, graph.residuals)]].sum())
    return LeftAlone(node, graph.primitives[node], n_bytes, graph.sources[node], graph.scopes[node], why)
