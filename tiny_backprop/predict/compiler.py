"""What the passes are told of a compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.predict.fusion import Fusion, FusionRules
from tiny_backprop.predict.lowering import Lowering
from tiny_backprop.predict.templates import Templates


@dataclasses.dataclass(frozen=True)
class Margin:
    """By what 19 plans of 20 exceeded their predictions at most: the smaller of the two.

    Attributes:
      values: In proportion to the largest value of the program.
      share: In proportion to the prediction.
    """

    values: float
    share: float


@dataclasses.dataclass(frozen=True)
class Compiler:
    """A compiler, where it differs from others.

    Attributes:
      backend: The backend of JAX that it compiles for.
      lower: Returns what it makes of each node of a graph.
      fusion: What it fuses.
      order: Returns, given which instructions have buffers, how many kernels there are and in which each instruction is
        written, kernels in the order in which they run; -1 for instructions without memory.
      loops_read_arguments: Whether a loop that saves nothing but its first carry reads an argument where it stands.
      margin: How far plans exceeded their predictions; see `tiny_backprop.predict.margin`.
    """

    backend: str
    lower: Callable[[Graph], Lowering]
    fusion: FusionRules
    order: Callable[[Fusion, np.ndarray], tuple[int, np.ndarray]]
    loops_read_arguments: bool
    margin: Margin

    def templates(self, graph: Graph) -> Templates:
        """Return what each node becomes; kept with the graph."""
        key = "templates", self.backend
        if key not in graph.memo:
            graph.memo[key] = Templates(self.lower(graph))
        return graph.memo[key]
