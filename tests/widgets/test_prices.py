"""What a plan costs, in words."""

import jax
import jax.numpy as jnp
from jax import lax

from tiny_backprop import capture_gradient, plan_blocks
from tiny_backprop.plan.baseline import predict_jax_gradient
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets.content.prices import remarks_html


def written_in_a_carry(xs):
    def body(ys, i):
        return lax.dynamic_update_index_in_dim(ys, jnp.tanh(xs[i] + ys[i // 2]), i, 0), None

    return jnp.sum(lax.scan(body, jnp.zeros_like(xs), jnp.arange(len(xs)))[0] ** 2)


def test_a_plan_that_takes_more_than_jaxs_own_gradient_is_marked():
    graph = capture_gradient(written_in_a_carry, jax.ShapeDtypeStruct((64, 256), "float32"))
    jax_bytes = predict_jax_gradient(graph).peak_bytes
    assert f"More than jax.grad takes: {format_bytes(jax_bytes)}" in remarks_html(plan_blocks(graph, 1))


def test_a_plan_that_takes_less_is_not():
    graph = capture_gradient(
        lambda x: jnp.sum(jnp.sin(jnp.cos(jnp.sin(jnp.cos(x))))), jax.ShapeDtypeStruct((4096,), "float32")
    )
    assert not remarks_html(plan_blocks(graph))


def test_what_is_left_alone_is_told():
    def branched(x):
        return jnp.sum(lax.cond(x[0] > 0, lambda x: jnp.sin(jnp.cos(x) * x), lambda x: x, x))

    plan = plan_blocks(capture_gradient(branched, jax.ShapeDtypeStruct((64,), "float32")))
    assert "branches without a loop inside are planned as one step" in remarks_html(plan)
    assert not remarks_html(plan_blocks(capture_gradient(jnp.sum, jax.ShapeDtypeStruct((64,), "float32"))))
