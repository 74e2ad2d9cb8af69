"""Equations collapsed by block."""

import shutil

import numpy as np
import pytest

from tests.graphs import chain
from tiny_backprop import Graph, plan_blocks
from tiny_backprop_widgets.content.block_groups import group_by_block

SVG = "{http://www.w3.org/2000/svg}"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="no dot: apt-get install graphviz")


def test_backward_groups_mirror_the_blocks_of_a_chain():
    graph = chain(100)
    groups = group_by_block(graph, plan_blocks(graph, 10), 200)
    sizes = np.diff(groups.starts[groups.n_forward :])
    assert groups.n_forward == 10
    assert len(groups.starts) == 20
    np.testing.assert_allclose(sizes, 10, atol=3)


def test_one_early_residual_read_everywhere_does_not_spoil_the_grouping():
    forward = [{"name": f"f{i}", "bytes": 1, "reads": [f"f{i - 1}"] if i else []} for i in range(100)]
    backward = [
        {"name": f"b{i}", "bytes": 1, "reads": [f"f{i}", "f0", *([f"b{i + 1}"] if i < 99 else [])], "is_backward": True}
        for i in reversed(range(100))
    ]
    graph = Graph.from_nodes([*forward, *backward], outputs=["b0"])
    groups = group_by_block(graph, plan_blocks(graph, 10), 200)
    assert len(groups.starts) == 20
    np.testing.assert_allclose(np.diff(groups.starts[10:]), 10, atol=3)
