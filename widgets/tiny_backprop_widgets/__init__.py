"""The interactive part of tiny_backprop: the plan explorer, its views, plots of frontiers and trade-offs, the report.

It builds on `tiny_backprop`, which does not depend on it: whatever the widgets do can be done without them.
"""

from tiny_backprop_widgets.explorer import PlanExplorer as PlanExplorer
from tiny_backprop_widgets.explorer import explore as explore
from tiny_backprop_widgets.exports.report import write_report as write_report
from tiny_backprop_widgets.plots.dag import JaxprDag as JaxprDag
from tiny_backprop_widgets.plots.dag import jaxpr_dag as jaxpr_dag
from tiny_backprop_widgets.plots.frontier import DisplayError as DisplayError
from tiny_backprop_widgets.plots.frontier import export_frontier as export_frontier
from tiny_backprop_widgets.plots.frontier import plot_frontier as plot_frontier
from tiny_backprop_widgets.plots.memory_map import plot_memory_map as plot_memory_map
from tiny_backprop_widgets.plots.pareto import plot_pareto as plot_pareto
from tiny_backprop_widgets.views.frontier_view import FrontierView as FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView as GraphView
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView as MemoryMapView
from tiny_backprop_widgets.views.pareto_view import ParetoView as ParetoView
from tiny_backprop_widgets.views.table_view import TableView as TableView
