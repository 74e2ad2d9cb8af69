"""The JAX side: capture a program, rewrite it along a plan, run it, and measure what XLA made of it."""

from tiny_backprop.integration.jax.capture.capture import capture_gradient as capture_gradient
from tiny_backprop.integration.jax.capture.capture import capture_graph_jaxpr as capture_graph_jaxpr
from tiny_backprop.integration.jax.capture.symbolic import SymbolicGraph as SymbolicGraph
from tiny_backprop.integration.jax.capture.symbolic import capture_symbolic_gradient as capture_symbolic_gradient
from tiny_backprop.integration.jax.run.checkpoint import checkpoint as checkpoint
from tiny_backprop.integration.jax.run.compare import compare as compare
from tiny_backprop.integration.jax.run.gradient import HeightCompressedExecutor as HeightCompressedExecutor
from tiny_backprop.integration.jax.run.gradient import PlannedGradient as PlannedGradient
from tiny_backprop.integration.jax.run.gradient import height_compressed_grad as height_compressed_grad
from tiny_backprop.integration.jax.run.gradient import (
    height_compressed_value_and_grad as height_compressed_value_and_grad,
)
from tiny_backprop.integration.jax.run.hold import jit as jit
from tiny_backprop.integration.jax.xla.calibration import calibrate as calibrate
from tiny_backprop.integration.jax.xla.calibration import read_calibration as read_calibration
from tiny_backprop.integration.jax.xla.explain import Explanation as Explanation
from tiny_backprop.integration.jax.xla.explain import explain as explain
from tiny_backprop.integration.jax.xla.measure import Measurement as Measurement
from tiny_backprop.integration.jax.xla.measure import measure as measure
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap as MemoryMap
