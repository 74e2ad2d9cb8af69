"""What it costs to run a node again: seconds by a roofline of FLOPs and bytes moved, or FLOPs alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph


@dataclasses.dataclass(frozen=True)
class CostModel:
    """A roofline: a node takes as long as its FLOPs or its bytes, whichever takes longer (Williams et al. 2009).

    For the choice of a plan only the ratio of the two speeds matters. The defaults are a few cores of a CPU. Nodes are
    priced one by one, as if nothing were fused. doi:10.1145/1498765.1498785

    Attributes:
      flops_per_second: Floating-point operations per second.
      bytes_per_second: Bytes moved per second.
    """

    flops_per_second: float = 1e11
    bytes_per_second: float = 1e10

    def __post_init__(self):
        for name in ("flops_per_second", "bytes_per_second"):
            speed = getattr(self, name)
            if not isinstance(speed, int | float) or not speed > 0:
                raise PlanError(f"{name} must be a number above 0; found {speed!r}")

    def node_seconds(self, graph: Graph) -> np.ndarray:
        """Return the predicted seconds of each node; float64 of shape (n_nodes,)."""
        return np.maximum(graph.flops / self.flops_per_second, graph.bytes_moved / self.bytes_per_second)


Cost = str | CostModel | Mapping[str, float]
"""What a planner minimises: `"seconds"` (the default `CostModel`), `"flops"`, or a `CostModel` or its fields."""


def node_costs(graph: Graph, cost: Cost) -> np.ndarray:
    """Return what each node costs, in the unit that `cost_unit` names.

    Args:
      graph: Any graph.
      cost: `"seconds"`, `"flops"`, a `CostModel`, or the fields of one, as a plan's `meta` keeps them.

    Returns:
      float64 of shape (n_nodes,).

    Raises:
      PlanError: `cost` is none of these.
    """
    if cost == "flops":
        return np.asarray(graph.flops, float)
    if cost == "seconds":
        cost = CostModel()
    if isinstance(cost, Mapping) and set(cost) == {f.name for f in dataclasses.fields(CostModel)}:
        cost = CostModel(**cost)
    if isinstance(cost, CostModel):
        return cost.node_seconds(graph)
    raise PlanError(f"cost must be 'seconds', 'flops' or a CostModel; found {cost!r}")


def cost_unit(cost: Cost) -> str:
    """Return the unit of a cost, `"flops"` or `"seconds"`."""
    return "flops" if cost == "flops" else "seconds"
