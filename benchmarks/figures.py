"""The figures that tiny_backprop is to reach, measured on this machine: `python -m benchmarks.figures`.

Prints one row per figure with its target and whether it was met; ends with an error where one was missed. Memory is
what XLA allocates for temporaries, FLOPs are counted in the compiled program, times are medians by the clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.demo import MOST_EPSILONS, MOST_FLOPS_RATIO, MOST_TEMP_RATIO, Difference, best_row, difference
from benchmarks.models import flax_gpt2, gpt
from tiny_backprop.plan.strategies.budget import budget_range_bytes
from tiny_backprop.predict.materialized import Materialized
from tiny_backprop.units import format_bytes

_PLAIN = "jax.value_and_grad"
# Pairs of levels and block size that come near the least temporaries within the FLOPs, found by compiling them.
GPT_SHAPES = ((1, 45), (1, 60), (1, 72))
FLAX_SHAPES = ((1, 40), (1, 50), (1, 60), (1, 75), (1, 100), (2, 20), (2, 30))


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure and its target.

    Attributes:
      name: What was measured.
      value: The figure.
      target: The most it may be; `inf` where it is only to be known.
      unit: Unit of both.
      note: How it came about.
    """

    name: str
    value: float
    target: float
    unit: str
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the figure is within its target; NaN is not."""
        return self.value <= self.target


# ---- memory, FLOPs and time of a planned gradient ----


def candidates(graph: tb.Graph, shapes: Sequence[tuple[int, int]]) -> dict[str, tb.Plan]:
    """Return the best plan in blocks, as predicted, and one for each pair of levels and block size."""
    plans = [tb.plan_blocks(graph), *(tb.plan_height_compressed(graph, levels, size) for levels, size in shapes)]
    return {f"levels {p.meta['levels']}, block size {p.meta['block_size']}": p for p in plans}


def memory_figures(
    name: str, example: tuple[Any, tuple], most_temp_ratio: float, shapes: Sequence[tuple[int, int]], n_steps: int
) -> list[Figure]:
    """Compile some plans of a model's gradient; of those within both targets, report the one that runs fastest."""
    loss, args = example
    plans = candidates(tb.capture_gradient(loss, *args), shapes)
    with tqdm(total=len(plans) + 1, desc=name, leave=False) as bar:
        table = tb.compare(loss, *args, plans=plans, stock_policies=(), progress=lambda _: bar.update())
    least = best_row(table, list(plans))
    within = table.loc[list(plans)].query("temp_ratio <= @most_temp_ratio and flops_ratio <= @MOST_FLOPS_RATIO")
    seconds, apart = _run(loss, args, {k: plans[k] for k in list(within.index) or [least]}, n_steps)
    plain_seconds = seconds.pop(_PLAIN)
    fastest = min(seconds, key=lambda k: seconds[k])
    row = table.loc[fastest]
    time_note = f"{seconds[fastest]:.3g} s, plain {plain_seconds:.3g} s"
    return [
        Figure(f"{name}: least temp", table.temp_ratio[least], most_temp_ratio, "×", _memory_note(table, least)),
        Figure(f"{name}: temp", row.temp_ratio, most_temp_ratio, "×", _memory_note(table, fastest)),
        Figure(f"{name}: FLOPs", row.flops_ratio, MOST_FLOPS_RATIO, "×", f"{fastest}, the fastest of {len(seconds)}"),
        Figure(f"{name}: step time", seconds[fastest] / plain_seconds, 1.0, "×", f"{fastest}: {time_note}"),
        Figure(f"{name}: gradient", apart[fastest].epsilons, MOST_EPSILONS, "eps", str(apart[fastest])),
    ]


def _memory_note(table: pd.DataFrame, name: str) -> str:
    row = table.loc[name]
    of_plain = f"{format_bytes(row.measured_temp_bytes)} of {format_bytes(table.measured_temp_bytes.iloc[0])}"
    peaks = f"{format_bytes(row.predicted_peak_bytes)} predicted, {format_bytes(row.measured_peak_bytes)} measured"
    return f"{name}: {of_plain} at {row.flops_ratio:.2f} × FLOPs; peak {peaks}"


def _run(
    loss: Callable[..., Any], args: Sequence[Any], plans: dict[str, tb.Plan], n_steps: int
) -> tuple[dict[str, float], dict[str, Difference]]:
    """Return median seconds of the plain and each planned gradient, and how far the planned ones are from the plain."""
    funs = {_PLAIN: jax.value_and_grad(loss)}
    funs |= {name: tb.height_compressed_value_and_grad(loss, plan=plan) for name, plan in plans.items()}
    compiled = {name: tb.jit(fun).lower(*args).compile() for name, fun in funs.items()}
    expected = compiled[_PLAIN](*args)
    apart = {name: difference(compiled[name](*args), expected) for name in plans}
    seconds = interleaved_seconds([lambda c=c: c(*args) for c in compiled.values()], n_steps)
    return dict(zip(compiled, seconds, strict=True)), apart


def interleaved_seconds(calls: Sequence[Callable[[], Any]], n_repeats: int) -> list[float]:
    """Return the median seconds of each call, run in turn so that a busy machine is busy for all of them."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(n_repeats):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


# ---- what planning costs ----


def overhead_figures(n_repeats: int) -> list[Figure]:
    """Time capture, plan and rewrite of the GPT's gradient against tracing it alone."""
    loss, *args = abstract_gpt(gpt.GPTConfig())

    def planned() -> None:
        tb.height_compressed_grad(loss).plan(*args)

    def traced() -> None:
        jax.make_jaxpr(jax.grad(loss))(*args)

    def cold(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: (jax.clear_caches(), call())[1]

    figures = []
    for state, calls in (("JAX's caches empty", map(cold, (planned, traced))), ("in use", (planned, traced))):
        ours, theirs = interleaved_seconds(list(calls), n_repeats)
        note = f"{ours:.2f} s, make_jaxpr(grad) {theirs:.2f} s; GPT, block size chosen by itself"
        figures.append(Figure(f"capture + plan + rewrite, {state}", ours / theirs, 3.0, "×", note))
    return figures


def cached_call_figure(n_repeats: int, n_leaves: int = 200) -> Figure:
    """Time a planned gradient's second and later calls against the same gradient inside `jax.jit`."""
    params = {f"w{i}": jnp.ones(2) for i in range(n_leaves)}

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return sum((jnp.sum(jnp.sin(w) ** 2) for w in params.values()), jnp.zeros(()))

    planned = tb.height_compressed_grad(loss, block_size=100)
    compiled = jax.jit(planned)
    calls = [lambda: planned(params), lambda: compiled(params)]
    interleaved_seconds(calls, 1)
    ours, own = interleaved_seconds(calls, n_repeats)
    note = f"{1e3 * ours:.2f} ms, in jax.jit {1e3 * own:.2f} ms; {n_leaves} arrays"
    return Figure("a cached call adds", 1e3 * (ours - own), 1.0, "ms", note)


def chain(n_nodes: int) -> tb.Graph:
    """Return the gradient graph of a chain of equal nodes, half of `n_nodes` forward."""
    n = n_nodes // 2
    forward = [
        {"name": f"h{i}", "bytes": 1024, "flops": 1000, "reads": [f"h{i - 1}"] if i else ["x"]} for i in range(n)
    ]
    backward = [
        {
            "name": f"d{i}",
            "bytes": 1024,
            "flops": 2000,
            "reads": ([f"d{i + 1}"] if i < n - 1 else ["ct"]) + [f"h{i - 1}" if i else "x"],
            "is_backward": True,
        }
        for i in reversed(range(n))
    ]
    return tb.Graph.from_nodes(forward + backward, inputs={"x": 1024, "ct": 1024}, outputs=["d0"], name="chain")


def irregular(n_nodes: int, seed: int = 0) -> tb.Graph:
    """Return a gradient graph without layers: sizes and costs spread over orders of magnitude, skips near and far."""
    rng = np.random.default_rng(seed)
    n = n_nodes // 2
    reads = [{max(i - 1, 0), *(i - 1 - rng.integers(0, 20, rng.integers(0, 3)))} for i in range(n)]
    for i in rng.choice(n, n // 20, replace=False).tolist():
        reads[i].add(int(rng.integers(0, i + 1)))
    operands = [sorted(f"h{j}" for j in map(int, r) if 0 <= j < i) or ["x"] for i, r in enumerate(reads)]
    readers: dict[str, list[str]] = {}
    for i, names in enumerate(operands):
        for name in names:
            readers.setdefault(name, []).append(f"d{i}")
    sizes, costs = np.exp(rng.normal(10, 1, n)).astype(int).tolist(), np.exp(rng.normal(15, 2, n)).tolist()
    forward = [{"name": f"h{i}", "bytes": sizes[i], "flops": costs[i], "reads": operands[i]} for i in range(n)]
    backward = [
        {
            "name": f"d{i}",
            "bytes": sizes[i],
            "flops": 2 * costs[i],
            "reads": [*readers.get(f"h{i}", ["ct"]), f"h{i}", *operands[i]],
            "is_backward": True,
        }
        for i in reversed(range(n))
    ]
    return tb.Graph.from_nodes(forward + backward, inputs={"x": 1024, "ct": 1024}, outputs=["d0"], name="irregular")


def _of_size(name: str, capture: Callable[[int], tb.Graph], n_nodes: int) -> tb.Graph:
    """Return what `capture(n_layers)` gives with as many layers as come nearest to `n_nodes` nodes."""
    few, many = capture(2).n_nodes, capture(4).n_nodes
    return dataclasses.replace(capture(round((n_nodes - few) / ((many - few) / 2)) + 2), name=name)


def mlp(n_nodes: int) -> tb.Graph:
    """Return the captured gradient graph of a deep perceptron with biases, of about `n_nodes` nodes."""

    def loss(params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean(x)

    def capture(n_layers: int) -> tb.Graph:
        layer = (jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.float32))
        return tb.capture_gradient(loss, [layer] * n_layers, jax.ShapeDtypeStruct((512, 64), jnp.float32))

    return _of_size("MLP", capture, n_nodes)


def deep_gpt(n_nodes: int) -> tb.Graph:
    """Return the captured gradient graph of a GPT with as many layers as make about `n_nodes` nodes."""

    def capture(n_layers: int) -> tb.Graph:
        return tb.capture_gradient(*abstract_gpt(gpt.GPTConfig(n_layers=n_layers)))

    return _of_size("GPT", capture, n_nodes)


def abstract_gpt(config: gpt.GPTConfig) -> tuple[Callable[..., Any], Any, jax.ShapeDtypeStruct]:
    """Return the GPT's loss and shapes of what to call it on; nothing is allocated."""
    params = jax.eval_shape(lambda: gpt.init_params(config, jax.random.key(0)))
    return gpt.make_loss(config), params, jax.ShapeDtypeStruct((config.n_batch, config.n_tokens + 1), jnp.int32)


def budget_figures(n_nodes: int, most_seconds: float, most_new_seconds: float) -> list[Figure]:
    """Time the first plan by budget of a graph and later ones for other budgets."""
    _seconds(chain(100), 0.5)  # what is imported on first use
    figures = []
    for graph in (chain(n_nodes), mlp(n_nodes), deep_gpt(n_nodes), irregular(n_nodes)):
        name = f"{graph.name}, {graph.n_nodes:,} nodes"
        copies = [tb.Graph.from_json(graph.to_json()) for _ in range(3)]
        first = statistics.median(_seconds(g, 0.5) for g in copies)
        figures.append(Figure(f"{name}: first plan by budget", first, most_seconds, "s"))
        seconds = {b: statistics.median(_seconds(g, b) for g in copies) for b in (0.9, 0.8, 0.7, 0.6, 0.4, 0.3)}
        slowest = max(seconds, key=lambda b: seconds[b])
        note = (
            f"the slowest of {len(seconds)}: {slowest}; the median {1e3 * statistics.median(seconds.values()):.3g} ms"
        )
        figures.append(Figure(f"{name}: a new budget", 1e3 * seconds[slowest], 1e3 * most_new_seconds, "ms", note))
        if graph.backend:
            ranges = statistics.median(_range_seconds(g) for g in copies)
            figures.append(Figure(f"{name}: the range of budgets", ranges, most_seconds, "s", "after these plans"))
    return figures


def _range_seconds(graph: tb.Graph) -> float:
    start = time.perf_counter()
    budget_range_bytes(graph)
    return time.perf_counter() - start


def _seconds(graph: tb.Graph, budget: float) -> float:
    start = time.perf_counter()
    tb.plan_budget(graph, budget)
    return time.perf_counter() - start


def planning_figures(n_nodes: int, most_seconds: float, most_analysis_seconds: float | None = None) -> list[Figure]:
    """Time re-planning, and analysis where it has a target, on a chain and on a captured perceptron."""
    figures = []
    for graph in (chain(n_nodes), mlp(n_nodes)):
        name = f"{graph.name}, {graph.n_nodes:,} nodes"
        if most_analysis_seconds:
            fresh = iter([tb.Graph.from_json(graph.to_json()) for _ in range(5)])
            seconds = interleaved_seconds([lambda fresh=fresh: tb.analyze_graph(next(fresh))], 5)[0]
            figures.append(Figure(f"{name}: analysis", 1e3 * seconds, 1e3 * most_analysis_seconds, "ms"))
        seconds, levels = max((_replan_seconds(graph, levels), levels) for levels in (1, 2, 3))
        note = f"the slowest of 1, 2, 3 levels: {levels}"
        figures.append(Figure(f"{name}: re-planning", 1e3 * seconds, 1e3 * most_seconds, "ms", note))
    return figures


def _replan_seconds(graph: tb.Graph, levels: int) -> float:
    sizes = [round(graph.n_forward ** (i / 10)) for i in range(2, 10)]
    tb.plan_height_compressed(graph, levels, sizes[0])
    calls = [lambda size=size: tb.plan_height_compressed(graph, levels, size) for size in sizes]
    return max(interleaved_seconds(calls, 5))


def prediction_figures(n_nodes: int, most_seconds: float) -> list[Figure]:
    """Time the prediction of what XLA allocates, for plans that are new on captured graphs planned before."""
    figures = []
    for graph in (mlp(n_nodes), deep_gpt(n_nodes)):
        root = round(graph.n_forward**0.5)
        plans = {"save everything": tb.plan_save_everything(graph)}
        plans |= {f"block size {size}": tb.plan_blocks(graph, size) for size in (root, 5 * root)}
        plans |= {f"levels {levels}": tb.plan_height_compressed(graph, levels) for levels in (2, 3)}
        predict(plans["save everything"])  # keeps with the graph what holds for all plans
        calls = [lambda plan=plan: predict(plan) for plan in plans.values()]
        seconds = dict(zip(plans, interleaved_seconds(calls, 9), strict=True))
        slowest = max(seconds, key=lambda k: seconds[k])
        note = f"the slowest of {len(plans)}: {slowest}; the median {1e3 * statistics.median(seconds.values()):.3g} ms"
        name = f"{graph.name}, {graph.n_nodes:,} nodes: prediction"
        figures.append(Figure(name, 1e3 * seconds[slowest], 1e3 * most_seconds, "ms", note))
    return figures


def predict(plan: tb.Plan) -> Materialized:
    """Return what XLA is predicted to allocate for a plan, anew on every call."""
    timeline = plan.timeline
    is_planned = plan.recompute_flops > 0
    return tb.materialize(plan.graph, timeline.steps, timeline.n_forward_steps, is_planned=is_planned)


def figures_table(figures: Sequence[Figure]) -> pd.DataFrame:
    """Return the figures as a table of texts."""
    rows = [
        {
            "figure": f.name,
            "measured": f"{f.value:.3g} {f.unit}",
            "target": f"≤ {f.target:g} {f.unit}" if math.isfinite(f.target) else "",
            "": "" if f.target == math.inf else "met" if f.is_met else "MISSED",
            "note": f.note,
        }
        for f in figures
    ]
    return pd.DataFrame(rows)


def print_figures(figures: Sequence[Figure]) -> int:
    """Print the figures as a table and return the exit status: 1 where one was missed."""
    print(figures_table(figures).to_string(index=False, max_colwidth=None, line_width=10_000))
    return 0 if all(f.is_met for f in figures) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--only", choices=("gpt", "flax", "planning"), help="measure one group of figures alone")
    only = parser.parse_args(argv).only
    figures: list[Figure] = []
    if only in (None, "planning"):
        figures += overhead_figures(n_repeats=5)
        figures.append(cached_call_figure(n_repeats=300))
        figures += planning_figures(1_000, 0.015) + planning_figures(10_000, 0.120, 0.5)
        figures += prediction_figures(1_000, 0.0045) + prediction_figures(10_000, 0.036)
        figures += budget_figures(1_000, 0.3, 0.030) + budget_figures(10_000, 3.0, 0.150)
    if only in (None, "gpt"):
        figures += memory_figures("12-layer GPT", gpt.example(), MOST_TEMP_RATIO, GPT_SHAPES, n_steps=3)
    if only in (None, "flax"):
        figures += memory_figures("Flax GPT-2", flax_gpt2.example(), 0.25, FLAX_SHAPES, n_steps=50)
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
