"""The JAXPR as a graph of boxes, held against Graphviz's own reading of the DOT text."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tiny_backprop import Graph, PlanError, capture_gradient, plan_blocks, plan_height_compressed, plan_save_everything
from tiny_backprop_widgets import DisplayError, jaxpr_dag
from tiny_backprop_widgets.plots import dot

SVG = "{http://www.w3.org/2000/svg}"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="no dot: apt-get install graphviz")


def read(drawing):
    """Return the boxes and edges that `dot` reads in the DOT text, as lists of attributes."""
    done = subprocess.run(["dot", "-Tjson"], input=drawing.source.encode(), capture_output=True, check=True)
    data = json.loads(done.stdout)
    return data.get("objects", []), data.get("edges", [])


def svg_boxes(svg):
    return [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "node"]


@needs_dot
@pytest.mark.parametrize("max_boxes", [3, 10, 60, 200])
@pytest.mark.parametrize("block_size", [None, 1, 7, 40, 200])
def test_never_more_than_max_boxes(block_size, max_boxes):
    graph = chain(200)
    plan = block_size and plan_blocks(graph, block_size)
    drawing = jaxpr_dag(graph, plan, max_boxes)
    boxes = svg_boxes(drawing.to_svg())
    assert 1 < len(boxes) == drawing.n_boxes <= max_boxes


@settings(max_examples=30)
@given(training_graphs(), st.integers(3, 12), st.integers(0, 5), st.integers(1, 3))
def test_any_graph_and_plan_fit_in_any_number_of_boxes(graph, max_boxes, block_size, levels):
    plan = plan_height_compressed(graph, levels, block_size) if block_size else None
    assert jaxpr_dag(graph, plan, max_boxes).n_boxes <= max_boxes


def test_the_caption_says_what_was_collapsed():
    graph = chain(300)
    assert jaxpr_dag(graph, plan_blocks(graph, 30)).caption.startswith(
        "20 groups of 600 equations; blue boxes: forward;"
    )
    caption = jaxpr_dag(graph, plan_blocks(graph, 1)).caption
    assert caption.startswith("120 groups of 600 equations, 5 blocks of the plan in each forward group; ")
    assert "4 groups of 4 equations, one each" in jaxpr_dag(chain(2)).caption


@needs_dot
def test_kinds_differ_in_colour_and_shape():
    boxes, _ = read(jaxpr_dag(chain(64), plan_blocks(chain(64), 8)))
    looks = {(b["shape"], b["style"], b["color"], b["fillcolor"]) for b in boxes}
    assert {(shape, style) for shape, style, *_ in looks} == {
        ("box", "filled"),
        ("box", "filled,rounded"),
        ("cylinder", "filled"),
    }
    assert len({color for *_, color, _ in looks}) == len({fill for *_, fill in looks}) == 3


@needs_dot
def test_boxes_and_edges_count_values_and_bytes():
    """Two forward blocks of two nodes; the value at the cut is saved, and so are those of the last block."""
    graph = chain(4, n_bytes=1024)
    plan = plan_blocks(graph, 2)
    boxes, edges = read(jaxpr_dag(graph, plan, 12))
    names = {b["_gvid"]: b["name"] for b in boxes}
    labels = {(names[e["tail"]], names[e["head"]]): e["label"] for e in edges}
    saved = {b["name"]: b["label"] for b in boxes if b["name"].startswith("s")}
    assert sum(int(text.split("saved: ")[1].split()[0]) for text in saved.values()) == len(plan.saved)
    assert labels["g0", "g1"] == "1 KiB"
    assert labels["g0", "s0"] == "1 KiB"


@needs_dot
def test_backward_edges_are_turned_so_that_the_phase_climbs():
    boxes, edges = read(jaxpr_dag(chain(64), plan_blocks(chain(64), 8)))
    names = {b["_gvid"]: b["name"] for b in boxes}
    backward = {b["name"] for b in boxes if b["style"] == "filled,rounded"}
    inside = [e for e in edges if {names[e["tail"]], names[e["head"]]} <= backward]
    assert len(inside) == len(backward) - 1
    assert all(e["dir"] == "back" for e in inside)
    height = {b["name"]: float(b["pos"].split(",")[1]) for b in boxes}
    order = sorted(backward, key=lambda name: int(name[1:]))
    assert [height[name] for name in order] == sorted(height[name] for name in order)


HOSTILE = [
    'quote " and \\ backslash \\n \\l',
    "<b>bold</b>",
    "<>",
    "line\nbreak\ttab",
    "& &amp; &lt;",
    "ünïcödé 模型 🙂",
    "x" * 10_000,
    "nul\x00 and \x1b",
    "half \ud800",
    "a -> b; }",
]


@needs_dot
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_literally(name):
    nodes = [
        {"name": "h", "bytes": 1, "primitive": name, "scope": name, "source": name},
        {
            "name": "d",
            "bytes": 1,
            "reads": ["h"],
            "primitive": name,
            "scope": name,
            "source": name,
            "is_backward": True,
        },
    ]
    graph = Graph.from_nodes(nodes, outputs=["d"], name=name)
    svg = jaxpr_dag(graph, plan_blocks(graph, 1)).to_svg()
    boxes = svg_boxes(svg)
    assert len(boxes) == 3
    shown = next(t.text or "" for t in boxes[0].iter(f"{SVG}text"))
    wanted = " ".join("".join(c if ord(c) >= 32 else " " for c in name).split()).replace("\ud800", "?")
    if len(wanted) > 60:
        assert shown.endswith("…")
        assert wanted.startswith(shown[:-1])
    else:
        assert " ".join(shown.split()) == wanted


@needs_dot
def test_a_real_gradient_one_box_per_equation():
    graph = capture_gradient(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum(), jnp.ones((4, 4)), jnp.ones((2, 4)))
    boxes, _ = read(jaxpr_dag(graph))
    primitives = [b["label"].split("\\n")[0] for b in boxes]
    assert sorted(primitives) == sorted(graph.primitives)


@needs_dot
def test_save_writes_each_format_twice_alike(tmp_path):
    drawing = jaxpr_dag(chain(8), plan_save_everything(chain(8)))
    magic = {"svg": b"<?xml", "pdf": b"%PDF-", "png": b"\x89PNG", "dot": b"digraph"}
    for suffix, start in magic.items():
        first = drawing.save(tmp_path / f"a.{suffix}").read_bytes()
        assert first.startswith(start)
        if suffix == "pdf":
            assert b"/CreationDate (D:20000101000000" in first
        assert drawing.save(tmp_path / f"b.{suffix}").read_bytes() == first
    ET.fromstring(drawing._repr_mimebundle_()["text/html"])


def test_without_dot_a_notebook_gets_an_explanation(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = Graph.from_nodes([{"name": "<script>", "bytes": 1}], name="<script>")
    drawing = jaxpr_dag(graph)
    shown = drawing._repr_mimebundle_()["text/html"]
    assert "apt-get install graphviz" in shown
    assert "conda install -c conda-forge graphviz" in shown
    assert "digraph" in shown
    assert "<script>" not in shown
    assert drawing.save(tmp_path / "a.dot").read_text() == drawing.source
    with pytest.raises(DisplayError, match="apt-get install graphviz"):
        drawing.save(tmp_path / "a.svg")


def test_a_failing_or_slow_dot_is_explained(monkeypatch, tmp_path):
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho 'cannot cope' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert "dot failed: cannot cope" in jaxpr_dag(chain(2))._repr_html_()
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(dot, "_TIMEOUT_SECONDS", 0.2)
    assert "dot took more than 0.2 s" in jaxpr_dag(chain(2))._repr_html_()


def test_bad_requests_say_what_would_work(tmp_path):
    graph = chain(4)
    with pytest.raises(DisplayError, match=r"saved as \.svg, \.pdf, \.png or \.dot; 'a\.gif' asks for '\.gif'"):
        jaxpr_dag(graph).save(tmp_path / "a.gif")
    with pytest.raises(PlanError, match="the plan was made for a graph with fingerprint"):
        jaxpr_dag(graph, plan_blocks(chain(5), 2))
    for n in (2, 0, 2.5):
        with pytest.raises(PlanError, match=f"max_boxes must be a whole number of at least [13]; found {n}"):
            jaxpr_dag(graph, max_boxes=n)
