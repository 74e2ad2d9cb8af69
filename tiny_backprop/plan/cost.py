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

    def seconds(self, flops: np.ndarray, bytes_moved: np.ndarray) -> np.ndarray:
        """Return the predicted seconds of nodes with so many FLOPs and bytes moved; float64 of their shape."""
        return np.maximum(flops / self.flops_per_second, bytes_moved / self.bytes_per_second)


Cost = str | CostModel | Mapping[str, float]
"""What a planner minimises: `"seconds"` (the default `CostModel`), `"flops"`, or a `CostModel` or its fields."""


def costs_of(flops: np.ndarray, bytes_moved: np.ndarray, cost: Cost) -> np.ndarray:
    """Return what nodes with so many FLOPs and bytes moved cost, in the unit that `cost_unit` names.

    Args:
      flops: FLOPs of each node.
      bytes_moved: Bytes that each node moves, of the same shape.
      cost: `"seconds"`, `"flops"`, a `CostModel`, or the fields of one, as a plan's `meta` keeps them.

    Returns:
      float64 of the same shape.

    Raises:
      PlanError: `cost` is none of these.
    """
    if cost == "flops":
        return np.asarray(flops, float)
    if cost == "seconds":
        cost = CostModel()
    if isinstance(cost, Mapping) and set(cost) == {f.name for f in dataclasses.fields(CostModel)}:
        cost = CostModel(**cost)
    if isinstance(cost, CostModel):
        return cost.seconds(flops, bytes_moved)
    raise PlanError(f"cost must be 'seconds', 'flops' or a CostModel; found {cost!r}")


def node_costs(graph: Graph, cost: Cost) -> np.ndarray:
    """Return what each node costs, steps of loops that run again included; float64 of shape (n_nodes,).

    Args:
      graph: Any graph.
      cost: See `costs_of`.

    Raises:
      PlanError: `cost` is unknown.
    """
    return costs_of(graph.flops, graph.bytes_moved, cost)


def least_cost(graph: Graph, cost: Cost) -> float:
    """Return what every node costs once, no step of a loop running again; see `costs_of` for arguments and errors."""
    once = graph.flops - graph.rerun_flops, graph.bytes_moved - graph.rerun_bytes_moved
    return float(costs_of(*once, cost).sum())


def cost_unit(cost: Cost) -> str:
    """Return the unit of a cost, `"flops"` or `"seconds"`."""
    return "flops" if cost == "flops" else "seconds"
