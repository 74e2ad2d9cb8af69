"""Programs of every kind, compiled and measured once for all tests of what XLA makes of them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

import tiny_backprop as tb
from benchmarks.models import gpt
from tiny_backprop import Measurement, measure


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def mlp(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return (x**2).sum()


def recurrent(w, x):
    def step(c, _):
        return jnp.tanh(c @ w), c

    return (lax.scan(step, x, None, length=17)[0] ** 2).sum()


def nested(w, x):
    def outer(c, _):
        c = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), c, None, length=5)[0]
        c = lax.cond(c[0, 0] > 0, lambda c: jnp.sin(c @ w), lambda c: c * 2, c)
        return c, c.sum()

    c, sums = lax.scan(outer, x, None, length=7)
    return c.sum() + sums.sum()


def convolution(w, x):
    y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (y**2).sum()


CONFIG = gpt.GPTConfig(n_layers=2, width=32, n_heads=2, n_tokens=16, n_vocabulary=64, n_batch=2)
LOSS, GPT_ARGS = gpt.example(CONFIG)
SQUARE = array(64, 64)
LOOP_ARGS = array(32, 32), array(8, 32)
PROGRAMS = {
    "fused": (lambda x: jnp.tanh(jnp.sin(x) * 2 + x).sum(), SQUARE),
    "products": (lambda x: jnp.tanh(x @ x) @ x @ x, SQUARE),
    "nothing": (lambda: (),),
    "identity": (lambda x: x, array(4)),
    "a constant": (lambda x: x @ jnp.arange(4096.0).reshape(64, 64), SQUARE),
    "empty arrays": (lambda x: jnp.concatenate([x[:0], x]) * 2, SQUARE),
    "several outputs": (lambda x: (x @ x, x + 1, (x @ x @ x).sum()), SQUARE),
    "an output twice": (lambda x: (y := x @ x, y), SQUARE),
    "donated": (jax.jit(lambda x: jnp.tanh(x @ x) @ x, donate_argnums=0), SQUARE),
    "donated and updated": (jax.jit(lambda x, y: (x @ y, y.at[3].set(1.0)), donate_argnums=1), SQUARE, SQUARE),
    "cond": (lambda p, x: lax.cond(p, lambda x: (x @ x) @ x, lambda x: x + 1, x), array(dtype="bool"), SQUARE),
    "switch": (
        lambda i, x: lax.switch(i, [lambda x: x, lambda x: x @ x, lambda x: jnp.sin(x @ x) @ x], x),
        array(dtype="int32"),
        SQUARE,
    ),
    "sort": (lambda x: jnp.sort(x @ x), SQUARE),
    "solve": (lambda a: jnp.linalg.solve(a, a), array(32, 32)),
    "eigenvectors": (lambda a: jnp.linalg.eigh(a @ a.T), array(32, 32)),
    "fft": (lambda x: jnp.fft.fft(x @ x).real, SQUARE),
    "callback": (lambda x: jax.pure_callback(lambda x: x, x, x) @ x, SQUARE),
    "half precision": (jax.grad(lambda x: (x @ x).sum().astype("float32")), array(64, 64, dtype="bfloat16")),
    "four bits": (lambda x: (x.astype(jnp.int4) + 1).astype("float32") @ x, SQUARE),
    "random numbers": (lambda k, x: jax.random.normal(k, (64, 64)) @ x, jax.random.key(0), SQUARE),
    "while": (lambda x: lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x), array(32, 32)),
    "scan": (recurrent, *LOOP_ARGS),
    "scan's gradient": (jax.value_and_grad(recurrent), *LOOP_ARGS),
    "scan's planned gradient": (tb.height_compressed_grad(recurrent, block_size=4), *LOOP_ARGS),
    "nested loops": (nested, *LOOP_ARGS),
    "nested loops' gradient": (jax.grad(nested, (0, 1)), *LOOP_ARGS),
    "mlp's gradient": (jax.grad(mlp), [array(64, 64)] * 4, array(128, 64)),
    "checkpointed gradient": (jax.grad(jax.checkpoint(mlp)), [array(64, 64)] * 4, array(128, 64)),
    "planned gradient": (tb.height_compressed_grad(mlp, block_size=8), [array(64, 64)] * 12, array(128, 64)),
    "convolution's gradient": (jax.grad(convolution), array(3, 3, 3, 8), array(4, 16, 16, 3)),
    "gpt's gradient": (jax.value_and_grad(LOSS), *GPT_ARGS),
    "gpt's planned gradient": (tb.height_compressed_value_and_grad(LOSS, levels=2), *GPT_ARGS),
}


@functools.cache
def measured(name: str) -> Measurement:
    """Measure one of `PROGRAMS`."""
    fun, *args = PROGRAMS[name]
    with jax.numpy_rank_promotion("allow"):  # the GPT's own
        return measure(fun, *args)


@functools.cache
def gpt_plan(name: str) -> tuple[tb.Plan, Measurement]:
    """Return a plan of the GPT's gradient, `"save everything"` or `"blocks"`, and the measured gradient."""
    with jax.numpy_rank_promotion("allow"):
        graph = tb.capture_gradient(LOSS, *GPT_ARGS)
        plan = tb.plan_blocks(graph, 20) if name == "blocks" else tb.plan_save_everything(graph)
        return plan, measure(tb.height_compressed_value_and_grad(LOSS, plan=plan), *GPT_ARGS)
