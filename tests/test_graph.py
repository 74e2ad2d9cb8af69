"""`Graph`: building, checking, saving and showing."""

import dataclasses
import json

import numpy as np
import pytest

from tiny_backprop import Graph, GraphError
from tiny_backprop.liveness import crossing_bytes, frontier, live_ranges, working_set


def diamond() -> Graph:
    """Return x → a → (b, c) → d, then the backward node dx."""
    return Graph.from_nodes(
        [
            dict(name="a", bytes=1, reads=["x"], flops=5),
            dict(name="b", bytes=10, reads=["a"]),
            dict(name="c", bytes=100, reads=["a"]),
            dict(name="d", bytes=1000, reads=["b", "c"]),
            dict(name="dx", bytes=7, reads=["d", "b"], is_backward=True),
        ],
        inputs={"x": 3},
        outputs=["d", "dx"],
    )


def test_nodes_are_views_of_the_arrays():
    graph = diamond()
    assert len(graph.nodes) == 5
    node = graph.nodes[3]
    assert (node.primitive, node.bytes, node.is_backward) == ("d", 1000, False)
    assert [v.index for v in node.operands if v] == [2, 3]
    assert graph.nodes[-1].is_backward
    assert [n.index for n in graph.nodes[1:3]] == [1, 2]
    with pytest.raises(IndexError, match="node 5 was asked for; the graph has 5 nodes"):
        graph.nodes[5]
    with pytest.raises(GraphError, match="value 6 was asked for; the graph has values 0 to 5"):
        graph.value(6)


def test_liveness_of_a_diamond_counted_by_hand():
    graph = diamond()
    first, last = live_ranges(graph)
    assert first.tolist() == [-1, 0, 1, 2, 3, 4]
    assert last.tolist() == [-1, 2, 4, 3, 4, 4]
    assert frontier(graph).tolist() == [1, 11, 111, 1110, 1017]
    assert working_set(graph).tolist() == [1, 11, 101, 1110, 1017]
    # Before b: a. Before c: a and b. Before d: b and c. At the ends: nothing.
    assert crossing_bytes(graph).tolist() == [0, 1, 11, 110, 0]
    assert graph.residuals.tolist() == [2, 4]
    assert graph.feeds_backward.tolist() == [True, True, True, True, False]
    assert graph.output_bytes == 1007
    assert graph.activation_bytes == 1111


def test_json_round_trip_keeps_everything():
    graph = diamond()
    again = Graph.from_json(graph.to_json())
    assert again.fingerprint == graph.fingerprint
    for field in dataclasses.fields(graph):
        a, b = getattr(graph, field.name), getattr(again, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


def test_json_of_another_kind_or_version_is_refused():
    with pytest.raises(GraphError, match="found something that is not JSON"):
        Graph.from_json("nonsense")
    with pytest.raises(GraphError, match=r"expected the JSON text of a tiny_backprop\.graph; found '\{\}'"):
        Graph.from_json("{}")
    data = json.loads(diamond().to_json())
    with pytest.raises(GraphError, match="version 99 of its format; this version of tiny_backprop reads version 7"):
        Graph.from_json(json.dumps({**data, "version": 99}))
    data.pop("flops")
    with pytest.raises(GraphError, match="flops"):
        Graph.from_json(json.dumps(data))


def test_fingerprint_depends_on_structure_not_on_names_of_places():
    graph = diamond()
    moved = dataclasses.replace(graph, sources=("elsewhere",) * 5, scopes=("other",) * 5, name="other")
    assert moved.fingerprint == graph.fingerprint
    larger = dataclasses.replace(graph, value_bytes=graph.value_bytes * 2)
    assert larger.fingerprint != graph.fingerprint


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [dict(name="a", bytes=1, reads=["b"]), dict(name="b", bytes=1)],
            "reads 'b', which is no input and no earlier",
        ),
        ([dict(name="a", bytes=1), dict(name="a", bytes=1)], "the name 'a' is used twice"),
        ([dict(name="a", bytes=-1)], "bytes of node 0 must be bytes as a whole number.*found -1"),
        ([dict(name="a")], "needs a name and bytes"),
        (
            [dict(name="a", bytes=1, is_backward=True), dict(name="b", bytes=1)],
            r"forward node 1 \(b\) follows a backward node",
        ),
    ],
)
def test_malformed_graphs_are_refused(nodes, message):
    with pytest.raises(GraphError, match=message):
        Graph.from_nodes(nodes)


def test_unknown_output_is_refused():
    with pytest.raises(GraphError, match=r"the outputs \['z'\] are no nodes"):
        Graph.from_nodes([dict(name="a", bytes=1)], outputs=["z"])


def test_displays_name_the_graph_and_escape():
    graph = dataclasses.replace(diamond(), name="<img src=x onerror=alert(1)>")
    text = graph._repr_html_()
    assert "<img" not in text
    assert "&lt;img" in text
    table = graph.to_pandas()
    assert table.loc[3, "operands"] == "v2 v3"
    assert table.output_bytes.tolist() == [1, 10, 100, 1000, 7]


def test_display_never_raises(monkeypatch):
    monkeypatch.setattr(Graph, "_html", lambda _: 1 / 0)
    assert "ZeroDivisionError" in diamond()._repr_html_()


def test_node_without_outputs_is_counted_as_zero_bytes():
    graph = diamond()
    no_output = dataclasses.replace(
        graph,
        output_start=np.array([1, 2, 3, 4, 5, 5]),
        value_shapes=graph.value_shapes[:-1],
        value_dtypes=graph.value_dtypes[:-1],
        value_bytes=graph.value_bytes[:-1],
        relaid_values=graph.relaid_values[:-1],
        outputs=np.array([4]),
        n_primal_outputs=1,
    )
    assert no_output.node_bytes.tolist() == [1, 10, 100, 1000, 0]
    assert "No HTML" not in no_output._repr_html_()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("operands", "abc"),
        ("value_bytes", None),
        ("value_bytes", [10**30] * 6),
        ("primitives", 3),
        ("flops", ["x"] * 5),
        ("flops", [float("nan")] * 5),
        ("operand_start", [1, 1, 2, 3, 5, 7]),
        ("n_primal_outputs", 99),
        ("outputs", [[1, 2]]),
    ],
)
def test_damaged_graphs_are_refused(field, value):
    data = {**json.loads(diamond().to_json()), field: value}
    with pytest.raises(GraphError):
        Graph.from_json(json.dumps(data))
