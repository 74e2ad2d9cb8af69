"""JAX: `capture` takes a program apart, `run` puts it together along a plan, `xla` tells what XLA makes of it."""

from tiny_backprop.integration.jax.capture.capture import capture_gradient, capture_graph_jaxpr
from tiny_backprop.integration.jax.capture.symbolic import SymbolicGraph, capture_symbolic_gradient
from tiny_backprop.integration.jax.run.checkpoint import checkpoint
from tiny_backprop.integration.jax.run.compare import compare
from tiny_backprop.integration.jax.run.gradient import (
    HeightCompressedExecutor,
    PlannedGradient,
    height_compressed_grad,
    height_compressed_value_and_grad,
)
from tiny_backprop.integration.jax.xla.calibration import calibrate, read_calibration
from tiny_backprop.integration.jax.xla.explain import Explanation, explain
from tiny_backprop.integration.jax.xla.jit import jit
from tiny_backprop.integration.jax.xla.measure import Measurement, measure
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap

__all__ = [
    "Explanation",
    "HeightCompressedExecutor",
    "Measurement",
    "MemoryMap",
    "PlannedGradient",
    "SymbolicGraph",
    "calibrate",
    "capture_gradient",
    "capture_graph_jaxpr",
    "capture_symbolic_gradient",
    "checkpoint",
    "compare",
    "explain",
    "height_compressed_grad",
    "height_compressed_value_and_grad",
    "jit",
    "measure",
    "read_calibration",
]
