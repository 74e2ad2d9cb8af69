"""The outline and the layout of the DAG: groups cover the program, boxes do not overlap, edges go one way."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tiny_backprop import Graph
from tiny_backprop_widgets.content.layout import lay_out
from tiny_backprop_widgets.content.outline import MOST_CHILDREN, Outline


def wide(n_scopes, n_each):
    nodes = [
        dict(name=f"f{i}", bytes=1, reads=[f"f{i - 1}"] if i else [], scope=f"layer{i // n_each}")
        for i in range(n_scopes * n_each)
    ]
    return Graph.from_nodes(nodes, outputs=[nodes[-1]["name"]])


def everything(outline, n=10**9):
    """Return up to n groups of an outline, from the outside in."""
    found, todo = [], [*outline.roots]
    while todo and len(found) < n:
        found.append(todo.pop(0))
        todo += outline.children(found[-1])
    return found


def test_children_partition_their_group_and_are_few():
    for graph in (chain(700), wide(100, 7), wide(3, 400), wide(1, 1)):
        outline = Outline(graph)
        for group in everything(outline):
            children = outline.children(group)
            assert len(children) <= MOST_CHILDREN
            if children:
                assert (children[0].start, children[-1].end) == (group.start, group.end)
                assert all(a.end == b.start for a, b in itertools.pairwise(children))
                assert len(children) > 1 or children[0].is_equation
            else:
                assert group.is_equation


def test_scopes_name_groups_and_many_are_gathered():
    few = Outline(wide(5, 9))
    assert [g.label for g in few.children(few.roots[0])] == [f"layer{i}" for i in range(5)]
    many = Outline(wide(100, 2))
    labels = [g.label for g in many.children(many.roots[0])]
    assert labels[0] == "layer0 … layer9"
    assert labels[-1] == "layer90 … layer99"
    inside = many.children(many.children(many.roots[0])[0])
    assert [g.label for g in inside] == [f"layer{i}" for i in range(10)]


def test_the_path_to_a_node_ends_at_it():
    outline = Outline(chain(500))
    for node in (0, 123, 499, 500, 999):
        path = outline.path_to(node)
        assert (path[-1].start, path[-1].end) == (node, node + 1)
        assert path[0] in outline.roots
        assert all(b in outline.children(a) for a, b in itertools.pairwise(path))


@hypothesis.given(training_graphs(max_forward=30), st.integers(0, 60))
def test_boxes_do_not_overlap_and_lie_in_what_holds_them(graph, n_open):
    outline = Outline(graph)
    layout = lay_out(outline, set(everything(outline, n_open)))
    boxes = layout.boxes
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            is_inside = a.is_open and a.group.start <= b.group.start and b.group.end <= a.group.end
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
            if is_inside and b.level > a.level:
                assert a.x <= b.x
                assert a.y <= b.y
                assert b.x + b.width <= a.x + a.width + 1e-6
                assert b.y + b.height <= a.y + a.height + 1e-6
            else:
                assert apart


@hypothesis.given(training_graphs(max_forward=30))
def test_closed_boxes_cover_every_node_once(graph):
    layout = lay_out(Outline(graph), set())
    covered = np.concatenate([np.arange(b.group.start, b.group.end) for b in layout.boxes if not b.is_open])
    assert sorted(covered.tolist()) == list(range(graph.n_nodes))


def test_forward_runs_down_and_backward_climbs_beside_it():
    graph = chain(12)
    outline = Outline(graph)
    layout = lay_out(outline, set(everything(outline)))
    items = [layout.boxes[i] for i in layout.items.tolist()]
    for tail, head, _ in layout.edges.tolist():
        a, b = items[tail], items[head]
        if a.group.start < graph.n_forward <= b.group.start:
            assert a.x + a.width < b.x
        elif b.group.start < graph.n_forward:
            assert a.y + a.height <= b.y
        else:
            assert b.y + b.height <= a.y
    turn = [items[graph.n_forward - 1], items[graph.n_forward]]
    assert abs(turn[0].y - turn[1].y) < 1


def test_a_layout_is_the_same_every_time():
    graph = wide(20, 20)
    assert lay_out(Outline(graph), set()).boxes == lay_out(Outline(graph), set()).boxes
