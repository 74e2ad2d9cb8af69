"""Ordinary programs of kinds that once crashed, through every way of planning, against JAX's own gradients."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from tiny_backprop.errors import FallbackWarning, IllegalPlanError, IrreversibleError, RefError
from tiny_backprop.plan.blocks import plan_blocks
from tiny_backprop.schedule.simulate import Op, simulate

X = jnp.array([0.3, -0.2, 0.5])
WAYS = [
    {},
    *({"block_size": n} for n in (1, 3, 25)),
    {"levels": 2},
    *({"budget": share} for share in (1.0, 0.4)),
]


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert jnp.asarray(x).dtype == jnp.asarray(y).dtype
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-6)


def assert_planned(f, *args, **options):
    """Hold value and gradient against JAX's, in every way of planning; a budget may be too small for the program."""
    wanted = jax.value_and_grad(f, **options)(*args)
    for way in WAYS:
        try:
            found = tb.height_compressed_value_and_grad(f, **way, **options, on_error="raise")(*args)
        except tb.BudgetError:
            continue
        assert_same(found, wanted)


# ---- nothing to run ----


def three_sines(x):
    return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]


EMPTY = {
    "program": lambda x: x[0],
    "program of a constant": lambda x: 3.0,
    "body": lambda x: jnp.sum(lax.scan(lambda c, _: (c, None), jnp.sin(x), None, length=4)[0]),
    "branch in a body": lambda x: jnp.sum(
        lax.scan(lambda s, _: (lax.cond(s[0] < 3, three_sines, lambda s: s, s), None), x, None, length=4)[0]
    ),
    "shift register": lambda x: jnp.sum(lax.scan(lambda c, _: (c, c), jnp.sin(x), None, length=4)[1]),
    "carries that change places": lambda x: jnp.sum(
        lax.scan(lambda c, v: (c[::-1], v), (x, jnp.sin(x)), jnp.broadcast_to(x, (4, 3)))[0][0] ** 2
    ),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_programs_bodies_and_branches_without_equations(kind):
    assert_planned(EMPTY[kind], X)


# ---- gradients that do not depend on their cotangent ----


def saturated(x):
    """Stacked values whose derivative is zero, beside a counter in the carry."""

    def body(carry, v):
        return (carry[0] + 1, carry[1]), jnp.tanh(jnp.round(v).astype(int).astype(float))

    return jnp.sum(lax.scan(body, (0, 1.0), x)[1]) + jnp.sum(jnp.sin(x))


def constant_branch(x):
    return lax.cond(x[0] > 0, lambda a: 3.0, lambda a: three_sines(1.0), x) + jnp.sum(x)


def ignoring(x):
    return lax.scan(lambda c, v: (jnp.sin(c), None), jnp.asarray(1.0), x)[0] + jnp.sum(x)


INDEPENDENT = {
    "map to ones": lambda x: jnp.sum(lax.map(lambda v: jnp.ones(3), jnp.broadcast_to(x, (4, 3)))) + jnp.sum(x),
    "body that ignores its elements": ignoring,
    "branches of constants": constant_branch,
    "rounded elements and a counter": saturated,
}


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_gradients_that_do_not_depend_on_their_cotangent(kind):
    assert_planned(INDEPENDENT[kind], X)


# ---- what layers read and the function returns ----


def layers(ws, x, s):
    """Layers that share a temperature, which is returned as a metric."""
    t = s * 2.0
    for w in ws:
        x = x + jnp.tanh(x @ w) / jnp.exp(t)
    return jnp.mean(x**2), {"t": t, "same": t, "step": 3}


WEIGHTS, BATCH = [jnp.eye(8) * 0.3] * 6, jnp.ones((4, 8))


def test_what_layers_read_and_the_function_returns():
    assert_planned(lambda *args: (layers(*args)[0], layers(*args)[1]["t"]), WEIGHTS, BATCH, 1.0, has_aux=True)


def test_what_layers_read_and_a_loop_around_them_returns():
    def f(w, x):
        def body(c, _):
            t = jnp.sin(c[0, 0])
            for _ in range(3):
                c = jnp.tanh(c @ w) * jnp.exp(t)
            return c, t

        x, ts = lax.scan(body, x, None, length=4)
        return jnp.sum(x**2), ts

    assert_planned(f, WEIGHTS[0], BATCH, has_aux=True)


def test_the_referee_refuses_what_is_returned_and_read_again_but_not_saved():
    graph = tb.capture_gradient(layers, WEIGHTS, BATCH, 1.0, has_aux=True)
    plan = plan_blocks(graph, 3)
    returned = np.isin(plan.targets, graph.outputs) & (plan.ops == Op.SAVE)
    assert returned.any()
    with pytest.raises(IllegalPlanError, match="which the function returns but which was not saved"):
        simulate(plan.graph, plan.ops[~returned], plan.targets[~returned])


def test_an_optimiser_update_that_is_differentiated_returns_its_step_count():
    optax = pytest.importorskip("optax")
    optimiser = optax.adam(1e-2)

    def update(params, state, x):
        gradient = jax.grad(lambda p: jnp.sum(jnp.tanh(p["w"] @ x) ** 2))(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def after_two(x, transform):
        params = {"w": jnp.eye(3) * 0.3}
        state = optimiser.init(params)
        for _ in range(2):
            params, state = transform(update)(params, state, x)
        return jnp.sum(params["w"] ** 2)

    wanted = jax.grad(after_two)(X, lambda f: f)
    for way in ({}, {"block_size": 5}):
        assert_same(jax.grad(after_two)(X, lambda f, way=way: tb.checkpoint(f, **way)), wanted)


# ---- Python numbers beside `checkpoint` ----


@pytest.mark.parametrize("n", [3, True, 2.5, 2j])
def test_python_numbers_beside_checkpoint(n):
    def f(x, n):
        return jnp.sum(jnp.abs(jnp.sin(x) * n))

    assert_same(jax.grad(tb.checkpoint(f, block_size=1))(X, n), jax.grad(f)(X, n))
    assert_same(jax.jit(jax.grad(lambda x: tb.checkpoint(f)(x, n=n)))(X), jax.grad(f)(X, n))


# ---- refs ----


def of_ref(x):
    ref = jax.new_ref(jnp.sin(x))
    return jnp.sum(ref[...] ** 2)


def ref_in_a_body(x):
    def body(c, v):
        ref = jax.new_ref(c)
        ref[...] = ref[...] * v
        return ref[...], None

    return jnp.sum(lax.scan(body, x, X)[0])


@pytest.mark.parametrize("f", [of_ref, ref_in_a_body])
def test_functions_with_refs_fall_back(f):
    wanted = jax.grad(f)(X)
    planned = tb.height_compressed_grad(f)
    with pytest.warns(FallbackWarning, match=r"ref \(jax.new_ref\) at .*test_ordinary_programs.py"):
        assert_same(planned(X), wanted)
    assert planned.last_executor is None
    with pytest.raises(RefError):
        tb.height_compressed_grad(f, on_error="raise")(X)
    with pytest.warns(FallbackWarning, match="jax.checkpoint runs instead"):
        assert_same(jax.grad(tb.checkpoint(f))(X), wanted)


def test_refs_closed_over_and_passed_in_fall_back():
    ref = jax.new_ref(X)
    with pytest.warns(FallbackWarning):
        assert_same(tb.height_compressed_grad(lambda x: jnp.sum(ref[...] * x))(X), X)
    with pytest.warns(FallbackWarning):
        assert_same(tb.height_compressed_grad(lambda x, r: jnp.sum(r[...] * x))(X, ref), X)


# ---- no reverse mode ----


def unsettled(x):
    return lax.while_loop(lambda c: c[0] < 3.0, lambda c: c * 2 + 1, x)


def test_a_loop_without_reverse_mode_runs_forward_under_checkpoint():
    f = tb.checkpoint(unsettled)
    assert_same(f(X), unsettled(X))
    assert_same(jax.jit(f)(X), unsettled(X))
    batch = jnp.stack([X, 2 * X])
    assert_same(jax.vmap(f)(batch), jax.vmap(unsettled)(batch))
    assert_same(jax.jvp(f, (X,), (X,)), jax.jvp(unsettled, (X,), (X,)))
    g = lambda x, h: jnp.sum(jnp.sin(x) * lax.stop_gradient(h(x)))  # noqa: E731
    assert_same(jax.grad(g)(X, f), jax.grad(g)(X, unsettled))


def test_a_loop_without_reverse_mode_says_where_it_stands_when_reversed():
    f = tb.checkpoint(unsettled)
    with pytest.raises(IrreversibleError, match=r"test_ordinary_programs.py:\d+ \(unsettled\)"):
        jax.grad(lambda x: jnp.sum(f(x)))(X)
    with pytest.raises(IrreversibleError):
        f.plan(X)


# ---- verified budgets ----


def test_no_illegal_plan_is_made_at_any_verified_budget():
    """Where the first windows of the backward phase are empty, a sweep over their blocks may be the last."""

    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w) + x
        return jnp.mean(x**2)

    w, x = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((256, 64), jnp.float32)
    n_found = 0
    for n_kib in (480, 352, 320, 288):
        planned = tb.height_compressed_value_and_grad(loss, budget=f"{n_kib}KiB", verify=True, on_error="raise")
        with contextlib.suppress(tb.BudgetError):
            n_found += planned.plan([w] * 3, x).meta["measured_peak_bytes"] <= n_kib * 1024
    assert n_found >= 2
