"""`checkpoint`: the same values, a planned reverse pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from tests.programs import KEY, PARAMS, X, assert_close, assert_same_bits, net
from tiny_backprop import CaptureError, PlanError


def objective(f):
    return lambda params, x: jnp.mean(f(params, x, KEY) ** 2)


@pytest.mark.parametrize("options", [dict(block_size=7), dict(levels=2), dict(levels=3, block_size=2), {}], ids=str)
def test_values_and_gradients(options):
    f = tb.checkpoint(net, **options)
    assert_close(f(PARAMS, X, KEY), jax.jit(net)(PARAMS, X, KEY))
    want = jax.jit(jax.grad(objective(net), argnums=(0, 1)))(PARAMS, X)
    assert_same_bits(jax.jit(jax.grad(objective(f), argnums=(0, 1)))(PARAMS, X), want)
    assert_close(jax.grad(objective(f), argnums=(0, 1))(PARAMS, X), want)


def test_vector_outputs_pytrees_integers_and_keys():
    def f(tree, ids, key, *, scale):
        x = tree["a"][ids] * scale + jax.random.normal(key, (3, 16))
        return {"y": jnp.sin(jnp.sin(x)), "n": ids + 1, "key": jax.random.fold_in(key, 7), "z": jnp.sum(x)}

    ids = jnp.array([0, 5, 2])
    g = tb.checkpoint(f, block_size=2)
    got, pull = jax.vjp(lambda t, s: g(t, ids, KEY, scale=s), {"a": X}, 2.0)
    want, pull_plain = jax.vjp(lambda t, s: f(t, ids, KEY, scale=s), {"a": X}, 2.0)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.random.key_data(got["key"]).tolist() == jax.random.key_data(want["key"]).tolist()
    assert got["n"].tolist() == [1, 6, 3]
    float0 = jax.dtypes.float0
    ct = {"y": jnp.ones((3, 16)), "n": np.zeros(3, float0), "key": np.zeros((), float0), "z": jnp.float32(2)}
    assert_close(pull(ct), pull_plain(ct))


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_transformations(jit):
    f = tb.checkpoint(net, block_size=7)
    xs = jnp.stack([X, 2 * X])

    def over_batch(f):
        return jit(jax.vmap(jax.grad(objective(f)), in_axes=(None, 0)))(PARAMS, xs)

    def in_scan(f):
        def run(params):
            return jnp.sum(lax.scan(lambda c, k: (f(params, c, k), None), X, jax.random.split(KEY, 3))[0])

        return jit(jax.grad(run))(PARAMS)

    def hessian_vector(f):
        return jit(jax.grad(lambda x: jnp.sum(jax.grad(objective(f), argnums=1)(PARAMS, x) ** 2)))(X)

    def forward_over_reverse(f):
        return jit(lambda x: jax.jvp(jax.grad(lambda y: objective(f)(PARAMS, y)), (x,), (x,)))(X)

    def jacobian(f):
        return jit(jax.jacrev(lambda x: f(PARAMS, x, KEY)[0, :3]))(X)

    for case in (over_batch, in_scan, hessian_vector, forward_over_reverse, jacobian):
        assert_close(case(f), case(net), 512)


def test_closure_over_traced_values_gets_gradients():
    def outer(wrap, w):
        h = jnp.sin(w)
        inner = wrap(lambda y: jnp.sum(jnp.sin(y @ h) @ h.T))
        return inner(X) + inner(2 * X)

    w = PARAMS["w"][0]
    for jit in (lambda f: f, jax.jit):
        got = jit(jax.grad(lambda w: outer(lambda f: tb.checkpoint(f, block_size=2), w)))(w)
        assert_close(got, jit(jax.grad(lambda w: outer(lambda f: f, w)))(w))


def test_closure_over_arrays():
    table = X * 3
    f = tb.checkpoint(lambda y: jnp.sin(y) * table, block_size=1)
    assert_close(jax.grad(lambda y: f(y).sum())(X), jnp.cos(X) * table)


def test_nested_and_decorator():
    @tb.checkpoint(block_size=3)
    def inner(x):
        """Inner."""
        return jnp.sin(jnp.sin(jnp.sin(x)))

    outer = tb.checkpoint(lambda x: inner(inner(x)) * x, block_size=2)
    assert inner.__doc__ == "Inner."

    def plain(x):
        for _ in range(6):
            x = jnp.sin(x)
        return x

    assert_close(jax.grad(lambda x: outer(x).sum())(X), jax.grad(lambda x: (plain(x) * x).sum())(X))


def test_plans_are_shown_given_and_refused():
    f = tb.checkpoint(net, block_size=9)
    plan = f.plan(PARAMS, X, KEY)
    assert plan.meta["block_size"] == 9
    again = tb.checkpoint(net, plan=plan)
    assert again.plan(PARAMS, X, KEY) == plan
    with pytest.raises(PlanError, match="the plan was made for a graph"):
        again(PARAMS, X[:3], KEY)
    with pytest.raises(PlanError, match="levels must be a whole number"):
        tb.checkpoint(net, levels=0)
    with pytest.raises(PlanError, match="must be callable"):
        tb.checkpoint(3)


def test_undifferentiable_functions_are_named():
    with pytest.raises(CaptureError, match="cannot differentiate it in reverse mode"):
        jax.vjp(tb.checkpoint(lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x)), X)[1](X)


def test_residuals_are_what_the_plan_saves():
    """What `jax.vjp` keeps alive is the arguments and the plan's saved values, nothing else."""
    f = tb.checkpoint(lambda w, x: net(w, x, KEY), block_size=9)
    plan = f.plan(PARAMS, X)
    _, pull = jax.vjp(f, PARAMS, X)
    kept = sum(a.nbytes for a in jax.tree.leaves(pull) if hasattr(a, "nbytes"))
    arguments = sum(a.nbytes for a in jax.tree.leaves((PARAMS, X)))
    assert plan.saved_bytes <= kept <= arguments + plan.saved_bytes + 64


def test_methods():
    class Layer:
        def __init__(self, scale):
            self.scale = scale

        @tb.checkpoint(block_size=1)
        def apply(self, x):
            return jnp.sin(jnp.sin(x)) * self.scale

        @tb.jit(static_argnums=0)
        def compiled(self, x):
            return x * self.scale

    layer = Layer(3.0)
    assert_close(jax.grad(lambda x: layer.apply(x).sum())(X), 3 * jnp.cos(jnp.sin(X)) * jnp.cos(X))
    assert float(layer.compiled(2.0)) == 6


def test_effects_in_the_forward_phase_run_once():
    seen = []

    def f(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0], ordered=True)
        return jnp.sin(jnp.sin(x)).sum()

    for jit in (lambda f: f, jax.jit):
        seen.clear()
        jit(jax.grad(tb.checkpoint(f, block_size=1)))(X)
        jax.effects_barrier()
        assert len(seen) == 1


def test_functions_without_differentiable_outputs():
    f = tb.checkpoint(lambda p: jnp.argmax(p, axis=1))
    out, pull = jax.vjp(f, X)
    assert out.tolist() == jnp.argmax(X, axis=1).tolist()
    assert not np.any(pull(np.zeros(8, jax.dtypes.float0))[0])


def test_untraceable_functions_are_named():
    with pytest.raises(CaptureError, match="looks at the values of its arguments"):
        tb.checkpoint(lambda x: x if x[0, 0] > 0 else -x)(X)
