"""How long memory maps take to decode and to draw, and whether they add up: `python -m benchmarks.memory_maps`.

Programs are gradients of deep perceptrons, whose compiled form has six instructions per layer, of a GPT and of a
`scan`; nothing is run, only compiled. A map is decoded from the bytes that `measure` keeps and drawn to the bytes of a
PNG. Ends with an error where a figure was missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import tiny_backprop as tb
from benchmarks.figures import Figure, abstract_gpt, print_figures
from benchmarks.models import gpt
from tiny_backprop.integration.jax.xla.decode import decode
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.units import format_bytes

_PER_LAYER = 6


def abstract_perceptron(n_layers: int) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """Return a deep perceptron's loss and shapes of what to call it on."""

    def loss(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(x @ w)
        return (x**2).sum()

    weights = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * n_layers
    return loss, weights, jax.ShapeDtypeStruct((256, 16), jnp.float32)


def perceptron(n_instructions: int) -> tb.Measurement:
    """Measure the gradient of a perceptron that compiles to about so many instructions."""
    loss, *args = abstract_perceptron(n_instructions // _PER_LAYER)
    return tb.measure(jax.value_and_grad(loss), *args)


def loop() -> tb.Measurement:
    """Measure the gradient of a recurrent net, forward and backward loop opened."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return (jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=64)[0] ** 2).sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (32, 64))]
    return tb.measure(jax.grad(loss), *shapes)


def small_gpt() -> tb.Measurement:
    """Measure the plain gradient of a GPT of four layers."""
    config = gpt.GPTConfig(n_layers=4, width=64, n_heads=2, n_tokens=64, n_vocabulary=256, n_batch=4)
    loss, *args = abstract_gpt(config)
    return tb.measure(jax.value_and_grad(loss), *args)


def seconds_figure(name: str, measurement: tb.Measurement, most_seconds: float, n_repeats: int) -> Figure:
    """Time decoding and drawing, imports apart: the fastest of some times, since the machine may be busy."""
    program = measurement.program
    assert program is not None
    decoding, drawing = [], []
    for _ in range(n_repeats):
        decoding.append(_seconds(lambda: decode(program)))
        memory_map = decode(program)
        drawing.append(_seconds(lambda memory_map=memory_map: tb.plot_memory_map(memory_map)._repr_png_()))
    memory_map = measurement.memory_map
    split = f"{min(decoding):.3g} s to decode, {min(drawing):.3g} s to draw"
    note = f"{len(memory_map.schedule):,} instructions, {len(memory_map.buffers):,} buffers: {split}"
    return Figure(f"{name}: decode and draw", min(decoding) + min(drawing), most_seconds, "s", note)


def agreement_figure(name: str, memory_map: MemoryMap) -> Figure:
    """Tell how far the map is from XLA's total; nothing but 0 will do."""
    apart = abs(memory_map.extent_bytes - memory_map.temp_bytes)
    apart += abs(int(memory_map.at_peak().bytes.sum()) - memory_map.temp_bytes) + len(memory_map.doubts)
    note = f"{format_bytes(memory_map.temp_bytes)}, of which {format_bytes(memory_map.gap_bytes)} between tensors"
    return Figure(f"{name}: extent and sum at the peak, off XLA's temporaries by", apart, 0, "B", note)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_maps", description=__doc__)
    parser.add_argument("--small", action="store_true", help="leave out the largest program, which compiles a minute")
    parser.add_argument("--repeats", type=int, default=5, help="how often to decode and draw; the fastest counts")
    args = parser.parse_args(argv)
    tb.plot_memory_map(loop().memory_map)._repr_png_()  # what is imported on first use
    figures: list[Figure] = []
    programs: list[tuple[str, Callable[[], tb.Measurement], float]] = [
        ("perceptron of 2,000 instructions", lambda: perceptron(2_000), 1.0),
        ("perceptron of 20,000 instructions", lambda: perceptron(20_000), 8.0),
        ("4-layer GPT", small_gpt, 1.0),
        ("recurrent net over 64 steps", loop, 1.0),
    ]
    for name, measure, most_seconds in programs[:1] + programs[2:] if args.small else programs:
        measured = measure()
        figures.append(seconds_figure(name, measured, most_seconds, args.repeats))
        figures.append(agreement_figure(name, measured.memory_map))
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
