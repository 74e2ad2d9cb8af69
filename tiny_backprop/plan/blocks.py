"""Plans without a budget: everything saved, blocks of a size, levels of height compression."""

from __future__ import annotations

import math

from tiny_backprop.door import door
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import GRAPH, Graph
from tiny_backprop.plan.checks import check_count, check_gradient
from tiny_backprop.plan.loops.choice import LOOPS, LoopChoice
from tiny_backprop.plan.loops.nested import by_choice
from tiny_backprop.plan.plan import Plan
from tiny_backprop.plan.strategies.tree import best_tree, jax_gradient, save_everything, tree_of_blocks


@door(PlanError, graph=GRAPH)
def plan_save_everything(graph: Graph) -> Plan:
    """Run every node once, in order, and keep every residual: what `jax.grad` does without `jax.checkpoint`.

    Args:
      graph: A gradient graph; a graph of the forward program alone is planned as it runs.

    Returns:
      The plan; its `recompute_flops` is 0.
    """
    return Plan.of(save_everything(graph))


@door(PlanError, graph=GRAPH)
def plan_jax_gradient(graph: Graph) -> Plan:
    """Return JAX's own gradient as a plan: what runs is not rewritten, loops and `jax.checkpoint` included.

    The calls under `jax.checkpoint` in the program save what their policies say, and run again as JAX runs them.
    XLA:CPU of JAX 0.10 undoes that outside of loops, unless it is compiled by `tiny_backprop.jit`.

    Args:
      graph: A gradient graph.

    Returns:
      The plan; its `peak_bytes` is what every other plan is held against.

    Example:
      >>> import jax, jax.numpy as jnp, tiny_backprop as tb
      >>> layer = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))
      >>> graph = tb.capture_gradient(lambda x: jnp.sum(layer(layer(x))), jnp.ones(1024))
      >>> plan_jax_gradient(graph).saved_bytes < plan_save_everything(graph).saved_bytes
      True
    """
    return Plan.of(jax_gradient(graph))


@door(PlanError, graph=GRAPH, loops=LOOPS)
def plan_blocks(graph: Graph, block_size: int | None = None, *, loops: LoopChoice | None = None) -> Plan:
    """Cut the forward phase into blocks of about `block_size` nodes and save only what crosses from one into another.

    Each block but the last is recomputed once, when the backward phase first reads one of its values. A cut may move by
    up to a quarter of `block_size` to where fewer bytes cross. For a chain of n equal nodes the peak is about
    n / block_size + block_size values, least at block_size = sqrt(n) (Chen et al. 2016, arXiv:1604.06174). Takes
    O(n log n) in nodes and edges.

    Args:
      graph: A gradient graph, forward and backward phase.
      block_size: Forward nodes per block, 1 or more; more nodes than the forward phase has mean one block. By default
        the size whose plan has the smallest predicted peak among some that are tried.
      loops: How loops are reversed; by default in blocks of `block_size` steps, or, where none is given, such that no
        step runs again more than once.

    Returns:
      The plan; `plan.peak_bytes` and `plan.recompute_flops` are its price, `plan.meta["block_size"]` is the block size.

    Raises:
      PlanError: `block_size` is not a whole number of at least 1, or the graph has no backward phase.
    """
    check_gradient(graph)
    if block_size is None:
        return Plan.of(best_tree(graph, 1, loops=loops))
    block_size = check_count("block_size", block_size)
    graph = by_choice(graph, loops or LoopChoice(block_size=block_size))
    return Plan.of(tree_of_blocks(graph, block_size, 1, {"strategy": "blocks"}))


@door(PlanError, graph=GRAPH, loops=LOOPS)
def plan_height_compressed(
    graph: Graph, levels: int | None = None, block_size: int | None = None, *, loops: LoopChoice | None = None
) -> Plan:
    """Checkpoint recursively: a balanced tree of intervals over blocks, each recomputed from its parent's boundaries.

    Args:
      graph: A gradient graph, forward and backward phase.
      levels: Height of the tree, 1 or more. A node runs at most `levels` times more. By default a binary tree over the
        blocks, of height log2(n_forward / block_size).
      block_size: Forward nodes per leaf, 1 or more; see `plan_blocks`. By default the size whose plan has the smallest
        predicted peak among some that are tried.
      loops: How loops are reversed; by default no step runs again more than `levels` times, in blocks of `block_size`
        steps where that is given.

    Returns:
      The plan; `plan.meta` has `levels` and `block_size`.

    Raises:
      PlanError: Neither `levels` nor `block_size` is given, one of them is not a whole number of at least 1, or the
        graph has no backward phase.
    """
    check_gradient(graph)
    if levels is None and block_size is None:
        raise PlanError("plan_height_compressed needs levels or block_size; neither was given. Try levels=2.")
    if block_size is None:
        return Plan.of(best_tree(graph, check_count("levels", levels), loops=loops))
    block_size = check_count("block_size", block_size)
    if levels is None:
        levels = max(1, math.ceil(math.log2(max(2, graph.n_forward / block_size))))
    levels = check_count("levels", levels)
    graph = by_choice(graph, loops or LoopChoice(block_size=block_size, levels=levels))
    return Plan.of(tree_of_blocks(graph, block_size, levels, {"strategy": "height compression"}))
