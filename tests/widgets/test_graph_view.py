"""The live graph: boxes that open and close, colours, search, groups."""

import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.graphs import chain
from tests.widgets.viewed import PLAN, array
from tiny_backprop import (
    Graph,
    PlanError,
    capture_gradient,
    plan_blocks,
    plan_save_everything,
)
from tiny_backprop_widgets import GraphView
from tiny_backprop_widgets.content.tensors import RECOMPUTED, SAVED, fates


def big(n=30):
    """Return a gradient graph with scopes, n forward nodes in each of four layers."""
    names = [f"f{i}" for i in range(4 * n)]
    forward = [
        dict(
            name=x, bytes=4, reads=[names[i - 1]] if i else [], primitive="sin", scope=f"jvp(layer{i // n})/part{i % 2}"
        )
        for i, x in enumerate(names)
    ]
    backward = [
        dict(
            name=f"b{i}",
            bytes=4,
            reads=[names[i], *([f"b{i + 1}"] if i < 4 * n - 1 else [])],
            is_backward=True,
            primitive="mul",
            scope=f"transpose(jvp(layer{i // n}))",
            source="model.py:7 (f)",
        )
        for i in reversed(range(4 * n))
    ]
    return Graph.from_nodes([*forward, *backward], outputs=["b0"])


def test_a_graph_is_collapsed_by_scope_and_opens_and_closes():
    graph = big()
    view = GraphView(plan_blocks(graph, 5))
    closed = sorted((b for b in view._boxes if not b["open"]), key=lambda b: b["start"])
    assert [b["lines"][0] for b in closed] == [f"layer{i}" for i in (0, 1, 2, 3, 3, 2, 1, 0)]
    assert sum(b["end"] - b["start"] for b in closed) == graph.n_nodes
    assert "8 boxes of 240 equations" in repr(view)
    view.expand(0)
    assert view.expanded == [(0, 30)]
    n_open = view.n_boxes
    assert n_open == 8 - 1 + 30
    view.expand(0)  # nothing there is closed any more
    assert view.n_boxes == n_open
    view.collapse(0)
    assert view.n_boxes == 8
    view.expand(35)
    view.collapse_all()
    assert view.n_boxes == 8
    view.expand_all()
    assert view.n_boxes == graph.n_nodes
    with pytest.raises(PlanError, match="node 240 was asked for; the graph has nodes 0 to 239"):
        view.expand(240)


def test_what_a_page_sends_that_is_no_group_opens_nothing():
    view = GraphView(plan_blocks(big(), 5))
    view._opened = [[3, 99], [0, 0], [-5, 1]]
    assert view.n_boxes == 8


def test_colours_follow_the_plan_and_boxes_stay_in_place():
    graph = big()
    view = GraphView(plan_save_everything(graph))
    places, boxes = view._places, view._boxes
    for plan in (plan_blocks(graph, 3), plan_blocks(graph, 40), plan_save_everything(graph)):
        view.plan = plan
        assert (view._places, view._boxes) == (places, boxes)
        n_bytes = array(view._box_bytes, "f8", -1, 3)
        fate = fates(plan)
        for box, (saved, recomputed, other) in zip(view._boxes, n_bytes, strict=True):
            values = np.arange(graph.output_start[box["start"]], graph.output_start[box["end"]])
            kinds = fate[values]
            assert saved == graph.value_bytes[values[kinds == SAVED]].sum()
            assert recomputed == graph.value_bytes[values[kinds == RECOMPUTED]].sum()
            assert saved + recomputed + other == graph.value_bytes[values].sum()
    with pytest.raises(PlanError, match="the plan was made for a graph with fingerprint"):
        view.plan = PLAN


def test_edges_carry_the_values_between_boxes():
    graph = big()
    view = GraphView(plan_blocks(graph, 5))
    view.expand(0)
    boxes = view._boxes
    wanted = {}
    for node, reads in enumerate(graph.read_lists):
        for v in reads:
            tail, head = (
                next(i for i, b in enumerate(boxes) if not b["open"] and b["start"] <= n < b["end"])
                for n in (int(graph.value_node[v]), node)
            )
            if tail != head:
                wanted.setdefault((tail, head), set()).add(v)
    edges = array(view._edges, "i4", -1, 3)
    assert {(t, h): n for t, h, n in edges.tolist()} == {pair: len(values) for pair, values in wanted.items()}
    n_bytes = array(view._edge_bytes, "f8")
    assert n_bytes.tolist() == [sum(graph.value_bytes[list(wanted[t, h])]) for t, h, _ in edges.tolist()]
    assert np.all(array(view._edge_saved_bytes, "f8") <= n_bytes)


def test_a_query_finds_primitives_scopes_and_source_lines():
    graph = big()
    view = GraphView(plan_blocks(graph, 5))
    for query, expected in (
        ("sin", range(120)),
        ("LAYER0/part1", range(1, 30, 2)),
        ("model.py:7", range(120, 240)),
        ("absent", ()),
        ("", ()),
    ):
        view.query = query
        assert view.matches.tolist() == list(expected)
        hits = array(view._hits, "i4")
        assert len(hits) == (len(view._boxes) if query else 0)
        closed = [h for h, b in zip(hits, view._boxes, strict=False) if not b["open"]]
        assert sum(closed) == len(list(expected))


def test_groups_by_block_are_the_plans_blocks():
    graph = big()
    view = GraphView(plan_blocks(graph, 24), group_by="block")
    labels = [b["lines"][0] for b in view._boxes if not b["open"] and not b["backward"]]
    assert labels == [f"block {i}" for i in range(5)]
    places = view._places
    view.plan = plan_blocks(graph, 7)
    assert view._places == places
    view.group_by = "scope"
    assert view.n_boxes == 8


def test_small_graphs_show_every_equation_and_odd_ones_are_drawn():
    assert GraphView(plan_blocks(chain(5), 2)).n_boxes == 10
    for nodes in ([], [{"name": "a", "bytes": 0}], [{"name": "a", "bytes": 1, "is_backward": True}]):
        graph = Graph.from_nodes(nodes, outputs=[n["name"] for n in nodes])
        view = GraphView(graph)
        assert view.n_boxes == len(nodes)
        ET.fromstring(view.to_svg())


def test_the_picture_of_a_graph_needs_no_dot(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = GraphView(plan_blocks(big(), 5)).save(tmp_path / "a.svg").read_text()
    words = {t.text for t in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"layer0", "layer3", "forward", "backward"} <= words


def test_a_model_whose_whole_is_one_scope_is_open_at_first_sight():
    def loss(ws, x):
        with jax.named_scope("Model"):
            for i, w in enumerate(ws):
                with jax.named_scope(f"layer{i}"):
                    x = jnp.tanh(x @ w) * 2
        return x.sum()

    view = GraphView(capture_gradient(loss, [jnp.ones((4, 4))] * 12, jnp.ones((2, 4))))
    layers = {f"layer{i}" for i in range(12)}
    assert layers <= {box["lines"][0] for box in view._boxes if not box["open"]}
    assert view.n_boxes < 40
    view.collapse_all()
    assert {box["lines"][0] for box in view._boxes if not box["open"]} & {"Model"} == {"Model"}
