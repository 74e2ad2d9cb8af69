"""The FLOPs of compiled programs against XLA's own count, and against length times body where XLA counts once."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tiny_backprop.integration.jax.xla.hlo_flops import HloFlops, count_flops


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def compile_(fun, *args):
    return jax.jit(fun).lower(*args).compile()


def count(fun, *args):
    return count_flops(compile_(fun, *args).as_text())


def mlp(params, x):
    for w, b in params:
        x = jnp.tanh(x @ w + b[None])
    return (x**2).sum()


def conv_net(weights, x):
    for i, w in enumerate(weights):
        x = jax.nn.relu(
            lax.conv_general_dilated(
                x, w, (1 + i, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=1 + i
            )
        )
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME").sum()


def attention(weights, x):
    q, k, v = (jnp.einsum("btd,dhe->bhte", x, w) for w in weights)
    scores = jnp.einsum("bhte,bhse->bhts", q, k) / 4
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(mask[None, None], scores, -1e9)
    return (jnp.einsum("bhts,bhse->bhte", jax.nn.softmax(scores), v) ** 2).sum()


def embedding(table, tokens):
    return jnp.tanh(table[tokens]).sum()


LOOP_FREE = {
    "mlp": (jax.value_and_grad(mlp), [(array(64, 64), array(64))] * 3, array(32, 64)),
    "mlp in bfloat16": (
        jax.grad(mlp),
        [(array(64, 64, dtype="bfloat16"), array(64, dtype="bfloat16"))] * 2,
        array(32, 64, dtype="bfloat16"),
    ),
    "conv net": (jax.grad(conv_net), [array(3, 3, 4, 8), array(3, 2, 4, 16)], array(4, 24, 20, 4)),
    "attention": (jax.grad(attention), [array(64, 4, 16)] * 3, array(2, 32, 64)),
    "embedding": (jax.grad(embedding), array(500, 16), array(8, 12, dtype="int32")),
    "softmax": (lambda x: jax.nn.log_softmax(x).max(), array(64, 100)),
    "cumulative sum": (lambda x: jnp.cumsum(x, 0), array(640)),
    "argmax": (lambda x: jnp.argmax(x, 1), array(32, 40)),
    "integers": (lambda x: (x // 3 + x % 5) ^ (x << 2), array(32, 40, dtype="int32")),
}


@pytest.mark.parametrize("name", LOOP_FREE)
def test_loop_free_programs_agree_with_xla(name):
    fun, *args = LOOP_FREE[name]
    compiled = compile_(fun, *args)
    analysis = compiled.cost_analysis()
    xla = analysis["flops"] + analysis.get("transcendentals", 0.0)
    assert xla > 0
    assert count_flops(compiled.as_text()) == HloFlops(pytest.approx(xla, rel=1e-6))


def test_planned_programs_keep_their_recomputation_in_the_count():
    """Compiled with barriers kept, `jax.checkpoint` runs the forward matrix products twice."""
    args = [(array(64, 64), array(64))] * 4, array(32, 64)
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    once, twice = (
        count_flops(jax.jit(jax.value_and_grad(fun), compiler_options=options).lower(*args).compile().as_text()).flops
        for fun in (mlp, jax.checkpoint(mlp))
    )
    product = 2 * 32 * 64 * 64
    assert twice - once == pytest.approx(4 * product, rel=0.05)


@pytest.mark.parametrize("length", [1, 2, 17, 100])
def test_scan_counts_its_length(length):
    def fun(w, x):
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=length)[0]

    counted = count(fun, array(32, 32), array(16, 32))
    body = 2 * 16 * 32 * 32 + 16 * 32
    assert counted.flops == pytest.approx(length * body, rel=0.002)
    assert counted.unknown_trip_counts == 0


def test_scan_gradient_against_the_unrolled_program():
    def fun(unroll):
        def loss(w, x):
            step = lambda c, _: (jnp.tanh(c @ w), None)  # noqa: E731
            return lax.scan(step, x, None, length=24, unroll=unroll)[0].sum()

        return jax.grad(loss)

    rolled = compile_(fun(1), array(64, 64), array(32, 64))
    unrolled = compile_(fun(True), array(64, 64), array(32, 64))
    xla = unrolled.cost_analysis()
    expected = xla["flops"] + xla["transcendentals"]
    assert count_flops(rolled.as_text()).flops == pytest.approx(expected, rel=0.02)
    assert rolled.cost_analysis()["flops"] < expected / 10  # the fault that count_flops exists for


def test_nested_scans_multiply():
    def fun(x):
        inner = lambda c, _: (c @ c, None)  # noqa: E731
        outer = lambda c, _: (lax.scan(inner, c, None, length=5)[0], None)  # noqa: E731
        return lax.scan(outer, x, None, length=7)[0]

    assert count(fun, array(16, 16)).flops == pytest.approx(35 * 2 * 16**3, rel=0.01)


def test_unknown_trip_count_is_reported_and_counts_once():
    counted = count(lambda x: lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x), array(16, 16))
    assert counted.unknown_trip_counts == 1
    assert counted.flops == pytest.approx(2 * 16**3, rel=0.01)


def test_conditional_counts_its_most_expensive_branch():
    fun = lambda i, x: lax.switch(i, [lambda x: x, lambda x: x @ x, lambda x: x + 1], x)  # noqa: E731
    assert count(fun, array(dtype="int32"), array(16, 16)).flops == pytest.approx(2 * 16**3, rel=0.01)


def test_lapack_calls_count_and_callbacks_are_reported():
    solved = count(jnp.linalg.solve, array(64, 64), array(64))
    assert solved.flops == pytest.approx(2 / 3 * 64**3, rel=0.15)
    assert solved.uncounted_calls == ()

    def fun(x):
        return jax.pure_callback(lambda x: x, x, x) + 1.0

    called = count(fun, array(4))
    assert called.flops == 4
    assert len(called.uncounted_calls) == 1
    assert "callback" in called.uncounted_calls[0]


def test_cudnn_gradients_count_as_their_forward_convolution():
    template = """\
ENTRY %main (x: f32[2,9,9,3], w: f32[3,3,3,4], y: f32[2,5,5,4]) -> f32[2,5,5,4] {{
  %x = f32[2,9,9,3]{{3,2,1,0}} parameter(0)
  %w = f32[3,3,3,4]{{3,2,1,0}} parameter(1)
  %y = f32[2,5,5,4]{{3,2,1,0}} parameter(2)
  ROOT %r = ({shape}, u8[0]{{0}}) custom-call({operands}), window={{size=3x3 stride=2x2 pad=1_1x1_1}}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv{kind}"
}}
"""
    calls = {
        "Forward": ("%x, %w", "f32[2,5,5,4]{3,2,1,0}"),
        "BackwardInput": ("%y, %w", "f32[2,9,9,3]{3,2,1,0}"),
        "BackwardFilter": ("%x, %y", "f32[3,3,3,4]{3,2,1,0}"),
    }
    convolve = lambda x, w: lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = jax.jit(convolve).lower(array(2, 9, 9, 3), array(3, 3, 3, 4)).cost_analysis()["flops"]
    for kind, (operands, shape) in calls.items():
        assert count_flops(template.format(kind=kind, operands=operands, shape=shape)).flops == expected, kind


def test_five_thousand_instructions_take_less_than_a_second():
    lines = ["ENTRY %main (a0: f32[8,8]) -> f32[8,8] {", "  %a0 = f32[8,8]{1,0} parameter(0)"]
    for i in range(1, 5001):
        opcode = "dot" if i % 2 else "add"
        lines.append(
            f"  %a{i} = f32[8,8]{{1,0}} {opcode}(%a{i - 1}, %a{i - 1}), lhs_contracting_dims={{1}}, "
            f'rhs_contracting_dims={{0}}, metadata={{op_name="jit(f)/{"block/" * 20}{i}" stack_frame_id={i}}}'
        )
    text = "\n".join([*lines, "}"])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        flops = count_flops(text).flops
        seconds.append(time.perf_counter() - start)
    assert flops == 2500 * (2 * 8**3 + 64)
    assert min(seconds) < 1
