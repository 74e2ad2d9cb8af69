"""The demonstration at a tiny size, from the command line, and what it says when it has failed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pandas as pd
import pytest

from benchmarks.demo import MOST_EPSILONS, Difference, _judge, best_row, difference, render_table
from benchmarks.models import gpt

ROOT = Path(__file__).parents[1]
SMALL = "--layers 1 --heads 2 --width 16 --tokens 8 --vocabulary 32 --batch 2"
EQUAL = Difference(n_arrays=1, n_equal=1, epsilons=0.0)


def row(temp_ratio: float, flops_ratio: float) -> pd.Series:
    return pd.Series({"temp_ratio": temp_ratio, "flops_ratio": flops_ratio})


@pytest.mark.slow
def test_demo_runs_and_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.demo", *SMALL.split(), "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("predicted", "measured", "jax.value_and_grad", "jax.checkpoint, dots_saveable", "Gradients: "):
        assert words in done.stdout
    for name in ("frontier.svg", "frontier.png", "report.html"):
        path = tmp_path / "demo" / name
        assert path.stat().st_size > 1000
        assert str(path) in done.stdout
    assert (tmp_path / "demo" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert {p.suffix for p in (tmp_path / "demo").glob("dag.*")} in ({".svg"}, {".dot"})


def test_difference_counts_arrays_and_epsilons() -> None:
    epsilon = float(jnp.finfo(jnp.float32).eps)
    a = {"same": jnp.ones(3), "near": jnp.array([2.0, 1.0])}
    b = {"same": jnp.ones(3), "near": jnp.array([2.0, 1.0 + 4 * epsilon])}
    assert difference(a, a) == Difference(2, 2, 0.0)
    assert difference(b, a) == Difference(2, 1, pytest.approx(2.0))
    assert difference(b, a).is_small


@pytest.mark.parametrize("wrong", [float("nan"), 1.001, 0.0, float("inf")])
def test_a_wrong_gradient_is_not_small(wrong: float) -> None:
    apart = difference([jnp.array([wrong, 1.0])], [jnp.ones(2)])
    assert not apart.is_small
    assert f"allowed: {MOST_EPSILONS:.0f}" in str(apart)


@pytest.mark.parametrize(
    ("apart", "ratios", "message"),
    [
        (EQUAL, (0.20, 1.30), None),
        (EQUAL, (0.21, 1.0), "0.210 × the temporaries"),
        (EQUAL, (0.1, 1.31), "1.310 × the FLOPs"),
        (Difference(1, 0, 1e6), (0.1, 1.0), "differs from the plain one"),
    ],
)
def test_demo_fails_when_a_figure_is_missed(
    apart: Difference, ratios: tuple[float, float], message: str | None, capsys: Any
) -> None:
    assert _judge(gpt.GPTConfig(), apart, row(*ratios)) is (message is None)
    assert (message or "") in capsys.readouterr().err


def test_no_ratio_is_demanded_of_other_sizes() -> None:
    assert _judge(gpt.GPTConfig(n_layers=1), EQUAL, row(0.9, 1.0))


def table() -> pd.DataFrame:
    rows = {
        "jax.value_and_grad": (100, 1.0),
        "small, costly": (10, 1.5),
        "small": (20, 1.2),
        "larger": (30, 1.1),
    }
    data = pd.DataFrame.from_dict(rows, orient="index", columns=["measured_temp_bytes", "flops_ratio"])
    data["temp_ratio"] = data.measured_temp_bytes / 100
    for column in ("predicted_peak_bytes", "predicted_saved_bytes", "predicted_flops"):
        data[column] = [1536.0, None, None, None]
    return data.assign(measured_peak_bytes=2048, measured_flops=2e9)


def test_best_row_is_the_smallest_within_the_flops() -> None:
    plans = ["small, costly", "small", "larger"]
    assert best_row(table(), plans) == "small"
    assert best_row(table(), plans, most_flops_ratio=2.0) == "small, costly"
    assert best_row(table(), plans, most_flops_ratio=1.0) == "small, costly"


def test_table_tells_predicted_from_measured() -> None:
    lines = render_table(table()).splitlines()
    assert lines[0].split() == ["predicted", "measured"]
    assert lines[2].startswith("jax.value_and_grad")
    assert "1.5 KiB" in lines[2]
    assert "–" in lines[3]
