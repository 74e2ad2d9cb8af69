"""Planned gradients against `jax.grad`, in every transformation, and their errors and fall-backs."""

import functools
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import tiny_backprop as tb
from tests.programs import KEY, PARAMS, X, assert_close, assert_same_bits, loss, net
from tiny_backprop import CaptureError, FallbackWarning, PlanError

REQUESTS = [
    dict(block_size=1),
    dict(block_size=5),
    dict(block_size=17),
    dict(block_size=10**6),
    dict(levels=2),
    dict(levels=3, block_size=4),
    dict(levels=9, block_size=1),
    {},
]


@functools.cache
def wanted():
    """Return what JAX gives for `loss`: its value, and its gradients by parameters and input."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(PARAMS, X, KEY)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_same_bits_as_jax_dropout_included(request_):
    value, gradients = tb.height_compressed_value_and_grad(loss, argnums=(0, 1), **request_)(PARAMS, X, KEY)
    assert_same_bits(gradients, wanted()[1])
    assert_close(value, wanted()[0], 4)  # its last sum may be fused with other nodes


def test_gradient_alone_and_within_jit():
    gradient = tb.height_compressed_grad(loss, block_size=17)
    assert_same_bits(gradient(PARAMS, X, KEY), wanted()[1][0])
    assert_same_bits(jax.jit(gradient)(PARAMS, X, KEY), wanted()[1][0])


def test_guide_example():
    def loss_fn(params):
        w, b = params
        hidden = jnp.tanh(jnp.dot(w, b))
        return jnp.sum(hidden**2)

    gradient = tb.integration.jax.height_compressed_grad(loss_fn, block_size=16)
    assert gradient.last_executor is None
    params = (jnp.ones((8, 8)), jnp.ones((8,)))
    assert_same_bits(gradient(params), jax.jit(jax.grad(loss_fn))(params))
    executor = gradient.last_executor
    assert isinstance(executor, tb.HeightCompressedExecutor)
    assert executor.checkpoint_plan.meta["block_size"] == 16
    assert executor.checkpoint_plan.meta["peak_frontier"] == executor.checkpoint_plan.peak_bytes > 0


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit, tb.jit], ids=["eager", "jax.jit", "tiny_backprop.jit"])
def test_under_vmap(jit):
    xs = jnp.stack([X, 2 * X, -X])
    keys = jax.random.split(KEY, 3)

    def over(gradient):
        return jit(jax.vmap(gradient, in_axes=(None, 0, 0)))(PARAMS, xs, keys)

    assert_close(over(tb.height_compressed_grad(loss, block_size=7)), over(jax.grad(loss)))


def squared_norm(gradient):
    return lambda params: sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient(params, X, KEY)))


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_higher_derivatives(jit):
    params = {"w": PARAMS["w"][:2], "b": PARAMS["b"]}
    planned, plain = tb.height_compressed_grad(loss, block_size=7), jax.grad(loss)
    assert planned.plan(params, X, KEY).recompute_flops > 0
    assert_close(jit(jax.grad(squared_norm(planned)))(params), jax.jit(jax.grad(squared_norm(plain)))(params), 512)
    directions = (params, X, np.zeros((), jax.dtypes.float0))
    got = jit(lambda *t: jax.jvp(planned, (params, X, KEY), t))(*directions)
    assert_close(got, jax.jit(lambda *t: jax.jvp(plain, (params, X, KEY), t))(*directions), 512)


def test_higher_derivatives_follow_custom_rules():
    """The body of a function with a custom derivative may have none; its rule counts at every order."""

    @jax.custom_jvp
    def root(a):
        return lax.while_loop(lambda x: abs(x * x - a) > 1e-5, lambda x: 0.5 * (x + a / x), a)

    root.defjvp(lambda p, t: (root(p[0]), t[0] / (2 * root(p[0]))))

    def f(a):
        return root(a) ** 3

    planned = tb.height_compressed_grad(f, block_size=2)
    assert float(planned(4.0)) == pytest.approx(3.0)
    assert float(jax.grad(planned)(4.0)) == pytest.approx(float(jax.grad(jax.grad(f))(4.0)))
    assert float(jax.grad(jax.grad(planned))(4.0)) == pytest.approx(float(jax.grad(jax.grad(jax.grad(f)))(4.0)))


@jax.custom_vjp
def steep(x):
    return x**2


steep.defvjp(lambda x: (x**2, x), lambda x, ct: (7 * jnp.cos(x) * ct,))


@pytest.mark.parametrize("way", [{"block_size": 1}, {"block_size": 2}, {"levels": 2}], ids=str)
@pytest.mark.parametrize("door", [tb.height_compressed_value_and_grad, tb.checkpoint])
def test_derivatives_of_a_value_take_the_way_of_reverse_mode_through_custom_rules(door, way):
    """Differentiated again, a value is that of `fwd`, whose derivative is not what `bwd` says; forward mode has one."""

    def f(x, y):
        return jnp.sum(jnp.sin(steep(x) * steep(y))) * 2

    planned = door(f, **way)
    value_and_grad = planned if door is not tb.checkpoint else jax.value_and_grad(planned)
    for derivative in (jax.jacrev, jax.jacfwd):  # by x alone: the rule of y has no forward mode, and needs none
        assert_close(derivative(value_and_grad)(X[0], X[1]), derivative(jax.value_and_grad(f))(X[0], X[1]))


def test_inside_scan_and_cond():
    gradient = tb.height_compressed_grad(loss, block_size=7)

    def train(grad, params):
        def step(params, key):
            update = lax.cond(params["b"][0] > -1, lambda: grad(params, X, key), lambda: params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, update), None

        return lax.scan(step, params, jax.random.split(KEY, 4))[0]

    assert_close(
        jax.jit(functools.partial(train, gradient))(PARAMS), jax.jit(functools.partial(train, jax.grad(loss)))(PARAMS)
    )


def test_closure_over_traced_values_and_gradient_through_it():
    def outer(grad, w):
        return jnp.sum(grad(lambda y: jnp.sum(jnp.sin(jnp.sin(y * w))))(X[0]) ** 2)

    planned = functools.partial(tb.height_compressed_grad, block_size=2)
    for jit in (lambda f: f, jax.jit):
        got = jit(jax.grad(functools.partial(outer, planned)))(X[1])
        assert_close(got, jit(jax.grad(functools.partial(outer, jax.grad)))(X[1]))


def test_traced_closure_does_not_leak():
    gradient = None

    def outer(w):
        nonlocal gradient
        gradient = gradient or tb.height_compressed_grad(lambda y: jnp.sum(jnp.sin(y * holder[0])), block_size=1)
        holder[0] = w
        return gradient(X[0])

    holder = [0.0]
    first = jax.jit(outer)(X[1])
    second = jax.jit(lambda w: outer(w) + 0)(X[2])
    assert_close(first, X[1] * jnp.cos(X[0] * X[1]))
    assert_close(second, X[2] * jnp.cos(X[0] * X[2]))


def test_aux_kwargs_static_leaves_and_trees():
    def f(p, *, mode, scale):
        value = jnp.sum(p["a"] ** 2) * scale if mode == "square" else jnp.sum(p["a"])
        return value, {"seen": p["a"], "n": jnp.arange(2)}

    p = {"a": X, "none": None}
    got = tb.height_compressed_value_and_grad(f, block_size=1, has_aux=True)(p, mode="square", scale=2.0)
    want = jax.value_and_grad(f, has_aux=True)(p, mode="square", scale=2.0)
    assert_close(got, want)
    gradient = tb.height_compressed_grad(f, has_aux=True)
    assert_close(gradient(p, mode="other", scale=2.0), jax.grad(f, has_aux=True)(p, mode="other", scale=2.0))
    assert_close(gradient(p, mode="square", scale=2.0), jax.grad(f, has_aux=True)(p, mode="square", scale=2.0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    x = X.astype(dtype)
    got = tb.height_compressed_grad(loss, block_size=7)(params, x, KEY)
    assert_same_bits(got, jax.jit(jax.grad(loss))(params, x, KEY))


def test_complex_arguments():
    def f(z):
        return jnp.sum(jnp.abs(jnp.sin(jnp.sin(z))) ** 2)

    z = X[0] + 1j * X[1]
    assert_close(tb.height_compressed_grad(f, block_size=2)(z), jax.jit(jax.grad(f))(z))


def test_integers_loops_and_branches_in_the_path():
    def f(w, ids, n):
        x = w[ids] * n
        x = lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + w[i][None], x)
        x = lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)
        x, _ = lax.scan(lambda c, t: (c * t, None), x, jnp.arange(1.0, 4.0))
        return jnp.sort(x, axis=0)[::2].sum() + lax.top_k(x.ravel(), 3)[0].sum()

    args = (X, jnp.array([1, 3, 3, 7]), 2)
    for size in (1, 3, 8):
        got = tb.height_compressed_grad(f, block_size=size)(*args)
        assert_close(got, jax.jit(jax.grad(f))(*args))


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 4)))
def test_random_programs(seed, block_size, levels):
    """Programs of random wiring, with values read again much later, have JAX's gradients under random plans."""
    rng = np.random.default_rng(seed)
    unary = [jnp.sin, jnp.tanh, jax.nn.softplus, jax.nn.relu, lambda v: v[::-1], lambda v: jnp.cumsum(v, axis=0) / 9]
    binary = [jnp.add, jnp.multiply, lambda a, b: a @ b.T @ b / 40, lambda a, b: jnp.where(a > b, a, 0.5 * b)]
    wiring = []
    for i in range(8):
        picks = rng.integers(max(0, i - 2), i + 1, 2) if rng.random() < 0.8 else rng.integers(0, i + 1, 2)
        wiring.append((rng.random() < 0.5, int(rng.integers(4)), int(rng.integers(6)), [int(p) for p in picks]))

    def f(x):
        values = [x]
        for use_binary, b, u, picks in wiring:
            a, c = (values[p] for p in picks)
            values.append(binary[b](a, c) if use_binary else unary[u](a))
        return jnp.sum(values[-1]) + jnp.sum(values[-2] ** 2)

    got = tb.height_compressed_grad(f, block_size=block_size, levels=levels)(X)
    assert_close(got, jax.jit(jax.grad(f))(X))


# ---- counts, caches ----


def counted(prim_name, closed):
    """Count a primitive in a jaxpr, calls included."""
    n = 0
    for eqn in closed.eqns:
        n += eqn.primitive.name == prim_name
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(sub, "eqns"):
                n += counted(prim_name, sub)
    return n


def test_every_node_runs_exactly_as_often_as_the_plan_says():
    gradient = tb.height_compressed_grad(loss, block_size=25)
    plan = gradient.plan(PARAMS, X, KEY)
    planned = Counter(plan.graph.primitives[i] for i in plan.timeline.steps.tolist())
    jaxpr = jax.make_jaxpr(gradient)(PARAMS, X, KEY)
    for name in ("tanh", "dot_general", "random_bits", "logistic", "fold_in", "random_fold_in"):
        assert counted(name, jaxpr) == planned[name], name
    assert planned["tanh"] > 6


def test_effects_run_once(capfd):
    seen = []

    def f(x):
        for i in range(4):
            x = jnp.sin(x) * 1.5
            jax.debug.callback(lambda v, i=i: seen.append((i, float(v))), x[0])
        return jnp.sum(x)

    tb.height_compressed_grad(f, block_size=1)(X[0])
    jax.effects_barrier()
    assert sorted(i for i, _ in seen) == [0, 1, 2, 3]


def test_a_second_call_plans_nothing():
    n_traces = 0

    def f(x, n=1):
        nonlocal n_traces
        n_traces += 1
        return jnp.sum(jnp.sin(x) ** 2)

    gradient = tb.height_compressed_grad(f, block_size=1)
    gradient(X)
    executor = gradient.last_executor
    gradient(2 * X)
    assert n_traces == 1
    assert gradient.last_executor is executor
    gradient(X[:4])
    assert n_traces == 2
    assert gradient.last_executor is not executor
    gradient(X.astype(jnp.bfloat16))
    gradient(X, n=2)
    assert n_traces == 4
    with jax.default_matmul_precision("highest"):
        gradient(X)
    assert n_traces == 5
    gradient(X)
    assert n_traces == 5


def test_none_chooses_and_says_which():
    gradient = tb.height_compressed_grad(loss)
    plan = gradient.plan(PARAMS, X, KEY)
    assert isinstance(plan.meta["block_size"], int)
    tried = [tb.plan_blocks(plan.graph, k).peak_bytes for k in (5, 10, 20)]
    assert plan.peak_bytes <= 1.15 * min(tried)


def test_a_given_plan_runs_and_a_foreign_one_is_refused():
    plan = tb.plan_height_compressed(tb.capture_gradient(loss, PARAMS, X, KEY), levels=2, block_size=9)
    gradient = tb.height_compressed_grad(loss, plan=plan)
    assert_same_bits(gradient(PARAMS, X, KEY), jax.jit(jax.grad(loss))(PARAMS, X, KEY))
    assert gradient.last_executor.checkpoint_plan == plan
    with pytest.raises(PlanError, match=r"the plan was made for a graph with fingerprint .* make it again"):
        gradient(PARAMS, X[:4], KEY)
    with pytest.raises(PlanError, match="give either plan or block_size, levels and loops, not both"):
        tb.height_compressed_grad(loss, plan=plan, block_size=3)
    with pytest.raises(PlanError, match=r"plan must be a tiny_backprop\.Plan; found dict"):
        tb.height_compressed_grad(loss, plan={})


def test_plan_from_structs_without_running():
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, X, KEY))
    gradient = tb.height_compressed_grad(loss, block_size=9)
    assert gradient.plan(*structs) == gradient.plan(PARAMS, X, KEY)


# ---- bad input ----


@pytest.mark.parametrize("bad", [0, -1, 2.5, "4"])
def test_bad_block_size_is_refused_at_once(bad):
    for make in (tb.height_compressed_grad, tb.height_compressed_value_and_grad):
        with pytest.raises(PlanError, match="block_size must be a whole number of at least 1; found"):
            make(loss, block_size=bad)


@pytest.mark.parametrize(
    ("fun", "found"),
    [
        (lambda p: net(p, X, KEY), r"float32\[8, 16\]"),
        (lambda p: jnp.sum(p["b"]).astype(int), "int32"),
        (lambda p: (p["b"].sum(), p["b"].sum()), r"float32\[\], float32\[\]"),
        (lambda p: p["b"].sum() * 1j, "complex64"),
        (lambda p: {}, "nothing"),
    ],
)
def test_non_scalar_functions_are_refused_as_by_jax(fun, found):
    with pytest.raises(TypeError):
        jax.grad(fun)(PARAMS)
    with pytest.raises(CaptureError, match=f"needs one real number as output; .* returns .*{found}.*jnp.sum"):
        tb.height_compressed_grad(fun)(PARAMS)


def test_integer_arguments_are_refused_as_by_jax():
    with pytest.raises(CaptureError, match=r"args\[0\] has dtype int32, which has no gradient"):
        tb.height_compressed_grad(lambda n: n * 2.0)(3)


def test_undifferentiable_loops_are_named():
    def f(x):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x).sum()

    with pytest.raises(CaptureError, match="gradient of f was asked for"):
        tb.height_compressed_grad(f)(X)


def test_the_users_own_error_is_the_users_own():
    def f(x):
        raise KeyError("mine")

    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        with pytest.raises(KeyError, match="mine"):
            tb.height_compressed_grad(f)(X)


def untraceable(x):
    return jnp.sum(x**2) if x[0] > 0 else jnp.sum(x)


def test_fall_back_warns_with_the_reason_and_gives_jax_grad():
    gradient = tb.height_compressed_grad(untraceable, block_size=2)
    with pytest.warns(
        FallbackWarning, match=r"untraceable cannot be captured.*TracerBoolConversionError.*jax.grad runs instead"
    ):
        got = gradient(jnp.ones(3))
    assert got.tolist() == [2, 2, 2]
    assert gradient.last_executor is None
    with pytest.warns(FallbackWarning):
        value, slope = tb.height_compressed_value_and_grad(untraceable)(-jnp.ones(3))
    assert (float(value), slope.tolist()) == (-3, [1, 1, 1])


def test_on_error_raise():
    with pytest.raises(CaptureError, match=r"untraceable cannot be captured.*lax.cond"):
        tb.height_compressed_grad(untraceable, on_error="raise")(jnp.ones(3))
    with pytest.raises(PlanError, match="on_error must be 'fallback' or 'raise'; found 'ignore'"):
        tb.height_compressed_grad(untraceable, on_error="ignore")
    with pytest.raises(PlanError, match="must be callable; found int"):
        tb.height_compressed_grad(3)


def test_derivative_rules_may_close_over_arrays():
    table = jnp.arange(16.0)

    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), None), lambda _, ct: (ct * table[None],))

    def g(x, y):
        return jnp.sum(jnp.sin(f(jnp.sin(x))) * y)

    for argnums in (0, 1, (0, 1)):
        got = tb.height_compressed_grad(g, block_size=1, argnums=argnums)(X, X)
        assert_close(got, jax.jit(jax.grad(g, argnums=argnums))(X, X))
    assert_close(jax.grad(tb.checkpoint(g, block_size=1))(X, X), jax.jit(jax.grad(g))(X, X))


# ---- what everyday code passes ----


def everyday(p, n, *, train):
    """Return a loss that counts a loop with a Python int and branches on a Python bool."""
    for _ in range(n):
        p = jnp.sin(p)
    return jnp.sum(p.reshape(n, -1) if train else p)


def test_python_numbers_that_tracing_cannot_have_are_passed_as_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        gradient = tb.height_compressed_grad(everyday, block_size=1)
        for n, train in ((2, True), (4, True), (2, False)):
            assert_close(gradient(X, n, train=train), jax.grad(everyday)(X, n, train=train))
            assert gradient.last_executor is not None
        checkpointed = tb.checkpoint(everyday, block_size=1)
        assert_close(jax.grad(checkpointed)(X, 2, train=True), jax.grad(everyday)(X, 2, train=True))
        static = jax.jit(everyday, static_argnums=1, static_argnames="train")
        assert_close(tb.height_compressed_grad(static)(X, 2, train=True), jax.grad(everyday)(X, 2, train=True))


def test_python_numbers_are_what_they_are_as_in_jax_grad():
    def branching(w, n):
        return jnp.sum(jnp.sin(w)) * n if isinstance(n, int) else jnp.sum(w)

    def dividing(w, n):
        return jnp.sum(w) * (n * n / 1e10)

    for f, n in ((branching, 2), (branching, True), (dividing, 100000)):
        assert_close(tb.height_compressed_grad(f)(X, n), jax.grad(f)(X, n))
        assert_close(jax.grad(tb.checkpoint(f, block_size=1))(X, n), jax.grad(f)(X, n))


def held_by_method(k):
    class Held:
        def scale(self):
            return self.k

    held = Held()
    held.k = k
    return held.scale, lambda k: setattr(held, "k", k)


def held_by_partial(k):
    held = {"k": k}
    return functools.partial(lambda d: d["k"], held), lambda k: held.update(k=k)


def held_by_closure(k):
    held = [k]
    return lambda: held[0], lambda k: held.__setitem__(0, k)


def held_by_class(k):
    class Held:
        def __new__(cls):
            return cls.k

    Held.k = k
    return Held, lambda k: setattr(Held, "k", k)


@pytest.mark.parametrize("holder", [held_by_method, held_by_partial, held_by_closure, held_by_class])
def test_what_an_argument_holds_may_change(holder):
    n_traces = 0

    def f(w, m):
        nonlocal n_traces
        n_traces += 1
        return jnp.sum(w) * m()

    gradient = tb.height_compressed_grad(f, block_size=1)
    m, change = holder(2.0)
    assert_close(gradient(X, m), jax.grad(f)(X, m))
    change(5.0)
    assert_close(gradient(X, m), jax.grad(f)(X, m))
    assert_close(gradient(X, m), jnp.full_like(X, 5))
    assert n_traces == 4


def test_modules_that_change_inside_are_refused_and_their_returned_state_is_not():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(16, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x)

    def loss(model, x):
        return jnp.mean((model(x) - 1) ** 2)

    model = Model()
    with pytest.raises(CaptureError, match=r"loss changes its argument of type Model in place.*would be lost.*has_aux"):
        nnx.value_and_grad(tb.checkpoint(loss))(model, X)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def pure(params, rest, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return loss(model, x), nnx.state(model, nnx.BatchStat)

    (_, state), _ = tb.height_compressed_value_and_grad(pure, has_aux=True)(params, rest, X)
    (_, want), _ = jax.jit(jax.value_and_grad(pure, has_aux=True))(params, rest, X)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(want))


def test_what_jax_grad_can_alone_falls_back_and_says_so():
    def windows(x):
        return jnp.sum(lax.reduce_window(jnp.sin(x), jnp.array(0.0), lax.add, (2,), (1,), "VALID"))

    with pytest.warns(FallbackWarning, match=r"(?s)cannot differentiate it in reverse mode.*jax\.grad ran instead"):
        got = tb.height_compressed_grad(windows)(X[0])
    assert_close(got, jax.grad(windows)(X[0]))
    with pytest.raises(CaptureError, match="cannot differentiate it") as e:
        tb.height_compressed_grad(windows, on_error="raise")(X[0])
    assert "fails likewise" not in str(e.value)


def test_a_step_counter_is_an_array_and_plans_once():
    n_traces = 0

    def f(x, step):
        nonlocal n_traces
        n_traces += 1
        return jnp.sum(jnp.sin(x)) * step

    gradient = tb.height_compressed_grad(f)
    for step in range(3):
        assert_close(gradient(X, jnp.int32(step)), jnp.cos(X) * step)
    assert n_traces == 1


def test_objects_that_may_have_changed_are_looked_at_again():
    class Model:
        def __init__(self):
            self.w = 1.0

        def loss(self, x):
            return jnp.sum(jnp.sin(x)) * self.w

        @tb.checkpoint
        def __call__(self, x):
            return jnp.sin(x) * self.w

    model = Model()
    gradient = tb.height_compressed_grad(lambda x, m: m.loss(x))
    for w in (1.0, 5.0):
        model.w = w
        assert_close(gradient(X, model), jnp.cos(X) * w)
        assert_close(model(X), jnp.sin(X) * w)


def test_aux_may_hold_anything_and_pairs_may_be_lists():
    def f(x):
        return [jnp.sum(x**2), {"name": "loss", "f": len, "x": x}]

    gradient, aux = tb.height_compressed_grad(f, has_aux=True)(X)
    assert_close(gradient, 2 * X)
    assert (aux["name"], aux["f"]) == ("loss", len)
    assert_same_bits(aux["x"], X)


def test_trees_that_look_at_their_leaves():
    @jax.tree_util.register_pytree_node_class
    class Strict:
        def __init__(self, a):
            assert a.ndim == 2
            self.a = a

        def tree_flatten(self):
            return (self.a,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    got = tb.height_compressed_grad(lambda s: jnp.sum(jnp.sin(s.a)))(Strict(X))
    assert_close(got.a, jnp.cos(X))


@pytest.mark.parametrize("argnums", [(), (0, 0), 1.5, "0"])
def test_bad_argnums_are_named(argnums):
    with pytest.raises(CaptureError, match="argnums"):
        tb.height_compressed_grad(lambda x, y: jnp.sum(x * y), argnums=argnums)(X, X)
    one = tb.height_compressed_grad(lambda x, y: jnp.sum(x * y), argnums=np.int64(1))
    assert_close(one(X, 2 * X), X)


@pytest.mark.parametrize("wrap", [lambda v: (v,), lambda v: {"l": v}])
def test_a_scalar_in_a_container_is_no_scalar(wrap):
    with pytest.raises(CaptureError, match="needs one real number as output"):
        tb.height_compressed_grad(lambda x: wrap(jnp.sum(x)))(X)


def test_a_plan_does_not_pass_from_a_program_to_one_with_effects():
    seen = []

    def make(with_effect):
        def branch(c):
            if with_effect:
                jax.debug.callback(lambda: seen.append(1))
            return jnp.sin(c)

        def f(p):
            for _ in range(6):
                p = jnp.sin(lax.cond(p[0] > -5, branch, jnp.cos, p))
            return jnp.sum(p)

        return f

    plan = tb.plan_blocks(tb.capture_gradient(make(False), X[0]), 3)
    with pytest.raises(PlanError, match="the plan was made for a graph"):
        tb.height_compressed_grad(make(True), plan=plan)(X[0])
    tb.height_compressed_grad(make(True), block_size=3)(X[0])
    jax.effects_barrier()
    assert len(seen) == 6


def test_effects_do_not_multiply_in_higher_derivatives():
    seen = []

    def f(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        return jnp.sin(jnp.sin(x))

    jax.grad(tb.height_compressed_grad(f, block_size=1))(1.0)
    jax.effects_barrier()
    assert len(seen) == 1


def test_no_tracer_leaks():
    def f(x):
        return tb.height_compressed_grad(lambda y: jnp.sum(jnp.sin(y * x)))(x)

    def g(x):
        return jax.grad(tb.checkpoint(lambda y: jnp.sum(jnp.sin(y * x))))(x)

    with jax.checking_leaks():
        for h in (f, g):
            assert_close(jax.jit(h)(X[0]), X[0] * jnp.cos(X[0] ** 2))


def test_a_recomputation_that_grows_from_literals_is_not_merged():
    """A key made inside the function is a constant to XLA: what is drawn from it must be drawn again all the same."""

    def f(ws, x, key):
        for i, w in enumerate(ws):
            x = jnp.tanh(x @ w)
            x = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, x.shape), x, 0.0)
        return jnp.sum(x * x)

    ws = PARAMS["w"]
    options = {"block_size": 30}
    inside = tb.measure(jax.jit(tb.height_compressed_grad(lambda ws, x: f(ws, x, jax.random.key(0)), **options)), ws, X)
    outside = tb.measure(jax.jit(tb.height_compressed_grad(f, **options)), ws, X, jax.random.key(0))
    assert inside.flops == pytest.approx(outside.flops, rel=0.02)


def test_wrappers_copy_no_state():
    gradient = tb.height_compressed_grad(lambda x: jnp.sum(x))
    gradient(X)
    assert not hasattr(tb.jit(gradient), "last_executor")
