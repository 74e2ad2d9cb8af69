"""Donated inputs: which of them XLA copies before an output is written into their memory.

It writes an output over an input where all that reads the input must have run before, by what the output depends on and
not by the order in which kernels happen to run. Otherwise it copies the input as the program starts, and whatever reads
the input reads the copy. Which output gets the memory of which input is JAX's to say: `Graph.taken_over`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tiny_backprop.predict.fusion import Fusion
from tiny_backprop.predict.instructions import COPY, Instructions, shape_numbers
from tiny_backprop.predict.kinds import Kind
from tiny_backprop.schedule.runs import NONE


def with_copies(fusion: Fusion) -> Fusion:
    """Add the copies of donated inputs that XLA makes; what reads these then reads the copies."""
    copied = sorted(_copied(fusion, {v: i for i, v in taking_over(fusion).items()}))
    if not copied:
        return fusion
    n, n_copies = len(fusion.instructions), len(copied)
    is_copied = np.isin(fusion.donated, copied)
    readers = np.append(fusion.readers, fusion.donated_readers[is_copied])
    sources = np.append(fusion.sources, n + np.searchsorted(copied, fusion.donated[is_copied]))
    same_place = np.append(fusion.is_same_place, fusion.is_donated_same_place[is_copied])
    order = np.lexsort((sources, readers))
    return dataclasses.replace(
        fusion,
        instructions=_with_rows(fusion.instructions, np.array(copied)),
        has_buffer=np.append(fusion.has_buffer, np.ones(n_copies, bool)),
        is_in_place=np.append(fusion.is_in_place, np.zeros(n_copies, bool)),
        is_scatter=np.append(fusion.is_scatter, np.zeros(n_copies, bool)),
        readers=readers[order],
        sources=sources[order],
        is_same_place=same_place[order],
        donated_readers=np.append(fusion.donated_readers[~is_copied], np.arange(n, n + n_copies)),
        donated=np.append(fusion.donated[~is_copied], copied),
        is_donated_same_place=np.append(fusion.is_donated_same_place[~is_copied], np.ones(n_copies, bool)),
    )


def free_after(fusion: Fusion, first: np.ndarray) -> dict[int, int]:
    """Return the kernel that reads the donated input last, for each output that is written into its memory.

    Args:
      fusion: Where inputs have been copied.
      first: The kernel that writes each instruction.
    """
    last: dict[int, int] = {}
    for reader, v in zip(first[fusion.donated_readers].tolist(), fusion.donated.tolist(), strict=True):
        last[v] = max(reader, last.get(v, NONE))
    return {i: last.get(v, NONE) for i, v in taking_over(fusion).items()}


def taking_over(fusion: Fusion) -> dict[int, int]:
    """Return the donated input whose memory each instruction is written into that takes one over."""
    by_place = fusion.instructions.graph.taken_over
    return {i: by_place[k] for i, k in fusion.returned.items() if k in by_place and fusion.has_buffer[i]}


def _copied(fusion: Fusion, outputs: dict[int, int]) -> set[int]:
    """Return the donated inputs that something reads which need not run before the output that takes their memory."""
    of, buffers = fusion.instructions, np.flatnonzero(fusion.has_buffer)
    shape_of = shape_numbers(of.graph)
    kernel = np.full(len(of), NONE)
    _, kernel[buffers] = np.unique(of.steps[buffers], return_inverse=True)
    bit = {v: 1 << k for k, v in enumerate(outputs)}
    before = [0] * (int(kernel.max(initial=NONE)) + 1)  # the outputs that depend on each kernel, a bit for each
    for v, i in outputs.items():
        before[kernel[i]] |= bit[v]
    order = np.argsort(-kernel[fusion.readers], kind="stable")
    pairs = zip(kernel[fusion.readers][order].tolist(), kernel[fusion.sources][order].tolist(), strict=True)
    for reader, source in pairs:
        before[source] |= before[reader]
    copied: set[int] = set()
    reads = zip(fusion.donated_readers.tolist(), fusion.donated.tolist(), fusion.is_donated_same_place, strict=True)
    for reader, v, same_place in reads:
        if v in outputs:
            is_over_itself = reader == outputs[v] and same_place and of.shapes[reader] == shape_of[v]
            is_before = before[kernel[reader]] & bit[v] and kernel[reader] != kernel[outputs[v]]
            if not (is_before or is_over_itself):
                copied.add(v)
    return copied


def _with_rows(of: Instructions, copied: np.ndarray) -> Instructions:
    """Append copies of inputs, which read nothing and stand at the start of the program."""
    n, graph = len(copied), of.graph
    rows = {
        "kinds": np.full(n, int(Kind.KERNEL)),
        "nodes": np.full(n, COPY),
        "values": copied,
        "n_bytes": graph.value_bytes[copied],
        "shapes": shape_numbers(graph)[copied],
        "primitives": np.full(n, of.primitive_names.index("")),
        "operand_start": np.full(n, of.operand_start[-1]),
        "steps": np.arange(n) - n,
        "is_unary": np.ones(n, bool),
        "moves": np.zeros(n, bool),
        "is_shared": np.zeros(n, bool),
        "is_absorbed": np.zeros(n, bool),
    }
    return dataclasses.replace(of, **{k: np.append(getattr(of, k), v) for k, v in rows.items()})
