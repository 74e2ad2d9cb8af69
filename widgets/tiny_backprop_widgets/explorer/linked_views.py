"""`LinkedViews`: a tensor that is chosen in one view is chosen in all, in XLA's memory map, too."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets

from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.xla.measure import Measurement
from tiny_backprop.plan.plan import Plan
from tiny_backprop_widgets.background.guard import Guard
from tiny_backprop_widgets.content.tensor_text import tensor_html
from tiny_backprop_widgets.views.frontier_view import FrontierView
from tiny_backprop_widgets.views.graph_view import GraphView
from tiny_backprop_widgets.views.map_link import MapLink
from tiny_backprop_widgets.views.memory_map_view import MemoryMapView
from tiny_backprop_widgets.views.table_view import TableView

_NO_MAP = "Verify asks XLA where it keeps each tensor of this plan's gradient; the map is shown here."


class LinkedViews:
    """Listens to the views of a plan, and shows what XLA was found to do with it.

    Attributes:
      tensor: What is to be said of the chosen tensor.
      map_tab: Where the memory map is shown, or why there is none.
      map_view: The memory map, once it is known; None before.
      link: What corresponds in the plan and that map, or None.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Callable[[], Plan],
        frontier: FrontierView,
        dag: GraphView,
        tensors: TableView,
        guard: Guard,
    ):
        """Link three views of the plan that `plan()` returns; every event runs its callback guarded."""
        self._graph, self._plan, self._guard = graph, plan, guard
        self._frontier, self._dag, self._tensors = frontier, dag, tensors
        self._is_linking = False
        self.tensor, self._map_text = widgets.HTML(), widgets.HTML(_NO_MAP)
        self.map_tab = widgets.VBox([self._map_text])
        self.map_view: MemoryMapView | None = None
        self._map_color_by = "kind"  # kept while there is no map
        self._mapped: Measurement | None = None  # whose memory map is shown
        self.link: MapLink | None = None
        for view in (frontier, tensors):
            view.observe(lambda change: guard(lambda: self._choose(change["new"])), "value")
        dag.observe(lambda change: guard(lambda: self._choose_node(change["new"])), "value")

    def show_graph(self, graph: Graph) -> None:
        """Be the link of another graph's views."""
        self._graph = graph

    def show_tensor(self) -> None:
        """Tell of the chosen tensor what the plan does with it now."""
        value = self._frontier.value
        by_xla = self.link.pairs.tell_value(value) if self.link is not None and value is not None else ""
        self.tensor.value = "" if value is None else tensor_html(self._plan(), value, by_xla)

    def show_measurement(self, measurement: Measurement | None) -> None:
        """Lay XLA's live bytes over the frontier, and show its memory map; neither where they are not known."""
        if measurement is self._mapped:
            return
        self._mapped, self.link = measurement, None
        memory_map = None if measurement is None else measurement.memory_map
        if memory_map is None or memory_map.missing:
            self._frontier.show_measured([], [])
            self._show_map(_NO_MAP if memory_map is None else memory_map._repr_html_(), None)
            return
        self.link = MapLink(self._plan(), memory_map)
        self._frontier.show_measured(*self.link.measured_curve)
        view = MemoryMapView(memory_map)
        view.observe(lambda change: self._guard(lambda: self._choose_buffer(change["new"])), "value")
        self._show_map("", view)
        if self._frontier.value is not None:
            self._choose(self._frontier.value)

    def _show_map(self, text: str, view: MemoryMapView | None) -> None:
        """Show a memory map, or a text that says why there is none."""
        before, self.map_view, self._map_text.value = self.map_view, view, text
        if before is not None:
            self._map_color_by = before.color_by
        if view is not None:
            view.color_by = self._map_color_by
        self.map_tab.children = [self._map_text] if view is None else [view]
        if before is not None:
            before.close()

    def _choose(self, value: int | None) -> None:
        """Choose a tensor in all views, in the memory map whatever of XLA's buffers hold it."""
        if self._is_linking:
            return
        self._is_linking = True
        try:
            self._choose_in_plan(value)
            if self.map_view is not None and self.link is not None:
                if value is None:
                    self.map_view.choose([])
                else:
                    self.map_view.choose(self.link.buffers_of(value), self.link.note_of_value(value))
        finally:
            self._is_linking = False

    def _choose_in_plan(self, value: int | None) -> None:
        self._frontier.value = self._tensors.value = value
        node = -1 if value is None else int(self._graph.value_node[value])
        self._dag.value = None if node < 0 else node
        self.show_tensor()

    def _choose_node(self, node: int | None) -> None:
        """Choose the largest tensor that a node makes."""
        if self._is_linking:
            return
        if node is None:
            self._choose(None)
            return
        i, j = self._graph.output_start[node : node + 2].tolist()
        self._choose(i + int(self._graph.value_bytes[i:j].argmax()) if j > i else None)

    def _choose_buffer(self, buffer: int | None) -> None:
        """Choose the tensor that one of XLA's buffers holds, if one is found, and outline what else holds it."""
        if self._is_linking or self.map_view is None or self.link is None:
            return
        self._is_linking = True
        try:
            value = None if buffer is None else self.link.value_of(buffer)
            others = [] if value is None else self.link.buffers_of(value)
            self.map_view.marked = [i for i in others if i != buffer]
            self.map_view.note = "" if buffer is None else self.link.note_of_buffer(buffer)
            self._choose_in_plan(value)
        finally:
            self._is_linking = False
