"""The interactive part of tiny_backprop: the plan explorer, its views, plots of frontiers and trade-offs, the report.

It builds on `tiny_backprop`, which does not depend on it: whatever the widgets do can be done without them.
"""

from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.explorer.plan_explorer import PlanExplorer, explore
from tiny_backprop_widgets.exports.report import write_report
from tiny_backprop_widgets.plots.dag import JaxprDag, jaxpr_dag
from tiny_backprop_widgets.plots.frontier import export_frontier, plot_frontier
from tiny_backprop_widgets.plots.memory_map import plot_memory_map
from tiny_backprop_widgets.plots.pareto import plot_pareto
from tiny_backprop_widgets.views.frontier_view import FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView
from tiny_backprop_widgets.views.pareto_view import ParetoView
from tiny_backprop_widgets.views.table_view import TableView

__all__ = [
    "DisplayError",
    "FrontierView",
    "GraphView",
    "JaxprDag",
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
]
