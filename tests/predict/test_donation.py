"""Donated arguments: what XLA makes of them, what is predicted, and that a planned gradient may write over its own."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop as tb
from tests.programs import assert_close
from tiny_backprop import CaptureError, Graph, GraphError
from tiny_backprop.plan.baseline import predict_jax_gradient

SQUARE = jax.ShapeDtypeStruct((256, 256), "float32")
TALL = jax.ShapeDtypeStruct((2048, 256), "float32")
STACK = jax.ShapeDtypeStruct((12, 256, 256), "float32")


def chain(weights, x):
    """Return a scalar of an MLP: but for the first weight, two kernels read it that need not wait for each other."""
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


def scanned(weights, x):
    """Return the same of a loop, which reads the weights where it writes their gradients."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    return jnp.sum(x**2)


def in_place(weights, x):
    """Return a scalar whose gradients read their own weight in the same place, after all else that reads it."""
    return sum(jnp.sum(w * w * x) ** 2 for w in weights)


def once(weights, x):
    """Return a scalar whose gradient depends on all that reads the weight."""
    return jnp.sum((x @ weights[0]) ** 2)


CASES = {
    "chain": (chain, ([SQUARE] * 6, TALL), 5),
    "scan": (scanned, (STACK, SQUARE), 1),
    "in the same place": (in_place, ([SQUARE] * 3, SQUARE), 0),
    "read once": (once, ([SQUARE], TALL), 0),
}


def measured(gradient, args, donate_argnums):
    return tb.measure(jax.jit(gradient, donate_argnums=donate_argnums), *args)


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_copied_where_xla_copies_them(name):
    fun, args, n_copies = CASES[name]
    predicted = predict_jax_gradient(tb.capture_gradient(fun, *args, donate_argnums=0))
    buffers = predicted.to_pandas()
    assert sum((buffers.made_by == "copy") & (buffers.scope == "")) == n_copies
    m = measured(jax.value_and_grad(fun), args, 0)
    assert m.alias_bytes == sum(4 * a.size for a in jax.tree.leaves(args[0]))
    assert predicted.peak_bytes == pytest.approx(m.peak_bytes, rel=0.025, abs=256)
    text = jax.jit(jax.value_and_grad(fun), donate_argnums=0).lower(*args).compile().as_text()
    copies = re.findall(r"copy\(%weights", text[text.index("ENTRY") :])
    assert len(copies) == (n_copies if name != "scan" else 0)  # there XLA copies inside of an output


@pytest.mark.parametrize("name", CASES)
def test_plans_take_what_xla_allocates(name):
    fun, args, _ = CASES[name]
    graph = tb.capture_gradient(fun, *args, donate_argnums=0)
    top = predict_jax_gradient(graph).peak_bytes
    plans = [tb.plan_height_compressed(graph, levels=2)]
    if name in ("chain", "scan"):
        plans += [tb.plan_budget(graph, int({"chain": 0.8, "scan": 0.7}[name] * top)), tb.plan_blocks(graph, 7)]
    for plan in plans:
        m = measured(tb.height_compressed_value_and_grad(fun, plan=plan), args, 0)
        gap = 0.045 if name == "scan" else 0.02  # XLA leaves room for one state between the buffers of the loop
        assert plan.peak_bytes == pytest.approx(m.peak_bytes, rel=gap, abs=256)


def test_without_donation_nothing_is_copied_and_outputs_count():
    args = ([SQUARE] * 6, TALL)
    graph = tb.capture_gradient(chain, *args)
    assert graph.donated == ()
    assert graph.new_output_bytes == graph.output_bytes
    donated = tb.capture_gradient(chain, *args, donate_argnums=(0,))
    assert [donated.input_names[i] for i in donated.donated] == [f"args[0][{i}]" for i in range(6)]
    assert donated.new_output_bytes == 4
    plan = tb.plan_height_compressed(graph, levels=2)
    assert plan.peak_bytes == pytest.approx(measured(jax.value_and_grad(chain), args, ()).peak_bytes, rel=0.3)
    assert plan.on(donated).peak_bytes < plan.peak_bytes  # a plan fits the program however it is given its arguments
    assert plan.on(donated).materialized.peak_bytes == tb.plan_height_compressed(donated, levels=2).peak_bytes


def test_outputs_get_the_first_input_of_their_kind_that_is_left_as_jax_has_it():
    def fun(w, state, unused):
        return jnp.sum(w["a"] @ w["b"]), (jnp.tanh(state), jnp.float32(2), w["b"])

    def gradient(w, state, unused):
        return jax.value_and_grad(fun, has_aux=True)(w, state, unused)

    args = ({"a": SQUARE, "b": SQUARE}, SQUARE, SQUARE)
    graph = tb.capture_gradient(fun, *args, has_aux=True, donate_argnums=(2, 0, 1))
    lowered = jax.jit(gradient, donate_argnums=(0, 1, 2)).lower(*args).as_text()
    signature = lowered[lowered.index("@main") :].splitlines()[0].split("->")[0]
    n = len([name for name in graph.input_names if name.startswith("constant")])
    wanted = {
        int(arg.split("tf.aliasing_output = ")[1].split(" ")[0]): n + i
        for i, arg in enumerate(signature.split("%arg")[1:])
        if "tf.aliasing_output" in arg
    }
    assert graph.taken_over == wanted
    assert len(wanted) == 3


def test_a_gradient_may_write_over_its_arguments():
    weights = [jnp.full((16, 16), 0.1 * i) for i in range(3)]
    x = jnp.linspace(-1, 1, 64).reshape(4, 16)
    want = jax.value_and_grad(chain)(weights, x)
    for ways in ({}, {"budget": "1MiB", "verify": True}):
        mine = [w.copy() for w in weights]
        gradient = tb.height_compressed_value_and_grad(chain, **ways, donate_argnums=0)
        assert_close(gradient(mine, x), want)
        assert all(w.is_deleted() for w in mine)
        assert not x.is_deleted()
        assert len(gradient.last_executor.graph.donated) == 3
    mine = [w.copy() for w in weights]
    assert_close(jax.jit(gradient, donate_argnums=0)(mine, x), want)
    assert all(w.is_deleted() for w in mine)
    gradient = tb.height_compressed_grad(chain, argnums=1, donate_argnums=-1)  # another order of arguments
    mine = x.copy()
    assert_close(gradient(weights, mine), jax.grad(chain, 1)(weights, x))
    assert mine.is_deleted()
    assert not weights[0].is_deleted()


def test_budgets_count_on_donation():
    args = ([jax.ShapeDtypeStruct((1024, 1024), "float32")] * 4, jax.ShapeDtypeStruct((8, 1024), "float32"))
    with pytest.raises(tb.BudgetError):
        tb.height_compressed_grad(chain, budget="12MiB").plan(*args)  # the gradients alone take 16
    plan = tb.height_compressed_grad(chain, budget="14MiB", donate_argnums=0).plan(*args)
    m = measured(tb.height_compressed_value_and_grad(chain, plan=plan), args, 0)
    assert m.peak_bytes <= 14 * 2**20


def test_compare_donates_in_every_row():
    args = ([SQUARE] * 3, TALL)
    table = tb.compare(chain, *args, donate_argnums=0, stock_policies=["nothing_saveable"])
    assert (table.measured_peak_bytes - table.measured_temp_bytes < 100).all()
    planned = table.dropna()
    np.testing.assert_allclose(planned.predicted_peak_bytes, planned.measured_peak_bytes, rtol=0.1)


def test_saved_graphs_keep_what_is_donated():
    graph = tb.capture_gradient(once, [SQUARE], TALL, donate_argnums=0)
    assert Graph.from_json(graph.to_json()).donated == graph.donated
    with pytest.raises(GraphError, match=r"donated must be numbers of inputs below \d, rising; found \(3, 99\)"):
        dataclasses.replace(graph, donated=(3, 99))


@pytest.mark.parametrize(
    ("donate_argnums", "message"),
    [
        (2, r"donate_argnums=2 was asked for; once was given 2 positional arguments"),
        ("w", r"donate_argnums must be an integer or a tuple of them; found 'w'"),
        ((0, -2), r"donate_argnums=\(0, -2\) must name no argument twice"),
    ],
)
def test_wrong_arguments_are_named(donate_argnums, message):
    for ask in (
        lambda: tb.capture_gradient(once, [SQUARE], TALL, donate_argnums=donate_argnums),
        lambda: tb.height_compressed_grad(once, donate_argnums=donate_argnums).plan([SQUARE], TALL),
        lambda: tb.compare(once, [SQUARE], TALL, donate_argnums=donate_argnums),
    ):
        with pytest.raises(CaptureError, match=message):
            ask()


def test_the_explorer_and_symbolic_graphs_donate():
    ui = tb.explore(chain, [SQUARE] * 3, TALL, donate_argnums=0)
    assert ui.verify().alias_bytes == 3 * 4 * SQUARE.size
    assert ui.plan.peak_bytes == pytest.approx(ui.measurement.peak_bytes, rel=0.02)
    assert "height_compressed_value_and_grad(chain, plan=plan, donate_argnums=0)" in ui.code()
    assert not ui.errors
    (rows,) = jax.export.symbolic_shape("rows")
    symbolic = tb.capture_symbolic_gradient(
        chain, [SQUARE] * 3, jax.ShapeDtypeStruct((rows, 256), "float32"), donate_argnums=0
    )
    want = tb.capture_gradient(chain, [SQUARE] * 3, TALL, donate_argnums=0)
    assert symbolic.at(rows=2048).to_data() == want.to_data()
