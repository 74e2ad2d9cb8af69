"""Plan, run and measure the gradient of a 12-layer GPT whose code knows nothing of plans: `make demo`.

Prints what XLA allocates for the plain, the planned and the checkpointed gradient, checks that the planned one equals
the plain one, and writes plots and a report. Ends with an error where the gradients differ or, at the default size,
where the best plan misses 0.20 × the temporaries of `jax.value_and_grad` at 1.30 × its FLOPs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.models import gpt
from tiny_backprop.units import format_bytes, format_flops
from tiny_backprop_widgets import DisplayError, export_frontier, jaxpr_dag, write_report

MOST_TEMP_RATIO, MOST_FLOPS_RATIO = 0.20, 1.30
STOCK_POLICIES = ("nothing_saveable", "dots_saveable")
# Rounding differs where XLA fuses differently; in units of the dtype's epsilon, relative to an array's largest entry.
MOST_EPSILONS = 16.0
_EPILOG = "With sizes other than the default ones, gradients are checked but no ratio is demanded."


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two gradients are apart.

    Attributes:
      n_arrays: Arrays in each.
      n_equal: Arrays equal to the bit.
      epsilons: Largest difference, in units of the dtype's epsilon times the largest entry of its array; NaN where an
        entry is NaN.
    """

    n_arrays: int
    n_equal: int
    epsilons: float

    @property
    def is_small(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.epsilons <= MOST_EPSILONS

    def __str__(self) -> str:
        if self.n_equal == self.n_arrays:
            return f"equal bit for bit, all {self.n_arrays} arrays"
        return (
            f"{self.n_equal} of {self.n_arrays} arrays equal bit for bit; the largest difference is "
            f"{self.epsilons:.2g} epsilons of the largest entry (allowed: {MOST_EPSILONS:.0f})"
        )


def difference(a: Any, b: Any, least_share: float = 0.0) -> Difference:
    """Return how far two pytrees of arrays of the same structure are apart.

    With `least_share`, no array's largest entry counts as less than this share of the largest of all: the gradient of a
    bias that has no effect, such as that of attention's keys, is 0 but for rounding.
    """
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    n_equal = sum(bool(jnp.array_equal(x, y)) for x, y in pairs)
    least = least_share * max(_largest(y) for _, y in pairs)
    return Difference(len(pairs), n_equal, float(np.max([_epsilons(x, y, least) for x, y in pairs])))


def _largest(x: jax.Array) -> float:
    return float(jnp.abs(x).max(initial=0.0))


def _epsilons(x: jax.Array, y: jax.Array, least: float) -> float:
    info = jnp.finfo(y.dtype)
    return _largest(x - y) / (max(_largest(y), least, float(info.tiny)) * float(info.eps))


def best_row(table: pd.DataFrame, plans: Sequence[str], most_flops_ratio: float = MOST_FLOPS_RATIO) -> str:
    """Return the plan with the smallest measured temporaries among those within the FLOPs, or among all if none is."""
    planned = table.loc[list(plans)]
    within = planned[planned.flops_ratio <= most_flops_ratio]
    return str((within if len(within) else planned).measured_temp_bytes.idxmin())


def render_table(table: pd.DataFrame) -> str:
    """Return what `tiny_backprop.compare` returned as text: predicted columns, then measured ones."""

    def of_plan(formatter: Callable[[float], str]) -> Callable[[Any], str]:
        return lambda x: "–" if x is None or pd.isna(x) else formatter(x)

    columns = {
        ("predicted", "peak"): table.predicted_peak_bytes.map(of_plan(format_bytes)),
        ("predicted", "saved"): table.predicted_saved_bytes.map(of_plan(format_bytes)),
        ("predicted", "FLOPs"): table.predicted_flops.map(of_plan(format_flops)),
        ("measured", "temp + output"): table.measured_peak_bytes.map(format_bytes),
        ("measured", "temp"): table.measured_temp_bytes.map(format_bytes),
        ("measured", "temp ratio"): table.temp_ratio.map("{:.3f} ×".format),
        ("measured", "FLOPs"): table.measured_flops.map(format_flops),
        ("measured", "FLOPs ratio"): table.flops_ratio.map("{:.3f} ×".format),
    }
    return pd.DataFrame(columns).rename_axis(None).to_string(line_width=200)


def make_plans(graph: tb.Graph) -> dict[str, tb.Plan]:
    """Return the plans with the smallest predicted peak: in blocks, and height-compressed with two levels."""
    plans = (tb.plan_blocks(graph), tb.plan_height_compressed(graph, levels=2))
    return {f"planned, {_count(p.meta['levels'], 'level')}, block size {p.meta['block_size']}": p for p in plans}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n > 1 else ''}"


def _run_once(fun: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, float]:
    """Compile, then run once; return what it returned and the seconds of the run."""
    compiled = tb.jit(fun).lower(*args).compile()
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(*args))
    return out, time.perf_counter() - start


def _write(folder: Path, plans: dict[str, tb.Plan], best: str, table: pd.DataFrame) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    graph, plan = plans[best].graph, plans[best]
    paths = [export_frontier(plan, folder / f"frontier.{suffix}") for suffix in ("svg", "png")]
    dag = jaxpr_dag(graph, plan)
    try:
        paths.append(dag.save(folder / "dag.svg"))
    except DisplayError as error:
        print(f"The DAG is written as DOT text: {error}")
        paths.append(dag.save(folder / "dag.dot"))
    in_order = {best: plan, **plans}  # the report draws the DAG of the first
    paths.append(write_report(folder / "report.html", graph, in_order, measured=table))
    return paths


def demo(config: gpt.GPTConfig, folder: Path) -> bool:
    """Run the demonstration; return whether it showed what it is to show."""
    start = time.perf_counter()
    with tqdm(total=8 + len(STOCK_POLICIES), unit="step", leave=False, file=sys.stderr) as bar:

        def progress(name: str) -> None:
            bar.update()
            bar.set_description(name)

        progress("make parameters")
        loss, args = gpt.example(config)
        progress("capture and plan")
        graph = tb.capture_gradient(loss, *args)
        plans = make_plans(graph)
        table = tb.compare(
            loss, *args, plans=plans, stock_policies=STOCK_POLICIES, progress=lambda name: progress(f"compile {name}")
        )
        best = best_row(table, list(plans))
        progress("run jax.value_and_grad")
        plain, plain_seconds = _run_once(jax.value_and_grad(loss), args)
        progress(f"run {best}")
        planned, planned_seconds = _run_once(tb.height_compressed_value_and_grad(loss, plan=plans[best]), args)
        progress("write plots and report")
        apart = difference(planned, plain)
        paths = _write(folder, plans, best, table)
    row = table.loc[best]
    print(_heading(config, graph))
    print(render_table(table), end="\n\n")
    print(f"Best plan: {best} (measured: {row.temp_ratio:.3f} × temp at {row.flops_ratio:.3f} × FLOPs)")
    print(f"Step:      {planned_seconds:.1f} s planned, {plain_seconds:.1f} s plain (measured, the first run of each)")
    print(f"Gradients: {apart}")
    print("Written:", *paths, sep="\n  ")
    print(f"Took {time.perf_counter() - start:.0f} s.")
    return _judge(config, apart, row)


def _heading(config: gpt.GPTConfig, graph: tb.Graph) -> str:
    sizes = f"batch {config.n_batch}, tokens {config.n_tokens}, width {config.width}, vocabulary {config.n_vocabulary}"
    return (
        f"\nValue and gradient of a GPT of {_count(config.n_layers, 'layer')} ({sizes}):\n"
        f"{graph.n_forward:,} forward and {graph.n_backward:,} backward equations.\n"
        f"Predicted: worked out from the plan. Measured: by XLA, of the program compiled for "
        f"{jax.default_backend()};\n"
        "ratios are to jax.value_and_grad. The predicted peak is to be held against the measured temp + output.\n"
    )


def _judge(config: gpt.GPTConfig, apart: Difference, row: pd.Series) -> bool:
    failures = [] if apart.is_small else [f"the planned gradient differs from the plain one: {apart}"]
    too_much = row.temp_ratio > MOST_TEMP_RATIO or row.flops_ratio > MOST_FLOPS_RATIO
    if config == gpt.GPTConfig() and too_much:
        failures.append(
            f"the best plan takes {row.temp_ratio:.3f} × the temporaries at {row.flops_ratio:.3f} × the FLOPs; at most "
            f"{MOST_TEMP_RATIO:.2f} × at {MOST_FLOPS_RATIO:.2f} × were asked for"
        )
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return not failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__, epilog=_EPILOG)
    default = gpt.GPTConfig()
    for field in ("n_layers", "n_heads", "width", "n_tokens", "n_vocabulary", "n_batch"):
        option = "--" + field.removeprefix("n_").replace("_", "-")
        parser.add_argument(option, dest=field, type=int, default=getattr(default, field), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write; default: %(default)s")
    options = vars(parser.parse_args(argv))
    folder = options.pop("out")
    return 0 if demo(gpt.GPTConfig(**options), folder) else 1


if __name__ == "__main__":
    sys.exit(main())
