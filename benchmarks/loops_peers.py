"""Planned loops against equinox's checkpointed ones with as many saved carries: `python -m benchmarks.loops_peers`.

An LSTM, a neural ODE and a 2-D heat equation as scans of 1,000 steps, and a neural ODE as diffrax solves it. Theirs is
`equinox.internal.scan(kind="checkpointed")` in the same loss, or diffrax's `RecursiveCheckpointAdjoint`, which is made
of the same loop, differentiated by `jax.value_and_grad`; ours is the loss with `lax.scan`, planned. Temporaries as XLA
allocates them, times as medians by the clock, in turn in the same run; gradients are held against float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks.figures import Figure, interleaved_seconds, print_figures
from tiny_backprop.units import format_bytes

N_STEPS = 1000
N_CARRIES = (10, 44)  # about log2 T; what equinox chooses by itself, about the root of 2 T
MOST_TEMP_RATIO, MOST_TIME_RATIO = 1.0, 0.9
LEAST_EPSILONS = 16.0  # a gradient may be as far from float64 as this, or as twice what the plain one is

Scan = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss with a loop; it is differentiated by its first argument.

    Attributes:
      name: Its name.
      loss: The loss with JAX's own loop.
      args: Its arguments.
      theirs: The loss with a checkpointed loop of so many saved carries.
      n_loops: Loops inside one another that ours has for their one; they share the carries.
    """

    name: str
    loss: Callable[..., jax.Array]
    args: tuple[Any, ...]
    theirs: Callable[[int], Callable[..., jax.Array]]
    n_loops: int = 1

    @classmethod
    def of_scan(cls, name: str, loss: Callable[..., jax.Array], args: tuple[Any, ...]) -> Problem:
        """Take a loss whose first argument is the scan to use."""

        def theirs(n: int) -> Callable[..., jax.Array]:
            return functools.partial(loss, functools.partial(eqxi.scan, kind="checkpointed", checkpoints=n))

        return cls(name, functools.partial(loss, lax.scan), args, theirs)


# ---- the problems ----


def lstm(n_batch: int = 16, width: int = 128) -> Problem:
    """Return an LSTM that reads a sequence, with a loss on its last state."""

    def loss(scan: Scan, params: dict[str, jax.Array], xs: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, None]:
            h, c = state
            i, f, g, o = jnp.split(h @ params["wh"] + x @ params["wx"] + params["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros((n_batch, width))
        (h, _), _ = scan(step, (zeros, zeros), xs)
        return jnp.mean(h**2)

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "wh": jax.random.normal(keys[0], (width, 4 * width)) / math.sqrt(width),
        "wx": jax.random.normal(keys[1], (32, 4 * width)) / math.sqrt(32),
        "b": jnp.zeros(4 * width),
    }
    return Problem.of_scan("LSTM", loss, (params, jax.random.normal(keys[2], (N_STEPS, n_batch, 32))))


def field_params(width: int, n_hidden: int) -> dict[str, jax.Array]:
    """Return the weights of `field`."""
    up, down = jax.random.split(jax.random.key(1))
    return {
        "up": jax.random.normal(up, (width, n_hidden)) / math.sqrt(width),
        "down": jax.random.normal(down, (n_hidden, width)) / math.sqrt(n_hidden),
        "b": jnp.zeros(n_hidden),
    }


def field(t: Any, y: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Return the right-hand side of the neural ODE."""
    return jnp.tanh(y @ params["up"] + params["b"] + t) @ params["down"] - y


def neural_ode(n_batch: int = 64, width: int = 32, n_hidden: int = 64) -> Problem:
    """Return a neural ODE that is solved by Runge and Kutta's method in fixed steps."""
    dt = 5.0 / N_STEPS

    def loss(scan: Scan, params: dict[str, jax.Array], y: jax.Array) -> jax.Array:
        def step(y: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            k1 = field(t, y, params)
            k2 = field(t + dt / 2, y + dt / 2 * k1, params)
            k3 = field(t + dt / 2, y + dt / 2 * k2, params)
            k4 = field(t + dt, y + dt * k3, params)
            return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        return jnp.mean(scan(step, y, dt * jnp.arange(N_STEPS))[0] ** 2)

    y = jax.random.normal(jax.random.key(2), (n_batch, width))
    return Problem.of_scan("neural ODE, RK4", loss, (field_params(width, n_hidden), y))


def heat(n: int = 128) -> Problem:
    """Return the heat equation on a square whose conductivity is to be found from the last state."""

    def loss(scan: Scan, log_conductivity: jax.Array, u: jax.Array, seen: jax.Array) -> jax.Array:
        k = jnp.exp(log_conductivity)

        def flow(u: jax.Array, axis: int) -> jax.Array:
            down = 0.5 * (k + jnp.roll(k, -1, axis)) * (jnp.roll(u, -1, axis) - u)
            return down - jnp.roll(down, 1, axis)

        def step(u: jax.Array, _: None) -> tuple[jax.Array, None]:
            return u + 0.2 * (flow(u, 0) + flow(u, 1)), None

        return jnp.mean((scan(step, u, None, length=N_STEPS)[0] - seen) ** 2)

    keys = jax.random.split(jax.random.key(3), 3)
    field = 0.3 * jax.random.normal(keys[0], (n, n)) - 1
    u, seen = (jax.random.normal(k, (n, n)) for k in keys[1:])
    return Problem.of_scan("2-D heat equation", loss, (field, u, seen))


def _solve(adjoint: Any, params: Any, y: jax.Array) -> jax.Array:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Heun(),
        t0=0.0,
        t1=5.0,
        dt0=5.0 / N_STEPS,
        y0=y,
        args=params,
        adjoint=adjoint,
        max_steps=N_STEPS,
    )
    return jnp.mean(solution.ys[-1] ** 2)


def diffrax_ode(n_batch: int = 64, width: int = 32, n_hidden: int = 64) -> list[Problem]:
    """Return a neural ODE that diffrax solves, by its scan-based adjoint and by its solver's steps in a scan."""
    y = jax.random.normal(jax.random.key(2), (n_batch, width))
    args = field_params(width, n_hidden), y

    def theirs(n: int) -> Callable[..., jax.Array]:
        return functools.partial(_solve, diffrax.RecursiveCheckpointAdjoint(checkpoints=n))

    def by_hand(params: Any, y: jax.Array) -> jax.Array:
        term, solver, dt = diffrax.ODETerm(field), diffrax.Heun(), 5.0 / N_STEPS
        state = solver.init(term, 0.0, dt, y, params)

        def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
            y, state = carry
            y, _, _, state, _ = solver.step(term, i * dt, (i + 1) * dt, y, params, state, made_jump=False)
            return (y, state), None

        (y, _), _ = lax.scan(step, (y, state), jnp.arange(N_STEPS))
        return jnp.mean(y**2)

    return [
        Problem("diffrax, DirectAdjoint", functools.partial(_solve, diffrax.DirectAdjoint()), args, theirs, 3),
        Problem("diffrax, its steps in a scan", by_hand, args, theirs),
    ]


# ---- ours and theirs ----


def ours(problem: Problem, saved_carries: int) -> Any:
    """Return our compiled value and gradient, whose loops save so many carries by the binomial schedule."""
    loops = tb.LoopChoice(saved_carries=saved_carries // problem.n_loops)
    way = tb.height_compressed_value_and_grad(problem.loss, block_size=10**6, loops=loops, on_error="raise")
    return tb.jit(way).lower(*problem.args).compile()


def plain(loss: Callable[..., jax.Array], args: Sequence[Any]) -> Any:
    """Return the compiled value and gradient of a loss as JAX differentiates it."""
    return tb.jit(jax.value_and_grad(loss)).lower(*args).compile()


def exact(problem: Problem) -> Any:
    """Return the gradient in float64."""
    with jax.enable_x64(True):
        args = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), problem.args)
        return jax.tree.map(np.asarray, jax.jit(jax.grad(problem.loss))(*args))


def epsilons(gradient: Any, truth: Any) -> float:
    """Return the largest error, in epsilons of float32 of the largest entry of its array."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(truth), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs) / float(np.finfo(np.float32).eps)


def figures(problem: Problem, saved_carries: int, n_repeats: int = 9) -> list[Figure]:
    """Measure ours, theirs and the plain gradient of a problem."""
    ways = [ours(problem, saved_carries), plain(problem.theirs(saved_carries), problem.args)]
    ways.append(plain(problem.loss, problem.args))
    truth = exact(problem)
    errors = [epsilons(way(*problem.args)[1], truth) for way in ways]
    temp_bytes = [tb.measure(way).temp_bytes for way in ways]
    seconds = interleaved_seconds([lambda way=way: way(*problem.args) for way in ways], n_repeats)
    name = f"{problem.name}, {saved_carries} carries"
    most_epsilons = max(LEAST_EPSILONS, 2 * errors[2])

    def note(values: Sequence[str]) -> str:
        return f"{values[0]}, theirs {values[1]}, plain {values[2]}"

    temp_note, time_note = note([*map(format_bytes, temp_bytes)]), note([f"{1e3 * s:.0f} ms" for s in seconds])
    return [
        Figure(f"{name}: temp", temp_bytes[0] / temp_bytes[1], MOST_TEMP_RATIO, "×", temp_note),
        Figure(f"{name}: time", seconds[0] / seconds[1], MOST_TIME_RATIO, "×", time_note),
        Figure(f"{name}: gradient", errors[0], most_epsilons, "eps", note([f"{e:.2g}" for e in errors])),
    ]


PROBLEMS: dict[str, Callable[[], list[Problem]]] = {
    "lstm": lambda: [lstm()],
    "ode": lambda: [neural_ode()],
    "heat": lambda: [heat()],
    "diffrax": diffrax_ode,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loops_peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="measure some alone")
    problems = [p for name in parser.parse_args(argv).only for p in PROBLEMS[name]()]
    runs = [(p, n) for p in problems for n in N_CARRIES]
    return print_figures([f for p, n in tqdm(runs, leave=False) for f in figures(p, n)])


if __name__ == "__main__":
    sys.exit(main())
