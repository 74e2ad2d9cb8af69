"""plan_budget: never above its budget, never cheaper than possible, and on known graphs as cheap as possible."""

import concurrent.futures
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_schedules import EndReverse, Forward, Revolve
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import chain, training_graphs
from tests.oracle import Oracle
from tiny_backprop import (
    BudgetError,
    CostModel,
    Graph,
    PlanError,
    capture_gradient,
    plan_blocks,
    plan_budget,
    plan_save_everything,
)
from tiny_backprop.plan.search.planner import Planner
from tiny_backprop.plan.strategies.budget import budget_range_bytes, count_budgets_ahead, sweep_of

SEARCHES = (0.0, 0.05)


def budgets(graph: Graph) -> st.SearchStrategy[int]:
    return st.integers(0, plan_save_everything(graph).peak_bytes + 1)


@settings(max_examples=150)
@given(training_graphs(max_forward=6), st.data())
def test_no_plan_exceeds_its_budget_or_beats_brute_force(graph, data):
    """The brute force keeps an order of the backward phase: here the one that the planner has found better."""
    oracle, budget = Oracle(Planner.of(graph, "flops").graph), data.draw(budgets(graph))
    best = oracle.cheapest(budget)
    for seconds in SEARCHES:
        try:
            plan = plan_budget(graph, budget, cost="flops", search_seconds=seconds)
        except BudgetError as e:
            error = e
        else:
            error = None
        if error is not None:
            assert error.budget_bytes == budget < error.smallest_peak_bytes
            assert error.bound_bytes <= oracle.smallest_peak() <= error.smallest_peak_bytes
            continue
        assert plan.peak_bytes <= budget
        assert best is not None
        assert plan.recompute_flops >= best.recompute_flops


@settings(max_examples=60)
@given(training_graphs(max_forward=25, in_order=True), st.data())
def test_a_zoo_of_graphs_and_budgets(graph, data):
    """The referee plays every plan; here: all say what they were made for, and a second call gives the same plan."""
    everything = plan_save_everything(graph)
    least = Planner.of(graph, "seconds").smallest.peak_bytes
    for budget in {least, data.draw(st.integers(least, max(least, everything.peak_bytes))), everything.peak_bytes}:
        plan = plan_budget(graph, budget)
        assert plan.peak_bytes <= budget == plan.meta["budget"] == plan.meta["budget_bytes"]
        assert plan_budget(graph, budget) == plan
    assert plan_budget(graph, everything.peak_bytes).recompute_flops == 0


def test_few_tiny_budgets_that_can_be_met_are_refused_and_most_plans_are_optimal():
    """Over 300 graphs drawn with a fixed seed and three budgets each."""
    rng = np.random.default_rng(0)
    met = refused = optimal = 0
    for _ in range(300):
        graph = random_graph(rng)
        oracle = Oracle(Planner.of(graph, "flops").graph)
        low, high = oracle.smallest_peak(), plan_save_everything(graph).peak_bytes
        for budget in {low, (low + high) // 2, high - 1}:
            best = oracle.cheapest(budget)
            if best is None:
                continue
            try:
                plan = plan_budget(graph, budget, cost="flops")
            except BudgetError:
                refused += 1
                continue
            met += 1
            optimal += plan.recompute_flops <= best.recompute_flops + 1e-9
    assert refused <= 0.03 * met
    assert optimal >= 0.98 * met


def random_graph(rng: np.random.Generator) -> Graph:
    n, nodes = int(rng.integers(3, 7)), []
    for i in range(n):
        reads = {f"f{j}" for j in rng.integers(max(0, i - 3), i, 2)} if i else set()
        nodes.append(
            dict(name=f"f{i}", bytes=int(rng.integers(1, 10)), flops=int(rng.integers(0, 10)), reads=[*reads, "x"])
        )
    for i in reversed(range(n)):
        reads = [f"f{max(0, i - 1)}", f"f{i}"] + ([f"b{i + 1}"] if i < n - 1 else [])
        nodes.append(dict(name=f"b{i}", bytes=int(rng.integers(1, 6)), flops=1, reads=reads, is_backward=True))
    return Graph.from_nodes(nodes, inputs={"x": 1}, outputs=["b0"])


def reversal(n: int) -> Graph:
    """Return the reversal of n steps: adjoint i reads state i; states 1 to n - 1 are made from state 0, an input."""
    states = [dict(name=f"x{i + 1}", bytes=1, flops=1, reads=[f"x{i}"]) for i in range(n - 1)]
    adjoints = [dict(name=f"b{n}", bytes=1, is_backward=True)]
    adjoints += [
        dict(name=f"b{i}", bytes=1, reads=[f"x{i}", f"b{i + 1}"], is_backward=True) for i in reversed(range(n))
    ]
    return Graph.from_nodes([*states, *adjoints], inputs={"x0": 1}, outputs=["b0"])


def revolve_steps(n: int, s: int) -> int:
    """Return how many forward steps the schedules of `checkpoint_schedules` take, without the one with each adjoint."""
    steps = 0
    for action in Revolve(n, s):
        if isinstance(action, Forward):
            steps += min(action.n1, n) - action.n0
        if isinstance(action, EndReverse):
            return steps - n
    raise AssertionError("the schedule does not end")


SIZES = [(n, s) for n in (5, 12, 33, 64) for s in (1, 2, 3, 5, 8, 13, 20)] + [(110, 3), (200, 2), (200, 7), (200, 20)]


@pytest.mark.parametrize(("n", "s"), SIZES)
def test_chains_come_out_as_the_binomial_optimum(n, s):
    """Griewank & Walther 2000: s snapshots, the initial state (an input here) among them.

    At adjoint i, the state i, two adjoints and s - 1 other snapshots are alive: s + 2 bytes.
    """
    plan = plan_budget(reversal(n), s + 2, cost="flops")
    assert plan.peak_bytes <= s + 2
    repetitions = next(r for r in itertools.count() if math.comb(s + r, s) >= n)
    binomial = repetitions * n - math.comb(s + repetitions, repetitions - 1) if repetitions else 0
    assert n - 1 + plan.recompute_flops == binomial == revolve_steps(n, s)


@pytest.mark.parametrize("n", [40, 90])
def test_more_memory_never_costs_more_on_a_chain(n):
    graph = chain(n)
    costs = [plan_budget(graph, b, cost="flops").recompute_flops for b in range(6, n + 4)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 0


@pytest.mark.parametrize("size", [3, 10, 30])
def test_on_a_chain_it_is_optimal_at_the_peaks_of_equal_blocks(size):
    blocks = plan_blocks(chain(100), size)
    plan = plan_budget(blocks.graph, blocks.peak_bytes, cost="flops")
    assert plan.recompute_flops <= blocks.recompute_flops
    assert plan.certificate.is_optimal


def skipping(depth: int, width: int = 8) -> Graph:
    """Return a U-Net's graph: down with halving sizes, up again, each level reading its twin's value too."""
    nodes, names = [], []
    for i in range(depth):
        nodes.append(dict(name=f"d{i}", bytes=width << (depth - i), flops=3 + i, reads=[names[-1]] if names else ["x"]))
        names.append(f"d{i}")
    for i in reversed(range(depth)):
        nodes.append(dict(name=f"u{i}", bytes=width << (depth - i), flops=3 + i, reads=[names[-1], f"d{i}"]))
        names.append(f"u{i}")
    reads = {n["name"]: n["reads"] for n in nodes}
    for i in range(len(names) - 1, -1, -1):
        before = [f"g{names[i + 1]}"] if i < len(names) - 1 else []
        size = next(n["bytes"] for n in nodes if n["name"] == names[i])
        wanted = [r for r in reads[names[i]] if r != "x"]
        nodes.append(dict(name=f"g{names[i]}", bytes=size, flops=6, reads=[*wanted, *before], is_backward=True))
    return Graph.from_nodes(nodes, inputs={"x": 1}, outputs=[nodes[-1]["name"]])


@pytest.mark.parametrize("fraction", [0.9, 0.8, 0.7])
def test_skip_connections_are_planned_near_the_optimum_without_a_search_and_to_it_with_one(fraction):
    graph = skipping(5)
    quick = plan_budget(graph, fraction, cost="flops")
    searched = plan_budget(graph, fraction, cost="flops", search_seconds=5)
    certificate = searched.certificate
    assert certificate.gap_percent < 1
    assert quick.flops <= 1.03 * searched.flops


def test_a_value_may_be_recomputed_within_the_forward_phase():
    """The peak of this graph lies in its forward phase, and only dropping `big` before it and making it again helps."""
    nodes = [
        dict(name="big", bytes=10, flops=1, reads=["x"]),
        dict(name="small", bytes=1, flops=1, reads=["big"]),
        dict(name="wide", bytes=10, flops=1, reads=["small"]),
        dict(name="narrow", bytes=1, flops=1, reads=["wide"]),
        dict(name="join", bytes=1, flops=1, reads=["narrow", "big"]),
        dict(name="grad", bytes=1, flops=1, reads=["join"], is_backward=True),
    ]
    graph = Graph.from_nodes(nodes, inputs={"x": 1}, outputs=["grad"])
    assert plan_save_everything(graph).peak_bytes == 21
    plan = plan_budget(graph, 12, cost="flops")
    assert plan.recompute_flops == 1
    assert plan.peak_bytes <= 12


def test_a_better_order_costs_nothing():
    """Each of these branches is wide inside and narrow at its end; the program makes all wide parts first."""
    wide = [dict(name=f"w{i}", bytes=10, flops=1, reads=["x"]) for i in range(6)]
    ends = [dict(name=f"e{i}", bytes=1, flops=1, reads=[f"w{i}"]) for i in range(6)]
    loss = dict(name="loss", bytes=1, flops=1, reads=[f"e{i}" for i in range(6)])
    back = dict(name="grad", bytes=1, flops=1, reads=["loss"], is_backward=True)
    graph = Graph.from_nodes([*wide, *ends, loss, back], inputs={"x": 1}, outputs=["loss", "grad"])
    assert plan_save_everything(graph).peak_bytes == 61
    plan = plan_budget(graph, 20, cost="flops")
    assert plan.peak_bytes <= 20
    assert plan.recompute_flops == 0


ALL = plan_save_everything(chain(100)).peak_bytes
HALF = ALL // 2


@pytest.mark.parametrize(
    ("budget", "n_bytes"),
    [(30, 30), ("30", 30), ("1KiB", 1024), ("0.5 kB", 500), (0.5, HALF), (1.0, ALL), (np.int64(40), 40)],
)
def test_budgets_are_bytes_words_or_fractions(budget, n_bytes):
    graph = chain(100)
    plan = plan_budget(graph, budget)
    assert plan.meta["budget_bytes"] == n_bytes
    assert plan.meta["budget"] == budget
    assert plan.peak_bytes <= n_bytes
    assert plan == type(plan).from_json(plan.to_json(), graph)


@pytest.mark.parametrize("budget", [True, None, -1, 0.0, 1.5, float("nan"), "much", "3 parsecs", [4]])
def test_what_is_no_budget_is_named(budget):
    with pytest.raises(PlanError, match="a budget is bytes"):
        plan_budget(chain(5), budget)


@pytest.mark.parametrize("seconds", [-1, "long", True, float("nan")])
def test_what_is_no_time_is_named(seconds):
    with pytest.raises(PlanError, match="search_seconds of plan_budget must be a number"):
        plan_budget(chain(5), 5, search_seconds=seconds)


@pytest.mark.parametrize("cost", ["time", 3, None, {"flops": 1}])
def test_what_is_no_cost_is_named(cost):
    with pytest.raises(PlanError, match=r"cost (of \w+ )?must be 'seconds', 'flops', a preset .* or a CostModel"):
        plan_budget(chain(5), 5, cost=cost)


def test_an_impossible_budget_names_what_can_be_reached_and_what_forbids_less():
    with pytest.raises(BudgetError) as e:
        plan_budget(chain(30, n_bytes=1024), "2KiB")
    assert e.value.budget_bytes == 2048
    assert e.value.bound_bytes == 3 * 1024  # two adjoints and a state
    assert e.value.smallest_peak_bytes == 4 * 1024  # and what the function returns
    for text in ("within 2 KiB (2048 bytes)", "is impossible", "the smallest peak that the planner can reach", "4 KiB"):
        assert text in str(e.value)
    plan = plan_budget(chain(30, n_bytes=1024), e.value.smallest_peak_bytes)
    assert plan.peak_bytes == e.value.smallest_peak_bytes


def test_a_forward_graph_has_no_budget():
    graph = Graph.from_nodes([dict(name="f", bytes=1)], outputs=["f"])
    with pytest.raises(PlanError, match="needs the backward phase"):
        plan_budget(graph, 1)


def test_the_cost_model_decides_what_is_recomputed():
    """One of two values must go: `slow` has many FLOPs, `heavy` moves many bytes."""
    nodes = [
        dict(name="slow", bytes=10, flops=1e9, bytes_moved=1, reads=["x"]),
        dict(name="heavy", bytes=10, flops=1e8, bytes_moved=1e9, reads=["x"]),
        dict(name="sums", bytes=1, reads=["slow", "heavy"]),
        dict(name="wide", bytes=10, reads=["sums"]),
        dict(name="end", bytes=1, reads=["wide"]),
        dict(name="grad", bytes=1, reads=["end", "slow", "heavy"], is_backward=True),
    ]
    graph = Graph.from_nodes(nodes, inputs={"x": 1}, outputs=["grad"])
    assert plan_budget(graph, 22, cost="flops").recompute_flops == 1e8
    assert plan_budget(graph, 22).recompute_flops == 1e9
    fast_memory = CostModel(flops_per_second=1e11, bytes_per_second=1e13)
    assert plan_budget(graph, 22, cost=fast_memory).recompute_flops == 1e8
    assert plan_budget(graph, 22, cost=fast_memory).meta["cost"]["bytes_per_second"] == 1e13


def test_identical_layers_share_their_menus():
    def loss(ws, x):
        for w in ws:
            x = x + jnp.tanh(x @ w) @ w.T
        return jnp.sum(x**2)

    ws = [jax.ShapeDtypeStruct((32, 64), "float32")] * 48
    graph = capture_gradient(loss, ws, jax.ShapeDtypeStruct((128, 32), "float32"))
    plan_budget(graph, 0.3)
    (point,) = sweep_of(graph, "seconds").planner.points
    segments, menus = max(Planner.of(point, "seconds")._menus.values(), key=lambda pair: pair[0].n_blocks)
    assert segments.n_blocks >= 40
    assert len({id(menu) for menu in menus}) <= 8


def captured():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return x.sum()

    ws = [jax.ShapeDtypeStruct((64, 64), "float32")] * 12
    return capture_gradient(loss, ws, jax.ShapeDtypeStruct((512, 64), "float32"))


def test_what_is_counted_ahead_is_what_budgets_ask_for_and_changes_no_plan():
    graph, alike = captured(), captured()
    n_steps = sum(1 for _ in count_budgets_ahead(graph))
    sweep = sweep_of(graph, "seconds")
    n_counted = len(sweep.counted)
    assert n_counted > 27  # the plans in blocks, and trials of memory limits
    assert n_steps >= n_counted - 1  # one at a time; the program as it is comes with the first
    least, most = budget_range_bytes(graph)
    assert (least, most) == budget_range_bytes(alike)
    for budget in np.geomspace(least, most, 60).astype(int).tolist():
        assert plan_budget(graph, budget) == plan_budget(alike, budget)
    assert len(sweep.counted) == n_counted


def test_a_graph_made_by_hand_is_not_planned_ahead():
    graph = chain(20)
    assert list(count_budgets_ahead(graph)) == []
    assert graph.memo == {}


def test_threads_that_plan_one_graph_at_once_get_the_plans_of_one():
    graph, alike = captured(), captured()
    wanted = [plan_budget(alike, b) for b in (0.45, 0.6, 0.8)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        ahead = threads.submit(list, count_budgets_ahead(graph))
        found = list(threads.map(lambda b: plan_budget(graph, b), (0.45, 0.6, 0.8) * 4))
        ahead.result()
    assert found == wanted * 4
    assert [p.peak_bytes for p in found] == [p.peak_bytes for p in wanted] * 4
