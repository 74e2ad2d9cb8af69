"""What planned loops take, held against their targets: `python -m benchmarks.loops`.

A recurrent net of T steps with a carry of 64 × 256 floats: temporaries as XLA allocates them, times as medians by the
clock, both in proportion to `jax.value_and_grad` in the same run.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.figures import Figure, interleaved_seconds, print_figures
from tiny_backprop.units import format_bytes

_MIB = 2.0**20
_LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536)


def recurrent(length: int, width: int = 256, n_batch: int = 64) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Return a loss over a scan of `length` steps, and its arguments."""

    def loss(w: jax.Array, h: jax.Array) -> jax.Array:
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=length)
        return jnp.sum(h**2)

    w = 1.5 * jax.random.orthogonal(jax.random.key(0), width)
    return loss, (w, jax.random.normal(jax.random.key(1), (n_batch, width)))


def _compiled(loss: Any, args: Any, **how: Any) -> Any:
    way = tb.height_compressed_value_and_grad(loss, on_error="raise", **how) if how else jax.value_and_grad(loss)
    return tb.jit(way).lower(*args).compile()


def thousand_steps(n_repeats: int = 9) -> list[Figure]:
    """Temporaries and time of 1,024 steps."""
    loss, args = recurrent(1024)
    plain = _compiled(loss, args)
    figures = []
    for name, how, most_mib, most_time in (
        ("block size 32", {"block_size": 32}, 4.7, 1.35),
        ("2 levels", {"levels": 2}, 2.8, 2.0),
        ("budget 2 MiB", {"budget": "2MiB"}, 2.0, math.inf),
    ):
        planned = _compiled(loss, args, **how)
        seconds = interleaved_seconds([lambda: plain(*args), lambda planned=planned: planned(*args)], n_repeats)
        of_plain, measured = tb.measure(plain), tb.measure(planned)
        note = f"plain {format_bytes(of_plain.temp_bytes)}; {measured.flops / of_plain.flops:.2f} × FLOPs"
        figures.append(Figure(f"1,024 steps, {name}: temp", measured.temp_bytes / _MIB, most_mib, "MiB", note))
        figures.append(Figure(f"1,024 steps, {name}: time", seconds[1] / seconds[0], most_time, "×"))
    return figures


def _repeat(call: Callable[[], Any], n: int) -> None:
    for _ in range(n):
        jax.block_until_ready(call())


def growth() -> list[Figure]:
    """How temporaries and the time of a step grow with the number of steps; as many steps are timed of each number."""
    figures = []
    for name, levels_of, most in (
        ("2 levels", lambda _: 2, 0.55),
        ("log2 T levels", lambda length: math.ceil(math.log2(length)), 0.15),
    ):
        temp_bytes, n_lines, runs = [], [], []
        for length in tqdm(_LENGTHS, desc=name, leave=False):
            loss, args = recurrent(length, width=32, n_batch=64)
            compiled = _compiled(loss, args, levels=levels_of(length))
            temp_bytes.append(tb.measure(compiled).temp_bytes)
            n_lines.append(len(compiled.as_text().splitlines()))
            runs.append(functools.partial(_repeat, lambda c=compiled, a=args: c(*a), _LENGTHS[-1] // length))
        step_seconds = [s / _LENGTHS[-1] for s in interleaved_seconds(runs, 5)]
        exponent = float(np.polyfit(np.log(_LENGTHS), np.log(temp_bytes), 1)[0])
        note = ", ".join(map(format_bytes, temp_bytes))
        figures.append(Figure(f"T from 64 to 65,536, {name}: temp grows as T to the", exponent, most, "", note))
        lines = max(n_lines) / min(n_lines)
        figures.append(Figure(f"T from 64 to 65,536, {name}: lines of compiled program", lines, 1.05, "×"))
        spread = max(step_seconds) / min(step_seconds)
        most_spread = 1.15 if name == "2 levels" else math.inf
        name = f"T from 64 to 65,536, {name}: time of a step, most to least"
        figures.append(Figure(name, spread, most_spread, "×", ", ".join(f"{1e6 * s:.1f} µs" for s in step_seconds)))
    return figures


def main() -> int:
    """Measure and return the exit status."""
    return print_figures([*thousand_steps(), *growth()])


if __name__ == "__main__":
    sys.exit(main())
