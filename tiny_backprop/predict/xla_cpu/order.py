"""The order in which XLA:CPU starts kernels: each as soon as it can, in the order in which they become ready.

So what depends on arguments alone, such as the transposed weights of a convolution, is made first and lives long. Those
that become ready together run in the order in which XLA read the program: what it returns, one result after the other,
each with all that it depends on, operand by operand, before it (XLA's `HloComputation::MakeInstructionPostOrder`). So
the gradients of a network's inputs come before those of its last weights. Reciprocals, which XLA writes later, come
after all else that reads what they do.
"""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.arrays import distinct, starts_of
from tiny_backprop.predict.fusion import Fusion
from tiny_backprop.predict.instructions import RECIPROCAL, Instructions


def breadth_first(fusion: Fusion, buffers: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many kernels there are and in which each instruction is written: first ready, first run.

    A kernel is ready as soon as what it reads has been written. Instructions without memory get -1.
    """
    of, kernel_of = fusion.instructions, np.full(len(fusion.instructions), -1)
    place = _post_order(of) + len(of) * (of.nodes == RECIPROCAL)
    _, kernel_of[buffers] = np.unique(place[buffers], return_inverse=True)
    n = int(kernel_of.max(initial=-1)) + 1
    reader, source = kernel_of[fusion.readers], kernel_of[fusion.sources]
    pairs = distinct(source[reader != source] * n + reader[reader != source])
    source, reader = pairs // max(n, 1), pairs % max(n, 1)
    waiting = np.bincount(reader, minlength=n)
    order, left = np.flatnonzero(waiting == 0).tolist(), waiting.tolist()
    readers, bounds = reader.tolist(), starts_of(source, n).tolist()
    for kernel in order:
        for other in readers[bounds[kernel] : bounds[kernel + 1]]:
            left[other] -= 1
            if not left[other]:
                order.append(other)
    assert len(order) == n, "kernels wait for each other"
    position = np.full(n + 1, -1)
    position[order] = np.arange(n)
    return n, position[kernel_of]


def _post_order(of: Instructions) -> np.ndarray:
    """Return the place of each instruction in the order in which XLA read the program; those of one step have one."""
    n, (_, step_of) = len(of), np.unique(of.steps, return_inverse=True)
    steps, operands = step_of.tolist(), step_of[of.operands].tolist()
    bounds = of.operand_start[np.searchsorted(step_of, np.arange(n + 1))].tolist()  # those of a step stand together
    is_read = np.zeros(n, bool)
    is_read[of.operands] = True
    unread = [i for i in np.flatnonzero(~is_read).tolist() if i not in of.returned]
    place, n_placed, is_open = [-1] * n, 0, [False] * n
    for i in (*sorted(of.returned, key=of.returned.__getitem__), *unread):
        waiting = [steps[i]]
        while waiting:
            step = waiting[-1]
            if is_open[step]:
                waiting.pop()
                if place[step] < 0:
                    place[step] = n_placed
                    n_placed += 1
            else:
                is_open[step] = True
                waiting += [o for o in operands[bounds[step] : bounds[step + 1]][::-1] if not is_open[o]]
    return np.array(place, np.int64)[step_of]
