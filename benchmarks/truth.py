"""How far predicted peaks are from what XLA allocates: `python -m benchmarks.truth`.

Compiles, for each of thirteen models, the plain gradient and eight planned ones, and holds each plan's prediction
against XLA's temporary and output bytes. Both predictions are shown: that of the model of what XLA:CPU materialises,
and plain liveness, the referee's count of every value as if nothing were fused. Then the gradients of a model are
run in turn, and the time of each, in proportion to the plain one's, is held against what a cost model predicts that
was calibrated just before. Two cruder predictions stand beside it: that every gradient takes as long as the plain one,
and that time goes as FLOPs do. With `--donate`, parameters are donated, and memory alone is compared. Ends with an
error where a target is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from scipy import stats
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.figures import Figure, print_figures
from benchmarks.models import gpt, resnet, small, unet, vit
from tiny_backprop.plan.baseline import predict_jax_gradient
from tiny_backprop.predict.step_time import step_seconds
from tiny_backprop.units import format_bytes

MODELS: dict[str, Callable[[], small.Example]] = {
    "gpt": lambda: gpt.example(
        gpt.GPTConfig(n_layers=4, n_heads=4, width=128, n_tokens=128, n_vocabulary=800, n_batch=2)
    ),
    "bert": small.bert,
    "llama": small.llama,
    "vit": lambda: vit.example(vit.ViTConfig(n_layers=4, width=96, n_pixels=96, n_batch=4, n_classes=100)),
    "resnet18": lambda: resnet.example(resnet.ResNetConfig(18, n_pixels=96, n_batch=4, n_classes=100)),
    "resnet50": lambda: resnet.example(resnet.ResNetConfig(50, n_pixels=96, n_batch=2, n_classes=100)),
    "unet": small.unet,
    "densenet": small.densenet,
    "mixer": small.mixer,
    "lstm": small.lstm,
    "neural-ode": small.neural_ode,
    "moe": small.mixture_of_experts,
    "diffusion-unet": lambda: unet.example(unet.UNetConfig(widths=(32, 64), n_blocks=1, n_pixels=32, n_batch=4)),
}
MOST_MEDIAN, MOST_P90, MOST_WORST, LEAST_RANK_CORRELATION = 0.05, 0.12, 0.25, 0.95
MOST_TIME_MEDIAN = 0.2
SAVE_EVERYTHING = "save everything"
_BUDGETS = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
_N_PLANS = 8
_N_ROUNDS, _N_RUNS = 5, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A gradient of a model, ready to be compiled.

    Attributes:
      name: How it is planned.
      plan: Its plan, for the prediction.
      gradient: The function to compile.
    """

    name: str
    plan: tb.Plan
    gradient: Callable[..., Any]


def cases(loss: Callable[..., jax.Array], args: tuple[Any, ...], donate_argnums: Sequence[int] = ()) -> Iterator[Case]:
    """Yield the plain gradient of a model and eight different planned ones: by levels, block size and budget."""
    everything = tb.plan_save_everything(tb.capture_gradient(loss, *args, donate_argnums=donate_argnums))
    yield Case(SAVE_EVERYTHING, everything, jax.value_and_grad(loss))
    root = round(everything.graph.n_forward**0.5)
    ways: list[dict[str, Any]] = [{}, {"levels": 2}, {"block_size": root}, {"block_size": 3 * root}]
    ways += [{"budget": share} for share in _BUDGETS]
    ways += [{"levels": 3}, {"block_size": 2 * root}, {"block_size": 5 * root}, {"block_size": max(2, root // 2)}]
    known: set[tb.Plan] = set()
    for way in ways:
        if len(known) == _N_PLANS:
            return
        gradient = tb.height_compressed_value_and_grad(loss, **way, donate_argnums=donate_argnums, on_error="raise")
        try:
            plan = gradient.plan(*args)
        except tb.BudgetError:
            continue
        if plan not in known:
            known.add(plan)
            yield Case(", ".join(f"{k} {v}" for k, v in way.items()) or "block size chosen", plan, gradient)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One gradient: what was predicted for it and what XLA allocates.

    Attributes:
      model: Name of the model.
      case: How it is planned.
      liveness_bytes: Peak by plain liveness.
      predicted_bytes: Peak by the model of what XLA materialises.
      xla_bytes: XLA's temporary and output bytes.
      flops: FLOPs by the plan.
      predicted_seconds: Seconds of a step, by the calibrated cost model.
      seconds: Median seconds of a step, by the clock.
    """

    model: str
    case: str
    liveness_bytes: int
    predicted_bytes: int
    xla_bytes: int
    flops: float
    predicted_seconds: float
    seconds: float


def compare_model(name: str, model: tb.CostModel | None, bar: tqdm, donate_argnums: Sequence[int]) -> list[Comparison]:
    """Compile the gradients of a model, run them if there is a cost model, and hold predictions against them."""
    loss, args = MODELS[name]()
    found, programs = [], []
    for case in cases(loss, args, donate_argnums):
        bar.set_description(f"{name}: {case.name}")
        plan, program = case.plan, tb.jit(case.gradient, donate_argnums=donate_argnums).lower(*args).compile()
        is_jax_own = case.name == SAVE_EVERYTHING
        predicted = predict_jax_gradient(plan.graph) if is_jax_own else plan.materialized
        sizes = plan.liveness_peak_bytes, predicted.peak_bytes, tb.measure(program).peak_bytes
        seconds = step_seconds(predicted, model) if model else math.nan
        found.append(Comparison(name, case.name, *sizes, plan.flops, seconds, seconds=math.nan))
        programs.append(program)
        bar.update()
    if not model:
        return found
    bar.set_description(f"{name}: run")
    times = median_seconds(programs, args)
    return [dataclasses.replace(c, seconds=s) for c, s in zip(found, times, strict=True)]


def median_seconds(programs: Sequence[jax.stages.Compiled], args: tuple[Any, ...]) -> list[float]:
    """Return the median seconds of each program, run in turn, each a few times and once uncounted before.

    Between two programs freed memory goes back to the system, so that each comes by its memory as if it ran alone.
    """
    taken: list[list[float]] = [[] for _ in programs]
    for _ in range(_N_ROUNDS):
        for program, of_program in zip(programs, taken, strict=True):
            _release_memory()
            for k in range(_N_RUNS + 1):
                start = time.perf_counter()
                jax.block_until_ready(program(*args))
                if k:
                    of_program.append(time.perf_counter() - start)
    return [statistics.median(of_program) for of_program in taken]


def _release_memory() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def errors(table: pd.DataFrame, column: str) -> pd.Series:
    """Return |predicted - XLA| / XLA for each row."""
    return (table[column] / table.xla_bytes - 1).abs()


def time_errors(table: pd.DataFrame, column: str | None) -> pd.Series:
    """Return |predicted / measured - 1| of times in proportion to those of the plain gradient, which is left out.

    Args:
      table: Rows of `Comparison`.
      column: What stands for time; None for the prediction that it does not change.
    """
    plain = table[table.case == SAVE_EVERYTHING].set_index("model")
    planned = table[table.case != SAVE_EVERYTHING]
    measured = planned.seconds / planned.model.map(plain.seconds)
    predicted = 1.0 if column is None else planned[column] / planned.model.map(plain[column])
    return (predicted / measured - 1).abs()


def rank_correlation(table: pd.DataFrame, column: str) -> float:
    """Return Spearman's rank correlation of predictions with what XLA allocates."""
    return float(stats.spearmanr(table[column], table.xla_bytes).statistic)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model: errors and rank correlations, by the model of XLA and by plain liveness."""
    rows = []
    for name, of_model in table.groupby("model", sort=False):
        row: dict[str, Any] = {"model": name, "plain gradient": format_bytes(int(of_model.xla_bytes.iloc[0]))}
        for column, words in (("predicted_bytes", "predicted"), ("liveness_bytes", "liveness")):
            off = errors(of_model, column)
            row |= {f"{words}: median": f"{off.median():.1%}", f"{words}: worst": f"{off.max():.1%}"}
            row[f"{words}: rank"] = f"{rank_correlation(of_model, column):.3f}"
        if of_model.seconds.notna().all():
            row["time: median"] = f"{time_errors(of_model, 'predicted_seconds').median():.1%}"
        rows.append(row)
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame) -> list[Figure]:
    """Return how far the predictions are from XLA; a target on a correlation is one on what it lacks."""
    off = errors(table, "predicted_bytes")
    plain = errors(table, "liveness_bytes")
    note = f"{table.model.nunique()} models, {len(table)} gradients; by plain liveness "
    of_model = {name: rank_correlation(t, "predicted_bytes") for name, t in table.groupby("model", sort=False)}
    least = min(of_model, key=lambda k: of_model[k])
    worst = table.loc[off.idxmax()]
    found = [
        Figure("peak: median error", off.median(), MOST_MEDIAN, "×", f"{note}{plain.median():.3f}"),
        Figure("peak: 90th percentile", off.quantile(0.9), MOST_P90, "×", f"{note}{plain.quantile(0.9):.3f}"),
        Figure("peak: worst error", off.max(), MOST_WORST, "×", f"{worst.model}, {worst.case}; {plain.max():.3f}"),
        Figure("1 - least rank correlation", 1 - of_model[least], 1 - LEAST_RANK_CORRELATION, "", str(least)),
    ]
    if table.seconds.isna().any():
        return found
    by_time = time_errors(table, "predicted_seconds")
    cruder = {"no change": time_errors(table, None), "FLOPs alone": time_errors(table, "flops")}
    time_note = "; ".join(f"by {k} {e.median():.3f}, {e.quantile(0.9):.3f}" for k, e in cruder.items())
    time_note = f"90th percentile {by_time.quantile(0.9):.3f}; {time_note}"
    return [*found, Figure("time / plain: median error", by_time.median(), MOST_TIME_MEDIAN, "×", time_note)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("build/truth"), help="folder to write; default: %(default)s")
    parser.add_argument("--donate", action="store_true", help="donate the parameters; nothing is run or timed")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    model = None if options.donate else tb.calibrate(again=True, cache_directory=options.out)
    donate_argnums = (0,) if options.donate else ()
    with tqdm(total=len(options.only) * (_N_PLANS + 1), unit="gradient", leave=False) as bar:
        found = [c for name in options.only for c in compare_model(name, model, bar, donate_argnums)]
    table = pd.DataFrame([dataclasses.asdict(c) for c in found])
    table.to_csv(options.out / "truth.csv", index=False)
    print(summary(table).to_string(index=False, line_width=10_000), end="\n\n", flush=True)
    return print_figures(figures(table))


if __name__ == "__main__":
    sys.exit(main())
