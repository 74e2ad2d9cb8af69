"""The order in which XLA:CPU starts kernels: each as soon as it can, in the order in which they become ready.

So what depends on arguments alone, such as the transposed weights of a convolution, is made first and lives long.
"""

from __future__ import annotations

import numpy as np

from tiny_backprop.predict.arrays import distinct, starts_of
from tiny_backprop.predict.fusion import Fusion


def breadth_first(fusion: Fusion, buffers: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many kernels there are and in which each instruction is written: first ready, first run.

    A kernel is ready as soon as what it reads has been written; those that become ready together run in the order of
    the program. Instructions without memory get -1.
    """
    kernel_of = np.full(len(fusion.instructions), -1)
    _, kernel_of[buffers] = np.unique(fusion.instructions.steps[buffers], return_inverse=True)
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
