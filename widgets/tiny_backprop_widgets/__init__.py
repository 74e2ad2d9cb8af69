"""The interactive part of tiny_backprop: the plan explorer, the frontier plot, the JAXPR as a DAG, the report.

It builds on the public interface of `tiny_backprop`, which does not depend on it: whatever the widgets do can be done
without them.
"""

from tiny_backprop_widgets.frontier import plot_frontier as plot_frontier
