"""Capture: what ends up in a graph, and that it does not depend on notation."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tiny_backprop as tb
from tiny_backprop import CaptureError, analyze_graph, capture_gradient, capture_graph_jaxpr
from tiny_backprop.errors import CotangentWarning
from tiny_backprop.graph import LITERAL

X = jnp.ones((4, 8))
W = [0.1 * jax.random.normal(jax.random.key(i), (8, 8)) for i in range(6)]


def primitives(fun, *args):
    return [n.primitive for n in capture_graph_jaxpr(fun, example_inputs=args).nodes]


def mlp(wrap):
    """Return the loss of a residual MLP whose layers are wrapped by `wrap`."""

    def layer(w, x):
        return x + jnp.tanh(x @ w) * jax.nn.softplus(x)

    layer = wrap(layer)

    def loss(ws, x):
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    return loss


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
        lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable),
        lambda f: lambda w, x: jax.jit(lambda: f(w, x))(),
    ],
    ids=["jit", "checkpoint", "nested", "policy", "closure"],
)
def test_graph_and_verdict_do_not_depend_on_calls(wrap):
    plain, wrapped = mlp(lambda f: f), mlp(wrap)
    forward = capture_graph_jaxpr(plain, (W, X))
    assert capture_graph_jaxpr(wrapped, (W, X)).fingerprint == forward.fingerprint
    gradient, other = capture_gradient(plain, W, X), capture_gradient(wrapped, W, X)
    assert other.fingerprint == gradient.fingerprint
    assert analyze_graph(other).verdict == analyze_graph(gradient).verdict


def test_guide_example():
    def f(x):
        hidden = jnp.sin(x)
        return jnp.tanh(hidden @ jnp.ones((x.shape[-1], 3)))

    graph = capture_graph_jaxpr(f, example_inputs=(jnp.ones((2, 4)),))
    assert [n.primitive for n in graph.nodes] == ["sin", "broadcast_in_dim", "dot_general", "tanh"]
    assert graph.nodes[2].flops == 2 * 2 * 4 * 3
    assert graph.nodes[2].outputs[0].shape == (2, 3)


def test_structs_allocate_nothing_and_give_the_same_graph():
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (W, X))
    loss = mlp(lambda f: f)
    assert capture_gradient(loss, *structs).fingerprint == capture_gradient(loss, W, X).fingerprint
    huge = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)
    assert capture_graph_jaxpr(jnp.sin, (huge,)).value(1).bytes == 4 << 40


def test_keyword_inputs():
    def f(x, *, scale):
        return x * scale

    by_keyword = capture_graph_jaxpr(f, (X,), scale=X)
    assert by_keyword.input_names == ("args[0]", "scale")
    both = capture_graph_jaxpr(f, example_inputs={"x": X, "scale": X})
    assert both.input_names == ("scale", "x")
    assert both.primitives == by_keyword.primitives == ("mul",)
    with pytest.raises(CaptureError, match=r"must be a tuple .* write example_inputs=\(x,\)"):
        capture_graph_jaxpr(jnp.sin, X)


def test_operand_order_literals_and_constants():
    constant = np.arange(8.0, dtype=np.float32)
    graph = capture_graph_jaxpr(lambda x: (1.0 - x) - constant[None], (X,))
    first, *_, last = graph.nodes
    assert first.primitive == last.primitive == "sub"
    assert first.operands[0] is None
    assert first.operands[1].index == graph.n_inputs - 1
    assert last.operands[0].node == first.index
    assert graph.operands[0] == LITERAL
    assert graph.input_names[0] == "constant 0"
    assert graph.value(0).bytes == 32


def test_dead_code_is_dropped_and_multiple_outputs_are_kept():
    def f(x):
        jnp.cos(x) @ jnp.ones((8, 8))
        return jnp.split(x, 2, axis=1)[0], jnp.sin(x)

    graph = capture_graph_jaxpr(f, (X,))
    assert [n.primitive for n in graph.nodes] == ["split", "sin"]
    assert [v.shape for v in graph.nodes[0].outputs] == [(4, 4), (4, 4)]
    assert len(graph.outputs) == 2


def test_an_argument_or_a_literal_may_be_an_output():
    graph = capture_graph_jaxpr(lambda x: (x, 3.0, jnp.sin(x)), (X,))
    assert graph.outputs.tolist() == [0, LITERAL, 1]
    assert graph.output_bytes == 4 * 8 * 4


def test_shared_jit_is_inlined_once_per_call():
    f = jax.jit(lambda x: jnp.sin(x) * 2)
    assert primitives(lambda x: f(f(f(x))), X) == ["sin", "mul"] * 3


def test_custom_derivatives_are_those_of_the_rule():
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), (x,)), lambda r, ct: (ct * jnp.exp2(r[0]),))
    graph = capture_gradient(lambda x: f(x).sum(), X)
    backward = [n.primitive for n in graph.nodes if n.is_backward]
    assert "exp2" in backward
    assert "cos" not in graph.primitives

    @jax.custom_jvp
    def g(x):
        return lax.while_loop(lambda c: c[0, 0] < 5, lambda c: c + 1, x)

    g.defjvp(lambda p, t: (g(p[0]), t[0] * 3))
    assert jax.grad(lambda x: g(x).sum())(X)[0, 0] == 3
    assert capture_gradient(lambda x: g(x).sum(), X).primitives.count("while") == 1


@pytest.mark.parametrize(
    ("dtype", "n_bytes"),
    [(jnp.bfloat16, 64), (jnp.float8_e4m3fn, 32), (jnp.int4, 16), (jnp.bool_, 32), (jnp.complex64, 256)],
)
def test_bytes_of_narrow_dtypes(dtype, n_bytes):
    graph = capture_graph_jaxpr(lambda x: lax.convert_element_type(x, dtype), (X,))
    made = graph.nodes[-1].outputs[0]
    assert made.bytes == n_bytes
    assert made.dtype == np.dtype(dtype).name


def test_keys():
    def f(key, x):
        return jax.random.normal(jax.random.fold_in(key, 1), x.shape) * x

    graph = capture_gradient(f, jax.random.key(0), X, argnums=1)
    keys = [v for n in graph.nodes for v in n.outputs if v.dtype.startswith("key")]
    assert keys
    assert all(v.bytes == 8 for v in keys)


def test_effects_are_marked_and_survive_dead_code():
    def f(x):
        jax.debug.print("{}", x[0, 0])
        return jnp.sum(jnp.sin(x))

    graph = capture_gradient(f, X)
    marked = [n for n in graph.nodes if n.has_effect]
    assert len(marked) == 1
    assert not marked[0].is_backward


def test_phases_of_a_gradient():
    graph = capture_gradient(lambda x: jnp.sum(jnp.sin(jnp.sin(x))), X)
    assert graph.primitives[: graph.n_forward].count("sin") == 2
    assert graph.primitives.count("cos") == 2
    assert graph.n_backward >= 2
    assert graph.input_names == ("args[0]", "cotangent 0")
    # Whatever depends on the cotangent is backward.
    reached = {1}
    for node in graph.nodes:
        if any(v is not None and v.index in reached for v in node.operands):
            reached.update(v.index for v in node.outputs)
            assert node.is_backward


def test_source_lines_and_scopes():
    def f(x):
        with jax.named_scope("inner"):
            return jnp.sum(jnp.sin(x))

    graph = capture_gradient(f, X)
    sines = [n for n in graph.nodes if n.primitive == "sin"]
    assert all("test_capture.py:" in n.source and n.source.endswith("<locals>.f)") for n in sines)
    assert all("inner" in n.scope for n in sines)
    assert all("test_capture.py" in n.source for n in graph.nodes if n.is_backward and n.primitive == "mul")


def test_equations_of_a_librarys_jit_have_the_line_of_their_call():
    """`jnp.where`, `tril` and `log_softmax` are jitted by JAX, and cached by the time that they are captured again."""

    def fun(x):
        masked = jnp.where(jnp.tril(jnp.ones((8, 8), bool)), x, -1.0)
        return jax.nn.log_softmax(masked).sum()

    fun(jnp.ones((8, 8)))
    nodes = capture_gradient(fun, jnp.ones((8, 8))).nodes
    first = fun.__code__.co_firstlineno
    lines = {node.primitive: node.source for node in nodes if not node.is_backward}
    assert lines["select_n"].startswith(f"{__file__}:{first + 1} (")
    assert lines["exp"].startswith(f"{__file__}:{first + 2} (")
    assert all(node.source for node in nodes)


def test_loops_are_nodes_with_the_cost_of_all_their_steps():
    def f(x):
        return lax.scan(lambda c, _: (jnp.sin(c @ W[0]), None), x, None, length=10)[0].sum()

    graph = capture_gradient(f, X)
    scans = [n for n in graph.nodes if n.primitive == "scan"]
    assert [n.is_backward for n in scans] == [False, True]
    assert scans[0].flops >= 10 * 2 * 4 * 8 * 8


def test_any_outputs_can_have_cotangents():
    with pytest.warns(CotangentWarning, match="returns 2 arrays with a gradient .is it a training step"):
        graph = capture_gradient(lambda x: {"a": jnp.sin(x), "n": jnp.arange(3), "b": jnp.cos(x)}, X)
    assert graph.input_names == ("args[0]", "cotangent 0", "cotangent 1")
    assert graph.n_primal_outputs == 3


def test_argnums_and_aux():
    def f(a, b, n):
        return jnp.sum(a * b), {"aux": a}

    graph = capture_gradient(f, X, X, 3, argnums=(0, -2), has_aux=True)
    assert len(graph.outputs) == 2 + 2
    with pytest.raises(CaptureError, match="argnums=5 was asked for; f was given 3 positional arguments"):
        capture_gradient(f, X, X, 3, argnums=5, has_aux=True)
    with pytest.raises(CaptureError, match=r"args\[2\] has dtype int32, which has no gradient"):
        capture_gradient(f, X, X, 3, argnums=2, has_aux=True)
    with pytest.raises(CaptureError, match=r"must return a pair \(output, aux\)"):
        capture_gradient(lambda x: jnp.sum(x), X, has_aux=True)


def test_what_cannot_be_differentiated_is_named():
    def f(x):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x).sum()

    with pytest.raises(CaptureError, match=r"gradient of f was asked for.*(?s:.)*while_loop.*(?s:.)*lax.scan"):
        capture_gradient(f, X)
    # A loop that carries no gradient is only a node.
    stopped = capture_gradient(lambda x: (x * lax.stop_gradient(f(x))).sum(), X)
    assert stopped.primitives.count("while") == 1


def test_a_function_that_does_not_depend_on_its_argument():
    graph = capture_gradient(lambda x: 3.0, X)
    assert tb.plan_save_everything(graph).recompute_flops == 0


def test_nothing_is_captured_twice():
    """The graph has about as many equations as JAX's own gradient."""
    loss = mlp(lambda f: f)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(W, X)
    n_jax = sum(len(e.params["jaxpr"].eqns) if "jaxpr" in e.params else 1 for e in jaxpr.eqns)
    assert capture_gradient(loss, W, X).n_nodes <= n_jax * 1.2


def test_every_primitive_of_checkpoint_is_inlined():
    """JAX 0.12 has another one where it is asked to by `JAX_REMAT3`."""
    program = (
        "import jax, jax.numpy as jnp, tiny_backprop as tb\n"
        "f = jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x))))\n"
        "print(*tb.capture_gradient(f, jnp.ones(8)).primitives)"
    )
    for value in "01":
        environment = {**os.environ, "JAX_REMAT3": value}
        found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert "sin" in found.stdout, found.stderr
        assert not {"remat", "remat2", "checkpoint", "call_hi_primitive"} & set(found.stdout.split())
