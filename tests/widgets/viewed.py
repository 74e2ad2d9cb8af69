"""What several tests of views show, and how what a view sends is read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.graphs import chain
from tiny_backprop import (
    Graph,
    measure,
    plan_blocks,
)

GRAPH = chain(40, n_bytes=2**20)
PLAN = plan_blocks(GRAPH, 7)
EVIL = "<img src=x onerror=alert(1)>\"'\u202eRTL \u05e9 \U0001f600\x00\x07" + "x" * 10_000


def array(data, dtype, *shape):
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(*(shape or (-1,)))


@functools.cache
def memory_map():
    """Return what XLA allocates for the gradient of a scan of 9 steps between two scopes."""

    def loss(w, x):
        with jax.named_scope("before"):
            x = jnp.tanh(x @ w)
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=9)
        with jax.named_scope("after"):
            return jnp.sum(jnp.tanh(x @ w) ** 2)

    shapes = jax.ShapeDtypeStruct((32, 32), "float32"), jax.ShapeDtypeStruct((64, 32), "float32")
    return measure(jax.grad(loss, (0, 1)), *shapes).memory_map


def evil_graph():
    node = dict(bytes=8, primitive=EVIL, scope=EVIL, source=EVIL + ":3 (f)")
    nodes = [dict(name="h", **node), dict(name="d", reads=["h"], is_backward=True, **node)]
    return Graph.from_nodes(nodes, outputs=["d"], name=EVIL)


def sent(view):
    """Return what a page is told of each buffer, read back from the bytes and strings."""
    texts = array(view._texts, "i4", -1, 8)
    names = ("memory", "kind", "shape", "instruction", "op_name", "scope", "source", "loop")
    lives, places = array(view._lives, "i4", -1, 4).tolist(), array(view._places, "f8", -1, 3).tolist()
    return [
        (i, first, last, freed, n_bytes, offset, base, {n: view._strings[t] for n, t in zip(names, row, strict=True)})
        for (i, first, last, freed), (base, n_bytes, offset), row in zip(lives, places, texts, strict=True)
    ]
