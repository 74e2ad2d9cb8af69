"""What a plan costs, in words."""

import jax
import jax.numpy as jnp
from jax import lax

from tiny_backprop import capture_gradient, plan_blocks, plan_save_everything
from tiny_backprop_widgets.content.prices import PRICE_HEADER, left_alone_html, price_rows


def written_in_a_carry(xs):
    def body(ys, i):
        return lax.dynamic_update_index_in_dim(ys, jnp.tanh(xs[i] + ys[i // 2]), i, 0), None

    return jnp.sum(lax.scan(body, jnp.zeros_like(xs), jnp.arange(len(xs)))[0] ** 2)


def test_a_plan_that_takes_more_than_jaxs_own_gradient_is_marked():
    graph = capture_gradient(written_in_a_carry, jax.ShapeDtypeStruct((64, 256), "float32"))
    plain = plan_save_everything(graph)
    (row,) = price_rows({"this plan": plan_blocks(graph, 1)}, plain, None)
    assert "more than jax.grad's" in row[PRICE_HEADER.index("peak")]


def test_a_plan_that_takes_less_is_not():
    graph = capture_gradient(
        lambda x: jnp.sum(jnp.sin(jnp.cos(jnp.sin(jnp.cos(x))))), jax.ShapeDtypeStruct((4096,), "float32")
    )
    plain = plan_save_everything(graph)
    (row,) = price_rows({"this plan": plan_blocks(graph)}, plain, None)
    assert "more than" not in row[PRICE_HEADER.index("peak")]


def test_what_is_left_alone_is_told():
    def branched(x):
        return jnp.sum(lax.cond(x[0] > 0, lambda x: jnp.sin(jnp.cos(x) * x), lambda x: x, x))

    plan = plan_blocks(capture_gradient(branched, jax.ShapeDtypeStruct((64,), "float32")))
    assert "branches without a loop inside are planned as one step" in left_alone_html(plan)
    assert not left_alone_html(plan_blocks(capture_gradient(jnp.sum, jax.ShapeDtypeStruct((64,), "float32"))))
