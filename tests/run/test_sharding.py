"""Planned gradients over several devices; run in a process of its own, which has four."""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import tiny_backprop as tb

WS = [0.1 * jax.random.normal(jax.random.key(i), (16, 16)) for i in range(8)]
X = jax.random.normal(jax.random.key(9), (8, 16))

def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)

def check(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-6)

WANT = jax.grad(loss)(WS, X)
planned = tb.height_compressed_grad(loss, block_size=3)
assert planned.plan(WS, X).recompute_flops > 0
"""

CASES = {
    "automatic": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        xs = jax.device_put(X, NamedSharding(mesh, P("i")))
        check(planned(WS, xs), WANT)
        check(jax.jit(planned)(WS, xs), WANT)
        check(jax.jit(jax.grad(tb.checkpoint(loss, block_size=3)))(WS, xs), WANT)
    """,
    "explicit": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(mesh):
            xs = jax.device_put(X, NamedSharding(mesh, P("i", None)))
            ws = [jax.device_put(w, NamedSharding(mesh, P(None, None))) for w in WS]
            check(planned(ws, xs), WANT)
            check(jax.jit(jax.grad(tb.checkpoint(loss, block_size=3)))(ws, xs), WANT)
            by_input = tb.height_compressed_grad(loss, block_size=3, argnums=1)
            got = jax.jit(by_input)(ws, xs)
            check(got, jax.grad(loss, argnums=1)(WS, X))
            assert jax.typeof(got).sharding.spec == P("i", None)
    """,
    "loops": """
        XS = jax.random.normal(jax.random.key(8), (10, 8, 16))
        def loop(w, h, xs):
            h, ys = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h.sum(-1)), h, xs)
            return jnp.sum(h**2) + jnp.sum(ys**3)
        want = jax.grad(loop, argnums=2)(WS[0], X, XS)
        planned = tb.height_compressed_grad(loop, levels=2, argnums=2)
        assert planned.plan(WS[0], X, XS).nested
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
            with jax.set_mesh(mesh):
                x, xs = (jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((X, P("i")), (XS, P(None, "i"))))
                check(jax.jit(planned)(WS[0], x, xs), want)
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        for check_vma in (False, True):
            def over(gradient, specs=(P(), P("i"), P(None, "i"))):
                return jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[2],
                check_vma=check_vma))(WS[0], X, XS)
            check(over(planned), want)
    """,
    "carries that vary over an axis, and others": """
        def loop(w, x):
            def step(carry, y):
                a, b = carry
                return (jnp.tanh(a @ w + y.sum(0)), jnp.sin(b @ w)), (a.sum(), b)
            (a, b), (sums, bs) = jax.lax.scan(step, (x[0], jnp.ones(16)), jnp.stack([x, x, x]))
            return jax.lax.psum(a.sum() + sums.sum(), "i") + b.sum() + bs.sum()
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        def over(gradient):
            specs = (P(), P("i"))
            return jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs))(WS[0], X)
        for how in ({"levels": 2}, {"budget": 0.9}):
            planned = tb.height_compressed_grad(loop, argnums=(0, 1), on_error="raise", **how)
            check(over(planned), over(jax.grad(loop, argnums=(0, 1))))
    """,
    "shard_map": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        for check_vma in (False, True):
            def over(gradient):
                def f(ws, x):
                    return jax.tree.map(lambda g: jax.lax.pmean(g, "i"), gradient(ws, x))
                return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(),
                check_vma=check_vma))(WS, X)
            check(over(planned), over(jax.grad(loss)))
    """,
    "collectives": """
        mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
        def mean_loss(ws, x):
            return jax.lax.pmean(loss(ws, x), "i")
        def over(f):
            return jax.jit(jax.grad(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())))(WS, X)
        check(over(tb.checkpoint(mean_loss, block_size=3)), WANT)
        check(over(mean_loss), WANT)
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_sharded(case):
    script = PRELUDE + textwrap.dedent(CASES[case]) + "\nprint('all equal')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "all equal", done.stderr[-3000:]
