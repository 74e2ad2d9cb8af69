"""Bytes that no plan can do without."""

from __future__ import annotations

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.liveness import working_set
from tiny_backprop.plan.search.relaxation import NEVER, Phases


def working_set_bound(graph: Graph, backward: np.ndarray | None = None) -> int:
    """Return bytes that every plan needs at some step, however much it recomputes; linear in nodes and edges.

    The largest of: what each node that must run reads and makes; for a backward node also the backward values that are
    needed later, since those are made once, and results of effects; and all that the program returns, at the end.

    Args:
      graph: Any graph; forward nodes that nothing needs do not count.
      backward: Backward nodes in the order in which they run; by default the program's.

    Returns:
      The bound in bytes; inputs of the graph are not counted.
    """
    phases = Phases.of(graph, backward)
    forward = working_set(graph)[: graph.n_forward][phases.due < NEVER]
    return max(int(forward.max(initial=0)), int(phases.needed_bytes.max()))
