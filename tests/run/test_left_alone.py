"""Nothing gains nothing in silence: what holds memory and was left as JAX has it is listed, with its reason."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import tiny_backprop as tb
from tiny_backprop import LeftAloneWarning

X = jnp.ones((64, 64))


def steps(x):
    return lax.scan(lambda c, _: (jnp.sin(c) * c, None), x, None, length=16)[0]


def ruled(x):
    """The loop stands in a derivative rule."""

    @jax.custom_vjp
    def f(x):
        return steps(x)

    def forward(x):
        out, pullback = jax.vjp(steps, x)
        return out, pullback

    f.defvjp(forward, lambda pullback, g: pullback(g))
    return jnp.sum(f(x))


def printing(x):
    def step(c, _):
        jax.debug.print("{}", c[0, 0])
        return jnp.sin(c) * c, None

    return jnp.sum(lax.scan(step, x, None, length=16)[0])


def unrolled(x):
    return jnp.sum(lax.scan(lambda c, _: (jnp.sin(c) * c, None), x, None, length=16, unroll=4)[0])


def branched(x):
    return jnp.sum(lax.cond(x[0, 0] > 0, lambda x: jnp.sin(jnp.cos(x) * x), lambda x: x, x))


def sharded(x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("i",))
    spec = PartitionSpec("i")
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    return jnp.sum(mapped(lambda x: jnp.sin(jnp.cos(x) * x) * x)(x))


@pytest.mark.parametrize(
    ("loss", "primitive", "reason"),
    [
        (ruled, "scan", "a derivative rule of its own"),
        (printing, "scan", "have an effect"),
        (unrolled, "scan", "unroll=4 is not kept"),
        (branched, "cond", "planned as one step"),
        (sharded, "shard_map", "runs on each device"),
    ],
)
def test_what_is_left_alone_is_listed_by_its_line(loss, primitive, reason):
    graph = tb.capture_gradient(loss, X)
    (found,) = tb.plan_blocks(graph).left_alone
    assert (found.primitive, found.bytes > 0) == (primitive, True)
    assert reason in found.reason
    assert "test_left_alone.py" in found.source
    report = tb.analyze_graph(graph)
    assert report.left_alone[0].reason == found.reason
    assert found.reason in report._repr_html_()
    with pytest.warns(LeftAloneWarning, match="left as JAX has it"):
        tb.height_compressed_grad(loss).plan(X)


def test_its_bytes_are_those_that_the_backward_phase_is_left_with():
    (found,) = tb.plan_save_everything(tb.capture_gradient(ruled, X)).left_alone
    residuals = jax.tree.leaves(jax.vjp(steps, X)[1])
    assert found.bytes == sum(x.nbytes for x in residuals if x.ndim == 3)


def test_what_a_step_of_a_loop_leaves_alone_is_listed():
    def loss(x):
        return lax.scan(lambda c, _: (c * ruled(jnp.sin(x)), None), 1.0, None, length=3)[0]

    (found,) = tb.plan_blocks(tb.capture_gradient(loss, X)).left_alone
    assert "a derivative rule of its own" in found.reason


def test_where_all_is_planned_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftAloneWarning)
        plan = tb.height_compressed_grad(lambda x: jnp.sum(steps(x))).plan(X)
    assert plan.left_alone == ()


def test_it_is_saved_with_the_graph():
    graph = tb.capture_gradient(ruled, X)
    assert tb.Graph.from_json(graph.to_json()).left_alone == graph.left_alone
