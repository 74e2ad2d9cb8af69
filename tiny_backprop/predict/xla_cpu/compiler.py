"""XLA:CPU, as the passes of `predict` are told of it."""

from __future__ import annotations

import functools

from tiny_backprop.graph import Graph
from tiny_backprop.predict.compiler import Compiler
from tiny_backprop.predict.fusion import FusionRules
from tiny_backprop.predict.xla_cpu.duplication import add_repeated, joins_rows, kept
from tiny_backprop.predict.xla_cpu.facts import CpuFacts
from tiny_backprop.predict.xla_cpu.library_kernels import find_library_kernels
from tiny_backprop.predict.xla_cpu.lowering import CpuLowering
from tiny_backprop.predict.xla_cpu.order import breadth_first
from tiny_backprop.predict.xla_cpu.versions import Version, version_of


def xla_cpu(jax_version: tuple[int, ...]) -> Compiler:
    """Return the XLA:CPU that came with a version of JAX."""
    return _compiler(version_of(jax_version))


@functools.cache
def _compiler(version: Version) -> Compiler:
    def lower(graph: Graph) -> CpuLowering:
        return CpuLowering(CpuFacts(graph, version))

    return Compiler(
        backend="cpu",
        lower=lower,
        fusion=FusionRules(find_library_kernels, joins_rows, kept, add_repeated),
        order=breadth_first,
        loops_read_arguments=version.loops_read_arguments,
        margin=version.margin,
    )
