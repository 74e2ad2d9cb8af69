"""The views without a browser: what they send to the page, held against the plan's own numbers, and what they save."""

import dataclasses
import functools
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import traitlets
from graphs import chain, training_graphs
from hypothesis import strategies as st

from tiny_backprop import (
    Graph,
    MeasureError,
    Op,
    PlanError,
    capture_gradient,
    measure,
    pareto,
    plan_blocks,
    plan_budget,
    plan_height_compressed,
    plan_save_everything,
)
from tiny_backprop.display import plain_scope
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import DisplayError, FrontierView, GraphView, MemoryMapView, ParetoView, TableView
from tiny_backprop_widgets.views import stand_in
from tiny_backprop_widgets.content.tensor_text import source_html, tensor_html
from tiny_backprop_widgets.content.tensors import FATES, GRADIENT, RECOMPUTED, SAVED, AtPeak, fates, lives

GRAPH = chain(40, n_bytes=2**20)
PLAN = plan_blocks(GRAPH, 7)
EVIL = "<img src=x onerror=alert(1)>\"'\u202eRTL \u05e9 \U0001f600\x00\x07" + "x" * 10_000


def array(data, dtype, *shape):
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(*(shape or (-1,)))


@functools.cache
def memory_map():
    """Return what XLA allocates for the gradient of a scan of 9 steps between two scopes."""

    def loss(w, x):
        with jax.named_scope("before"):
            x = jnp.tanh(x @ w)
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=9)
        with jax.named_scope("after"):
            return jnp.sum(jnp.tanh(x @ w) ** 2)

    shapes = jax.ShapeDtypeStruct((32, 32), "float32"), jax.ShapeDtypeStruct((64, 32), "float32")
    return measure(jax.grad(loss, (0, 1)), *shapes).memory_map


def evil_graph():
    node = dict(bytes=8, primitive=EVIL, scope=EVIL, source=EVIL + ":3 (f)")
    nodes = [dict(name="h", **node), dict(name="d", reads=["h"], is_backward=True, **node)]
    return Graph.from_nodes(nodes, outputs=["d"], name=EVIL)


# ---- where there is no kernel ----


@pytest.mark.parametrize(
    ("make", "tag"),
    [
        (lambda: FrontierView(PLAN), "<img"),
        (lambda: TableView(PLAN), "<table"),
        (lambda: GraphView(PLAN), "<svg"),
        (lambda: ParetoView(pareto(GRAPH, n_points=3)), "<img"),
        (lambda: MemoryMapView(memory_map()), "<img"),
    ],
)
def test_a_cell_gets_the_live_view_and_what_stands_in_for_it(make, tag, monkeypatch):
    view, shown = make(), []
    monkeypatch.setattr(stand_in, "display", lambda data, raw: shown.append(data))
    view._ipython_display_()
    live, rest = shown
    assert set(live) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert not {*live} & {*rest}
    assert tag in rest["text/html"]
    (name,) = set(re.findall(r"tiny-backprop-stand-in-\w+", rest["text/html"]))
    assert f".{name}, .jp-OutputArea-child:has(.{name}) {{ display: none }}" == view.get_state()["_stand_in_style"]


# ---- tensors ----


@hypothesis.given(training_graphs(), st.integers(1, 6), st.integers(1, 3))
def test_the_lives_of_values_add_up_to_the_live_bytes_of_every_step(graph, size, levels):
    plan = plan_height_compressed(graph, levels, size)
    table, n_bytes = lives(plan)
    value, first, last = table.T
    assert n_bytes.tolist() == graph.value_bytes[value].tolist()
    counted = [n_bytes[(first <= s) & (s <= last)].sum() for s in range(len(plan.timeline.steps))]
    assert counted == plan.timeline.live_bytes.tolist()


@hypothesis.given(training_graphs(), st.integers(1, 6))
def test_what_is_alive_at_the_peak_adds_up(graph, size):
    plan = plan_blocks(graph, size)
    at_peak = AtPeak.of(plan)
    assert (at_peak.n_bytes.sum(), at_peak.to_come_bytes) == (plan.peak_bytes, 0)
    assert np.all(np.diff(at_peak.n_bytes) <= 0)


@pytest.mark.parametrize("donate_argnums", [(), 0])
@pytest.mark.parametrize("planner", [plan_blocks, plan_save_everything])
def test_buffers_and_outputs_to_come_add_up_to_the_live_bytes_of_every_kernel(planner, donate_argnums):
    """Also where an output is written over a temporary that was lent its memory."""

    def loss(ws, x):
        for w in ws:
            x = x + jnp.tanh(x @ w) @ w.T
        return jnp.sum(x**2)

    shapes = [jax.ShapeDtypeStruct((32, 64), "float32")] * 8, jax.ShapeDtypeStruct((128, 32), "float32")
    plan = planner(capture_gradient(loss, *shapes, donate_argnums=donate_argnums))
    assert plan.materialized.is_in_argument.any() == bool(plan.graph.donated)
    assert_adds_up(plan)


@pytest.mark.parametrize("planner", [plan_blocks, plan_save_everything])
def test_buffers_on_the_way_to_a_value_count_by_their_own_bytes(planner):
    """The gradient of max-pooling has several, and dots in bfloat16 copies in float32."""

    def loss(w, x):
        x = jax.lax.reduce_window(x * 2, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        x = x.reshape(x.shape[0], -1).astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    shapes = jax.ShapeDtypeStruct((32 * 32 * 8, 64), "bfloat16"), jax.ShapeDtypeStruct((4, 64, 64, 8), "float32")
    plan = planner(capture_gradient(loss, *shapes, argnums=(0, 1)))
    table, n_bytes = lives(plan)
    assert (n_bytes != plan.graph.value_bytes[table[:, 0]]).any()
    assert_adds_up(plan)


def assert_adds_up(plan):
    m, graph = plan.materialized, plan.graph
    table, n_bytes = lives(plan)
    _, first, last = table.T
    is_output, is_lent = m.is_output & ~m.is_in_argument, m.is_lent & ~m.is_in_argument
    made = [m.n_bytes[is_output & (m.first <= k)].sum() for k in range(len(m.live_bytes))]
    counted = [n_bytes[(first <= k) & (k <= last)].sum() for k in range(len(m.live_bytes))]
    lent = [m.n_bytes[is_lent & (m.first <= k) & (m.last >= k)].sum() for k in range(len(m.live_bytes))]
    to_come = graph.new_output_bytes - np.array(made) - lent
    assert np.all(to_come >= 0)
    predicates = [((m.values < 0) & (m.first <= k) & (m.last >= k)).sum() for k in range(len(m.live_bytes))]
    assert (np.array(counted) + to_come + predicates).tolist() == m.live_bytes.tolist()
    at_peak = AtPeak.of(plan)
    assert at_peak.to_come_bytes == to_come[m.peak_kernel] + predicates[m.peak_kernel]


def test_fates_are_what_the_actions_do():
    fate = fates(PLAN)
    saved = {a.target for a in PLAN.actions if a.op == Op.SAVE}
    again = {a.target for a in PLAN.actions if a.op == Op.RECOMPUTE}
    for v in range(GRAPH.n_inputs, GRAPH.n_values):
        node = int(GRAPH.value_node[v])
        if node >= GRAPH.n_forward:
            assert fate[v] == GRADIENT
        elif v in saved:
            assert fate[v] == SAVED
        elif node in again:
            assert fate[v] == RECOMPUTED
    assert {SAVED, RECOMPUTED, GRADIENT} <= set(fate.tolist())


@pytest.mark.parametrize(
    ("scope", "plain"),
    [
        ("jvp(layer0)/attention", "layer0/attention"),
        ("transpose(jvp(layer0))/attention", "layer0/attention"),
        ("jvp()", ""),
        ("transpose(jvp())", ""),
        ("jvp(a)/jvp(b(c))", "a/b(c)"),
        ("jvp(unclosed", "jvp(unclosed"),
        ("layer", "layer"),
    ],
)
def test_scopes_lose_what_differentiation_adds(scope, plain):
    assert plain_scope(scope) == plain


def test_a_tensor_is_described_with_its_lives_and_escaped():
    plan = plan_blocks(evil_graph(), 1)
    text = tensor_html(plan, 0)
    assert "<img" not in text
    assert "&lt;img" in text
    value = int(PLAN.saved[0])
    spans = [f"{a} to {b}" for v, a, b in lives(PLAN)[0].tolist() if v == value]
    assert ", ".join(spans) in tensor_html(PLAN, value)
    assert FATES[SAVED] in tensor_html(PLAN, value)
    assert "input" in tensor_html(PLAN, 0)


def test_the_lines_around_a_source_line_are_shown(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("".join(f"line{i} = '<b>'\n" for i in range(1, 21)))
    text = source_html(f"{path}:9 (f)")
    assert re.findall(r"line(\d+)", text) == [str(i) for i in range(6, 13)]
    assert re.search(r"<mark>    9 line9 = &#x27;&lt;b&gt;&#x27;</mark>", text)
    assert source_html("") == source_html("nowhere.py:3 (f)") == source_html("no line") == ""


# ---- the frontier ----


def test_the_frontier_sends_the_timeline_and_every_life():
    view = FrontierView(PLAN)
    assert array(view._live_bytes, "f8").tolist() == PLAN.materialized.live_bytes.tolist()
    assert array(view._steps, "i4").tolist() == PLAN.materialized.kernel_nodes.tolist()
    table, n_bytes = lives(PLAN)
    assert array(view._lives, "i4", -1, 3).tolist() == table.tolist()
    assert array(view._life_bytes, "f8").tolist() == n_bytes.tolist()
    plain = plan_save_everything(GRAPH).materialized
    assert array(view._baseline_bytes, "f8").tolist() == plain.live_bytes.tolist()
    facts = view._facts
    assert (facts["peak_bytes"], facts["peak_step"]) == (PLAN.peak_bytes, PLAN.materialized.peak_kernel)
    assert (facts["n_forward_steps"], facts["budget_bytes"]) == (PLAN.materialized.n_forward_kernels, None)
    assert facts["baseline_peak_bytes"] == facts["top_bytes"] == plain.peak_bytes


def test_texts_are_sent_once_and_name_every_node():
    view = FrontierView(PLAN)
    nodes = array(view._node_table, "i4", -1, 4)
    assert [view._strings[i] for i in nodes[:, 0]] == list(GRAPH.primitives)
    assert len(set(view._strings)) == len(view._strings)
    assert max(map(len, FrontierView(plan_blocks(evil_graph(), 1))._strings)) <= 300


def test_another_plan_is_one_message_and_texts_stay(monkeypatch):
    view = FrontierView(PLAN)
    sent = []
    monkeypatch.setattr(view, "send_state", lambda key=None: sent.append(set(key or ())))
    view.plan = plan_blocks(GRAPH, 3)
    assert len(sent) <= 1
    assert not any({"_strings", "_value_table", "_node_table"} & keys for keys in sent)
    assert view._facts["serial"] == 2


def test_a_budget_is_a_line_and_may_be_given():
    assert FrontierView(plan_budget(GRAPH, "12 MiB"))._facts["budget_bytes"] == 12 * 2**20
    assert FrontierView(PLAN, budget_bytes=5)._facts["budget_bytes"] == 5


def test_a_measured_curve_is_laid_over_and_goes_with_its_plan():
    view = FrontierView(PLAN)
    view.show_measured([0, 0.5, 1], [1.0, 2.0**30, 2.0])
    assert array(view._measured, "f8", -1, 2).tolist() == [[0, 1], [0.5, 2**30], [1, 2]]
    assert view._facts["top_bytes"] == 2**30
    view.plan = plan_blocks(GRAPH, 3)
    assert view._measured == b""
    with pytest.raises(DisplayError, match="as many positions as live bytes, positions from 0 to 1; found 2 and 1"):
        view.show_measured([0, 1], [1])
    with pytest.raises(DisplayError, match="positions from 0 to 3"):
        view.show_measured([0, 3], [1, 2])


def test_the_chosen_tensor_can_be_observed():
    view, seen = FrontierView(PLAN), []
    view.observe(lambda change: seen.append(change["new"]), "value")
    view.value = 5
    view.value = None
    assert seen == [5, None]


def test_what_is_no_plan_is_refused():
    with pytest.raises(DisplayError, match="a FrontierView needs a Plan; found Graph"):
        FrontierView(GRAPH)
    with pytest.raises(DisplayError, match="the baseline is a plan for"):
        FrontierView(PLAN, baseline=plan_save_everything(chain(3)))
    with pytest.raises(DisplayError, match="the baseline is a plan for"):
        FrontierView(PLAN).plan = plan_blocks(chain(3), 1)
    with pytest.raises(DisplayError, match="a TableView needs a Plan; found Graph"):
        TableView(GRAPH)
    with pytest.raises(DisplayError, match="a ParetoView needs a Pareto; found Plan"):
        ParetoView(PLAN)
    with pytest.raises(DisplayError, match="a GraphView needs a Plan or a Graph; found int"):
        GraphView(3)
    with pytest.raises(DisplayError, match=r"a MemoryMapView needs a MemoryMap; found Plan\. Try measure\(fun"):
        MemoryMapView(PLAN)


# ---- all views ----


VIEWS = {
    "frontier": lambda: FrontierView(PLAN),
    "graph": lambda: GraphView(PLAN),
    "table": lambda: TableView(PLAN),
    "pareto": lambda: ParetoView(pareto(GRAPH, n_points=4)),
    "memory map": lambda: MemoryMapView(memory_map()),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_every_view_has_a_picture_beside_it(make):
    view = make()
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == repr(view)
    assert {"image/png", "image/svg+xml", "text/html"} & set(bundle)
    assert "no picture" not in bundle.get("text/html", "")


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("frontier", [".png", ".svg", ".pdf", ".csv"]),
        ("graph", [".svg", ".dot", *([".pdf", ".png"] if shutil.which("dot") else [])]),
        ("table", [".csv", ".html"]),
        ("pareto", [".png", ".svg", ".pdf", ".csv"]),
        ("memory map", [".png", ".svg", ".pdf", ".csv"]),
    ],
)
def test_views_are_saved_the_same_twice(name, suffixes, tmp_path):
    for suffix in suffixes:
        first, second = (VIEWS[name]().save(tmp_path / f"{i}{suffix}").read_bytes() for i in (1, 2))
        assert first == second
        starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<", ".dot": b"digraph", ".html": b"<!DOCTYPE"}
        assert first.startswith(starts.get(suffix, b""))
    with pytest.raises(DisplayError, match=r"is saved as .*; 'a\.gif' asks for '\.gif'"):
        VIEWS[name]().save(tmp_path / "a.gif")


@pytest.mark.parametrize("make", [FrontierView, GraphView, TableView], ids=lambda kind: kind.__name__)
def test_hostile_texts_are_data(make):
    view = make(plan_blocks(evil_graph(), 1))
    bundle = view._repr_mimebundle_()
    for text in (bundle.get("text/html", ""), bundle.get("image/svg+xml", "")):
        assert "<img" not in text.replace("<img alt=", "")
    if "image/svg+xml" in bundle:
        ET.fromstring(bundle["image/svg+xml"])
    json.dumps([view._strings if hasattr(view, "_strings") else view._boxes if make is GraphView else view._rows])


# ---- the table ----


def test_the_table_shows_what_is_alive_at_the_peak_and_whatever_is_chosen():
    view = TableView(PLAN)
    rows = view._rows["rows"]
    to_come_bytes = AtPeak.of(PLAN).to_come_bytes
    assert sum(row[1] for row in rows) == PLAN.peak_bytes - to_come_bytes
    assert (f"{format_bytes(to_come_bytes)} kept for outputs" in view._rows["caption"]) == (to_come_bytes >= 256)
    assert format_bytes(PLAN.peak_bytes) in view._rows["caption"]
    absent = next(v for v in range(GRAPH.n_inputs, GRAPH.n_values) if v not in {row[0] for row in rows})
    view.value = absent
    assert view._rows["rows"][0][0] == absent
    assert "not alive then" in view._rows["caption"]
    view.value = rows[0][0]
    assert view._rows["rows"] == rows
    assert view.to_pandas().bytes.sum() == PLAN.peak_bytes - to_come_bytes


def test_many_tensors_are_summed_up():
    view = TableView(plan_save_everything(chain(200)))
    assert len(view._rows["rows"]) == 100
    assert re.search(r"201 tensors .* the largest 100 of them, 101 B more in the others", view._rows["caption"])


# ---- the trade-off ----


def test_points_are_plans_and_the_current_plan_is_marked():
    found = pareto(GRAPH, n_points=6)
    view = ParetoView(found, current=found.knee)
    curve = view._curve
    assert [p["peak_bytes"] for p in curve["points"]] == [p.peak_bytes for p in found.plans]
    assert curve["points"][curve["knee"]]["peak_bytes"] == found.knee.peak_bytes
    assert {p["name"] for p in curve["references"]} == set(found.references)
    assert curve["current"]["peak_bytes"] == found.knee.peak_bytes
    assert view.plan is None
    view.value = 1
    assert view.plan is found.plans[1]
    with pytest.raises(traitlets.TraitError, match=f"value is the number of a plan, 0 to {len(found) - 1}; found 99"):
        view.value = 99
    view.show(found.plans[0])
    assert view.value == 0
    view.show(None)
    assert (view.value, view._curve["current"]) == (None, None)


# ---- the graph ----


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


def test_a_saved_table_is_read_back(tmp_path):
    frame = pd.read_csv(TableView(PLAN).save(tmp_path / "a.csv"))
    assert frame.bytes.sum() == PLAN.peak_bytes


# ---- the memory map ----


def sent(view):
    """Return what a page is told of each buffer, read back from the bytes and strings."""
    texts = array(view._texts, "i4", -1, 8)
    names = ("memory", "kind", "shape", "instruction", "op_name", "scope", "source", "loop")
    lives, places = array(view._lives, "i4", -1, 4).tolist(), array(view._places, "f8", -1, 3).tolist()
    return [
        (i, first, last, freed, n_bytes, offset, base, {n: view._strings[t] for n, t in zip(names, row, strict=True)})
        for (i, first, last, freed), (base, n_bytes, offset), row in zip(lives, places, texts, strict=True)
    ]


def test_the_memory_map_sends_every_buffer_of_the_arenas_and_outputs():
    found = memory_map()
    view = MemoryMapView(found)
    rows = sent(view)
    wanted = {i for i, b in enumerate(found.buffers) if b.memory in ("temp", "output")}
    assert {row[0] for row in rows} == wanted != set(range(len(found.buffers)))
    for i, first, last, freed, n_bytes, offset, _, texts in rows:
        b = found.buffers[i]
        assert (first, last, freed, n_bytes, offset) == (b.first_use, b.last_use, b.freed_at, b.bytes, b.offset_bytes)
        assert texts == {name: getattr(b, name) for name in texts}
    assert len(set(view._strings)) == len(view._strings)
    assert array(view._live_bytes, "f8").tolist() == found.live_bytes.tolist()
    schedule = [[view._strings[t] for t in row] for row in array(view._schedule, "i4", -1, 2)]
    assert schedule == [[p.instruction, p.op_name] for p in found.schedule]


def test_buffers_lie_beside_each_other_temporaries_below_outputs():
    found = memory_map()
    view = MemoryMapView(found)
    facts, rows = view._facts, sent(view)
    assert facts["top_bytes"] == found.temp_bytes + found.output_bytes
    for row in rows:
        is_temp, border = row[7]["memory"] == "temp", facts["temp_extent_bytes"]
        low, high = (0, border) if is_temp else (border, facts["top_bytes"])
        assert low <= row[6] <= row[6] + row[4] <= high
    for position in range(len(found.schedule)):  # no byte belongs to two tensors at once
        alive = sorted((row[6], row[6] + row[4]) for row in rows if row[1] <= position < row[3])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(alive))
    peak = facts["peak_position"]
    alive = [r for r in rows if r[1] <= peak < r[3] and r[7]["memory"] == "temp"]
    assert sum(row[4] for row in alive) == facts["peak_live_bytes"] == found.peak_live_bytes


def test_groups_are_kinds_and_scopes():
    found = memory_map()
    view = MemoryMapView(found)
    kinds, scopes = array(view._groups, "u1", -1, 2).T
    names = view._facts["groups"]
    for row, kind, scope in zip(sent(view), kinds, scopes, strict=True):
        assert names["kind"][kind].startswith(row[7]["kind"])
        assert names["scope"][scope] == (row[7]["scope"].split("/")[0] or "no scope")
    assert {"before", "after"} <= set(names["scope"])
    assert {loop["trip_count"] for loop in view._facts["loops"]} >= {9}


def test_a_title_says_whose_map_it_is_and_that_it_is_measured():
    title = MemoryMapView(memory_map())._facts["title"]
    assert title.startswith(f"loss: temporaries {format_bytes(memory_map().temp_bytes)}, at most ")
    assert title.endswith("not shown; measured by XLA")


def test_the_chosen_buffer_and_position_can_be_observed_and_are_checked():
    found = memory_map()
    view, seen = MemoryMapView(found), []
    view.observe(lambda change: seen.append((change["name"], change["new"])), ["value", "position", "color_by"])
    view.value, view.position, view.color_by = 3, len(found.schedule) - 1, "scope"
    view.value = None
    assert seen == [("value", 3), ("position", len(found.schedule) - 1), ("color_by", "scope"), ("value", None)]
    for number in (-1, len(found.buffers)):
        wanted = f"value is the number of a tensor, 0 to {len(found.buffers) - 1}; found {number}"
        with pytest.raises(traitlets.TraitError, match=wanted):
            view.value = number
    with pytest.raises(traitlets.TraitError, match="position is the number of a position, 0 to "):
        view.position = len(found.schedule)
    with pytest.raises(traitlets.TraitError):
        view.color_by = "taste"
    assert (view.value, view.position, view.color_by) == (None, len(found.schedule) - 1, "scope")
    with pytest.raises(DisplayError, match="color_by='taste': expected 'kind' or 'scope'"):
        MemoryMapView(found, color_by="taste")
    assert found.view(color_by="scope").color_by == "scope"


def test_a_map_that_is_missing_says_why_and_one_without_instructions_is_shown():
    with pytest.raises(MeasureError, match="no memory map of loss: it rained"):
        MemoryMapView(dataclasses.replace(memory_map(), missing="it rained"))
    view = MemoryMapView(MemoryMap("nothing", 0, 0, 0))
    assert (view._facts["n_positions"], view._facts["top_bytes"], view._strings, view._lives) == (0, 0, [], b"")
    assert view._repr_mimebundle_()["image/png"]
    with pytest.raises(traitlets.TraitError, match="found 0"):
        view.value = 0
    only = MemoryMapView(measure(lambda x: x, jnp.ones(4)).memory_map)  # an argument handed through
    assert only._facts["peak_live_bytes"] == 0
    assert only._repr_mimebundle_()["image/png"]


def test_hostile_texts_of_a_map_are_data_and_short(tmp_path):
    evil = "$\\bad$ " + EVIL  # mathematics that matplotlib would refuse, too
    names = dict.fromkeys(("shape", "instruction", "op_name", "scope", "source", "loop"), evil)
    found = memory_map()
    view = MemoryMapView(
        dataclasses.replace(
            found,
            name=evil,
            doubts=(evil,),
            buffers=tuple(dataclasses.replace(b, **names) for b in found.buffers),
            schedule=tuple(dataclasses.replace(p, instruction=evil, op_name=evil) for p in found.schedule),
            loops=tuple(dataclasses.replace(loop, name=evil) for loop in found.loops),
        ),
        color_by="scope",
    )
    assert max(map(len, view._strings)) <= 300
    assert max(len(text) for text in [*view._facts["doubts"], *view._facts["groups"]["scope"]]) <= 300
    assert len(json.dumps([view._strings, view._facts])) < 20_000
    bundle = view._repr_mimebundle_()
    assert "no picture" not in bundle.get("text/html", "")
    assert bundle["image/png"]
    text = view.save(tmp_path / "a.svg").read_text()
    ET.fromstring(text)
    assert "<img" not in text
    assert set(pd.read_csv(view.save(tmp_path / "a.csv")).memory) == {b.memory for b in found.buffers}


def test_a_map_of_thousands_of_buffers_stays_small():
    found = memory_map()
    own = [b for b in found.buffers if b.memory == "temp"]
    many = tuple(
        dataclasses.replace(own[i % len(own)], instruction=f"fusion.{i}", offset_bytes=64 * i) for i in range(10_000)
    )
    view = MemoryMapView(dataclasses.replace(found, buffers=many))
    state = view.get_state()
    n_bytes = sum(len(v) for v in state.values() if isinstance(v, bytes)) + len(json.dumps(view._strings))
    assert n_bytes < 100 * len(many)


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
