"""How often while loops run, where their equations tell."""

import jax
import pytest
from jax import lax

from tiny_backprop.integration.jax.capture.cost import eqn_cost
from tiny_backprop.integration.jax.capture.trip_count import while_trip_count


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


X = array(16, 24)


@pytest.mark.parametrize(
    ("start", "keep_on", "step", "trips"),
    [
        (0, lambda i: i < 10, 1, 10),
        (0, lambda i: i < 10, 3, 4),
        (2, lambda i: i <= 10, 4, 3),
        (10, lambda i: i > 0, -3, 4),
        (10, lambda i: lax.le(0, i), -5, 3),
        (12, lambda i: i < 10, 1, 0),
        (0, lambda i: i > -1, 1, None),
        (0, lambda i: i * i < 10, 1, None),
    ],
)
def test_while_trip_count(start, keep_on, step, trips):
    fun = lambda x: lax.while_loop(lambda c: keep_on(c[0]), lambda c: (c[0] + step, c[1] * 2.0), (start, x))  # noqa: E731
    eqn = jax.make_jaxpr(fun)(X).eqns[-1]
    assert while_trip_count(eqn) == trips
    once = 16 * 24 + 2  # the doubling, the counter and the test
    assert eqn_cost(eqn)[0] == pytest.approx((1 if trips is None else trips) * once, abs=2)


def test_while_trip_count_through_an_unchanged_carry():
    fun = lambda x: lax.while_loop(lambda c: c[0] < c[1], lambda c: (c[0] + 1, c[1], c[2] * 2.0), (0, 7, x))  # noqa: E731
    assert while_trip_count(jax.make_jaxpr(fun)(X).eqns[-1]) == 7


def test_while_with_a_traced_bound_is_unknown():
    fun = lambda n, x: lax.fori_loop(0, n, lambda i, x: x * 2.0, x)  # noqa: E731
    assert while_trip_count(jax.make_jaxpr(fun)(array(dtype="int32"), X).eqns[-1]) is None
