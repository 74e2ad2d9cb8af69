"""See where the memory of a JAX gradient goes, plan what to save and what to recompute, and run the plan.

The names here are the public interface. The interactive part is in `tiny_backprop_widgets`; `explore`, `PlanExplorer`
and its views, `plot_frontier`, `plot_pareto`, `plot_memory_map`, `export_frontier`, `jaxpr_dag` and `write_report`
can be had from here. `%load_ext tiny_backprop` brings `%memplan` into a notebook.
"""

import importlib
from typing import Any

from tiny_backprop.analysis import GraphReport as GraphReport
from tiny_backprop.analysis import analyze_graph as analyze_graph
from tiny_backprop.analysis import loop_reports as loop_reports
from tiny_backprop.analysis import summarize_frontier as summarize_frontier
from tiny_backprop.errors import BudgetError as BudgetError
from tiny_backprop.errors import CalibrationWarning as CalibrationWarning
from tiny_backprop.errors import CaptureError as CaptureError
from tiny_backprop.errors import FallbackWarning as FallbackWarning
from tiny_backprop.errors import GraphError as GraphError
from tiny_backprop.errors import IllegalPlanError as IllegalPlanError
from tiny_backprop.errors import MeasureError as MeasureError
from tiny_backprop.errors import PlanError as PlanError
from tiny_backprop.errors import TinyBackpropError as TinyBackpropError
from tiny_backprop.errors import UntraceableError as UntraceableError
from tiny_backprop.graph import Graph as Graph
from tiny_backprop.integration.jax import Explanation as Explanation
from tiny_backprop.integration.jax import HeightCompressedExecutor as HeightCompressedExecutor
from tiny_backprop.integration.jax import Measurement as Measurement
from tiny_backprop.integration.jax import MemoryMap as MemoryMap
from tiny_backprop.integration.jax import PlannedGradient as PlannedGradient
from tiny_backprop.integration.jax import SymbolicGraph as SymbolicGraph
from tiny_backprop.integration.jax import calibrate as calibrate
from tiny_backprop.integration.jax import capture_gradient as capture_gradient
from tiny_backprop.integration.jax import capture_graph_jaxpr as capture_graph_jaxpr
from tiny_backprop.integration.jax import capture_symbolic_gradient as capture_symbolic_gradient
from tiny_backprop.integration.jax import checkpoint as checkpoint
from tiny_backprop.integration.jax import compare as compare
from tiny_backprop.integration.jax import explain as explain
from tiny_backprop.integration.jax import height_compressed_grad as height_compressed_grad
from tiny_backprop.integration.jax import height_compressed_value_and_grad as height_compressed_value_and_grad
from tiny_backprop.integration.jax import jit as jit
from tiny_backprop.integration.jax import measure as measure
from tiny_backprop.plan import Certificate as Certificate
from tiny_backprop.plan import CostModel as CostModel
from tiny_backprop.plan import LoopChoice as LoopChoice
from tiny_backprop.plan import Materialized as Materialized
from tiny_backprop.plan import Op as Op
from tiny_backprop.plan import Pareto as Pareto
from tiny_backprop.plan import Plan as Plan
from tiny_backprop.plan import certify as certify
from tiny_backprop.plan import materialize as materialize
from tiny_backprop.plan import pareto as pareto
from tiny_backprop.plan import plan_blocks as plan_blocks
from tiny_backprop.plan import plan_budget as plan_budget
from tiny_backprop.plan import plan_exact as plan_exact
from tiny_backprop.plan import plan_height_compressed as plan_height_compressed
from tiny_backprop.plan import plan_policy as plan_policy
from tiny_backprop.plan import plan_save_everything as plan_save_everything
from tiny_backprop.plan import simulate as simulate

__version__ = "0.1.0"

_IN_WIDGETS = (
    "FrontierView",
    "GraphView",
    "MemoryMapView",
    "ParetoView",
    "PlanExplorer",
    "TableView",
    "explore",
    "export_frontier",
    "jaxpr_dag",
    "plot_frontier",
    "plot_memory_map",
    "plot_pareto",
    "write_report",
)


def __getattr__(name: str) -> Any:
    """Load the interactive part when it is first asked for; nothing here depends on it."""
    if name in _IN_WIDGETS:
        return getattr(importlib.import_module("tiny_backprop_widgets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(ipython: Any) -> None:
    """Bring `%memplan` and `%%memplan` into a notebook, as `%load_ext tiny_backprop` asks for."""
    ipython.register_magics(importlib.import_module("tiny_backprop_widgets.magic").MemplanMagics)
