"""Plans of the loops and branches of a graph, each of whose steps and branches is a program of its own.

Two things are chosen together: how the steps of a loop are reversed (`LoopSchedule`), and what a step or a branch keeps
for its backward part, by minimum cuts. Each choice has a price in bytes and costs, which stands in the graph at the two
nodes of the loop: `with_nested` returns the graph for other choices, and everything that plans graphs plans it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_backprop.errors import PlanError
from tiny_backprop.graph import LITERAL, Graph, Nested
from tiny_backprop.plan.loops.schedules import LoopChoice, LoopSchedule
from tiny_backprop.plan.search.menu import menus
from tiny_backprop.plan.search.segments import Segments
from tiny_backprop.predict.step_memory import Body, BodyPrediction, predict_body
from tiny_backprop.schedule.cost import Cost, costs_of, node_costs
from tiny_backprop.schedule.steps import Rerun, peak_bytes

_COTANGENT = "cotangent "
_CHEAP = 0.03  # of the FLOPs of a step: recomputation that is worth any byte


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
    """A plan of one step of a loop, or of one branch. Unlike in a `Plan`, the backward part may begin with reruns.

    Attributes:
      nested: The loop or the branches.
      graph: Its gradient graph; what is nested in it is planned.
      steps: Its nodes in the order in which they run.
      n_forward_steps: How many of them belong to the forward part.
      kept: Values kept for the backward part that nothing else keeps.
      carried: Values that are carries of the next step.
      is_lean: Whether the backward part is planned by itself: it makes everything anew, some of it more than once.
    """

    nested: Nested
    graph: Graph
    steps: list[int]
    n_forward_steps: int
    kept: tuple[int, ...]
    carried: frozenset[int]
    is_lean: bool = False

    @classmethod
    def of(cls, graph: Graph, nested: Nested, kept: Sequence[int], backward: Sequence[int] | None = None) -> StepPlan:
        """Plan a step that keeps certain values.

        Args:
          graph: Its gradient graph; what is nested in it is planned.
          nested: The loop or the branches.
          kept: The values to keep.
          backward: The nodes that the backward part runs, in order; by default what is not kept is made once, as late
            as some backward node reads it.
        """
        returned, carried = _returned(graph, nested.carries)
        rerun = Rerun(graph)
        steps = rerun.make([*returned, *kept])
        for v in set(returned).difference(kept, carried):
            rerun.there[v] = 0
        n_forward_steps = len(steps)
        is_lean = backward is not None
        border, n_made = graph.output_start[graph.n_forward], np.diff(graph.output_start)
        if backward is None:
            backward = []
            for node in range(graph.n_forward, graph.n_nodes):
                missing = [v for v in graph.read_lists[node] if v < border and not rerun.there[v]]
                again = rerun.make(missing)
                for i in again:
                    rerun.there[graph.output_start[i] : graph.output_start[i + 1]] = b"\1" * int(n_made[i])
                backward += [*again, node]
        return cls(nested, graph, [*steps, *backward], n_forward_steps, tuple(kept), frozenset(carried), is_lean)

    @functools.cached_property
    def saved(self) -> list[int]:
        """The values that the forward part makes and the backward part reads."""
        graph, there, saved = self.graph, set[int](), dict[int, None]()
        for node in self.steps[: self.n_forward_steps]:
            there.update(range(graph.output_start[node], graph.output_start[node + 1]))
        for node in self.steps[self.n_forward_steps :]:
            saved.update((v, None) for v in graph.read_lists[node] if v in there)
            there.difference_update(range(graph.output_start[node], graph.output_start[node + 1]))
        return list(saved)

    @property
    def again(self) -> list[int]:
        """The forward nodes that the backward part runs."""
        return [i for i in self.steps[self.n_forward_steps :] if i < self.graph.n_forward]

    @functools.cached_property
    def again_flops(self) -> float:
        """FLOPs of the forward nodes that the backward part runs."""
        return float(self.graph.flops[self.again].sum())

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Bytes that are kept for the backward part beside carries."""
        return int(sum(self.graph.value_bytes[v] for v in self.saved if v not in self.carried))

    @functools.cached_property
    def read_carry_bytes(self) -> int:
        """Bytes of the carries that the backward part reads, before the step or after it; others are not kept."""
        graph, nodes = self.graph, np.isin(self.graph.operand_node, self.steps[self.n_forward_steps :])
        read = {*graph.operands[nodes].tolist(), *graph.outputs[graph.n_primal_outputs :].tolist()}
        saved = set(self.saved)
        return int(sum(graph.value_bytes[old] for old, new in self._carries if old in read or new in saved))

    @functools.cached_property
    def liveness_bytes(self) -> int:
        """Peak by plain liveness, forward and backward part one after the other, by which steps are planned."""
        return peak_bytes(self.graph, np.array(self.steps, np.int64))

    @functools.cached_property
    def forward(self) -> BodyPrediction:
        """What XLA is predicted to make of the body of a loop, or a branch, that runs the forward part."""
        n, returned, _ = self.n_forward_steps, *_returned(self.graph, self.nested.carries)
        if not self._is_in_loop:
            return predict_body(self.graph, Body(self.steps[:n], n, returned=[*returned, *self.saved]))
        stored = dict.fromkeys([*returned, *self.saved])
        for _, new in self._carries:
            stored.pop(new, None)
        body = Body(self.steps[:n], n, self._elements, self._carries, [v for v in stored if v >= self.graph.n_inputs])
        return predict_body(self.graph, body)

    @functools.cached_property
    def backward(self) -> BodyPrediction:
        """The same for the backward part, what was saved for it being read from outside."""
        if not self._is_in_loop:
            return predict_body(self.graph, self._backward(self.steps[self.n_forward_steps :]))
        sliced = [*self.saved, *(v for v, _ in self._carries), *self._elements]
        return predict_body(self.graph, self._backward(self.steps[self.n_forward_steps :], sliced))

    @functools.cached_property
    def rerun(self) -> BodyPrediction:
        """The same where the forward part runs just before in the same body, from a carry that the body holds."""
        steps = self.steps if not self.is_lean else self.steps[self.n_forward_steps :]
        return predict_body(self.graph, self._backward(steps, self._elements))

    @property
    def rerun_bytes(self) -> int:
        """Bytes that `rerun` needs, the carry that it holds among them."""
        return self.nested.carry_bytes + self.rerun.n_bytes

    @property
    def _is_in_loop(self) -> bool:
        return self.nested.kind == "scan"

    @functools.cached_property
    def _carries(self) -> list[tuple[int, int]]:
        """Each carry as an input of the step, with the value that is the next one."""
        first, outputs = self.nested.first_carry, self.graph.outputs.tolist()
        return [(first + i, outputs[k]) for i, k in enumerate(self.nested.carries)]

    @functools.cached_property
    def _elements(self) -> list[int]:
        """The inputs of the step that are elements of stacked arrays, cotangents apart."""
        first, names = self.nested.first_carry + len(self.nested.carries), self.graph.input_names
        return [v for v in range(first, self.graph.n_inputs) if not names[v].startswith(_COTANGENT)]

    def _backward(self, steps: Sequence[int], sliced: Sequence[int] = ()) -> Body:
        """Return the body that runs steps of the backward part and slices some values out of stacked arrays."""
        graph = self.graph
        gradients = graph.outputs[graph.n_primal_outputs :].tolist()
        if not self.is_lean:  # it is XLA's to order, and nothing runs twice
            steps = sorted(set(steps))
        n_first = next((i for i, node in enumerate(steps) if node >= graph.n_forward), len(steps))
        if not self._is_in_loop:
            return Body(steps, n_first, returned=gradients)
        cotangents = [v for v in range(graph.n_inputs) if graph.input_names[v].startswith(_COTANGENT)]
        of_carry = [out for _, out in self.nested.overwrites[1]]
        first, end = (of_carry[0], of_carry[-1] + 1) if of_carry else (len(gradients), len(gradients))
        added, stored = ([v for v in g if v >= graph.n_inputs] for g in (gradients[:first], gradients[end:]))
        state = list(zip(cotangents[: len(of_carry)], gradients[first:end], strict=True))
        return Body(steps, n_first, [*sliced, *cotangents[len(of_carry) :]], state, stored, added)

    @functools.cached_property
    def _costs(self) -> np.ndarray:
        """FLOPs and bytes moved: rows of the forward part, of the backward part without reruns, and of reruns."""
        graph = self.graph
        costs = np.stack([graph.flops, graph.bytes_moved])
        reruns = np.stack([graph.rerun_flops, graph.rerun_bytes_moved])
        forward, n = costs[:, : graph.n_forward].sum(1), graph.n_forward
        again = costs[:, self.again].sum(1) + reruns.sum(1)
        return np.stack([forward, (costs - reruns)[:, n:].sum(1), again])

    @property
    def forward_cost(self) -> np.ndarray:
        """FLOPs and bytes moved of the forward part."""
        return self._costs[0]

    @property
    def backward_cost(self) -> np.ndarray:
        """FLOPs and bytes moved of the backward part, what runs again apart."""
        return self._costs[1]

    @property
    def again_cost(self) -> np.ndarray:
        """FLOPs and bytes moved of what the backward part runs again."""
        return self._costs[2]

    def choice(self) -> dict[str, Any]:
        """Return the plan as plain data, from which it can be made anew."""
        backward = self.steps[self.n_forward_steps :] if self.is_lean else None
        return {"kept": list(self.kept), "backward": backward, "nested": [n.choice for n in self.graph.nested]}


def _returned(graph: Graph, carries: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the values that a step returns and made itself, and those of them that are carries."""
    first, primal = int(graph.output_start[0]), graph.outputs[: graph.n_primal_outputs].tolist()
    returned = [v for v in primal if v >= first]
    return returned, [primal[i] for i in carries if primal[i] >= first]


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
        """Steps of a loop that run again, those apart that a lean backward part makes anew by itself."""
        schedule = self.schedule
        if schedule is None:
            return 0
        return schedule.n_again - (schedule.length if schedule.reruns and self.step.is_lean else 0)

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
        """FLOPs and bytes moved, of branches the dearest: rows of the forward node, the backward node, and reruns.

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


def slots_of_branches(steps: Sequence[StepPlan]) -> Counter[tuple[tuple[int, ...], str, int]]:
    """Return how many values of which shape, dtype and bytes hold what any one of the branches saves."""
    needed: Counter[tuple[tuple[int, ...], str, int]] = Counter()
    for step in steps:
        graph = step.graph
        needed |= Counter((graph.value_shapes[v], graph.value_dtypes[v], int(graph.value_bytes[v])) for v in step.saved)
    return needed


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
        value_bytes[end - 2], value_bytes[end - 1] = plan.saved_bytes, plan.forward_scratch_bytes
        value_bytes[graph.output_start[j + 1] - 1] = plan.backward_scratch_bytes
        nested.append(dataclasses.replace(old, choice=plan.choice()))
    out = dataclasses.replace(graph, **per_node, value_bytes=value_bytes, nested=tuple(nested))
    out.memo["nested plans"] = tuple(plans)
    return out


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


def keeping_everything(graph: Graph) -> Graph:
    """Return the graph with no step of its loops, and nothing in its branches, running again."""
    return _each(graph, "keeping everything", lambda nested: keeping(nested, _widest(nested)))


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
