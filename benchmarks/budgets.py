"""What plans by byte budget reach on whole models, against `jax.checkpoint`: `python -m benchmarks.budgets`.

Compiles the gradient of each model, whose source nothing touches, in these ways: plain, with each stock policy of
`jax.checkpoint` around the whole loss, with each policy written by hand around every layer, and with plans by budget.
Plans for less and less memory are compiled, bisected for each limit on FLOPs until its target is met. Prints all
that was measured, then one row per claim; ends with an error where one is missed. Every gradient is run once and held
against the plain one.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pandas as pd
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.demo import MOST_EPSILONS, difference
from benchmarks.figures import Figure, figures_table, print_figures
from benchmarks.models import flax_gpt2, gpt, resnet, unet, vit
from tiny_backprop.plan.strategies.budget_planner import BudgetPlanner
from tiny_backprop.units import format_bytes

STOCK_POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
MOST_OF_POLICY = 0.85
COSTS = ("flops", "seconds")
_PLAIN, _AROUND, _BY_HAND = "jax.value_and_grad", "around the loss", "by hand in each layer"
# Plans are made for memories in steps of 4 %, down to a thirty-second of saving everything.
LIMITS_PER_OCTAVE, LOWEST_LIMIT = 16, 80


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and what its plans are to reach.

    Attributes:
      module: Its module in `benchmarks.models`.
      config: Its sizes; None for the module's own.
      most_temp_ratios: The most temporaries at 1.02, 1.15 and 1.35 × the FLOPs of the plain gradient.
    """

    module: ModuleType
    config: Any = None
    most_temp_ratios: tuple[float, float, float] = (0.32, 0.20, 0.11)


MOST_FLOPS_RATIOS = (1.02, 1.15, 1.35)
_CONVOLUTIONAL = (0.40, 0.33, 0.25)
MODELS = {
    "gpt": Model(gpt),
    "gpt-scan": Model(gpt, gpt.GPTConfig(n_layers=24, width=256, n_tokens=128, n_batch=4, is_scanned=True)),
    # As deep as GPT-2: of fewer layers each is more of the whole, and one layer's backward phase needs it at once.
    "flax-gpt2": Model(flax_gpt2, flax_gpt2.FlaxGPT2Config(n_layers=12, n_heads=8, width=256, n_tokens=128, n_batch=4)),
    "vit": Model(vit, vit.ViTConfig(width=384, n_heads=6, n_batch=4)),
    "resnet18": Model(resnet, resnet.ResNetConfig(18), _CONVOLUTIONAL),
    "resnet50": Model(resnet, resnet.ResNetConfig(50), _CONVOLUTIONAL),
    "unet": Model(unet, None, _CONVOLUTIONAL),
}


class Bench:
    """One model: the gradients that were compiled so far, a row each."""

    def __init__(self, name: str, bar: tqdm):
        self.name, self.model, self.bar = name, MODELS[name], bar
        self.loss, self.args = self.model.module.example(self.model.config)
        self.graph = tb.capture_gradient(self.loss, *self.args)
        self.rows: dict[str, dict[str, Any]] = {}
        self.plans: dict[tb.Plan, str] = {}
        self.planners = {cost: BudgetPlanner.of(self.graph, cost).for_temporaries() for cost in COSTS}
        self.trials: dict[tuple[str, int], tb.Plan | None] = {}

    def add(self, name: str, way: Callable[..., Any], plan: tb.Plan | None = None) -> pd.Series:
        """Compile and run one gradient."""
        self.bar.set_description(f"{self.name}: {name}")
        start = time.perf_counter()
        compiled = tb.jit(way).lower(*self.args).compile()
        seconds = time.perf_counter() - start
        m = tb.measure(compiled)
        out = compiled(*self.args)
        if not self.rows:
            self.expected = out
        plain = self.rows.get(_PLAIN, {"temp_bytes": m.temp_bytes, "flops": m.flops})
        self.rows[name] = {
            "model": self.name,
            "gradient": name,
            "temp_ratio": m.temp_bytes / plain["temp_bytes"],
            "flops_ratio": m.flops / plain["flops"],
            "temp_bytes": m.temp_bytes,
            "output_bytes": m.output_bytes,
            "flops": m.flops,
            "predicted_peak_bytes": plan.peak_bytes if plan else None,
            "predicted_flops_ratio": 1 + plan.recompute_fraction if plan else None,
            "compile_seconds": seconds,
            "epsilons": difference(out, self.expected, least_share=1e-3).epsilons,
        }
        self.bar.update()
        return pd.Series(self.rows[name])

    def add_stock(self) -> None:
        """Compile the plain gradient and those of `jax.checkpoint`."""
        self.add(_PLAIN, jax.value_and_grad(self.loss))
        for name in STOCK_POLICIES:
            policy = getattr(jax.checkpoint_policies, name)
            self.add(f"{name}, {_AROUND}", jax.value_and_grad(jax.checkpoint(self.loss, policy=policy)))
            by_hand, _ = self.model.module.example(self.model.config, layer_policy=policy)
            self.add(f"{name}, {_BY_HAND}", jax.value_and_grad(by_hand))

    def add_plan(self, plan: tb.Plan, cost: str) -> pd.Series:
        """Compile a plan unless it was."""
        if plan not in self.plans:
            self.plans[plan] = f"plan {len(self.plans)} by {cost}"
            way = tb.height_compressed_value_and_grad(self.loss, plan=plan, on_error="raise")
            self.add(self.plans[plan], way, plan)
        return pd.Series(self.rows[self.plans[plan]])

    @property
    def table(self) -> pd.DataFrame:
        """All rows."""
        return pd.DataFrame.from_dict(self.rows, orient="index")

    def best(self, most_flops_ratio: float) -> pd.Series | None:
        """The plan with the least temporaries among those compiled that are within the FLOPs."""
        rows = self.table.loc[list(self.plans.values())]
        rows = rows[rows.flops_ratio <= most_flops_ratio] if len(rows) else rows
        return rows.loc[rows.temp_bytes.idxmin()] if len(rows) else None

    def add_trial(self, cost: str, limit: int) -> pd.Series | None:
        """Compile the plan for the memory of one limit, unless it was; None where there is none."""
        key = cost, limit
        if key not in self.trials:
            planner = self.planners[cost]
            found = planner.tightest(round(planner.most_bytes * 2 ** (-limit / LIMITS_PER_OCTAVE)))
            self.trials[key] = (
                None if found is None else tb.Plan.of(planner.schedule(found, {"strategy": "byte budget"}))
            )
        plan = self.trials[key]
        return None if plan is None else self.add_plan(plan, cost)

    def seek(self, most_temp_ratio: float, most_flops_ratio: float) -> pd.Series | None:
        """Bisect the least memory within the FLOPs until a plan meets both; return the best compiled."""
        for cost in COSTS:
            low, high = 0, LOWEST_LIMIT
            while high - low > 1:
                best = self.best(most_flops_ratio)
                if best is not None and best.temp_ratio <= most_temp_ratio:
                    return best
                middle = (low + high) // 2
                row = self.add_trial(cost, middle)
                is_within = row is not None and row.flops_ratio <= most_flops_ratio
                low, high = (middle, high) if is_within else (low, middle)
        return self.best(most_flops_ratio)

    def figures(self) -> list[Figure]:
        """Compile what it takes and return how far the claims hold."""
        self.add_stock()
        figures = []
        for most_flops, most_temp in zip(MOST_FLOPS_RATIOS, self.model.most_temp_ratios, strict=True):
            best = self.seek(most_temp, most_flops)
            value = np.nan if best is None else best.temp_ratio
            figures.append(Figure(f"{self.name}: temp at {most_flops} × FLOPs", value, most_temp, "×", _note(best)))
        for name in list(self.rows):
            if name.startswith(STOCK_POLICIES):
                stock = self.rows[name]
                best = self.seek(MOST_OF_POLICY * stock["temp_ratio"], stock["flops_ratio"])
                value = np.nan if best is None else best.temp_bytes / stock["temp_bytes"]
                note = f"its own {stock['temp_ratio']:.3f} × at {stock['flops_ratio']:.3f} × FLOPs; {_note(best)}"
                figures.append(Figure(f"{self.name}: temp of {name}", value, MOST_OF_POLICY, "×", note))
        # How far jax.checkpoint around a whole loss is from the plain gradient is JAX's affair.
        ours = self.table[~self.table.gradient.str.endswith(_AROUND)]
        worst = ours.epsilons.idxmax()
        note = f"of {len(ours)}, the farthest from the plain one: {worst}"
        figures.append(Figure(f"{self.name}: gradients", self.table.epsilons[worst], MOST_EPSILONS, "eps", note))
        return figures


def _note(row: pd.Series | None) -> str:
    if row is None:
        return "no plan within the FLOPs"
    return f"{row.gradient}: {format_bytes(row.temp_bytes)} at {row.flops_ratio:.3f} × FLOPs"


def render_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one or more models as text."""

    def text(column: str, formatter: Callable[[float], str]) -> pd.Series:
        return table[column].map(lambda x: "–" if pd.isna(x) else formatter(x))

    return pd.DataFrame(
        {
            "model": table.model,
            "gradient": table.gradient,
            "temp": text("temp_bytes", format_bytes),
            "temp ratio": text("temp_ratio", "{:.3f} ×".format),
            "FLOPs ratio": text("flops_ratio", "{:.3f} ×".format),
            "output": text("output_bytes", format_bytes),
            "predicted peak": text("predicted_peak_bytes", format_bytes),
            "predicted FLOPs": text("predicted_flops_ratio", "{:.3f} ×".format),
            "compile": text("compile_seconds", "{:.1f} s".format),
            "gradient apart": text("epsilons", "{:.2g} eps".format),
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("build/budgets"), help="folder to write; default: %(default)s")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    for name in options.only:
        with tqdm(unit="gradient", leave=False) as bar:
            bench = Bench(name, bar)
            figures += (of_model := bench.figures())
        bench.table.to_csv(options.out / f"{name}.csv", index=False)
        rows, claims = render_rows(bench.table), figures_table(of_model)
        (options.out / f"{name}.md").write_text(f"{markdown(claims)}\n\n{markdown(rows)}\n")
        print(rows.to_string(index=False, line_width=10_000), end="\n\n", flush=True)
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
