"""Planners and the referee, against a slow independent referee and counts known by hand."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tiny_backprop import (
    Graph,
    IllegalPlanError,
    Op,
    Plan,
    PlanError,
    plan_blocks,
    plan_height_compressed,
    plan_save_everything,
    simulate,
)
from tiny_backprop.liveness import frontier
from tiny_backprop.plan.strategies.tree import block_starts


def play_slowly(graph: Graph, plan: Plan) -> tuple[int, float]:
    """Play a plan action by action with sets; return its peak in bytes and its recompute FLOPs."""
    alive: set[int] = set()
    saved: set[int] = set()
    ran: set[int] = set()
    live = peak = 0
    flops = 0.0
    in_backward = False
    for action in plan.actions:
        if action.op is Op.FREE:
            alive.remove(action.target)
            live -= int(graph.value_bytes[action.target])
        elif action.op is Op.SAVE:
            assert action.target in alive
            saved.add(action.target)
        else:
            node = graph.nodes[action.target]
            if action.op is Op.BACKWARD and not in_backward:
                in_backward = True
                assert alive <= saved | set(graph.outputs.tolist())
            assert (action.op is Op.BACKWARD) == node.is_backward
            assert (action.op is Op.RECOMPUTE) == (node.index in ran)
            assert all(v is None or v.node is None or v.index in alive for v in node.operands)
            assert not (node.index in ran and (node.has_effect or node.is_backward))
            ran.add(node.index)
            flops += node.flops if action.op is Op.RECOMPUTE else 0
            made = {v.index for v in node.outputs}
            assert not made & alive
            alive |= made
            live += node.bytes
            peak = max(peak, live)
    assert {v for v in graph.outputs.tolist() if v >= graph.n_inputs} <= alive
    assert ran >= {n.index for n in graph.nodes if n.is_backward or n.has_effect}
    return peak, flops


@st.composite
def plans(draw, in_order=False):
    graph = draw(training_graphs(in_order=in_order))
    block_size = draw(st.integers(1, graph.n_forward + 1))
    levels = draw(st.one_of(st.none(), st.integers(1, 4)))
    kind = draw(st.sampled_from(["everything", "blocks", "levels"]))
    if kind == "everything":
        return plan_save_everything(graph)
    if kind == "blocks":
        return plan_blocks(graph, block_size)
    return plan_height_compressed(graph, levels, block_size)


@given(plans())
def test_every_plan_is_legal_and_its_price_is_what_a_slow_referee_counts(plan):
    assert play_slowly(plan.graph, plan) == (plan.peak_bytes, plan.recompute_flops)


@given(training_graphs())
def test_save_everything_is_the_programs_own_frontier(graph):
    plan = plan_save_everything(graph)
    assert plan.peak_bytes == frontier(graph).max()
    assert plan.timeline.live_bytes.tolist() == frontier(graph).tolist()
    assert plan.recompute_flops == 0


@given(plans(in_order=True), st.data())
def test_the_referee_refuses_damaged_plans(plan, data):
    """Leaving out one action that matters, or repeating one, is noticed."""
    i = data.draw(st.integers(0, len(plan.ops) - 1))
    keep = np.arange(len(plan.ops)) != i
    op, target = int(plan.ops[i]), int(plan.targets[i])
    if op == Op.FREE:  # without a free the plan stays legal only if the value is never made again and counts more
        with contextlib.suppress(IllegalPlanError):
            assert simulate(plan.graph, plan.ops[keep], plan.targets[keep]).peak_bytes >= plan.peak_bytes
    elif op == Op.SAVE:
        # A save matters unless the value is gone, or returned anyway, when the backward phase begins.
        if target not in plan.graph.outputs:
            with pytest.raises(IllegalPlanError, match="was not saved"):
                simulate(plan.graph, plan.ops[keep], plan.targets[keep])
    elif plan.graph.node(target).outputs:
        with pytest.raises(IllegalPlanError):
            simulate(plan.graph, plan.ops[keep], plan.targets[keep])
    if op != Op.SAVE:
        doubled = np.insert(plan.ops, i, op), np.insert(plan.targets, i, target)
        with pytest.raises(IllegalPlanError):
            simulate(plan.graph, *doubled)


def test_uniform_chain_in_blocks_saves_one_value_per_block():
    plan = plan_blocks(chain(100), 10)
    # Nine boundaries cross; the last block keeps its ten values, one of them the output.
    assert plan.saved_bytes == 9 + 9
    # Nine blocks of ten nodes are recomputed, but not the last node of each, whose value was saved.
    assert plan.recompute_flops == 9 * 9
    # When a block is recomputed, the boundaries before it, its ten values, the output and two cotangents are there.
    assert plan.peak_bytes <= 9 + 10 + 3
    assert plan.meta["block_size"] == 10
    assert plan.meta["peak_frontier"] == plan.peak_bytes


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_levels_take_a_chain_down_to_its_root(levels):
    n = 625
    plan = plan_height_compressed(chain(n), levels=levels)
    assert plan.peak_bytes <= (levels + 1) * n ** (1 / (levels + 1)) * 1.5 + 3
    assert plan.recompute_flops <= levels * n


def test_binary_tree_needs_logarithmic_memory():
    peaks = [plan_height_compressed(chain(n), block_size=1).peak_bytes for n in (64, 256, 1024, 4096)]
    assert max(np.diff(peaks)) <= 8  # each quadrupling adds a constant
    assert peaks[-1] < 40


def test_one_block_saves_everything():
    graph = chain(20)
    whole = plan_blocks(graph, 1000)
    assert whole.recompute_flops == 0
    assert whole.saved_bytes == plan_save_everything(graph).saved_bytes
    assert whole.meta["block_size"] == 1000


def test_default_block_size_is_no_worse_than_the_square_root():
    graph = chain(400)
    assert plan_blocks(graph).peak_bytes <= plan_blocks(graph, 20).peak_bytes
    assert isinstance(plan_blocks(graph).meta["block_size"], int)


def test_cuts_move_to_where_less_crosses():
    # Every fifth value is small: cuts belong behind those.
    nodes = [
        dict(name=f"f{i}", bytes=1 if i % 5 == 4 else 50, reads=[f"f{i - 1}"] if i else [], flops=1) for i in range(40)
    ]
    nodes += [
        dict(name=f"b{i}", bytes=1, reads=[f"f{i}"] + ([f"b{i + 1}"] if i < 39 else []), is_backward=True)
        for i in reversed(range(40))
    ]
    graph = Graph.from_nodes(nodes, outputs=["b0"])
    starts = block_starts(graph, 8)
    assert all(s % 5 == 0 for s in starts)
    assert np.all(np.abs(starts - 8 * np.arange(len(starts))) <= 2)


def test_values_read_out_of_order_are_saved_not_chased():
    """A residual of the first block that the backward phase reads at once must not open that block early."""
    nodes = [dict(name=f"f{i}", bytes=10, reads=[f"f{i - 1}"] if i else [], flops=1) for i in range(30)]
    nodes[0]["bytes"] = 1
    for i in reversed(range(30)):
        reads = [f"f{i}"] + (["f3"] if i == 29 else []) + ([f"b{i + 1}"] if i < 29 else [])
        nodes.append(dict(name=f"b{i}", bytes=1, reads=reads, is_backward=True))
    graph = Graph.from_nodes(nodes, outputs=["b0"])
    plan = plan_blocks(graph, 6)
    assert graph.n_inputs + 3 in plan.saved.tolist()
    assert plan.peak_bytes < 150


@pytest.mark.parametrize("bad", [0, -3, 2.5, "8", True, None])
def test_bad_levels_and_block_sizes_are_named(bad):
    graph = chain(5)
    if bad is not None:
        with pytest.raises(PlanError, match="block_size must be a whole number of at least 1; found"):
            plan_blocks(graph, bad)
        with pytest.raises(PlanError, match="levels must be a whole number of at least 1; found"):
            plan_height_compressed(graph, levels=bad)
    else:
        with pytest.raises(PlanError, match="needs levels or block_size"):
            plan_height_compressed(graph)


def test_numpy_integers_are_whole_numbers():
    assert plan_blocks(chain(9), np.int64(3)) == plan_blocks(chain(9), 3)


def test_a_forward_graph_cannot_be_planned():
    graph = Graph.from_nodes([dict(name="a", bytes=1)], outputs=["a"])
    with pytest.raises(PlanError, match=r"needs the backward phase.*capture_gradient"):
        plan_blocks(graph, 2)


def test_json_round_trip_and_refusals():
    graph = chain(12)
    plan = plan_height_compressed(graph, levels=2, block_size=2)
    again = Plan.from_json(plan.to_json(), graph)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.meta == plan.meta
    assert plan != plan_blocks(graph, 2)
    with pytest.raises(PlanError, match=r"the plan was made for a graph with fingerprint .* this graph"):
        Plan.from_json(plan.to_json(), chain(13))
    data = json.loads(plan.to_json())
    with pytest.raises(PlanError, match="version 7 of its format"):
        Plan.from_json(json.dumps({**data, "version": 7}), graph)
    with pytest.raises(PlanError, match=r"expected the JSON text of a tiny_backprop\.plan"):
        Plan.from_json(graph.to_json(), graph)
    data["targets"][3] = 10**6
    with pytest.raises(IllegalPlanError, match="not in the graph"):
        Plan.from_json(json.dumps(data), graph)


def test_referee_names_the_action():
    graph = chain(3)
    ops = np.array([Op.RUN, Op.RUN])
    with pytest.raises(IllegalPlanError, match=r"action 1 \(run node 2, f2\) reads value 2, which is not alive"):
        simulate(graph, ops, np.array([0, 2]))
    with pytest.raises(IllegalPlanError, match=r"action 1 \(run node 0, f0\) runs a node that ran before"):
        simulate(graph, ops, np.array([0, 0]))


def test_schedule_refuses_an_order_that_reads_too_early():
    with pytest.raises(IllegalPlanError, match="not alive"):
        Plan.from_steps(chain(3), np.array([1, 0, 2, 3, 4, 5]), {})


def test_displays():
    plan = plan_blocks(chain(30, n_bytes=1024), 5)
    assert repr(plan).startswith("Plan(strategy='blocks', block_size=5, levels=1: predicted peak")
    text = plan._repr_html_()
    assert "<svg" in text
    assert "predicted" in text
    table = plan.to_pandas()
    assert table.live_bytes.max() == plan.peak_bytes
    assert set(table.action) == {"run", "recompute", "backward"}
    assert repr(plan.actions[0]) == "run node 0"
    assert len(plan.actions[:4]) == 4


def test_referee_wants_returned_values_before_the_backward_phase():
    graph = Graph.from_nodes(
        [
            dict(name="a", bytes=1),
            dict(name="out", bytes=1),
            dict(name="da", bytes=1, reads=["a"], is_backward=True),
        ],
        outputs=["out", "da"],
    )
    late = np.array([Op.RUN, Op.SAVE, Op.BACKWARD, Op.RUN]), np.array([0, 0, 2, 1])
    with pytest.raises(IllegalPlanError, match="the backward phase begins without value 1, which the function returns"):
        simulate(graph, *late)


def test_absurd_levels_are_no_more_than_a_binary_tree():
    graph = chain(14)
    plan = plan_height_compressed(graph, levels=10**6, block_size=1)
    assert plan.meta["levels"] == 10**6
    assert plan.peak_bytes == plan_height_compressed(graph, levels=4, block_size=1).peak_bytes


@given(plans())
def test_nothing_is_recomputed_before_the_backward_phase(plan):
    before = plan.timeline.ops[: plan.timeline.n_forward_steps]
    assert not np.any(before == Op.RECOMPUTE)


@pytest.mark.parametrize(
    ("field", "value"), [("ops", "x"), ("ops", [10**30]), ("targets", None), ("meta", None), ("ops", [1, 2])]
)
def test_damaged_plans_are_refused(field, value):
    graph = chain(4)
    data = {**json.loads(plan_blocks(graph, 2).to_json()), field: value}
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(data), graph)


@pytest.mark.parametrize("what", ["x", None, lambda x: x])
def test_what_is_no_graph_is_named(what):
    with pytest.raises(PlanError, match=r"graph of plan_blocks must be a Graph; found .* Capture one"):
        plan_blocks(what, 2)
