"""Symbolic dimensions: captured once, the graph for any sizes is the one that tracing at these sizes gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.export import SymbolicScope, symbolic_shape

import tiny_backprop as tb
from benchmarks.models import gpt, small
from tests import programs
from tests.programs import assert_close, assert_same_bits
from tiny_backprop import CaptureError, PlanError, capture_gradient, capture_symbolic_gradient


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def example(model, **axes):
    """Return a loss and a function from dimensions to its arguments, those axes of all but the first replaced."""
    loss, (params, *data) = model

    def args(**sizes):
        shapes = [list(x.shape) for x in data]
        for name, places in axes.items():
            for i, axis in places:
                shapes[i][axis] = sizes[name]
        return (params, *(struct(*shape, dtype=x.dtype) for shape, x in zip(shapes, data, strict=True)))

    return loss, args


def symbolic_sizes(names, **kwargs):
    return dict(zip(names.split(", "), symbolic_shape(names, **kwargs), strict=True))


def assert_equal_at(symbolic, loss, args, *all_sizes):
    """Assert that the graphs are those of the traced gradient, in every field, those of nested steps too."""
    for sizes in all_sizes:
        traced = capture_gradient(loss, *args(**sizes))
        graph = symbolic.at(**sizes)
        assert graph.fingerprint == traced.fingerprint
        assert graph.to_data() == traced.to_data()


def mlp_loss(params, x, y):
    h = x
    for w in params:
        h = jax.nn.gelu(h @ w)
    h = (h - h.mean(0, keepdims=True)) * lax.rsqrt(h.var(0, keepdims=True) + 1e-5)
    picked = jax.nn.log_softmax(h)[jnp.arange(x.shape[0]), y]
    return -picked.mean() + 1e-3 * x.shape[0] * jnp.sum(jnp.square(h[1:, :-1])) + h[:, -1].sum()


def mlp_args(batch):
    return [jnp.ones((8, 8))] * 3, struct(batch, 8), struct(batch, dtype=jnp.int32)


def conv_loss(w, images):
    x = lax.conv_general_dilated(images, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.square(jnp.concatenate([x, 2 * x], -1).mean((1, 2))).sum()


def valid_conv_loss(w, images):
    x = lax.conv_general_dilated(images, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.square(jax.nn.relu(x[:, ::2, 1:]).mean((1, 2))).sum()


def two_loops(w, xs):
    """An LSTM-like loop inside a loop: the bodies' bodies have the symbolic batch, too."""

    def inner(h, x):
        return jnp.tanh(h @ w + x), h

    def outer(h, x):
        h, hs = lax.scan(inner, h, jnp.broadcast_to(x[None], (5, *x.shape)))
        return h, hs.sum(0)

    h, ys = lax.scan(outer, jnp.zeros(xs.shape[1:]), xs)
    return jnp.sum(h**2) + jnp.mean(ys)


MODELS = {
    "mlp": ((mlp_loss, mlp_args), ["batch"], [(2,), (7,), (128,), (1000,)]),
    "gpt": (
        example(
            gpt.example(gpt.GPTConfig(n_layers=2, n_batch=2, n_tokens=16, width=32, n_heads=2, n_vocabulary=64)),
            batch=[(0, 0)],
        ),
        ["batch"],
        [(2,), (8,), (33,)],
    ),
    "convolutions": (
        (conv_loss, lambda batch: (jnp.ones((3, 3, 4, 8)), struct(batch, 16, 16, 4))),
        ["batch"],
        [(4,), (16,), (129,)],
    ),
    "lstm": (
        example(small.lstm(length=8, width=8, n_batch=2), length=[(0, 0)], batch=[(0, 1)]),
        ["length", "batch"],
        [(8, 4), (1000, 32), (2, 2)],
    ),
    "loop in a loop": (
        (two_loops, lambda length, batch: (jnp.ones((4, 4)), struct(length, batch, 4))),
        ["length", "batch"],
        [(8, 4), (64, 32)],
    ),
    "experts": (
        example(
            small.mixture_of_experts(n_layers=1, width=16, n_batch=2, n_tokens=16),
            batch=[(0, 0), (1, 0)],
            tokens=[(0, 1), (1, 1)],
        ),
        ["batch", "tokens"],
        [(4, 64), (64, 4)],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_graph_is_that_of_tracing(name):
    (loss, args), names, sizes = MODELS[name]
    with jax.numpy_rank_promotion("allow"):
        symbolic = capture_symbolic_gradient(loss, *args(**symbolic_sizes(", ".join(names))))
        assert set(symbolic.dimensions) == set(names)
        assert_equal_at(symbolic, loss, args, *(dict(zip(names, s, strict=True)) for s in sizes))


def test_sizes_of_one_are_traced_because_jax_broadcasts_them():
    loss, args = example(small.mixer(n_layers=1, n_batch=2, n_patches=8, width=8), batch=[(0, 0), (1, 0)])
    symbolic = capture_symbolic_gradient(loss, *args(**symbolic_sizes("batch")))
    assert symbolic.at(batch=1).n_nodes != symbolic.at(batch=2).n_nodes  # JAX squeezes such a batch
    assert_equal_at(symbolic, loss, args, {"batch": 1}, {"batch": 2})


@pytest.mark.parametrize(
    ("loss", "args", "sizes"),
    [
        (
            lambda w, x: jnp.sum(jnp.sin((w @ x).reshape(x.shape[1], 4))),
            lambda batch: (jnp.ones((4, 4)), struct(4, batch)),
            [(3,), (4,), (8,)],
        ),
        (
            lambda w, x: jnp.sum(jnp.sin(w * x).reshape(x.shape[1], x.shape[0])),
            lambda rows, columns: (jnp.ones(()), struct(rows, columns)),
            [(3, 5), (5, 5)],
        ),
        (
            lambda w, x: jnp.sum(jax.image.resize(w * x, (x.shape[0], 16), "linear")),
            lambda batch, pixels: (jnp.ones(()), struct(batch, pixels)),
            [(8, 16), (16, 12)],
        ),
    ],
    ids=["reshape", "square", "resize"],
)
def test_sizes_where_jax_leaves_an_operation_out_are_traced(loss, args, sizes):
    names = list(args.__code__.co_varnames)
    dimensions = symbolic_sizes(", ".join(names), constraints=[f"{n} >= 3" for n in names])
    symbolic = capture_symbolic_gradient(loss, *args(**dimensions))
    n_nodes = {symbolic.at(**dict(zip(names, s, strict=True))).n_nodes for s in sizes}
    assert len(n_nodes) == 2
    assert_equal_at(symbolic, loss, args, *(dict(zip(names, s, strict=True)) for s in sizes))


def test_nothing_is_traced_again():
    n_traces = 0

    def loss(w, x):
        nonlocal n_traces
        n_traces += 1
        return jnp.sum(jnp.sin(x @ w))

    symbolic = capture_symbolic_gradient(loss, jnp.ones((4, 4)), struct(*symbolic_shape("batch, 4")))
    before = n_traces
    graphs = [symbolic.at(batch=n) for n in (2, 3, 50, 2)]
    assert n_traces == before
    assert graphs[0] is graphs[-1]
    assert graphs[0].fingerprint != graphs[1].fingerprint


def test_a_plan_of_it_runs():
    x = struct(*symbolic_shape("batch, 16"))
    symbolic = capture_symbolic_gradient(programs.loss, programs.PARAMS, x, programs.KEY)
    plan = tb.plan_blocks(symbolic.at(batch=8), block_size=3)
    args = programs.PARAMS, programs.X, programs.KEY
    got = tb.height_compressed_grad(programs.loss, plan=plan, on_error="raise")(*args)
    assert_same_bits(got, tb.height_compressed_grad(programs.loss, block_size=3)(*args))
    assert_close(got, jax.grad(programs.loss)(*args))
    with pytest.raises(PlanError, match="fingerprint"):
        tb.height_compressed_grad(programs.loss, plan=plan)(args[0], args[1][:4], args[2])


def test_plan_of_a_loop_runs():
    loss, args = MODELS["loop in a loop"][0]
    symbolic = capture_symbolic_gradient(loss, *args(**symbolic_sizes("length, batch")))
    plan = tb.plan_height_compressed(symbolic.at(length=16, batch=3), levels=2)
    w, xs = 0.3 * jax.random.normal(jax.random.key(0), (4, 4)), jax.random.normal(jax.random.key(1), (16, 3, 4))
    got = tb.height_compressed_grad(loss, plan=plan, on_error="raise")(w, xs)
    np.testing.assert_allclose(got, jax.grad(loss)(w, xs), rtol=1e-4, atol=1e-5)


def test_derived_dimensions_constraints_and_aux():
    def loss(x, y):
        pooled = x.reshape(x.shape[0] // 4, 4, x.shape[1]).mean(1)
        return jnp.sum(pooled * y), jnp.max(x)

    batch, width = symbolic_shape("batch, width", constraints=["mod(batch, 4) == 0", "batch <= 512"])
    args = lambda b, w: (struct(b, w), struct(b // 4, w))  # noqa: E731
    symbolic = capture_symbolic_gradient(loss, *args(batch, width), argnums=(0, 1), has_aux=True)
    assert {"mod(batch, 4) == 0", "batch <= 512"} <= set(symbolic.constraints)
    for b, w in ((8, 3), (512, 5)):
        traced = capture_gradient(loss, *args(b, w), argnums=(0, 1), has_aux=True)
        assert symbolic.at(batch=b, width=w).to_data() == traced.to_data()
    with pytest.raises(CaptureError, match=r"batch=6, width=2 was asked for.*mod\(batch, 4\) == 0"):
        symbolic.at(batch=6, width=2)
    with pytest.raises(CaptureError, match="batch <= 512"):
        symbolic.at(batch=516, width=2)


def test_narrow_constraints_still_leave_sizes_to_trace_at():
    batch, tokens = symbolic_shape("batch, tokens", constraints=["batch <= 6", "batch >= 3", "tokens >= 2*batch"])
    args = lambda b, t: (struct(b, t),)  # noqa: E731
    loss = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    symbolic = capture_symbolic_gradient(loss, *args(batch, tokens))
    assert symbolic.at(batch=5, tokens=40).to_data() == capture_gradient(loss, *args(5, 40)).to_data()
    (batch,) = symbolic_shape("batch", constraints=["batch <= 4", "batch >= 3"])
    with pytest.raises(CaptureError, match=r"dimension batch under batch <= 4 and batch >= 3.*traced at three"):
        capture_symbolic_gradient(loss, struct(batch))


def test_convolution_over_symbolic_pixels_needs_a_least_size():
    args = lambda b, p: (jnp.ones((3, 3, 4, 8)), struct(b, p, p, 4))  # noqa: E731
    with pytest.raises(CaptureError, match="InconclusiveDimensionOperation"):
        capture_symbolic_gradient(valid_conv_loss, *args(*symbolic_shape("batch, pixels")))
    sizes = symbolic_shape("batch, pixels", constraints=["pixels >= 4"])
    symbolic = capture_symbolic_gradient(valid_conv_loss, *args(*sizes))
    for b, p in ((4, 16), (16, 224), (2, 65)):
        traced = capture_gradient(valid_conv_loss, *args(b, p))
        assert symbolic.at(batch=b, pixels=p).to_data() == traced.to_data()


def test_arguments_of_given_sizes():
    x, key = struct(*symbolic_shape("batch, 4")), jax.random.key(0)
    symbolic = capture_symbolic_gradient(lambda w, x, key: jnp.sum(w @ x.T), jnp.ones((2, 4)), x, key=key)
    (w, at), kwargs = symbolic.args_at(batch=3)
    assert (at.shape, at.dtype, w.shape, kwargs) == ((3, 4), jnp.float32, (2, 4), {"key": key})


# ---- what cannot be ----


def refused(loss, shape="batch, 4", **kwargs):
    with pytest.raises(CaptureError) as e:
        capture_symbolic_gradient(loss, jnp.ones((4, 4)), struct(*symbolic_shape(shape, **kwargs)))
    return str(e.value)


def test_branch_on_a_size_is_refused_unless_a_constraint_decides_it():
    def loss(w, x):
        if x.shape[0] > 16:
            return jnp.sum(x @ w)
        return jnp.sum(jnp.sin(x) @ w)

    said = refused(loss)
    assert "can be captured with batch=11, but not with symbolic dimensions" in said
    assert "test_symbolic.py" in said
    assert "(loss)" in said
    assert "InconclusiveDimensionOperation" in said
    assert "constraints=" in said
    assert "capture_gradient" in said
    w, x = jnp.ones((4, 4)), struct(*symbolic_shape("batch, 4", constraints=["batch >= 17"]))
    symbolic = capture_symbolic_gradient(loss, w, x)
    assert symbolic.at(batch=40).to_data() == capture_gradient(loss, w, struct(40, 4)).to_data()


@pytest.mark.parametrize(
    "size", [int, np.log2, lambda n: np.zeros(n).size, lambda n: len(range(n))], ids=["int", "log", "zeros", "range"]
)
def test_size_as_a_number_is_refused(size):
    said = refused(lambda w, x: jnp.sum(x @ w) * size(x.shape[0]))
    assert "test_symbolic.py" in said
    assert "wants a size as a number" in said


def test_size_that_jax_itself_wants_as_a_number():
    assert "wants a size as a number" in refused(lambda w, x: jnp.sum(lax.associative_scan(jnp.multiply, x @ w)))
    said = refused(lambda w, x: jnp.sum(x.reshape(-1, 8, 4) @ w))  # neither all sizes nor the sample divide
    assert "neither with symbolic dimensions" in said
    assert "nor with batch=11" in said
    assert "mod(batch, 8) == 0" in said


def test_loop_of_symbolic_length_without_stacked_arrays():
    loss = lambda w, x: jnp.sum(lax.fori_loop(0, x.shape[0], lambda i, y: jnp.tanh(y @ w), x))  # noqa: E731
    assert "wants a size as a number" in refused(loss)


def test_program_that_only_some_sizes_give_is_refused():
    @jax.custom_vjp
    def identity(x):
        return x

    def backward(_, g):  # hides its branch from symbolic tracing
        n = g.shape[0]
        return (g * 2 / 2 if not isinstance(n, int) or n % 17 else g,)

    identity.defvjp(lambda x: (x, None), backward)
    said = refused(lambda w, x: jnp.sum(identity(x @ w)))
    assert "becomes another program with batch=11 than with batch=17" in said
    assert "capture each" in said


def test_number_that_is_no_multiple_of_a_dimension_is_refused():
    def loss(w, x):
        n = x.shape[0]
        return jnp.sum(x @ w) + jnp.zeros(3 if not isinstance(n, int) else n.bit_length() ** 2 % 7 + n**3 % 5).sum()

    assert "becomes another program with" in refused(loss)


def test_order_of_contraction_that_depends_on_sizes_is_refused_unless_a_constraint_decides_it():
    loss = lambda w, x: jnp.sum(jnp.einsum("bi,ij,jk->bk", x, w, w.T))  # noqa: E731
    args = lambda batch: (jnp.ones((64, 256)), struct(batch, 64))  # noqa: E731
    with pytest.raises(CaptureError, match=r"another program with batch=17 than with batch=1048576: node(.|\n)*<= 64"):
        capture_symbolic_gradient(loss, *args(*symbolic_shape("batch")))
    symbolic = capture_symbolic_gradient(loss, *args(*symbolic_shape("batch", constraints=["batch <= 32"])))
    assert_equal_at(symbolic, loss, args, {"batch": 2}, {"batch": 32})


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, r"no size was asked for; <lambda> has the dimensions batch.*at\(batch=…\)"),
        ({"b": 3}, "b=3 was asked for; <lambda> has the dimensions batch"),
        ({"batch": 2, "b": 3}, "batch=2, b=3 was asked for"),
        *(({"batch": n}, "sizes are whole numbers of at least 1") for n in (0, -3, 2.5, "4", True, None)),
    ],
)
def test_sizes_that_are_none(sizes, said):
    symbolic = capture_symbolic_gradient(lambda x: jnp.sum(x), struct(*symbolic_shape("batch")))
    with pytest.raises(CaptureError, match=said):
        symbolic.at(**sizes)


def test_arguments_without_symbolic_dimensions_or_of_two_scopes():
    with pytest.raises(CaptureError, match="was given none"):
        capture_symbolic_gradient(lambda x: jnp.sum(x), jnp.ones(3))
    (a,), (b,) = (symbolic_shape(n, scope=SymbolicScope()) for n in "ab")
    with pytest.raises(CaptureError, match="dimensions a, b of 2 scopes"):
        capture_symbolic_gradient(lambda x, y: jnp.sum(x) + jnp.sum(y), struct(a), struct(b))


def test_what_needs_numbers_names_the_way():
    loss, x = lambda x: jnp.sum(x), struct(*symbolic_shape("batch"))
    for needs in (capture_gradient, lambda f, x: tb.height_compressed_grad(f).plan(x)):
        with pytest.raises(CaptureError, match=r"symbolic dimensions batch.*capture_symbolic_gradient"):
            needs(loss, x)
