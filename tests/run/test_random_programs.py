"""Random programs through random doors in random transformations, against JAX's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_backprop as tb
from benchmarks import random_programs
from benchmarks.robustness import N_THREADS, calls_of_shapes, in_threads, layers

N_GROUPS, N_OF_GROUP = 20, 10


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_random_programs_have_jaxs_gradients(group):
    """`python -m benchmarks.robustness --show SEED` prints the program of a fault."""
    seeds = range(group * N_OF_GROUP, (group + 1) * N_OF_GROUP)
    outcomes = [random_programs.check(seed) for seed in seeds]
    assert [o for o in outcomes if o.is_fault] == []
    assert sum(o.kind == "right" for o in outcomes) >= N_OF_GROUP // 2


def test_a_seed_has_one_program():
    small, again = random_programs.draw(3), random_programs.draw(3)
    large = random_programs.draw(3, random_programs.LARGE)
    assert small.source == again.source == large.source
    assert jax.tree.map(jnp.shape, small.args) == jax.tree.map(jnp.shape, again.args)
    assert random_programs.draw_use(3) == random_programs.draw_use(3)


def test_what_is_off_by_more_than_right_answers_is_wrong():
    def cubed(x):
        return jnp.sum(x**3)

    args, gradient = (jnp.arange(5.0),), jax.grad(cubed)
    compiled = jax.jit(gradient)
    expected = compiled(*args)

    def difference(found):
        return random_programs.difference(found, expected, gradient, compiled, args)

    assert difference(expected) == difference(expected * (1 + 1e-6)) == ""
    assert difference(expected * 1.001).startswith("leaf 0 is off by 0.048")
    assert difference(expected.astype(jnp.bfloat16)).startswith("bfloat16(5,) in the place of float32(5,)")
    assert difference((expected,)).startswith("structure")
    assert difference(expected.at[1].set(jnp.nan)).startswith("leaf 0 is off by inf")


def test_threads_plan_and_run_for_several_shapes_at_once():
    plain = [call() for call in calls_of_shapes(jax.jit(jax.value_and_grad(layers)), N_THREADS)]
    planned = tb.height_compressed_value_and_grad(layers, budget=0.6)
    for found in in_threads(calls_of_shapes(planned, N_THREADS), N_THREADS):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
