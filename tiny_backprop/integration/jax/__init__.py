"""The JAX side: capture a program, rewrite it along a plan, run it, and measure what XLA made of it."""

from tiny_backprop.integration.jax.calibration import calibrate as calibrate
from tiny_backprop.integration.jax.calibration import read_calibration as read_calibration
from tiny_backprop.integration.jax.capture import capture_gradient as capture_gradient
from tiny_backprop.integration.jax.capture import capture_graph_jaxpr as capture_graph_jaxpr
from tiny_backprop.integration.jax.checkpoint import checkpoint as checkpoint
from tiny_backprop.integration.jax.compare import compare as compare
from tiny_backprop.integration.jax.explain import Explanation as Explanation
from tiny_backprop.integration.jax.explain import explain as explain
from tiny_backprop.integration.jax.gradient import HeightCompressedExecutor as HeightCompressedExecutor
from tiny_backprop.integration.jax.gradient import PlannedGradient as PlannedGradient
from tiny_backprop.integration.jax.gradient import height_compressed_grad as height_compressed_grad
from tiny_backprop.integration.jax.gradient import height_compressed_value_and_grad as height_compressed_value_and_grad
from tiny_backprop.integration.jax.hold import jit as jit
from tiny_backprop.integration.jax.measure import Measurement as Measurement
from tiny_backprop.integration.jax.measure import measure as measure
from tiny_backprop.integration.jax.memory_map import MemoryMap as MemoryMap
from tiny_backprop.integration.jax.symbolic import SymbolicGraph as SymbolicGraph
from tiny_backprop.integration.jax.symbolic import capture_symbolic_gradient as capture_symbolic_gradient
