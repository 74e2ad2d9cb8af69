"""How far predicted peaks are from what XLA allocates: `python -m benchmarks.truth`.

Compiles, for each of thirteen models, the plain gradient and eight planned ones, and holds each plan's prediction
against XLA's temporary and output bytes. Both predictions are shown: that of the model of what XLA:CPU materialises,
and plain liveness, the referee's count of every value as if nothing were fused. Ends with an error where a target is
missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
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
from tiny_backprop.plan.materialized import materialize
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
SAVE_EVERYTHING = "save everything"
_BUDGETS = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
_N_PLANS = 8


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


def cases(loss: Callable[..., jax.Array], args: tuple[Any, ...]) -> Iterator[Case]:
    """Yield the plain gradient of a model and eight different planned ones: by levels, block size and budget."""
    everything = tb.plan_save_everything(tb.capture_gradient(loss, *args))
    yield Case(SAVE_EVERYTHING, everything, jax.value_and_grad(loss))
    root = round(everything.graph.n_forward**0.5)
    ways: list[dict[str, Any]] = [{}, {"levels": 2}, {"block_size": root}, {"block_size": 3 * root}]
    ways += [{"budget": share} for share in _BUDGETS]
    ways += [{"levels": 3}, {"block_size": 2 * root}, {"block_size": 5 * root}, {"block_size": max(2, root // 2)}]
    known: set[tb.Plan] = set()
    for way in ways:
        if len(known) == _N_PLANS:
            return
        gradient = tb.height_compressed_value_and_grad(loss, **way, on_error="raise")
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
    """

    model: str
    case: str
    liveness_bytes: int
    predicted_bytes: int
    xla_bytes: int


def compare_model(name: str, bar: tqdm) -> list[Comparison]:
    """Compile the gradients of a model and hold predictions against them."""
    loss, args = MODELS[name]()
    found = []
    for case in cases(loss, args):
        bar.set_description(f"{name}: {case.name}")
        plan, measured = case.plan, tb.measure(tb.jit(case.gradient), *args)
        predicted_bytes = plan.peak_bytes
        if case.name == SAVE_EVERYTHING and plan.graph.nested:  # it is JAX's own gradient that is compiled
            steps, n_forward_steps = plan.timeline.steps, plan.timeline.n_forward_steps
            predicted_bytes = materialize(plan.graph, steps, n_forward_steps, is_planned=False).peak_bytes
        found.append(Comparison(name, case.name, plan.liveness_peak_bytes, predicted_bytes, measured.peak_bytes))
        bar.update()
    return found


def errors(table: pd.DataFrame, column: str) -> pd.Series:
    """Return |predicted - XLA| / XLA for each row."""
    return (table[column] / table.xla_bytes - 1).abs()


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
    return [
        Figure("peak: median error", off.median(), MOST_MEDIAN, "×", f"{note}{plain.median():.3f}"),
        Figure("peak: 90th percentile", off.quantile(0.9), MOST_P90, "×", f"{note}{plain.quantile(0.9):.3f}"),
        Figure("peak: worst error", off.max(), MOST_WORST, "×", f"{worst.model}, {worst.case}; {plain.max():.3f}"),
        Figure("1 - least rank correlation", 1 - of_model[least], 1 - LEAST_RANK_CORRELATION, "", str(least)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("build/truth"), help="folder to write; default: %(default)s")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(options.only) * (_N_PLANS + 1), unit="gradient", leave=False) as bar:
        found = [c for name in options.only for c in compare_model(name, bar)]
    table = pd.DataFrame([dataclasses.asdict(c) for c in found])
    table.to_csv(options.out / "truth.csv", index=False)
    print(summary(table).to_string(index=False, line_width=10_000), end="\n\n", flush=True)
    return print_figures(figures(table))


if __name__ == "__main__":
    sys.exit(main())
