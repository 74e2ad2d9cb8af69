"""XLA:CPU, as the passes of `predict` are told of it."""

from __future__ import annotations

from tiny_backprop.graph import Graph
from tiny_backprop.predict.compiler import Compiler
from tiny_backprop.predict.fusion import FusionRules
from tiny_backprop.predict.xla_cpu.duplication import add_repeated, joins_rows, kept
from tiny_backprop.predict.xla_cpu.facts import CpuFacts
from tiny_backprop.predict.xla_cpu.library_kernels import ABSORBED, find_library_kernels
from tiny_backprop.predict.xla_cpu.lowering import CpuLowering
from tiny_backprop.predict.xla_cpu.order import breadth_first


def _lower(graph: Graph) -> CpuLowering:
    return CpuLowering(CpuFacts(graph))


XLA_CPU = Compiler(
    backend="cpu",
    lower=_lower,
    fusion=FusionRules(ABSORBED, find_library_kernels, joins_rows, kept, add_repeated),
    order=breadth_first,
)
