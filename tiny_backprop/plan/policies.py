"""What `jax.checkpoint` around a whole function would do, as plans: reference points, not recommendations.

Before the backward phase first reads what the policy has not saved, all of it runs again at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tiny_backprop.door import TEXT, door
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import GRAPH, LITERAL, Graph
from tiny_backprop.plan.checks import check_gradient
from tiny_backprop.plan.loops.nested import keeping_everything
from tiny_backprop.plan.plan import Plan


@door(PlanError, graph=GRAPH, policy=TEXT)
def plan_policy(graph: Graph, policy: str) -> Plan:
    """Return the plan that `jax.checkpoint(fun, policy=…)` around the whole function amounts to.

    Args:
      graph: A gradient graph.
      policy: `"nothing_saveable"`, `"dots_saveable"` or `"dots_with_no_batch_dims_saveable"`, as they are called in
        `jax.checkpoint_policies`. A contraction has batch dimensions when its sizes and FLOPs say so: those of size 1
        are not seen.

    Returns:
      The plan.

    Raises:
      PlanError: The graph has no backward phase, or the policy is none of these.
    """
    check_gradient(graph)
    if policy not in POLICIES:
        raise PlanError(f"policy must be one of {', '.join(map(repr, POLICIES))}; found {policy!r}")
    graph = keeping_everything(graph)
    is_saved = np.zeros(graph.n_values, bool)
    is_saved[: graph.n_inputs] = True
    for i in range(graph.n_forward):
        if graph.has_effect[i] or POLICIES[policy](graph, i):
            is_saved[graph.output_start[i] : graph.output_start[i + 1]] = True
    needed = np.zeros(graph.n_nodes, bool)
    makers = graph.value_node
    needed[[makers[v] for v in graph.residuals.tolist() if not is_saved[v]]] = True
    for i in range(graph.n_forward - 1, -1, -1):
        if needed[i]:
            needed[[makers[v] for v in graph.read_lists[i] if not is_saved[v]]] = True
    node, value = graph.reads
    first = node[(node >= graph.n_forward) & ~is_saved[value] & (value < graph.output_start[graph.n_forward])]
    border = int(first.min(initial=graph.n_nodes))
    steps = np.concatenate([np.arange(border), np.flatnonzero(needed), np.arange(border, graph.n_nodes)])
    return Plan.from_steps(graph, steps, {"strategy": f"jax.checkpoint, {policy}"})


def _is_contraction(graph: Graph, i: int) -> bool:
    return graph.primitives[i] in ("dot_general", "conv_general_dilated")


def _is_unbatched_dot(graph: Graph, i: int) -> bool:
    """Return whether node i is a `dot_general` without batch dimensions.

    A product of B matrices M x K and K x N has 2 B M N K FLOPs, and its operands and output B M K, B K N and B M N
    elements, which gives K and then B.
    """
    operands = graph.operands[graph.operand_start[i] : graph.operand_start[i + 1]].tolist()
    if graph.primitives[i] != "dot_general" or LITERAL in operands:
        return graph.primitives[i] == "dot_general"
    left, right = (math.prod(graph.value_shapes[v]) for v in operands[:2])
    out = math.prod(graph.value_shapes[graph.output_start[i]])
    contracted = float(graph.flops[i]) / (2 * out) if out else 0.0
    return not contracted or left * right / (out * contracted**2) < 1.5


POLICIES: dict[str, Callable[[Graph, int], bool]] = {
    "nothing_saveable": lambda graph, i: False,
    "dots_saveable": _is_contraction,
    "dots_with_no_batch_dims_saveable": _is_unbatched_dot,
}
