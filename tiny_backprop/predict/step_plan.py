"""A plan of one step of a loop, or of one branch, with what XLA is predicted to make of it."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiny_backprop.graph import Graph, Nested
from tiny_backprop.predict.step_memory import Body, BodyPrediction, predict_body
from tiny_backprop.schedule.steps import Rerun, peak_bytes

_COTANGENT = "cotangent "


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
      keeps_nothing: Whether the backward part is planned by itself: it makes everything anew, some of it repeatedly.
    """

    nested: Nested
    graph: Graph
    steps: list[int]
    n_forward_steps: int
    kept: tuple[int, ...]
    carried: frozenset[int]
    keeps_nothing: bool = False

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
        keeps_nothing = backward is not None
        border, n_made = graph.output_start[graph.n_forward], np.diff(graph.output_start)
        if backward is None:
            backward = []
            for node in range(graph.n_forward, graph.n_nodes):
                missing = [v for v in graph.read_lists[node] if v < border and not rerun.there[v]]
                again = rerun.make(missing)
                for i in again:
                    rerun.there[graph.output_start[i] : graph.output_start[i + 1]] = b"\1" * int(n_made[i])
                backward += [*again, node]
            # A gradient that does not depend on the cotangent is a forward value that perhaps nobody has read.
            backward += rerun.make(v for v in _gradients(graph) if not rerun.there[v])
        return cls(nested, graph, [*steps, *backward], n_forward_steps, tuple(kept), frozenset(carried), keeps_nothing)

    @functools.cached_property
    def saved(self) -> list[int]:
        """The values that the forward part makes and the backward part reads."""
        graph, there, saved = self.graph, set[int](), dict[int, None]()
        for node in self.steps[: self.n_forward_steps]:
            there.update(range(graph.output_start[node], graph.output_start[node + 1]))
        for node in self.steps[self.n_forward_steps :]:
            saved.update((v, None) for v in graph.read_lists[node] if v in there)
            there.difference_update(range(graph.output_start[node], graph.output_start[node + 1]))
        saved.update((v, None) for v in _gradients(graph) if v in there)
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
        steps = self.steps if not self.keeps_nothing else self.steps[self.n_forward_steps :]
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
        if not self.keeps_nothing:  # it is XLA's to order, and nothing runs twice
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
        backward = self.steps[self.n_forward_steps :] if self.keeps_nothing else None
        return {"kept": list(self.kept), "backward": backward, "nested": [n.choice for n in self.graph.nested]}


def _gradients(graph: Graph) -> list[int]:
    """Return the gradients that a step makes."""
    first = int(graph.output_start[0])
    return [v for v in graph.outputs[graph.n_primal_outputs :].tolist() if v >= first]


def _returned(graph: Graph, carries: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the values that a step returns and made itself, and those of them that are carries."""
    first, primal = int(graph.output_start[0]), graph.outputs[: graph.n_primal_outputs].tolist()
    returned = [v for v in primal if v >= first]
    return returned, [primal[i] for i in carries if primal[i] >= first]


def slots_of_branches(steps: Sequence[StepPlan]) -> Counter[tuple[tuple[int, ...], str, int]]:
    """Return how many values of which shape, dtype and bytes hold what any one of the branches saves."""
    needed: Counter[tuple[tuple[int, ...], str, int]] = Counter()
    for step in steps:
        graph = step.graph
        needed |= Counter((graph.value_shapes[v], graph.value_dtypes[v], int(graph.value_bytes[v])) for v in step.saved)
    return needed
