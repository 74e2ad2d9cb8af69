"""A tensor that is chosen in one view of the explorer is chosen in all, in XLA's memory map, too."""

import dataclasses
import html.parser

import jax.numpy as jnp

from tests.widgets.explored import ARGS, loss
from tiny_backprop_widgets import PlanExplorer


def test_tensors_and_xlas_buffers_are_chosen_together():
    ui = PlanExplorer(loss, jnp.ones((64, 64)), jnp.ones((96, 64)), scale=2.0)
    ui.strategy.value = "block size"
    ui.block_size.value = 4
    saved = int(ui.plan.saved[-1])
    ui.frontier.value = saved
    assert "buffers of XLA" not in ui._linked.tensor.value  # not known yet
    ui.verify()
    view = ui.memory_map_view
    buffers = view.memory_map.buffers

    def shown():
        return ui.frontier.value, ui.tensors.value, ui.dag.value

    both = {view.value, *view.marked}
    assert both == set(ui._linked.link.pairs.buffers_of(saved)) != set()  # of what was chosen before
    assert buffers[view.value].source == ui.graph.sources[ui.graph.value_node[saved]]
    assert view.note.startswith(f"In the plan: tensor {saved}, float32[96,64], made by ")
    assert f"In XLA's memory: {buffers[min(both, key=lambda i: buffers[i].first_use)].instruction}" in view.note
    assert html.escape(ui._linked.link.pairs.tell_value(saved)[:100], quote=False) in ui._linked.tensor.value

    other = next(i for i in range(len(buffers)) if ui._linked.link.pairs.value_of(i) not in (None, saved))
    value = ui._linked.link.pairs.value_of(other)
    view.value = other  # as a click does
    assert shown() == (value, value, int(ui.graph.value_node[value]))
    assert view.marked == [i for i in ui._linked.link.buffers_of(value) if i != other]
    assert f"tensor {value}, " in view.note

    pairs = ui._linked.link.pairs
    stranger = next(i for i, b in enumerate(buffers) if b.memory == "temp" and pairs.value_of(i) is None)
    view.value = stranger
    assert shown() == (None, None, None)
    assert (view.value, view.marked) == (stranger, [])
    assert view.note == f"In the plan: none; {ui._linked.link.pairs.tell_buffer(stranger)}."

    fused = next(v for v in range(ui.graph.n_inputs, ui.graph.n_values) if not ui._linked.link.pairs.buffers_of(v))
    ui.tensors.value = fused
    assert (view.value, view.marked) == (None, [])
    assert view.note.endswith(f"In XLA's memory: {ui._linked.link.pairs.tell_value(fused)}.")
    ui.frontier.value = None
    assert (view.value, view.note) == (None, "")
    ui.frontier.value = saved
    ui.block_size.value = 3  # another plan, of which nothing is known
    assert "buffers of XLA" not in ui._linked.tensor.value
    assert ui.errors == []


def test_once_verified_there_is_a_live_map_of_each_plan_under_the_functions_name(monkeypatch):
    ui = PlanExplorer(loss, *ARGS)
    assert ui.memory_map_view is None
    assert ui._linked.map_tab.children == (ui._linked._map_text,)
    assert "Verify asks XLA" in ui._linked._map_text.value
    ui.verify()
    first = ui.memory_map_view
    assert ui._linked.map_tab.children == (first,)
    assert first.memory_map is ui.measurement.memory_map
    assert first._facts["title"].startswith("loss: temporaries ")
    first.color_by = "scope"
    ui.block_size.value = 2 if ui.block_size.value != 2 else 3
    assert (ui.memory_map_view, ui._linked.map_tab.children) == (None, (ui._linked._map_text,))
    ui.verify()
    assert ui.memory_map_view is not first
    assert ui.memory_map_view.color_by == "scope"  # as it was chosen
    missing = dataclasses.replace(ui.measurement.memory_map, missing="<b>no such luck</b>")
    monkeypatch.setattr(type(ui.measurement), "memory_map", missing)
    ui.block_size.value = 5
    ui.verify()
    assert ui.memory_map_view is None
    assert "No map: &lt;b&gt;no such luck&lt;/b&gt;." in ui._linked._map_text.value
    assert ui.errors == []


def test_a_tensor_that_is_chosen_in_one_view_is_chosen_in_all():
    ui = PlanExplorer(loss, *ARGS)
    value = int(ui.graph.value_node.argmax()) - 3
    node = int(ui.graph.value_node[value])
    ui.frontier.value = value
    assert (ui.tensors.value, ui.dag.value) == (value, node)
    assert f"node {node}" in ui._linked.tensor.value
    row = ui.tensors._rows["rows"][0]
    ui.tensors.value = row[0]
    assert ui.frontier.value == row[0]
    assert ui.dag.value == ui.graph.value_node[row[0]]
    ui.dag.value = 3
    assert ui.graph.value_node[ui.frontier.value] == 3
    assert ui.tensors.value == ui.frontier.value
    ui.frontier.value = None
    assert (ui.tensors.value, ui.dag.value, ui._linked.tensor.value) == (None, None, "")
    assert ui.errors == []


def test_a_chosen_tensor_shows_the_line_that_makes_it():
    ui = PlanExplorer(loss, *ARGS)
    node = ui.graph.primitives.index("tanh")
    ui.dag.value = node
    assert "<mark>" in ui._linked.tensor.value
    assert "x = jnp.tanh(x @ w) * scale" in ui._linked.tensor.value
    ui.block_size.value = 1
    assert "recomputed" in ui._linked.tensor.value or "saved" in ui._linked.tensor.value
