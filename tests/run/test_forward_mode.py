"""`checkpoint` in forward mode, alone and together with reverse mode, against the same function without it."""

import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from tests.programs import KEY, assert_close
from tiny_backprop import CaptureError

W = 0.5 * jax.random.normal(jax.random.key(1), (4, 4))
X = jax.random.normal(jax.random.key(2), (3, 4))
XS = jnp.stack([X, 2 * X])
WS = jnp.stack([W, W.T, -W, 2 * W])
FLOAT0 = jax.dtypes.float0

planned = functools.partial(tb.checkpoint, block_size=2)


def net(w, x):
    for _ in range(4):
        x = jnp.sin(jnp.tanh(x @ w))
    return x


def check(case, n_ulps=256):
    """Assert that a case, compiled, gives the same of a planned function as of the function itself."""
    assert_close(jax.jit(lambda: case(planned))(), jax.jit(lambda: case(lambda f: f))(), n_ulps)


def loss(f):
    return lambda w: jnp.sum(f(w, X) ** 2)


def along(f, *xs):
    return jax.jvp(f, xs, xs)


FIRST = {
    "jvp": lambda c: along(c(net), W, X),
    "jvp by one argument": lambda c: along(lambda x: c(net)(W, x), X),
    "linearize": lambda c: jax.linearize(c(net), W, X)[1](W.T, X),
    "jacfwd": lambda c: jax.jacfwd(c(net), argnums=(0, 1))(W, X),
    "jacrev": lambda c: jax.jacrev(c(net), argnums=(0, 1))(W, X),
    "vmap of linearize": lambda c: jax.vmap(jax.linearize(lambda x: c(net)(W, x), X)[1])(XS),
    "vmap of jvp": lambda c: jax.vmap(lambda x: along(c(net), W, x))(XS),
    "jvp of vmap": lambda c: along(jax.vmap(c(net), in_axes=(None, 1), out_axes=1), W, jnp.moveaxis(XS, 0, 1)),
    "jvp of vmap of vmap": lambda c: along(
        jax.vmap(jax.vmap(c(net), in_axes=(0, None)), in_axes=(None, 0), out_axes=2), WS, XS
    ),
    "transpose of linearize": lambda c: jax.linear_transpose(jax.linearize(c(net), W, X)[1], W, X)(X),
    "vjp of linearize": lambda c: jax.vjp(jax.linearize(c(net), W, X)[1], W, X)[1](X),
    "jvp of linearize": lambda c: along(jax.linearize(c(net), W, X)[1], W, X),
    "jvp of jit": lambda c: along(jax.jit(c(net)), W, X),
    "within jax.checkpoint": lambda c: along(jax.checkpoint(lambda w, x: c(net)(w, x) * 2), W, X),
    "around jax.checkpoint": lambda c: along(c(lambda w, x: jax.checkpoint(net)(w, x) * 2), W, X),
    "nested": lambda c: along(c(lambda w, x: c(net)(w, c(jnp.sin)(x) * x)), W, X),
    "closure": lambda c: along(lambda w: c(lambda x: net(jnp.sin(w), x) @ w)(X), W),
    "complex": lambda c: along(c(lambda z: jnp.abs(jnp.sin(jnp.exp(z) * z))), X + 1j * X[::-1]),
}

SECOND = {
    "hessian": lambda c: jax.hessian(loss(c(net)))(W),
    "forward over reverse": lambda c: along(jax.grad(loss(c(net))), W),
    "reverse over forward": lambda c: jax.jacrev(jax.jacfwd(loss(c(net))))(W),
    "forward over forward": lambda c: jax.jacfwd(jax.jacfwd(loss(c(net))))(W),
    "grad of jvp": lambda c: jax.grad(lambda w: jnp.sum(along(lambda x: c(net)(w, x), X)[1] ** 2))(W),
    "hessian of vmap": lambda c: jax.hessian(lambda w: jnp.sum(jax.vmap(lambda x: c(net)(w, x))(XS)))(W),
    "grad of jvp of vmap": lambda c: jax.grad(
        lambda w: jnp.sum(along(lambda xs: jax.vmap(c(net), in_axes=(None, 0))(w, xs), XS)[1])
    )(W),
    "nested": lambda c: jax.hessian(lambda w: jnp.sum(c(lambda x: c(net)(w, x) ** 2)(X)))(W),
}


@pytest.mark.parametrize("name", FIRST)
def test_first_derivatives(name):
    check(FIRST[name])


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name):
    check(SECOND[name], 4096)


@pytest.mark.parametrize("name", ["jvp", "linearize", "vmap of linearize", "jacfwd", "jvp of vmap"])
def test_without_jit(name):
    assert_close(FIRST[name](planned), FIRST[name](lambda f: f), 256)


def test_16_bits():
    w, x = W.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
    assert_close(jax.jit(lambda: along(planned(net), w, x))(), jax.jit(lambda: along(net, w, x))(), 4)


def scanned(f):
    return lambda x: lax.scan(lambda c, w: (f(w, c), jnp.sum(c)), x, WS)


LOOPS = {
    "body of scan": lambda c: scanned(c(net)),
    "around scan": lambda c: c(scanned(net)),
    "body of fori_loop": lambda c: lambda x: lax.fori_loop(0, 3, lambda i, x: c(net)(WS[i], x), x),
    "body of while_loop": lambda c: (
        lambda x: lax.while_loop(lambda s: s[1] < 3, lambda s: (c(net)(W, s[0]), s[1] + 1), (x, 0))[0]
    ),
    "around while_loop": lambda c: c(
        lambda x: lax.while_loop(lambda s: s[1] < 3, lambda s: (net(W, s[0]), s[1] + 1), (x, 0))[0]
    ),
    "branch of cond": lambda c: lambda x: lax.cond(x[0, 0] > 0, c(net), lambda w, x: x, W, x),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_branches(name):
    f = LOOPS[name]
    check(lambda c: (along(f(c), X), along(f(c), -X), jax.jacfwd(f(c))(X), jax.linearize(f(c), X)[1](X)))


def test_loops_in_second_derivatives():
    def value(f):
        return lambda x: jnp.sum(f(x)[0] ** 2)

    for name in ("body of scan", "around scan"):
        f = LOOPS[name]
        check(lambda c, f=f: jax.hessian(value(f(c)))(X), 4096)
        check(lambda c, f=f: jax.grad(lambda x: along(value(f(c)), x)[1])(X), 4096)


def test_integers_keys_scalars_and_pytrees():
    def f(tree, ids, key, *, scale, n=3):
        x = tree["a"][ids] * scale + jax.random.normal(key, (3, 4))
        return {"y": jnp.sin(jnp.sin(x)) * n, "n": ids + 1, "key": jax.random.fold_in(key, 7), "z": (jnp.sum(x), None)}

    ids = jnp.array([0, 2, 1])

    def case(c):
        out, tangents = jax.jvp(lambda t, i, s: c(f)(t, i, KEY, scale=s), ({"a": X}, ids, 2.0), ({"a": X}, zeros, 1.0))
        assert tangents["n"].dtype == tangents["key"].dtype == FLOAT0
        assert tangents["n"].shape == (3,)
        return jax.random.key_data(out["key"]), out["y"], out["n"], tangents["y"], tangents["z"]

    zeros = np.zeros(3, FLOAT0)
    assert_close(case(planned), case(lambda f: f))
    check(lambda c: jax.jacfwd(lambda s: c(f)({"a": X}, ids, KEY, scale=s)["z"])(2.0))

    def over_batch(c):
        out, tangents = jax.jvp(
            jax.vmap(lambda x, i: c(f)({"a": x}, i, KEY, scale=2.0)),
            (XS, jnp.stack([ids, ids])),
            (XS, np.zeros((2, 3), FLOAT0)),
        )
        return out["y"], out["n"], tangents["y"], tangents["z"]

    assert_close(over_batch(planned), over_batch(lambda f: f))


def test_functions_with_rules_of_their_own():
    @jax.custom_jvp
    def five_times(x):
        return jnp.sin(x)

    five_times.defjvps(lambda t, out, x: 5 * t * out)
    check(lambda c: along(c(lambda w, x: five_times(net(w, five_times(x)))), W, X))
    check(lambda c: jax.hessian(lambda w: jnp.sum(c(lambda w: five_times(net(w, X)))(w)))(W), 4096)

    @jax.custom_vjp
    def reverse_only(x):
        return jnp.sin(x)

    reverse_only.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (3 * ct * jnp.cos(x),))
    f = planned(lambda w, x: jnp.sum(reverse_only(net(w, reverse_only(x)))))
    with pytest.raises(TypeError, match="forward-mode"):  # as without checkpoint
        along(f, W, X)
    check(lambda c: jax.grad(lambda w: jnp.sum(jax.vmap(lambda x: c(f)(w, x))(XS)))(W))


def test_tangents_that_depend_on_more_than_the_value():
    """Of a gradient scale, the value is the same for the whole batch, and the tangents are not."""

    @jax.custom_jvp
    def scaled(x, scale):
        return x

    scaled.defjvp(lambda xs, ts: (xs[0], ts[0] * xs[1]))
    scales = jnp.arange(3.0)

    def over_batch(c):
        return jax.vmap(c(lambda x, s: jnp.sin(scaled(jnp.sin(x), s))), in_axes=(None, 0))

    check(lambda c: jax.grad(lambda x: jnp.sum(over_batch(c)(x, scales) ** 2))(X))
    check(lambda c: along(lambda x: over_batch(c)(x, scales), X))


def test_outputs_that_a_batch_shares():
    def both(c):
        f = jax.vmap(c(lambda w, x: (net(w, x), jnp.sin(w) * 2)), in_axes=(None, 0), out_axes=(0, None))

        def value(w):
            ys, shared = f(w, XS)
            return jnp.sum(ys**2) + jnp.sum(shared**3)

        return f, value

    check(lambda c: along(both(c)[0], W, XS))
    check(lambda c: jax.grad(both(c)[1])(W))
    check(lambda c: jax.grad(lambda w: jnp.sum(both(c)[0](w, XS)[1]))(W))
    check(lambda c: jax.hessian(both(c)[1])(W), 4096)


def test_names_of_mapped_axes():
    def case(c):
        f = c(lambda w, x: net(w, x) - lax.pmean(net(w, x), "i") * lax.axis_index("i"))
        over = jax.vmap(f, in_axes=(None, 0), axis_name="i")
        one = jax.vmap(lambda x: along(lambda x: f(W, x), x), axis_name="i")
        return along(over, W, XS), jax.jacfwd(over)(W, XS), one(XS), jax.grad(lambda w: jnp.sum(over(w, XS) ** 2))(W)

    check(case)


def test_effects_run_once():
    seen = []

    def f(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0], ordered=True)
        return jnp.sin(jnp.sin(x))

    for jit in (lambda f: f, jax.jit):
        seen.clear()
        jit(lambda x: along(planned(f), x))(X)
        jax.effects_barrier()
        assert len(seen) == 1


def test_what_may_run_only_once_is_refused_by_its_line():
    def scale(x):
        return jax.experimental.io_callback(lambda: np.float32(2), jax.ShapeDtypeStruct((), jnp.float32)) * jnp.sin(x)

    f = planned(scale)
    with pytest.raises(CaptureError, match=r"io_callback at .*test_forward_mode\.py.* may run only once"):
        along(f, X)
    assert_close(jax.grad(lambda x: jnp.sum(f(x)))(X), 2 * jnp.cos(X))


def test_forward_mode_keeps_no_residuals():
    """Of what a plan saves, forward mode reads nothing, and compiled it makes nothing."""

    def chain(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return x

    ws, x = [jnp.eye(16)] * 16, jnp.ones((64, 16))
    temporaries = [
        jax.jit(lambda ws, x, c=c: jax.jvp(c(chain), (ws, x), (ws, x))).lower(ws, x).compile().memory_analysis()
        for c in (planned, lambda f: f)
    ]
    assert temporaries[0].temp_size_in_bytes <= temporaries[1].temp_size_in_bytes


def test_linearize_keeps_what_reverse_mode_keeps():
    f = planned(net)
    _, push = jax.linearize(f, W, X)
    kept = {id(a): a.nbytes for a in jax.tree.leaves(push) if hasattr(a, "nbytes")}
    assert sum(kept.values()) <= W.nbytes + X.nbytes + f.plan(W, X).saved_bytes + 64


def test_a_planned_derivative_is_inlined_where_it_is_captured():
    graph = tb.capture_graph_jaxpr(lambda x: along(planned(jnp.sin), x), example_inputs=(X,))
    assert [node.primitive for node in graph.nodes] == ["sin", "cos", "mul"]
    f = tb.height_compressed_grad(lambda w: jnp.sum(along(lambda x: planned(net)(w, x), X)[1] ** 2), block_size=3)
    assert_close(f(W), jax.grad(lambda w: jnp.sum(along(lambda x: net(w, x), X)[1] ** 2))(W), 1024)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import tiny_backprop as tb

W = 0.5 * jax.random.normal(jax.random.key(1), (4, 4))
X = jax.random.normal(jax.random.key(2), (8, 4))
planned = functools.partial(tb.checkpoint, block_size=2)

def net(w, x):
    for _ in range(4):
        x = jnp.sin(jnp.tanh(x @ w))
    return x

def check(case):
    got, want = jax.jit(lambda: case(planned))(), jax.jit(lambda: case(lambda f: f))()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jax.typeof(a).sharding == jax.typeof(b).sharding
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-5 * np.abs(b).max())

def along(f, *xs):
    return jax.jvp(f, xs, xs)
"""

CASES = {
    "shard_map": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        for check_vma in (False, True):
            over = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
            split = functools.partial(over, in_specs=(P(), P("i")), out_specs=P("i"))
            mean = functools.partial(over, in_specs=(P(), P("i")), out_specs=P())
            def loss(c):
                f = c(lambda w, x: jax.lax.pmean(jnp.sum(net(w, x) ** 2), "i"))
                return mean(lambda w, x: f(w, x))
            check(lambda c: split(lambda w, x: along(lambda x: c(net)(w, x), x)[1])(W, X))
            check(lambda c: split(lambda w, x: jax.vmap(lambda y: along(c(net), w, y)[1])(x[:, None])[:, 0])(W, X))
            check(lambda c: along(split(c(net)), W, X))
            check(lambda c: along(loss(c), W, X))
            check(lambda c: jax.linearize(split(c(net)), W, X)[1](W, X))
            check(lambda c: (jax.grad(loss(c))(W, X), jax.jacfwd(loss(c))(W, X), jax.hessian(loss(c))(W, X)))
            check(lambda c: jax.jacrev(jax.jacfwd(loss(c)))(W, X))
    """,
    "explicit": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(mesh):
            x = jax.device_put(X, NamedSharding(mesh, P("i", None)))
            w = jax.device_put(W, NamedSharding(mesh, P(None, None)))
            xs = jax.device_put(jnp.stack([X] * 4), NamedSharding(mesh, P("i", None, None)))
            over = lambda c: jax.vmap(c(net), in_axes=(None, 0))
            check(lambda c: along(c(net), w, x))
            check(lambda c: along(over(c), w, xs))
            check(lambda c: jax.grad(lambda w: jnp.sum(over(c)(w, xs) ** 2))(w))
            check(lambda c: jax.grad(lambda w: jnp.sum(along(lambda x: c(net)(w, x), x)[1]))(w))
    """,
    "automatic": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        x = jax.device_put(X, NamedSharding(mesh, P("i")))
        check(lambda c: along(c(net), W, x))
        with jax.set_mesh(mesh):
            over = lambda c: jax.vmap(c(net), in_axes=(None, 0), spmd_axis_name="i")
            xs = jnp.stack([X] * 4)
            check(lambda c: along(over(c), W, xs))
            check(lambda c: jax.grad(lambda w: jnp.sum(over(c)(w, xs) ** 2))(W))
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_sharded(case):
    script = SHARDED + textwrap.dedent(CASES[case]) + "\nprint('all equal')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-3000:]
