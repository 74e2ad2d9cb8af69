"""`analyze_graph` and `summarize_frontier`: by hand, and sound against brute force."""

from hypothesis import given

from tests.graphs import chain, training_graphs
from tiny_backprop import Graph, analyze_graph, summarize_frontier


def test_chain_report_by_hand():
    report = analyze_graph(chain(400))
    assert report.peak_bytes == 401
    assert report.activation_bytes == 400
    # A backward node reads a residual and a cotangent and makes one; the output, and what is returned, are fewer.
    assert report.lower_bound_bytes == 3
    assert report.compressibility.is_height_compressible
    best_by_levels = {p.meta["levels"]: p.peak_bytes for p in report.compressibility.plans}
    assert best_by_levels[1] > best_by_levels[2] > best_by_levels[3]
    assert report.compressibility.fraction > 0.9
    assert report.verdict.startswith("height-compressible: peak by liveness")
    assert report.compressibility.to_pandas().peak_bytes.iloc[0] == 401


def test_a_star_is_hardly_compressible():
    """Every backward node reads every forward value: nothing can be freed."""
    n = 30
    nodes = [dict(name=f"f{i}", bytes=1, flops=1) for i in range(n)]
    nodes += [dict(name="b", bytes=1, reads=[f"f{i}" for i in range(n)], is_backward=True)]
    report = analyze_graph(Graph.from_nodes(nodes, outputs=["b"]))
    assert report.peak_bytes == report.lower_bound_bytes == n + 1
    assert report.gap == 1
    assert not report.compressibility.is_height_compressible
    assert report.verdict.startswith("hardly height-compressible")


def test_forward_graph_has_a_frontier_and_no_verdict():
    graph = Graph.from_nodes([dict(name="a", bytes=8), dict(name="b", bytes=4, reads=["a"])], outputs=["b"])
    report = analyze_graph(graph)
    assert report.compressibility is None
    assert "capture_gradient" in report.verdict
    assert summarize_frontier(graph).peak_bytes == 12
    assert [v.primitive for v in report.live_at_peak] == ["a", "b"]
    assert "<svg" in report._repr_html_()
    assert report.to_pandas().bytes.sum() == 12


def test_empty_graph():
    graph = Graph.from_nodes([])
    assert summarize_frontier(graph).peak_bytes == 0
    assert analyze_graph(graph).gap == 1.0


@given(training_graphs())
def test_values_alive_at_the_peak_make_the_peak(graph):
    report = analyze_graph(graph)
    assert sum(v.bytes for v in report.live_at_peak) == report.peak_bytes == summarize_frontier(graph).peak_bytes
