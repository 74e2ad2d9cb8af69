"""The margin that budgets need: `python -m benchmarks.margins`.

Plans small programs of the kinds that people report (`benchmarks.kinds`) within shares of what they take, without a
margin, compiles each gradient and holds XLA's bytes against the prediction. Prints one row per kind, then, for what
programs have in them (`tiny_backprop.predict.margin.TRAITS`), the share of the prediction by which 19 plans of 20 took
more at most: what `predict/xla_cpu/versions.py` records for this version of JAX. Last, how many budgets the recorded
margins would have kept; ends with an error where these are fewer than 95 %. About ten minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pandas as pd
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.kinds import KINDS, Program
from tiny_backprop.predict.margin import TRAITS, traits_of

SHARES = (0.8, 0.65, 0.5)
KEPT = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """One gradient: what was predicted for it, and what XLA allocates.

    Attributes:
      kind: The kind of program.
      share: The budget, in proportion to what the plain gradient is predicted to take; 0 for that gradient itself.
      predicted_bytes: Peak by prediction.
      measured_bytes: XLA's bytes of temporaries and outputs.
      margin: The recorded margin of the program.
      traits: What the program has in it.
    """

    kind: str
    share: float
    predicted_bytes: int
    measured_bytes: int
    margin: float
    traits: frozenset[str]

    @property
    def excess(self) -> float:
        """By which share of the prediction more was taken; below 0 where less was."""
        return self.measured_bytes / self.predicted_bytes - 1


def rows_of(kind: str, program: Program) -> Iterator[Row]:
    """Yield the plain gradient of a program and its plans by budget."""
    loss, args = program
    graph = tb.capture_gradient(loss, *args)
    plain, margin, traits = tb.plan_jax_gradient(graph), tb.recorded_margin(graph), traits_of(graph)
    measured = tb.measure(jax.value_and_grad(loss), *args).peak_bytes
    yield Row(kind, 0.0, plain.peak_bytes, measured, margin, traits)
    everything, known = tb.plan_save_everything(graph).peak_bytes, set[tb.Plan]()
    for share in SHARES:
        try:
            plan = tb.plan_budget(graph, int(share * everything))
        except tb.BudgetError:
            continue
        if plan not in known:
            known.add(plan)
            gradient = tb.height_compressed_value_and_grad(loss, plan=plan, on_error="raise")
            yield Row(kind, share, plan.peak_bytes, tb.measure(gradient, *args).peak_bytes, margin, traits)


def margins(rows: Sequence[Row]) -> dict[str, float]:
    """Return, for each trait, the share of the prediction by which 19 of 20 plans by budget took more at most."""
    planned = [r for r in rows if r.share]
    of_trait = {t: [r.excess for r in planned if t in r.traits] for t in TRAITS}
    return {t: max(0.0, float(np.quantile(x, KEPT, method="higher"))) for t, x in of_trait.items() if x}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.margins", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help="these kinds alone")
    chosen = parser.parse_args(argv).only or list(KINDS)
    warnings.simplefilter("ignore")
    rows = [row for kind in tqdm(chosen, unit="program", leave=False) for row in rows_of(kind, KINDS[kind]())]
    frame = pd.DataFrame([{"kind": r.kind, "share": r.share, "measured / predicted": 1 + r.excess} for r in rows])
    print(
        frame.pivot_table(index="kind", columns="share", values="measured / predicted", sort=False).round(2).to_string()
    )
    errors = np.array([abs(r.predicted_bytes / r.measured_bytes - 1) for r in rows if not r.share])
    print(f"plain gradients, |predicted / measured - 1|: median {np.median(errors):.1%}, worst {errors.max():.1%}")
    print(f"margins on JAX {jax.__version__}: { {t: round(m, 3) for t, m in margins(rows).items()} }")
    planned = [r for r in rows if r.share]
    kept = float(np.mean([r.excess <= r.margin for r in planned]))
    print(f"budgets kept with the recorded margins: {kept:.1%} of {len(planned)} (target {KEPT:.0%})")
    return 0 if kept >= KEPT else 1


if __name__ == "__main__":
    sys.exit(main())
