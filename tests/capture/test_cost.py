"""The cost model against XLA's own `HloCostAnalysis` of the unoptimised program, brute force and textbook counts."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tiny_backprop.errors import TinyBackpropError
from tiny_backprop.integration.jax.capture.cost import eqn_cost, jaxpr_cost
from tiny_backprop.integration.jax.capture.sizes import CostError, aval_bytes


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def xla_flops(fun, *args):
    """FLOPs and transcendentals, before any optimisation: one HLO operation per primitive."""
    analysis = jax.jit(fun).lower(*args).cost_analysis()
    return analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0)


def flops_of(fun, *args):
    return jaxpr_cost(jax.make_jaxpr(fun)(*args))[0]


def bytes_of(fun, *args):
    return jaxpr_cost(jax.make_jaxpr(fun)(*args))[1]


X, Y = array(16, 24), array(24, 8)

SAME_AS_XLA = {
    "add": (lambda x: x + x, X),
    "tanh": (jnp.tanh, X),
    "gradient of tanh": (lambda x: jax.vjp(jnp.tanh, x)[1](x), X),
    "compare and select": (lambda x: lax.select(x > 0, x, -x), X),
    "convert": (lambda x: x.astype(jnp.bfloat16), X),
    "cube": (lambda x: x**3, X),
    "seventh power": (lambda x: x**7, X),
    "inverse square": (lambda x: x**-2, X),
    "matmul": (lambda x, y: x @ y, X, Y),
    "batched einsum": (lambda a, b: jnp.einsum("bhtd,bhsd->bhts", a, b), array(2, 3, 5, 7), array(2, 3, 6, 7)),
    "two contracted dimensions": (lambda a, b: jnp.einsum("ijk,jkl->il", a, b), array(3, 4, 5), array(4, 5, 6)),
    "outer product": (lambda a, b: jnp.einsum("i,j->ij", a, b), array(5), array(6)),
    "sum over an axis": (lambda x: jnp.sum(x, 1), X),
    "max over all": (lambda x: jnp.max(x), X),
    "general reduce": (lambda x: lax.reduce(x, 1.0, lambda a, b: a * b + a, (0,)), X),
    "pooling": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 3), (2, 1), "VALID"), X),
    "data movement": (lambda x: jnp.concatenate([x.T.reshape(16, 24)[::-1], x[:, ::2].repeat(2, 1)]), X),
    "clamp": (lambda x: lax.clamp(0.0, x, 1.0), X),
}


@pytest.mark.parametrize("name", SAME_AS_XLA)
def test_agrees_with_xla(name):
    fun, *args = SAME_AS_XLA[name]
    assert flops_of(fun, *args) == xla_flops(fun, *args)


@pytest.mark.parametrize("argnum", [None, 0, 1])
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        (array(2, 9, 8, 3), array(3, 2, 3, 4), {"padding": "SAME"}),
        (array(2, 9, 8, 3), array(3, 3, 3, 4), {"window_strides": (2, 3), "padding": "VALID"}),
        (array(2, 9, 8, 4), array(3, 2, 2, 6), {"padding": "SAME", "feature_group_count": 2}),
        (array(2, 9, 8, 4), array(3, 3, 1, 8), {"padding": ((1, 1), (2, 0)), "feature_group_count": 4}),
        (array(4, 9, 8, 3), array(3, 3, 3, 4), {"padding": "SAME", "batch_group_count": 2}),
        (array(1, 5, 4, 3), array(3, 2, 3, 4), {"padding": ((2, 2), (1, 3)), "lhs_dilation": (2, 3)}),
        (array(1, 9, 9, 3), array(2, 3, 3, 4), {"padding": "SAME", "rhs_dilation": (3, 2), "window_strides": (2, 1)}),
    ],
)
def test_convolutions_and_their_gradients_agree_with_xla(x, w, options, argnum):
    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, **{"window_strides": (1, 1), "dimension_numbers": numbers, **options})

    out = jax.eval_shape(convolve, x, w)
    fun, *args = {
        None: (convolve, x, w),
        0: (lambda w, ct: jax.linear_transpose(lambda x: convolve(x, w), x)(ct), w, out),
        1: (lambda x, ct: jax.linear_transpose(lambda w: convolve(x, w), w)(ct), x, out),
    }[argnum]
    assert flops_of(fun, *args) == xla_flops(fun, *args)
    assert flops_of(fun, *args) == flops_of(convolve, x, w)


def test_linear_algebra():
    a, b = array(5, 12, 12), array(5, 12, 3)
    cholesky = jax.make_jaxpr(lambda a: lax.linalg.cholesky(a, symmetrize_input=False))(a)
    (factorize,) = [eqn for eqn in cholesky.eqns if eqn.primitive.name == "cholesky"]
    assert eqn_cost(factorize)[0] == pytest.approx(5 * 12**3 / 3)
    assert eqn_cost(jax.make_jaxpr(lax.linalg.lu)(a).eqns[0])[0] == pytest.approx(5 * 2 / 3 * 12**3)
    assert flops_of(lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True), a, b) == 5 * 12 * 12 * 3
    assert flops_of(lambda a: jnp.linalg.qr(a, mode="r"), array(20, 10)) >= 2 * 100 * (20 - 10 / 3)
    assert flops_of(jnp.linalg.eigh, array(10, 10)) == pytest.approx(9e3, rel=0.1)


def test_a_linear_solve_costs_its_factorization_and_two_substitutions():
    n = 60
    assert flops_of(jnp.linalg.solve, array(n, n), array(n)) == pytest.approx(2 / 3 * n**3 + 2 * n**2, rel=0.02)


def test_fft_and_sort():
    assert flops_of(jnp.fft.fft, array(3, 64, dtype="complex64")) == 5 * 3 * 64 * 6
    assert flops_of(jnp.fft.rfft, array(3, 64)) == 2.5 * 3 * 64 * 6
    assert flops_of(lambda x: lax.sort(x, dimension=1), array(3, 64)) == 3 * 64 * 6
    assert flops_of(lambda x: lax.top_k(x, 4), array(3, 64)) == 3 * 64 * 2


def test_cumulative_sums_and_argmax():
    assert flops_of(lambda x: lax.cumsum(x, axis=1), X) == 16 * 24
    assert flops_of(lambda x: lax.argmax(x, 1, "int32"), X) == 16 * 24 - 16


def test_ragged_dot_counts_each_row_once():
    fun = lambda x, w, sizes: lax.ragged_dot(x, w, sizes)  # noqa: E731
    assert flops_of(fun, array(32, 16), array(4, 16, 8), array(4, dtype="int32")) == 2 * 32 * 16 * 8


def test_scatter_and_gather_move_what_they_touch():
    x, i, u = array(1000, 8), array(10, 1, dtype="int32"), array(10, 8)
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    add = lambda x, i, u: lax.scatter_add(x, i, u, numbers)  # noqa: E731
    overwrite = lambda x, i, u: lax.scatter(x, i, u, numbers)  # noqa: E731
    assert jaxpr_cost(jax.make_jaxpr(add)(x, i, u)) == (80.0, 3 * 320 + 40)
    assert flops_of(overwrite, x, i, u) == 0
    gather_numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    gather = lambda x, i: lax.gather(x, i, gather_numbers, (1, 8), mode="clip")  # noqa: E731
    assert jaxpr_cost(jax.make_jaxpr(gather)(x, i)) == (0.0, 2 * 320 + 40)


def test_max_pooling_gradient():
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")  # noqa: E731
    fun = lambda x, ct: jax.vjp(pool, x)[1](ct)  # noqa: E731
    jaxpr = jax.make_jaxpr(fun)(array(16, 16), array(8, 8)).jaxpr
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "select_and_scatter_add"]
    assert eqn_cost(eqn)[0] == 4 * 64


def test_relabelling_is_free_and_movement_costs_bytes_only():
    assert jaxpr_cost(jax.make_jaxpr(lambda x: lax.reshape(x, (8, 48)))(X)) == (0.0, 0.0)
    assert jaxpr_cost(jax.make_jaxpr(lax.optimization_barrier)(X)) == (0.0, 0.0)
    assert jaxpr_cost(jax.make_jaxpr(lambda x: x.T)(X)) == (0.0, 2 * 4 * 16 * 24)
    assert bytes_of(lambda x: lax.broadcast_in_dim(x, (10, 24), (1,)), array(24)) == 4 * 24 + 4 * 240
    assert bytes_of(lambda x: x[:2], X) == 2 * 4 * 48
    assert bytes_of(lambda x: x + 1.0, X) == 2 * 4 * 16 * 24  # the literal is not read
    assert jaxpr_cost(jax.make_jaxpr(lambda x, u: lax.dynamic_update_slice(x, u, (0, 0)))(X, array(2, 2))) == (0.0, 32)


def test_calls_cost_what_they_call():
    inner = lambda x: jnp.tanh(x) * x  # noqa: E731
    custom = jax.custom_vjp(inner)
    custom.defvjp(lambda x: (inner(x), x), lambda x, ct: (ct,))
    plain = jaxpr_cost(jax.make_jaxpr(inner)(X))
    for fun in (jax.jit(inner), jax.checkpoint(inner), custom, jax.jit(jax.jit(inner))):
        assert jaxpr_cost(jax.make_jaxpr(fun)(X)) == plain


def test_scan_is_length_times_body_and_its_slices():
    def fun(w, xs):
        return lax.scan(lambda c, x: (jnp.tanh(c @ w) + x, c), xs[0], xs)

    body_flops = 2 * 4 * 8 * 8 + 2 * 4 * 8
    jaxpr = jax.make_jaxpr(fun)(array(8, 8), array(11, 4, 8))
    eqn = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    body_bytes = jaxpr_cost(eqn.params["jaxpr"])[1]
    assert eqn_cost(eqn) == (11 * body_flops, 11 * body_bytes + 2 * 2 * 11 * 4 * 8 * 4)


def test_cond_is_its_most_expensive_branch():
    fun = lambda p, x: lax.cond(p, lambda x: x @ x, lambda x: x + 1, x)  # noqa: E731
    jaxpr = jax.make_jaxpr(fun)(array(dtype="bool"), array(8, 8))
    assert eqn_cost(jaxpr.eqns[-1])[0] == 2 * 8**3


def test_random_bits_cost_what_the_compiled_program_does():
    from tiny_backprop.integration.jax.xla.hlo_flops import count_flops

    for impl in ("threefry2x32", "rbg"):
        key = jax.eval_shape(lambda impl=impl: jax.random.key(0, impl=impl))
        fun = lambda key: jax.random.bits(key, (4096,))  # noqa: E731
        compiled = count_flops(jax.jit(fun).lower(key).compile().as_text())
        assert flops_of(fun, key) == pytest.approx(compiled.flops, rel=0.1)


def test_symbolic_dimensions_are_refused_by_name():
    shape = jax.export.symbolic_shape("b, t")
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) @ x.T)(jax.ShapeDtypeStruct(shape, np.float32))
    for eqn in jaxpr.eqns:
        with pytest.raises(CostError, match=r"symbolic.*concrete shapes"):
            eqn_cost(eqn)
    with pytest.raises(TinyBackpropError, match=r"float32\[b,t\]: dimension b, t is symbolic"):
        aval_bytes(jaxpr.eqns[0].invars[0].aval)


def test_ten_thousand_equations_take_well_under_half_a_second():
    def fun(x):
        for _ in range(2500):
            x = jnp.sin(x) * x + 1.0
            x = lax.dot(x, x)
        return x

    jaxpr = jax.make_jaxpr(fun)(array(8, 8))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        flops, _ = jaxpr_cost(jaxpr)
        seconds.append(time.perf_counter() - start)
    assert len(jaxpr.eqns) == 10_000
    assert flops == 2500 * (3 * 64 + 2 * 512)
    assert min(seconds) < 0.25
