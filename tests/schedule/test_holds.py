"""What the planned backward phase holds, held against a player that goes through the segments one by one."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_backprop as tb
from tests.graphs import training_graphs
from tests.programs import KEY, PARAMS, loss
from tiny_backprop.graph import LITERAL
from tiny_backprop.schedule.holds import EXPANDED, find_holds, held_when_made
from tiny_backprop.schedule.runs import Runs

CONTRACTIONS = ("dot_general", "conv_general_dilated")


class Player:
    """The rules as `holds` tells them in words, value by value."""

    def __init__(self, graph, saved):
        self.graph, self.ran, self.held = graph, set(), []
        self.reads = [
            [v for v in graph.operands[i:j].tolist() if v != LITERAL]
            for i, j in itertools.pairwise(graph.operand_start.tolist())
        ]
        self.varies = [not n.startswith(("constant ", "cotangent ")) for n in graph.input_names]
        self.varies += [False] * (graph.n_values - graph.n_inputs)
        for node, reads in enumerate(self.reads):
            for v in self.outs(node):
                self.varies[v] = any(self.varies[u] for u in reads)
        self.at_border = [*range(graph.n_inputs), *saved]

    def outs(self, node):
        return range(*self.graph.output_start[node : node + 2].tolist())

    def play(self, steps, n_forward_steps):
        """Return, for each segment that holds, its first step, what it holds, its tokens, and small constants."""
        graph, segments, seen = self.graph, [[]], set()
        self.ran.update(steps[:n_forward_steps])
        backward = steps[n_forward_steps:]
        for i, node in enumerate(backward):
            if i and node < graph.n_forward and (backward[i - 1] >= graph.n_forward or node in seen):
                segments.append([])
                seen.clear()
            seen.add(node)
            segments[-1].append(node)
        start, found = n_forward_steps + len(segments[0]), []
        self.ran.update(segments[0])
        for before, segment in itertools.pairwise(segments):
            tokens = self.tokens(segment, before) if segment[0] < graph.n_forward else []
            if tokens:
                constants = [start + i for i, n in enumerate(segment) if n in self.ran and self.is_small_root(n)]
                found.append((start, self.values(segment), tokens, constants))
            self.ran.update(segment)
            start += len(segment)
        return found

    def is_small_root(self, node):
        return not self.reads[node] and self.graph.node_bytes[node] <= 64

    def values(self, segment):
        border, made, constant, apart = self.graph.output_start[self.graph.n_forward], set(), set(), {}
        for node in segment:
            reads = self.reads[node]
            new = (v for v in reads if self.graph.n_inputs <= v < border and v not in made | constant)
            apart.update((v, None) for v in new)
            if node < self.graph.n_forward:
                shared = [v for v in reads if v not in constant]
                if shared and not any(v in made or v in apart for v in shared):
                    apart[min(shared, key=lambda v: self.graph.value_bytes[v])] = None
                is_constant = not shared and not self.is_small_root(node)
                (constant if is_constant else made).update(self.outs(node))
        return list(apart)

    def tokens(self, segment, before):
        made = [v for node in before for v in self.outs(node)]
        read = {v for node in segment for v in self.reads[node]}
        border = self.graph.output_start[self.graph.n_forward]
        tokens = [v for v in made if v in read and v >= border] or made[-1:]
        if not any(self.varies[v] for v in tokens):
            tokens += [v for v in self.at_border if self.varies[v]][-1:]
        return tokens


def held(plan):
    """Return what `find_holds` says, in the form of `Player.play`."""
    timeline = plan.timeline
    holds = find_holds(Runs(plan.graph, timeline.steps), timeline.n_forward_steps, [], plan.saved.tolist())
    return [
        (
            start,
            holds.values[holds.steps == start].tolist(),
            holds.tokens[holds.token_steps == start].tolist(),
            holds.constant_steps[holds.constant_starts == start].tolist(),
        )
        for start in np.unique(holds.token_steps).tolist()
    ]


def played(plan):
    player = Player(plan.graph, plan.saved.tolist())
    return player.play(plan.timeline.steps.tolist(), plan.timeline.n_forward_steps)


@settings(max_examples=100)
@given(training_graphs(), st.integers(1, 4), st.integers(0, 15), st.data())
def test_what_is_held_of_any_graph(graph, block_size, n_constant, data):
    """Some nodes read nothing, as those of keys, index arrays and masks do; some of these make much."""
    cut = data.draw(st.sets(st.integers(0, graph.n_forward - 1), max_size=n_constant))
    is_cut = np.isin(graph.operand_node, sorted(cut)) & (graph.operands < graph.n_inputs)
    graph = dataclasses.replace(
        graph,
        operands=np.where(is_cut, LITERAL, graph.operands),
        value_bytes=graph.value_bytes * 16,
        input_names=data.draw(st.sampled_from([("x",), ("constant 0",)])),
    )
    plan = tb.plan_blocks(graph, min(block_size, graph.n_forward))
    assert held(plan) == played(plan)


@pytest.mark.parametrize("how", [{"block_size": 3}, {"block_size": 20}, {"levels": 2}])
def test_what_is_held_of_a_gradient(how):
    graph = tb.capture_gradient(loss, PARAMS, jnp.ones((512, 16)), KEY)
    plan = tb.plan_height_compressed(graph, **how)
    assert any(values for _, values, _, _ in played(plan))
    assert held(plan) == played(plan)


def test_what_is_held_when_it_is_made():
    """What the backward phase makes for a contraction and something else, and what is expanded and read twice."""

    def of(x):
        y = jax.lax.erf_inv(x)
        return jnp.sum(jnp.sin(jnp.sin(y) * y @ x))

    graph = tb.capture_gradient(of, jnp.ones((64, 64)))
    node, value = graph.reads
    for v in np.flatnonzero(held_when_made(graph)).tolist():
        maker, readers = graph.value_node[v], node[value == v]
        assert len(readers) > 1
        is_contracted = any(graph.primitives[r] in CONTRACTIONS for r in readers)
        assert graph.primitives[maker] in EXPANDED or (graph.is_backward[maker] and is_contracted)
    assert {graph.primitives[i] in EXPANDED for i in graph.value_node[held_when_made(graph)]} == {True, False}
