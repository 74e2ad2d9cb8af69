"""How far predictions have been off for programs with something in them, and the margin that budgets take from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tiny_backprop.graph import Graph
from tiny_backprop.predict.backends import compiler_of

ANY = "any"


def _has(*primitives: str) -> Callable[[Graph], bool]:
    return lambda graph: not set(primitives).isdisjoint(graph.primitives)


TRAITS: Mapping[str, Callable[[Graph], bool]] = {
    ANY: lambda graph: True,
    "16-bit floats": lambda graph: not {"bfloat16", "float16"}.isdisjoint(graph.value_dtypes),
    "loops and branches": lambda graph: bool(graph.nested) or _has("scan", "while", "cond")(graph),
    "contractions": _has("dot_general", "ragged_dot_general", "ragged_dot"),
    "convolutions": _has("conv_general_dilated"),
    "gathers and scatters": _has("gather", "scatter", "scatter-add", "scatter_add", "dynamic_update_slice"),
    "sorts": _has("sort", "top_k"),
}
"""What the record tells programs by: a name, and whether a graph has it."""


def traits_of(graph: Graph) -> frozenset[str]:
    """Return the names of `TRAITS` that a program has, in its loops and branches too."""
    inside = [t for nested in graph.nested for body in nested.bodies for t in traits_of(body)]
    return frozenset([*(name for name, has in TRAITS.items() if has(graph)), *inside])


def recorded_margin(graph: Graph) -> float:
    """Return by which share of its prediction a program may be expected to take more, in 19 cases of 20.

    Of all that the program has, what predictions have been off by the most counts. The record is of plans by budget, by
    `python -m benchmarks.robustness --only budgets`; 0 for a graph made by hand, whose bytes are what they are.

    Args:
      graph: A gradient graph.
    """
    if not graph.backend:
        return 0.0
    margins = compiler_of(graph.backend, graph.jax_version).margins
    return max(margins.get(trait, 0.0) for trait in traits_of(graph))
