"""How long a step of a planned gradient is predicted to take: kernel by kernel, as XLA is predicted to fuse them.

Each kernel takes as long as its FLOPs, each class of primitives at its own speed, and the bytes that it reads and
writes, and what it takes to start: on a CPU the two overlap so little that their sum is nearer the truth than the
longer one. What a plan changes is seen here: nodes run again, but also
what is copied into other orders of dimensions, held, or fused otherwise. A loop takes the time of its steps' kernels.
Last, memory that a program allocates anew in each run has to be mapped by the system, if it is large.

Kernels are taken to run one after the other, and arrays to be in the same memory whatever the program's size: a machine
whose caches hold all of a small program runs it faster. `python -m benchmarks.truth --time` says how far this is off.
"""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.kernel_work import KernelWork
from tiny_backprop.predict.materialized import Materialized, PlannedProgram
from tiny_backprop.predict.nested import NestedPlan, Part, nested_plans
from tiny_backprop.schedule.cost import CLASSES, CostModel

_CONTRACTIONS = [CLASSES.index(c) for c in ("matmul", "convolution", "kernel_gradient")]


def step_seconds(allocated: Materialized, model: CostModel) -> float:
    """Return the predicted seconds of one run of a gradient.

    Args:
      allocated: What XLA is predicted to make of it.
      model: What kernels, steps of loops and memory take.
    """
    return program_seconds(allocated.program, model) + _fresh_bytes(allocated, model) * model.seconds_per_fresh_byte


def program_seconds(program: PlannedProgram, model: CostModel) -> float:
    """Return the predicted seconds of a program's kernels, those of loops' steps and branches among them."""
    work = program.work
    total = float(kernel_seconds(work, model).sum())
    for nested, plan in zip(program.graph.nested, nested_plans(program.graph), strict=True):
        runs = [np.count_nonzero(work.nodes == node) for node in (nested.forward_node, nested.backward_node)]
        if any(runs):
            total += float(np.dot(runs, _nested_seconds(plan, model)))
    return total


def kernel_seconds(work: KernelWork, model: CostModel) -> np.ndarray:
    """Return the predicted seconds of each kernel, steps of loops left out; float64 of shape (n_kernels,)."""
    flops_per_second, bytes_per_second = model.speeds()
    # What is fused into a kernel runs no faster than the kernel's own class; contractions have a loop of their own.
    speeds = np.minimum(flops_per_second, flops_per_second[work.classes, None])
    speeds[:, _CONTRACTIONS] = flops_per_second[_CONTRACTIONS]
    computing = (work.flops / speeds).sum(1)
    moving = work.bytes_moved / bytes_per_second[work.classes]
    return computing + moving + model.seconds_per_kernel


def _fresh_bytes(allocated: Materialized, model: CostModel) -> int:
    """Return the bytes of the allocations that are mapped anew: temporaries are one, and each output is one."""
    outputs = allocated.n_bytes[allocated.is_output & ~allocated.is_in_argument]
    allocations = np.append(outputs, allocated.peak_bytes - allocated.graph.new_output_bytes)
    return int(allocations[allocations >= model.least_fresh_bytes].sum())


def _nested_seconds(plan: NestedPlan, model: CostModel) -> tuple[float, float]:
    """Return the predicted seconds of the forward and of the backward node of a loop or of branches, the costliest."""
    parts = [_part_seconds(part, model) for part in plan.parts]
    forward, backward = np.sum(parts, axis=0) if plan.is_loop else np.max(parts, axis=0)
    return float(forward), float(backward)


def _part_seconds(part: Part, model: CostModel) -> tuple[float, float]:
    step, schedule = part.step, part.schedule
    forward = program_seconds(step.forward.allocated.program, model)
    if schedule is None:
        return forward, program_seconds(step.backward.allocated.program, model)
    forward, length, n_again = forward + model.seconds_per_loop_step, schedule.length, part.n_again
    reverses = step.backward
    if schedule.reruns and schedule.block_size == 1:  # a step runs again in the body that reverses it
        reverses, n_again = step.rerun, n_again if step.keeps_nothing else n_again - length
    backward = program_seconds(reverses.allocated.program, model) + model.seconds_per_loop_step
    return length * forward, length * backward + max(n_again, 0) * forward
