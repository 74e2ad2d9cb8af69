"""Every public object can be pickled and copied, also after it was used."""

import copy
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import pytest

import tiny_backprop as tb

WAYS = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: pickle.loads(cloudpickle.dumps(x)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def loss(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    x = jax.lax.scan(lambda c, _: (jnp.sin(c @ ws[0]), None), x, None, length=8)[0]
    return jnp.sum(x**2)


@tb.checkpoint
def decorated(x):
    return jnp.sin(x)


ARGS = ([jnp.ones((16, 16)) / 16] * 4, jnp.ones((64, 16)))


@pytest.fixture(scope="module")
def graph():
    graph = tb.capture_gradient(loss, *ARGS)
    tb.plan_budget(graph, 0.6)
    return graph


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def test_graphs_plans_and_reports_planned_by_budget(graph, way):
    plan = tb.plan_budget(graph, 0.6)
    pareto = tb.pareto(graph, n_points=3)
    assert way(graph).to_json() == graph.to_json()
    assert tb.plan_budget(way(graph), 0.6) == plan
    assert way(plan) == plan
    assert hash(way(plan)) == hash(plan)
    assert not way(plan).ops.flags.writeable
    assert way(plan).certificate == plan.certificate
    assert way(pareto).knee == pareto.knee
    assert repr(way(tb.analyze_graph(graph))) == repr(tb.analyze_graph(graph))
    measurement = tb.measure(loss, *ARGS)
    for made in (plan.materialized, plan.timeline, plan.nested, tb.loop_reports(graph), graph.nodes, plan.actions):
        assert len(repr(way(made))) > 0
    assert way(measurement) == measurement
    assert way(measurement.memory_map).name == measurement.memory_map.name
    assert repr(way(tb.explain(plan, measurement))) == repr(tb.explain(plan, measurement))


def test_errors(graph, way):
    with pytest.raises(tb.BudgetError) as raised:
        tb.plan_budget(graph, 10)
    error = way(raised.value)
    assert (str(error), vars(error)) == (str(raised.value), vars(raised.value))
    for name in ("CaptureError", "GraphError", "IllegalPlanError", "MeasureError", "PlanError", "UntraceableError"):
        assert str(way(getattr(tb, name)("what was found"))) == "what was found"


def test_functions_that_ran(way):
    gradient = tb.height_compressed_value_and_grad(loss, budget=0.7)
    want = gradient(*ARGS)
    for fun in (gradient, tb.jit(gradient), jax.value_and_grad(tb.checkpoint(loss, levels=2))):
        fun(*ARGS)
    for fun in (gradient, tb.jit(gradient)):
        fun(*ARGS)
        assert jnp.allclose(way(fun)(*ARGS)[0], want[0])
    assert way(gradient).last_executor.checkpoint_plan == gradient.last_executor.checkpoint_plan
    assert jnp.allclose(way(tb.checkpoint(loss, levels=2))(*ARGS), want[0])
    assert way(decorated)(0.0) == 0.0


def test_what_is_pickled_by_name_is_the_same():
    assert pickle.loads(pickle.dumps(decorated)) is decorated


def test_symbolic_graphs(way):
    (batch,) = jax.export.symbolic_shape("b", constraints=["b >= 8"])
    symbolic = tb.capture_symbolic_gradient(loss, ARGS[0], jax.ShapeDtypeStruct((batch, 16), jnp.float32))
    again = way(symbolic)
    assert again.constraints == symbolic.constraints
    assert again.at(b=64).fingerprint == symbolic.at(b=64).fingerprint
