"""Predictions of plain gradients of everyday operations, each kind of them against XLA."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.experimental import sparse

import tiny_backprop as tb
from tests.compiled_programs import array
from tiny_backprop.plan.baseline import predict_jax_gradient

SQUARES = [array(256, 256)] * 3
TOKENS = array(512, 256)
LABELS = array(256, dtype="int32")
EXACT, CLOSE = 0.01, 0.06


def chain(activation):
    """Return the loss of a network whose layers are a matrix and an activation."""

    def loss(weights, x):
        for w in weights:
            x = activation(x @ w)
        return jnp.mean(x**2)

    return loss


def residual(layer):
    """Return the loss of a network of residual layers."""

    def loss(weights, x):
        for w in weights:
            x = x + layer(x, w)
        return jnp.mean(x**2)

    return loss


def rms_norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def convolutions(order, **how):
    """Return the loss of a network of depthwise convolutions."""

    def loss(kernels, x):
        for k in kernels:
            n_features = x.shape[order[0].index("C")]
            x = lax.conv_general_dilated(x, k, dimension_numbers=order, feature_group_count=n_features, **how)
            x = jnp.tanh(x)
        return jnp.mean(x**2)

    return loss


LAST, FIRST, IN_TIME = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NWC", "WIO", "NWC")


def head(w, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w.T, labels).mean()


def experts(weights, x, sizes):
    for up, down in weights:
        x = x + lax.ragged_dot(jnp.tanh(lax.ragged_dot(x, up, sizes)), down, sizes)
    return jnp.mean(x**2)


def graph_network(weights, entries, x, indices):
    adjacency = sparse.BCOO((entries, indices), shape=(512, 512))
    for w in weights:
        x = jnp.tanh(adjacency @ (x @ w))
    return jnp.mean(x**2)


def counted(w, x):
    """Count and choose by integers in a loop."""

    def step(state, _):
        k, h = state
        chosen = (jnp.arange(64, dtype="int32") + k) % 2 == 0
        return (k + 1, jnp.where(chosen, jnp.sin(h @ w), h)), None

    return jnp.sum(lax.scan(step, (jnp.int32(0), x), None, length=32)[0][1] ** 2)


def mixed_precision(weights, x):
    """Return the loss of a network that computes in bfloat16 with weights of float32."""
    x = x.astype("bfloat16")
    for w in weights:
        x = x + jax.nn.gelu(x @ w.astype("bfloat16"))
    return jnp.mean(x.astype("float32") ** 2)


def stacked_layers(weights, x):
    x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w.astype(x.dtype)), None), x.astype("bfloat16"), weights)
    return jnp.mean(x.astype("float32") ** 2)


KINDS = {
    "sines are computed again": (chain(lambda z: z + jnp.sin(z) ** 2), (SQUARES, TOKENS), EXACT),
    "so are products of them": (chain(lambda z: jnp.sin(z) * jnp.cos(z)), (SQUARES, TOKENS), EXACT),
    "x sin(x)": (chain(lambda z: z * jnp.sin(z)), (SQUARES, TOKENS), EXACT),
    "mish": (chain(jax.nn.mish), (SQUARES, TOKENS), EXACT),
    "softplus of a product": (chain(lambda z: jax.nn.softplus(z * 2) * jax.nn.sigmoid(z)), (SQUARES, TOKENS), CLOSE),
    "arctan2": (chain(lambda z: jnp.arctan2(z, 1 + z * z)), (SQUARES, TOKENS), EXACT),
    "a power": (chain(lambda z: jnp.abs(z) ** 1.5), (SQUARES, TOKENS), EXACT),
    "rms norm": (residual(lambda x, w: jnp.tanh(rms_norm(x) @ w)), (SQUARES, TOKENS), EXACT),
    "layer norm": (residual(lambda x, w: jnp.tanh(layer_norm(x) @ w)), (SQUARES, TOKENS), EXACT),
    "a gated layer": (
        residual(lambda x, p: (jax.nn.silu(x @ p[0]) * (x @ p[1])) @ p[2]),
        ([(array(128, 512), array(128, 512), array(512, 128))] * 3, array(512, 128)),
        EXACT,
    ),
    "a gated linear unit": (
        residual(lambda x, p: jax.nn.glu(x @ p[0]) @ p[1]),
        ([(array(256, 512), array(256, 256))] * 3, TOKENS),
        EXACT,
    ),
    "a softmax's cross-entropy": (head, (array(8192, 64), array(256, 64), LABELS), EXACT),
    "with a smaller vocabulary": (head, (array(1000, 128), array(256, 128), LABELS), EXACT),
    "of bfloat16": (
        head,
        (array(8192, 64, dtype="bfloat16"), array(256, 64, dtype="bfloat16"), LABELS),
        CLOSE,
    ),
    "a depthwise convolution": (
        convolutions(LAST, window_strides=(1, 1), padding="SAME"),
        ([array(3, 3, 1, 512)] * 3, array(2, 16, 16, 512)),
        EXACT,
    ),
    "with a stride": (
        convolutions(LAST, window_strides=(2, 2), padding="SAME"),
        ([array(3, 3, 1, 384)] * 2, array(1, 32, 32, 384)),
        CLOSE,
    ),
    "of one image": (
        convolutions(LAST, window_strides=(1, 1), padding="VALID"),
        ([array(5, 5, 1, 256)] * 2, array(1, 24, 24, 256)),
        CLOSE,
    ),
    "in time": (
        convolutions(IN_TIME, window_strides=(1,), padding=[(3, 0)]),
        ([array(4, 1, 512)] * 3, array(2, 64, 512)),
        CLOSE,
    ),
    "experts of one layer": (
        lambda w, x, sizes: jnp.sum(jnp.sin(lax.ragged_dot(x, w, sizes))),
        (array(8, 64, 256), array(512, 64), array(8, dtype="int32")),
        EXACT,
    ),
    "experts": (experts, ([(array(4, 32, 128), array(4, 128, 32))] * 2, array(256, 32), array(4, dtype="int32")), 0.1),
    "a sparse matrix": (
        lambda entries, x, indices: jnp.sum(jnp.sin(sparse.BCOO((entries, indices), shape=(1024, 1024)) @ x) ** 2),
        (array(8192), array(1024, 128), array(8192, 2, dtype="int32")),
        EXACT,
    ),
    "a graph network": (
        graph_network,
        ([array(64, 64)] * 3, array(4096), array(512, 64), array(4096, 2, dtype="int32")),
        CLOSE,
    ),
    "mixed precision": (mixed_precision, (SQUARES, TOKENS), EXACT),
    "stacked layers of bfloat16": (
        stacked_layers,
        (array(12, 256, 256, dtype="bfloat16"), array(128, 256, dtype="bfloat16")),
        CLOSE,
    ),
    "many small ones": (
        stacked_layers,
        (array(24, 64, 64, dtype="bfloat16"), array(512, 64, dtype="bfloat16")),
        CLOSE,
    ),
    "stacked layers in mixed precision": (stacked_layers, (array(12, 256, 256), array(256, 256)), CLOSE),
    "integers in a loop": (counted, (array(64, 64), array(128, 64)), EXACT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_gradients_take_what_is_predicted(kind):
    loss, args, tolerance = KINDS[kind]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        graph = tb.capture_gradient(loss, *args)
        measured = tb.measure(jax.value_and_grad(loss), *args).peak_bytes
    assert predict_jax_gradient(graph).peak_bytes == pytest.approx(measured, rel=tolerance)


@pytest.mark.filterwarnings("ignore::tiny_backprop.NoGainWarning")
@pytest.mark.parametrize("kind", ["a gated layer", "a softmax's cross-entropy", "a depthwise convolution", "mish"])
def test_planned_gradients_take_what_is_predicted(kind):
    loss, args, _ = KINDS[kind]
    with jax.numpy_rank_promotion("allow"):
        gradient = tb.height_compressed_value_and_grad(loss, block_size=4, on_error="raise")
        predicted, measured = gradient.plan(*args).peak_bytes, tb.measure(gradient, *args).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.05)


def largest(fun, args):
    """Return what makes the arrays that take memory, the largest ones."""
    graph = tb.capture_graph_jaxpr(fun, example_inputs=args)
    table = predict_jax_gradient(graph).to_pandas()
    return table[table.bytes >= 2**18]


@pytest.mark.parametrize(
    ("name", "reduce", "n_large"),
    [
        ("a sum of integers", lambda x, y: jnp.sum((x * y > 1).astype("int32"), 1), 1),
        ("a product", lambda x, y: jnp.prod(x * y + 1, 1), 1),
        ("an index", lambda x, y: jnp.argmax(x * y + 1, 1), 0),
        ("a sum of floats", lambda x, y: jnp.sum(x * y + 1, 1), 0),
    ],
)
def test_reductions_that_the_library_lacks_read_from_memory(name, reduce, n_large):
    args = array(512, 256), array(512, 256)
    assert len(largest(reduce, args)) == n_large
    measured = tb.measure(jax.jit(reduce), *args).peak_bytes
    assert (measured > 2**19) == (n_large > 0), name


def test_kernels_that_become_ready_together_run_in_the_order_of_what_is_returned():
    def outputs(x, w, v):
        s = x @ w
        return jnp.tanh(jnp.cos(s) @ v), jnp.sin(jnp.tanh(s) @ v)

    x, w = array(512, 256), array(256, 256)

    def made_by(fun):
        graph = tb.capture_graph_jaxpr(fun, example_inputs=(x, w, w))
        return predict_jax_gradient(graph).to_pandas().made_by.tolist()

    order = made_by(outputs)
    assert order.index("cos") < order.index("tanh")
    order = made_by(lambda *args: outputs(*args)[::-1])
    assert order.index("tanh") < order.index("cos")
