"""Ways to reverse loops and branches: what steps keep, by minimum cuts, and what a caller asks for.

A way is a `NestedPlan`; the graph for it comes from `tiny_backprop.predict.nested.with_nested`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiny_backprop.graph import LITERAL, Graph, Nested
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.plan.search.menu import menus
from tiny_backprop.plan.search.segments import Segments
from tiny_backprop.predict.nested import NestedPlan, Part, with_nested
from tiny_backprop.predict.step_plan import StepPlan
from tiny_backprop.schedule.checkpointed import jax_schedule
from tiny_backprop.schedule.cost import node_costs
from tiny_backprop.schedule.loop_schedule import LoopSchedule

_CHEAP = 0.03  # of the FLOPs of a step: recomputation that is worth any byte


def step_plans(graph: Graph, nested: Nested) -> list[StepPlan]:
    """Plan one step of a loop or one branch, from what keeps most to what keeps least, by minimum cuts.

    Args:
      graph: Its gradient graph; what is nested in it is planned.
      nested: The loop or the branches; carries are kept anyway.
    """
    outputs = graph.outputs.copy()
    primal = outputs[: graph.n_primal_outputs]
    primal[[i for i in range(len(primal)) if i not in nested.carries]] = LITERAL
    segments = Segments(dataclasses.replace(graph, outputs=outputs), np.zeros(1, np.int64))
    (menu,) = menus(segments, node_costs(graph, "flops"))
    first = int(graph.output_start[0])
    keeps = dict.fromkeys(o.keep for o in sorted(menu.leaf, key=lambda o: -o.keep_bytes))
    return [StepPlan.of(graph, nested, [first + v for v in keep]) for keep in keeps]


def keeping_everything(graph: Graph) -> Graph:
    """Return the graph with no step of its loops, and nothing in its branches, running again."""
    return _each(graph, "keeping everything", lambda nested: keeping(nested, _widest(nested)))


def as_jax_has_it(graph: Graph) -> Graph:
    """Return the graph with its loops reversed as JAX does it: where a step has a call under `jax.checkpoint`, by that.

    Args:
      graph: Any graph.
    """
    if not any(body.has_checkpoints for nested in graph.nested for body in nested.bodies):
        return keeping_everything(graph)
    return _each(graph, "as JAX has it", lambda nested: keeping(nested, [_jax_step(b, nested) for b in nested.bodies]))


def _jax_step(body: Graph, nested: Nested) -> StepPlan:
    graph = as_jax_has_it(body)
    return StepPlan.of(graph, nested, jax_schedule(body).kept) if body.checkpoints else step_plans(graph, nested)[0]


def by_choice(graph: Graph, choice: LoopChoice) -> Graph:
    """Return the graph with its loops reversed as asked; branches keep what is not next to free to make again.

    Args:
      graph: Any graph.
      choice: How loops are to be reversed, those inside of others too.
    """
    return _each(graph, choice, lambda nested: _chosen(nested, choice))


def _each(graph: Graph, key: Any, plan: Any) -> Graph:
    """Return the graph with each loop planned by a function, which is asked once."""
    if not graph.nested:
        return graph
    known = graph.memo.setdefault("plans by choice", {})
    if key not in known:
        known[key] = [plan(n) for n in graph.nested]
    return with_nested(graph, known[key])


def _widest(nested: Nested) -> list[StepPlan]:
    return [step_plans(keeping_everything(body), nested)[0] for body in nested.bodies]


def keeping(nested: Nested, steps: Sequence[StepPlan]) -> NestedPlan:
    """Return the plan of a loop none of whose steps runs again by itself, or of branches."""
    schedule = LoopSchedule.keeping_all(nested.length) if nested.kind == "scan" else None
    return NestedPlan(nested, tuple(Part(step, schedule) for step in steps))


def cheap(plans: Sequence[StepPlan]) -> StepPlan:
    """Return the plan that keeps least of those that run next to nothing again."""
    most = _CHEAP * float(plans[0].graph.flops.sum())
    return min((p for p in plans if p.again_flops <= most), key=lambda p: (p.kept_bytes, p.again_flops))


def _chosen(nested: Nested, choice: LoopChoice) -> NestedPlan:
    plans = [step_plans(by_choice(body, choice), nested) for body in nested.bodies]
    steps = list(map(cheap, plans))
    if nested.kind != "scan":
        return keeping(nested, steps)
    schedule = choice.schedule(nested.length, nested.carry_bytes, steps[0].kept_bytes + nested.carry_bytes)
    return NestedPlan(nested, (rerunning(plans[0], schedule or LoopSchedule(nested.length, 1, 1)),))


def rerunning(plans: Sequence[StepPlan], schedule: LoopSchedule) -> Part:
    """Return a loop's steps so reversed: where a step is reversed by itself, it keeps everything for so long."""
    return Part(plans[0] if schedule.block_size == 1 else cheap(plans), schedule)
