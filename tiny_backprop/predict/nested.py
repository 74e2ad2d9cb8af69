"""Loops and branches of a graph with the way in which they are reversed, and what that takes.

The steps of a loop are reversed by a `LoopSchedule`, and a step or a branch keeps something for its backward part
(`StepPlan`). Each way has a price in bytes and costs, which stands in the graph at the two nodes of the loop:
`with_nested` returns the graph for other ways, and everything that plans graphs plans it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph, Nested
from tiny_backprop.predict.backends import compiler_of
from tiny_backprop.predict.step_plan import StepPlan, slots_of_branches
from tiny_backprop.schedule.cost import Cost, costs_of
from tiny_backprop.schedule.loop_schedule import LoopSchedule


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Consecutive steps of a loop that are reversed in one way, or one branch.

    Attributes:
      step: Plan of each of its steps, or of the branch.
      schedule: How the steps are reversed; None for a branch.
    """

    step: StepPlan
    schedule: LoopSchedule | None = None

    def of_length(self, length: int) -> Part:
        """Return the same for another number of steps of a loop."""
        schedule = self.schedule
        assert schedule is not None
        if not schedule.reruns:
            return Part(self.step, LoopSchedule.keeping_all(length))
        return Part(self.step, dataclasses.replace(schedule, length=length))

    def saved_bytes(self, carry_bytes: int) -> int:
        """Return the bytes that a loop's steps leave for the backward phase."""
        schedule = self.schedule
        assert schedule is not None
        if not schedule.reruns:
            return (schedule.length + 1) * self.step.read_carry_bytes + schedule.length * self.step.kept_bytes
        return schedule.n_saved * carry_bytes

    def scratch_bytes(self, carry_bytes: int) -> int:
        """Return the bytes that the backward phase needs beside what was saved, its operands and results."""
        schedule, step = self.schedule, self.step
        if schedule is None or not schedule.reruns:
            return step.backward.n_bytes
        if schedule.block_size == 1:
            return step.rerun_bytes
        return self.block_bytes(schedule.block_size) + max(carry_bytes + step.forward.n_bytes, step.backward.n_bytes)

    def block_bytes(self, size: int) -> int:
        """Return the bytes that so many steps keep together, which have run again, for their backward steps."""
        return (size + 1) * self.step.read_carry_bytes + size * self.step.kept_bytes

    @property
    def n_again(self) -> int:
        """Steps of a loop that run again, but for those that a backward part makes anew by itself."""
        schedule = self.schedule
        if schedule is None:
            return 0
        return schedule.n_again - (schedule.length if schedule.reruns and self.step.keeps_nothing else 0)

    @property
    def again_cost(self) -> np.ndarray:
        """FLOPs and bytes moved of what runs again."""
        length = 1 if self.schedule is None else self.schedule.length
        return self.n_again * self.step.forward_cost + length * self.step.again_cost


@dataclasses.dataclass(frozen=True, eq=False)
class NestedPlan:
    """How one loop, or one set of branches, is reversed, with its price.

    Attributes:
      nested: The loop or the branches.
      parts: Of a loop, runs of steps, in time order; of branches, each of them.
    """

    nested: Nested
    parts: tuple[Part, ...]

    @classmethod
    def from_choice(cls, nested: Nested, choice: Mapping[str, Any]) -> NestedPlan:
        """Return the plan that is `choice` as plain data.

        Raises:
          PlanError: The data are no plan of this loop.
        """
        try:
            is_loop = nested.kind == "scan"
            bodies = nested.bodies * len(choice["parts"]) if is_loop else nested.bodies
            parts = []
            for body, data in zip(bodies, choice["parts"], strict=True):
                graph = with_choices(body, data["nested"])
                step = StepPlan.of(graph, nested, [int(v) for v in data["kept"]], data["backward"])
                parts.append(Part(step, LoopSchedule(**data["schedule"]) if is_loop else None))
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise PlanError(f"how a {nested.kind} is to be reversed is damaged: {type(e).__name__}: {e}") from None
        if is_loop and sum(p.schedule.length for p in parts if p.schedule) != nested.length:
            raise PlanError(f"a scan of {nested.length} steps is to be reversed; the plan is for another number")
        return cls(nested, tuple(parts))

    def choice(self) -> dict[str, Any]:
        """Return the plan as plain data, from which it can be made anew."""
        schedules = [None if p.schedule is None else dataclasses.asdict(p.schedule) for p in self.parts]
        parts = zip(self.parts, schedules, strict=True)
        return {"parts": [{"schedule": schedule, **part.step.choice()} for part, schedule in parts]}

    @property
    def is_loop(self) -> bool:
        """Whether it is a loop; branches else."""
        return self.nested.kind == "scan"

    @property
    def n_again(self) -> int:
        """Steps of a loop that run again, all together."""
        return sum(p.n_again for p in self.parts)

    @functools.cached_property
    def saved_bytes(self) -> int:
        """Bytes that the forward phase leaves for the backward phase."""
        if self.is_loop:
            return sum(p.saved_bytes(self.nested.carry_bytes) for p in self.parts)
        slots = slots_of_branches([p.step for p in self.parts])
        return sum(n_bytes * n for (*_, n_bytes), n in slots.items())

    @functools.cached_property
    def forward_scratch_bytes(self) -> int:
        """Bytes that the forward phase needs beside its operands and results."""
        return max(p.step.forward.n_bytes for p in self.parts)

    @functools.cached_property
    def backward_scratch_bytes(self) -> int:
        """Bytes that the backward phase needs beside what was saved, its operands and results."""
        carry_bytes = self.nested.carry_bytes
        needed, free_bytes = 0, 0
        for part in reversed(self.parts):  # what later steps have saved is free when earlier ones are reversed
            needed = max(needed, part.scratch_bytes(carry_bytes) - free_bytes)
            free_bytes += part.saved_bytes(carry_bytes) if self.is_loop else 0
        return needed

    @property
    def footprint_bytes(self) -> int:
        """Bytes that it takes while it is reversed."""
        return self.saved_bytes + self.backward_scratch_bytes

    @functools.cached_property
    def costs(self) -> np.ndarray:
        """FLOPs and bytes moved, of branches the costliest: rows of the forward node, the backward node, and reruns.

        What runs again belongs to the backward node and is counted in its row, too.
        """
        lengths = [1 if p.schedule is None else p.schedule.length for p in self.parts]
        rows = [
            (n * p.step.forward_cost, n * p.step.backward_cost, p.again_cost)
            for n, p in zip(lengths, self.parts, strict=True)
        ]
        forward, backward, again = np.sum(rows, axis=0) if self.is_loop else np.max(rows, axis=0)
        return np.stack([forward, backward + again, again])

    def cost(self, cost: Cost) -> float:
        """Return what both nodes cost."""
        return float(costs_of(self.costs[:2, 0], self.costs[:2, 1], cost).sum())


# ---- graphs with their loops and branches planned ----


def nested_plans(graph: Graph) -> tuple[NestedPlan, ...]:
    """Return the plans of what is nested in a graph, as the graph has them."""
    if "nested plans" not in graph.memo:
        graph.memo["nested plans"] = tuple(NestedPlan.from_choice(n, n.choice) for n in graph.nested)
    return graph.memo["nested plans"]


def with_nested(graph: Graph, plans: Sequence[NestedPlan]) -> Graph:
    """Return the graph with what is nested in it planned otherwise; the same graph object for the same plans.

    Args:
      graph: Any graph.
      plans: A plan for each of `graph.nested`.
    """
    if not graph.nested:
        return graph
    made, key = graph.memo.setdefault("with nested", {}), tuple(map(id, plans))
    if key not in made:
        made[key] = plans, _planned(graph, plans)  # the plans are kept, so that no other object gets their ids
    return made[key][1]


def _planned(graph: Graph, plans: Sequence[NestedPlan]) -> Graph:
    per_node = {k: getattr(graph, k).copy() for k in ("flops", "bytes_moved", "rerun_flops", "rerun_bytes_moved")}
    value_bytes, nested = graph.value_bytes.copy(), []
    for old, plan in zip(graph.nested, plans, strict=True):
        i, j = old.forward_node, old.backward_node
        forward, backward, again = plan.costs
        for k, at_i, at_j in zip(per_node, [*forward, 0, 0], [*backward, *again], strict=True):
            per_node[k][i], per_node[k][j] = at_i, at_j
        end = graph.output_start[i + 1]
        saved_bytes = 0 if _reads_argument(graph, plan) else plan.saved_bytes
        value_bytes[end - 2], value_bytes[end - 1] = saved_bytes, plan.forward_scratch_bytes
        value_bytes[graph.output_start[j + 1] - 1] = plan.backward_scratch_bytes
        nested.append(dataclasses.replace(old, choice=plan.choice()))
    out = dataclasses.replace(graph, **per_node, value_bytes=value_bytes, nested=tuple(nested))
    out.memo["nested plans"] = tuple(plans)
    return out


def _reads_argument(graph: Graph, plan: NestedPlan) -> bool:
    """Return whether what a loop saves is arguments of the program, which are read where they stand."""
    nested, (part, *more) = plan.nested, plan.parts
    if more or part.schedule is None or not part.schedule.reruns or part.schedule.n_saved > 1 or not graph.backend:
        return False
    first = graph.operand_start[nested.forward_node] + nested.first_carry
    carries = graph.operands[first : first + len(nested.carries)]
    is_argument = (carries >= 0) & (carries < graph.n_inputs)
    return bool(is_argument.all()) and compiler_of(graph.backend, graph.jax_version).loops_read_arguments


def with_choices(graph: Graph, choices: Sequence[Mapping[str, Any]]) -> Graph:
    """Return the graph with what is nested in it planned as plain data says; see `NestedPlan.choice`.

    Raises:
      PlanError: The data are no plans for this graph.
    """
    if len(choices) != len(graph.nested):
        raise PlanError(f"the graph has {len(graph.nested)} loops and branches to plan; found {len(choices)} plans")
    if [n.choice for n in graph.nested] == list(choices):
        return graph
    plans = [NestedPlan.from_choice(n, c) for n, c in zip(graph.nested, choices, strict=True)]
    return with_nested(graph, plans)
