"""Graphs of symbolic dimensions against traced ones, and how long they take: `python -m benchmarks.symbolic`.

Each model is captured once with symbolic dimensions. At each of some sizes, the graph that comes of it is held against
that of `capture_gradient`, in every field, loops included, and both are timed. Nothing is compiled or run. Ends with an
error where a graph differs, or where 1,000 equations take more than 100 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

import tiny_backprop as tb
from benchmarks.models import flax_gpt2, gpt, resnet, small, vit

_MOST_SECONDS_PER_1000 = 0.1

Axes = Mapping[str, Sequence[tuple[int, int]]]
Model = tuple[Callable[[], Any], Axes, Sequence[Mapping[str, int]]]
"""Makes a loss and its arguments; (argument, axis) of each dimension; sizes to hold against tracing."""


def perceptron(n_layers: int) -> Any:
    """Return a perceptron of so many layers, and shapes for it; some seven equations a layer."""

    def loss(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    shapes = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * n_layers
    return loss, (shapes, jax.ShapeDtypeStruct((4, 16), jnp.float32))


_OF_X = {"batch": [(1, 0)]}
_OF_X_AND_Y = {"batch": [(1, 0), (2, 0)]}
_BATCHES = [{"batch": n} for n in (2, 8, 33, 256)]
MODELS: dict[str, Model] = {
    "perceptron, 166 layers": (lambda: perceptron(166), _OF_X, _BATCHES),
    "perceptron, 1,666 layers": (lambda: perceptron(1_666), _OF_X, _BATCHES),
    "gpt": (lambda: gpt.example(gpt.GPTConfig(n_layers=6)), _OF_X, _BATCHES),
    "gpt-scan": (lambda: gpt.example(gpt.GPTConfig(n_layers=6, is_scanned=True)), _OF_X, _BATCHES),
    "flax-gpt2": (lambda: flax_gpt2.example(), _OF_X, _BATCHES),
    "bert": (lambda: small.bert(), _OF_X, _BATCHES),
    "llama": (lambda: small.llama(), _OF_X, _BATCHES),
    "vit": (lambda: vit.example(), _OF_X_AND_Y, _BATCHES),
    "resnet-18": (lambda: resnet.example(), {"batch": [(2, 0), (3, 0)]}, _BATCHES),
    "unet": (lambda: small.unet(), _OF_X_AND_Y, _BATCHES),
    "densenet": (lambda: small.densenet(), _OF_X_AND_Y, _BATCHES),
    "mixer": (lambda: small.mixer(), _OF_X_AND_Y, [{"batch": 1}, *_BATCHES]),
    "lstm": (
        lambda: small.lstm(),
        {"length": [(1, 0)], "batch": [(1, 1)]},
        [{"length": t, "batch": b} for t, b in ((16, 4), (1_000, 32), (100_000, 2))],
    ),
    "neural-ode": (lambda: small.neural_ode(), _OF_X, _BATCHES),
    "experts": (
        lambda: small.mixture_of_experts(),
        {"batch": [(1, 0), (2, 0)], "tokens": [(1, 1), (2, 1)]},
        [{"batch": b, "tokens": t} for b, t in ((4, 64), (32, 16), (3, 1_000))],
    ),
}


def sized(args: Sequence[Any], axes: Axes, sizes: Mapping[str, Any]) -> list[Any]:
    """Return the arguments with these sizes, numbers or symbolic, in their places."""
    shapes = {i: list(args[i].shape) for places in axes.values() for i, _ in places}
    for name, places in axes.items():
        for i, axis in places:
            shapes[i][axis] = sizes[name]
    return [jax.ShapeDtypeStruct(shapes[i], x.dtype) if i in shapes else x for i, x in enumerate(args)]


def compare(name: str, model: Model) -> dict[str, Any]:
    """Capture a model with symbolic dimensions, and hold its graphs against traced ones."""
    make, axes, all_sizes = model
    loss, args = make()
    dimensions = dict(zip(axes, jax.export.symbolic_shape(", ".join(axes)), strict=True))
    row: dict[str, Any] = {"model": name, "dimensions": ", ".join(axes)}
    try:
        row["capture_seconds"], symbolic = _timed(
            lambda: tb.capture_symbolic_gradient(loss, *sized(args, axes, dimensions))
        )
    except tb.CaptureError as e:
        return row | {"is_equal": False, "note": str(e).splitlines()[0]}
    at_seconds, trace_seconds, differing = [], [], []
    for sizes in all_sizes:
        seconds, graph = _timed(lambda sizes=sizes: symbolic.at(**sizes))
        trace, traced = _timed(lambda sizes=sizes: tb.capture_gradient(loss, *sized(args, axes, sizes)))
        at_seconds += [seconds] if 1 not in sizes.values() else []
        trace_seconds.append(trace)
        differing += [str(sizes)] if graph.to_data() != traced.to_data() else []
        row["nodes"] = traced.n_nodes
    return row | {
        "trace_seconds": statistics.median(trace_seconds),
        "at_ms": 1e3 * statistics.median(at_seconds),
        "sizes": len(all_sizes),
        "is_equal": not differing,
        "note": ", ".join(differing),
    }


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main(argv: Sequence[str] | None = None) -> int:
    """Compare from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.symbolic", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, help="compare these models alone")
    rows = []
    for name in parser.parse_args(argv).only or MODELS:
        rows.append(compare(name, MODELS[name]))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.2f", max_colwidth=None, line_width=10_000))
    per_1000 = table.at_ms / table.nodes
    is_fast = bool((per_1000[table.nodes >= 500] <= _MOST_SECONDS_PER_1000).all())
    print(f"ms per equation, models of at least 500: worst {per_1000[table.nodes >= 500].max():.4f}")
    return 0 if is_fast and bool(table.is_equal.all()) else 1


if __name__ == "__main__":
    sys.exit(main())
