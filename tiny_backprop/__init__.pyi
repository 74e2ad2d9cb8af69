# The public names and where each lives: read by type checkers, and by `__init__.py`, which loads them when asked for.

from tiny_backprop.analysis.report import GraphReport as GraphReport
from tiny_backprop.analysis.report import analyze_graph as analyze_graph
from tiny_backprop.analysis.report import loop_reports as loop_reports
from tiny_backprop.analysis.report import summarize_frontier as summarize_frontier
from tiny_backprop.errors import BudgetError as BudgetError
from tiny_backprop.errors import CalibrationWarning as CalibrationWarning
from tiny_backprop.errors import CaptureError as CaptureError
from tiny_backprop.errors import CotangentWarning as CotangentWarning
from tiny_backprop.errors import FallbackWarning as FallbackWarning
from tiny_backprop.errors import GraphError as GraphError
from tiny_backprop.errors import IllegalPlanError as IllegalPlanError
from tiny_backprop.errors import IrreversibleError as IrreversibleError
from tiny_backprop.errors import LeftAloneWarning as LeftAloneWarning
from tiny_backprop.errors import MeasureError as MeasureError
from tiny_backprop.errors import NoGainWarning as NoGainWarning
from tiny_backprop.errors import PlanError as PlanError
from tiny_backprop.errors import RefError as RefError
from tiny_backprop.errors import TinyBackpropError as TinyBackpropError
from tiny_backprop.errors import UntraceableError as UntraceableError
from tiny_backprop.graph import Graph as Graph
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
from tiny_backprop.integration.jax.xla.calibration import calibrate as calibrate
from tiny_backprop.integration.jax.xla.explain import Explanation as Explanation
from tiny_backprop.integration.jax.xla.explain import explain as explain
from tiny_backprop.integration.jax.xla.jit import jit as jit
from tiny_backprop.integration.jax.xla.measure import Measurement as Measurement
from tiny_backprop.integration.jax.xla.measure import measure as measure
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap as MemoryMap
from tiny_backprop.plan.blocks import plan_blocks as plan_blocks
from tiny_backprop.plan.blocks import plan_height_compressed as plan_height_compressed
from tiny_backprop.plan.blocks import plan_jax_gradient as plan_jax_gradient
from tiny_backprop.plan.blocks import plan_save_everything as plan_save_everything
from tiny_backprop.plan.budget import plan_budget as plan_budget
from tiny_backprop.plan.certificate import Certificate as Certificate
from tiny_backprop.plan.certificate import certify as certify
from tiny_backprop.plan.checkpointed_calls import CheckpointedCalls as CheckpointedCalls
from tiny_backprop.plan.exact import plan_exact as plan_exact
from tiny_backprop.plan.left_alone import LeftAlone as LeftAlone
from tiny_backprop.plan.loops.choice import LoopChoice as LoopChoice
from tiny_backprop.plan.pareto import Pareto as Pareto
from tiny_backprop.plan.pareto import pareto as pareto
from tiny_backprop.plan.plan import Plan as Plan
from tiny_backprop.plan.policies import plan_policy as plan_policy
from tiny_backprop.predict.margin import recorded_margin as recorded_margin
from tiny_backprop.predict.materialized import Materialized as Materialized
from tiny_backprop.predict.materialized import materialize as materialize
from tiny_backprop.schedule.cost import CostModel as CostModel
from tiny_backprop.schedule.simulate import Op as Op
from tiny_backprop.schedule.simulate import simulate as simulate
from tiny_backprop_widgets.explorer.plan_explorer import PlanExplorer as PlanExplorer
from tiny_backprop_widgets.explorer.plan_explorer import explore as explore
from tiny_backprop_widgets.exports.report import write_report as write_report
from tiny_backprop_widgets.plots.dag import jaxpr_dag as jaxpr_dag
from tiny_backprop_widgets.plots.frontier import export_frontier as export_frontier
from tiny_backprop_widgets.plots.frontier import plot_frontier as plot_frontier
from tiny_backprop_widgets.plots.memory_map import plot_memory_map as plot_memory_map
from tiny_backprop_widgets.plots.pareto import plot_pareto as plot_pareto
from tiny_backprop_widgets.views.frontier_view import FrontierView as FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView as GraphView
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView as MemoryMapView
from tiny_backprop_widgets.views.pareto_view import ParetoView as ParetoView
from tiny_backprop_widgets.views.table_view import TableView as TableView

__version__: str
