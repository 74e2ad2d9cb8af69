"""Which buffers share memory, held against placing one temporary after the other."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_backprop import Graph
from tiny_backprop.predict.backends import compiler_of
from tiny_backprop.predict.fusion import fuse
from tiny_backprop.predict.sharing import share
from tiny_backprop.predict.unrolled import unroll

PRIMITIVES = ("sort", "dot_general", "scatter-add", "exp", "reduce_sum", "reshape")


@st.composite
def programs(draw: st.DrawFn) -> Graph:
    """Draw a program of nodes of few sizes, several of them returned."""
    n = draw(st.integers(2, 30))
    nodes = []
    for i in range(n):
        reads = draw(st.lists(st.integers(max(0, i - 5), i - 1), max_size=3, unique=True)) if i else []
        nodes.append(
            dict(
                name=f"f{i}",
                primitive=draw(st.sampled_from(PRIMITIVES)),
                bytes=1024 * draw(st.integers(0, 3)),
                reads=[f"f{j}" for j in reads] or ["x"],
            )
        )
    outputs = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6, unique=True))
    return Graph.from_nodes(nodes, inputs={"x": 1024}, outputs=[f"f{i}" for i in outputs])


def placed_one_by_one(fusion, first, last):
    """Return the temporaries that fit into an output, the largest first, each into the first that is free for it."""
    of = fusion.instructions
    overwrites = {
        (i, o)
        for i, o, same in zip(fusion.readers.tolist(), fusion.sources.tolist(), fusion.is_same_place, strict=True)
        if (same or fusion.is_in_place[i]) and of.n_bytes[i] == of.n_bytes[o] and of.shapes[i] == of.shapes[o]
    }

    def clash(i, j):
        i, j = (i, j) if first[i] <= first[j] else (j, i)
        touches = last[i] == first[j] and first[i] < first[j] and (j, i) in overwrites
        return last[i] >= first[j] and not touches

    outputs = sorted((i for i in fusion.returned if first[i] >= 0), key=lambda i: (of.n_bytes[i], -fusion.returned[i]))
    taken = {k: [] for k in outputs}
    temporaries = [i for i in np.flatnonzero(fusion.has_buffer).tolist() if i not in fusion.returned]
    for i in sorted(temporaries, key=lambda i: -of.n_bytes[i]):
        for k in outputs:
            is_free = last[i] < first[k] or (last[i] == first[k] and (k, i) in overwrites)
            is_large_enough = 1024 <= of.n_bytes[i] <= of.n_bytes[k]
            if is_large_enough and is_free and not any(clash(i, j) for j in taken[k]):
                taken[k].append(i)
                break
    return {i for placed in taken.values() for i in placed}


@settings(max_examples=200, deadline=None)
@given(programs(), st.randoms(use_true_random=False))
def test_outputs_lend_their_memory_as_if_temporaries_were_placed_one_by_one(graph, random):
    compiler = compiler_of("cpu", graph.jax_version)
    program = unroll(compiler.templates(graph), range(graph.n_nodes), graph.n_nodes, is_planned=False)
    fusion = fuse(program, compiler.fusion)
    order = np.full(len(fusion.instructions), -1)
    buffers = np.flatnonzero(fusion.has_buffer)
    order[buffers] = np.arange(len(buffers))
    last = order.copy()
    np.maximum.at(last, fusion.sources, order[fusion.readers])
    for i in buffers.tolist():  # some live longer than they are read
        last[i] = min(len(buffers) - 1, last[i] + random.choice([0, 0, 0, 1, 4]))
    want = placed_one_by_one(fusion, order, last)
    assert set(share(fusion, order, last.copy(), lends=False)) <= {-1, *fusion.returned}
    place = share(fusion, order, last.copy(), lends=True)
    is_output = place == np.arange(len(place))
    is_lent = (place >= 0) & ~is_output
    assert set(np.flatnonzero(is_lent).tolist()) == want
    assert set(np.flatnonzero(is_output).tolist()) == set(fusion.returned)
