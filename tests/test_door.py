"""Every public door refuses what it cannot take in the package's own errors: what was asked, found, and would work."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop as tb

NODES = [dict(name="h", bytes=8, flops=1), dict(name="dh", bytes=8, reads=["h"], is_backward=True)]
GRAPH = tb.Graph.from_nodes(NODES, outputs=["dh"])
PLAN = tb.plan_save_everything(GRAPH)
X = jnp.ones(3)


def loss(x):
    return jnp.sum(x)


NO_GRAPH = [None, 3, "x", {}, loss]
NO_NUMBER = ["x", float("nan"), float("inf"), 10**30, -1, np.ones(3)]
NO_TEXT = [[], {}, None, np.ones(2)]
REFUSED = [
    (tb.GraphError, [tb.analyze_graph, tb.summarize_frontier, tb.loop_reports], NO_GRAPH),
    (tb.PlanError, [PLAN.on, lambda x: tb.Plan.from_json(PLAN.to_json(), x), tb.pareto, tb.plan_blocks], NO_GRAPH),
    (tb.IllegalPlanError, [lambda x: tb.simulate(x, [], [])], NO_GRAPH),
    (tb.IllegalPlanError, [lambda x: tb.simulate(GRAPH, x, [0])], [["a"], [0.5], None, 3]),
    (tb.PlanError, [lambda b: tb.plan_exact(GRAPH, b), lambda b: tb.certify(PLAN, b)], NO_NUMBER),
    (tb.PlanError, [lambda b: tb.plan_budget(GRAPH, b)], ["1e999", *NO_NUMBER]),
    (tb.PlanError, [lambda n: tb.pareto(GRAPH, n_points=n)], NO_NUMBER),
    (tb.PlanError, [lambda s: tb.plan_budget(GRAPH, 1.0, search_seconds=s)], [10**400, float("nan"), "x", -1.0]),
    (tb.PlanError, [lambda c: tb.plan_budget(GRAPH, 1.0, cost=c), tb.CostModel.preset], [np.ones(3), [], {"a": 1}]),
    (tb.PlanError, [tb.certify], [None]),
    (tb.PlanError, [lambda o: tb.height_compressed_grad(loss, on_error=o)], [np.ones(3), X, [], None, 3]),
    (tb.PlanError, [lambda p: tb.plan_policy(GRAPH, p)], NO_TEXT),
    (tb.CaptureError, [tb.capture_gradient, tb.capture_graph_jaxpr], [None, 3, "x"]),
    (tb.PlanError, [tb.compare], [None, 3, "x"]),
    (tb.PlanError, [lambda x: tb.compare(loss, X, plans=x)], [3, "x", [3]]),
    (tb.PlanError, [lambda x: tb.compare(loss, X, stock_policies=x)], [3, [[1]]]),
    (tb.MeasureError, [tb.measure], [loss]),
    (tb.CaptureError, [tb.capture_graph_jaxpr], [loss]),
    (
        tb.GraphError,
        [tb.Graph.from_nodes],
        [
            3,
            [3],
            ["ab"],
            *([dict(name="a", bytes=b)] for b in (float("nan"), 2**63, -1, "x", None)),
            [dict(name=[], bytes=8)],
            [dict(name="a", bytes=8, flops="x")],
            [dict(name="a", bytes=8, reads=[[]])],
            [dict(name=n, bytes=2**62) for n in "abc"],
        ],
    ),
    (tb.GraphError, [tb.Graph.from_json], [None, 3, "", "[" * 100_000]),
]


@pytest.mark.parametrize(("error", "doors", "values"), REFUSED)
def test_wrong_arguments(error, doors, values):
    for door in doors:
        for value in values:
            with pytest.raises(error) as e:
                door(value)
            assert len(str(e.value)) > 20


def test_the_request_the_finding_and_the_cure_are_told():
    message = r"graph of summarize_frontier must be a Graph; found 3\. Capture one: capture_gradient\(fun, \*args\)"
    with pytest.raises(tb.GraphError, match=message):
        tb.summarize_frontier(3)
    with pytest.raises(tb.MeasureError, match=r"loss\(x\) was given 0 positional arguments: missing .*'x'"):
        tb.measure(loss)


@pytest.mark.parametrize("name", ["primitives", "value_dtypes", "input_names", "value_shapes", "operands", "flops"])
@pytest.mark.parametrize("bad", [None, {}, [[1]], "x", 2**70, [None] * 2, ["x", 3]])
def test_damaged_graphs_are_refused_when_read(name, bad):
    data = {**json.loads(GRAPH.to_json()), name: bad}
    with pytest.raises(tb.GraphError):
        tb.Graph.from_json(json.dumps(data))
