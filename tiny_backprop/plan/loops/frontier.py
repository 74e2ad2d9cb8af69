"""The frontier inside a loop: live bytes over its steps, in the order in which they run."""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.predict.nested import NestedPlan, Part


@dataclasses.dataclass(frozen=True, eq=False)
class LoopFrontier:
    """What a loop has saved, and what its steps need, whenever one of them runs; predicted.

    Attributes:
      steps: The step of the loop that runs, int64 of shape (n_runs,): all once forward, then those that run again and
        those that are reversed.
      live_bytes: Bytes alive meanwhile: what is saved, what a block keeps, and what the step itself needs. Operands and
        results of the loop, gradients among them, are not counted.
      n_forward_steps: How many of the runs belong to the forward phase.
    """

    steps: np.ndarray
    live_bytes: np.ndarray
    n_forward_steps: int


def loop_frontier(plan: NestedPlan) -> LoopFrontier:
    """Return the live bytes of a loop over its steps; linear in the number of steps that run.

    Args:
      plan: The plan of a loop.
    """
    carry_bytes = plan.nested.carry_bytes
    forward, backward = [], []
    first, saved_bytes = 0, 0
    for part in plan.parts:
        steps, live = _forward(part, carry_bytes)
        forward.append((first + steps, saved_bytes + live))
        steps, live = _backward(part, carry_bytes)
        backward.append((first + steps, saved_bytes + live))
        saved_bytes += part.saved_bytes(carry_bytes)
        first += 0 if part.schedule is None else part.schedule.length
    steps, live = (np.concatenate(x) for x in zip(*forward, *reversed(backward), strict=True))
    return LoopFrontier(steps, live, sum(len(steps) for steps, _ in forward))


def _forward(part: Part, carry_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    schedule = part.schedule
    assert schedule is not None
    steps = np.arange(schedule.length)
    if schedule.reruns:
        n_slots = np.searchsorted(schedule.forward[:, 1], steps, side="right")
        return steps, n_slots * carry_bytes + part.step.forward.n_bytes
    saved_bytes = steps * part.step.read_carry_bytes + (steps + 1) * part.step.kept_bytes
    return steps, saved_bytes + carry_bytes + part.step.forward.n_bytes


def _backward(part: Part, carry_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that run in the backward phase, a reversed one counted once, with their live bytes."""
    schedule, saved_bytes = part.schedule, part.saved_bytes(carry_bytes)
    assert schedule is not None
    if not schedule.reruns:
        steps = np.arange(schedule.length)[::-1]
        return steps, np.full(len(steps), saved_bytes + part.scratch_bytes(carry_bytes))
    reversed_bytes = part.scratch_bytes(carry_bytes)
    if schedule.block_size > 1:
        reversed_bytes -= part.block_bytes(schedule.block_size)
    steps, live = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for _, start, stop, _, end in schedule.backward.tolist():
        advanced, block = np.arange(start, stop), np.arange(stop, end)
        steps.append(advanced)
        live.append(np.full(len(advanced), saved_bytes + carry_bytes + part.step.forward.n_bytes))
        kept = np.array([part.block_bytes(n) if schedule.block_size > 1 else 0 for n in (block - stop + 1).tolist()])
        if schedule.block_size > 1:
            steps.append(block)
            live.append(saved_bytes + kept + carry_bytes + part.step.forward.n_bytes)
        steps.append(block[::-1])
        live.append(saved_bytes + kept[::-1] + reversed_bytes)
    return np.concatenate(steps), np.concatenate(live)
