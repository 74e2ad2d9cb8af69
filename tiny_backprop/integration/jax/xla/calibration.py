"""How fast this machine runs each class of primitives, measured once and kept in the user's cache directory.

Small programs, one or two for each class, are compiled and timed on arrays of a few MiB, as those of a model are, and
held against what `cost` counts for them: FLOPs where arithmetic takes the time, bytes where memory does. The least of
several runs counts, since other processes can only make a run slower.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from jax import lax

from tiny_backprop.errors import CalibrationWarning, MeasureError
from tiny_backprop.integration.jax.capture.cost import jaxpr_cost
from tiny_backprop.integration.jax.capture.sizes import aval_bytes
from tiny_backprop.schedule.cost import CostModel

_N_RUNS = 7
_LEAST_SECONDS = 1e-9
_MOST_CHANGE = 1.4
_SIDE = 1024  # a matrix of 4 MiB
_N_SMALL, _N_STEPS, _DEGREE = 200, 2000, 32
_LEAST_FRESH_BYTES = 32 << 20
"""From this size on the C library asks the system for an allocation's memory (glibc's DEFAULT_MMAP_THRESHOLD_MAX)."""
_FORMAT = "tiny_backprop.calibration"
_VERSION = 1


Probe = tuple[Callable[..., Any], tuple[Any, ...]]


def calibrate(*, again: bool = False, cache_directory: str | os.PathLike[str] | None = None) -> CostModel:
    """Return how fast JAX's default device is, measured now or, on an earlier call, on the same machine.

    Measuring takes a few seconds, most of them for compiling, in which nothing else should run. The figures are
    kept in a file for each device, number of cores and version of JAX, so that later calls only read it.

    Args:
      again: Whether to measure even if there is such a file, which is then replaced.
      cache_directory: Where files are kept; default: the user's cache directory, as `platformdirs` finds it.

    Returns:
      The cost model, for `Plan.step_seconds` and as `cost` of planners.

    Raises:
      MeasureError: The file cannot be written, or is none that `calibrate` wrote.

    Warns:
      CalibrationWarning: The machine was not as fast at the end as at the beginning.

    Example:
      >>> import tiny_backprop as tb
      >>> model = tb.calibrate()  # doctest: +SKIP
      >>> plan.step_seconds(model)  # doctest: +SKIP
      0.0123
    """
    path = _path(cache_directory)
    if not again and (model := read_calibration(cache_directory)) is not None:
        return model
    with _kept_in(path) as keep:
        model = _measured()
        keep({"format": _FORMAT, "version": _VERSION, "cost_model": dataclasses.asdict(model)})
    return model


@contextlib.contextmanager
def _kept_in(path: Path) -> Iterator[Callable[[Any], None]]:
    """Make sure, before anything is measured, that a file can be written; give what writes it, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.part")

    def keep(data: Any) -> None:
        partial.write_text(json.dumps(data, indent=1))
        partial.replace(path)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
        yield keep
    except OSError as error:
        raise MeasureError(
            f"the calibration cannot be kept in {path}: {error}. Name another cache_directory."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_calibration(cache_directory: str | os.PathLike[str] | None = None) -> CostModel | None:
    """Return what `calibrate` has kept for JAX's default device, or None if it was never called here.

    Args:
      cache_directory: See `calibrate`.

    Raises:
      MeasureError: The file is none that `calibrate` wrote.
    """
    path = _path(cache_directory)
    try:
        data = json.loads(path.read_text())
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        return CostModel(**data["cost_model"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise MeasureError(
            f"{path} is no calibration that this version wrote ({error}). Measure anew: calibrate(again=True)."
        ) from error


def _path(cache_directory: str | os.PathLike[str] | None) -> Path:
    device = jax.devices()[0]
    directory = cache_directory or platformdirs.user_cache_dir("tiny_backprop", appauthor=False)
    cores = f"-{os.cpu_count()}-cores" if device.platform == "cpu" else ""
    kind = "".join(c if c.isalnum() else "-" for c in device.device_kind.lower())
    return Path(directory) / f"calibration-{device.platform}-{kind}{cores}-jax-{jax.__version__}.json"


# ---- measuring ----


def _measured() -> CostModel:
    start_seconds = _seconds((lambda x: x + 1, (jnp.zeros(()),)))
    return _steadily(lambda: _all_speeds(start_seconds), start_seconds)


def _steadily(measure: Callable[[], CostModel], start_seconds: float) -> CostModel:
    """Return what is measured, with a warning where the machine was not as fast before as after."""
    before = _flops_per_second(_matmuls(), start_seconds)
    model = measure()
    after = _flops_per_second(_matmuls(), start_seconds)
    change = max(before, after) / min(before, after)
    if change > _MOST_CHANGE:
        warnings.warn(
            f"while it was calibrated, this machine became {change:.1f} times as fast or slow: something else is "
            "running. The figures are kept; when it is quiet, measure anew: calibrate(again=True).",
            CalibrationWarning,
            stacklevel=4,
        )
    return model


def _all_speeds(start_seconds: float) -> CostModel:
    bytes_per_second = _bytes_per_second(_elementwise(), start_seconds)
    by_class = {
        "matmul": (_flops_per_second(_matmuls(), start_seconds), bytes_per_second),
        "convolution": (_flops_per_second(_convolutions(), start_seconds), bytes_per_second),
        "kernel_gradient": (_flops_per_second(_kernel_gradients(), start_seconds), bytes_per_second),
        "transcendental": (_flops_per_second(_transcendentals(), start_seconds), bytes_per_second),
        "special": (_flops_per_second(_specials(), start_seconds), bytes_per_second),
        "elementwise": (_flops_per_second([(_horner, (_array(_SIDE, _SIDE),))], start_seconds), bytes_per_second),
        "random": (_flops_per_second(_random(), start_seconds), bytes_per_second),
    }
    for name, probes in (
        ("reduction", _reductions()),
        ("movement", _movements()),
        ("transpose", _transposes()),
        ("scatter", _scatters()),
    ):
        fused = [(lambda x, *rest, f=f: f(_horner(x), *rest), args) for f, args in probes]
        by_class[name] = _flops_per_second(fused, start_seconds), _bytes_per_second(probes, start_seconds)
    seconds_per_kernel = _seconds_per_kernel(start_seconds)
    return CostModel(
        flops_per_second=by_class["matmul"][0],
        bytes_per_second=bytes_per_second,
        by_class=by_class,
        seconds_per_kernel=seconds_per_kernel,
        seconds_per_loop_step=_seconds_per_loop_step(start_seconds, seconds_per_kernel),
        seconds_per_fresh_byte=_seconds_per_fresh_byte(),
        least_fresh_bytes=_LEAST_FRESH_BYTES,
    )


def _seconds(probe: Probe) -> float:
    """Return the seconds of the fastest of a few runs, after one that is not counted."""
    fun, args = probe
    compiled = jax.jit(fun).lower(*args).compile()
    taken = []
    for _ in range(_N_RUNS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])


def _flops_per_second(probes: Iterable[Probe], start_seconds: float) -> float:
    """Return the speed of some programs, each taken for as important; FLOPs are counted as `cost` counts them."""
    return _speed(probes, start_seconds, lambda jaxpr: jaxpr_cost(jaxpr)[0])


def _bytes_per_second(probes: Iterable[Probe], start_seconds: float) -> float:
    """The same by the bytes of what goes in and comes out, since all between is fused."""
    return _speed(probes, start_seconds, lambda j: sum(aval_bytes(v.aval) for v in (*j.jaxpr.invars, *j.jaxpr.outvars)))


def _speed(probes: Iterable[Probe], start_seconds: float, work: Callable[[Any], float]) -> float:
    slowness = []
    for fun, args in probes:
        seconds = max(_seconds((fun, args)) - start_seconds, _LEAST_SECONDS)
        slowness.append(seconds / work(jax.make_jaxpr(fun)(*args)))
    return 1 / statistics.fmean(slowness)


def _array(*shape: int) -> jax.Array:
    """Return numbers from 0.5 to 1, made by NumPy: JAX would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, shape), np.float32)


def _rows() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, _SIDE, _SIDE), np.int32)


def _elementwise() -> list[Probe]:
    return [(lambda x, y: x + y, (_array(_SIDE, _SIDE), _array(_SIDE, _SIDE)))]


def _matmuls() -> list[Probe]:
    return [
        (lambda x, y: x @ y, (_array(512, 512), _array(512, 512))),
        (lambda x, y: x @ y, (_array(32, 128, 64), _array(32, 64, 128))),
    ]


def _convolutions() -> list[Probe]:
    return [(_convolution, (x, kernel)) for x, kernel in _images()]


def _kernel_gradients() -> list[Probe]:
    def gradient(x: jax.Array, kernel: jax.Array, y: jax.Array) -> Any:
        return jax.linear_transpose(lambda kernel: _convolution(x, kernel), kernel)(y)

    return [(gradient, (x, kernel, x)) for x, kernel in _images()]


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _images() -> list[tuple[jax.Array, jax.Array]]:
    """Images and kernels: large and shallow, small and deep."""
    return [(_array(4, 32, 32, 32), _array(3, 3, 32, 32)), (_array(4, 8, 8, 128), _array(3, 3, 128, 128))]


def _transcendentals() -> list[Probe]:
    return [(f, (_array(_SIDE, _SIDE),)) for f in (jnp.exp, jnp.tanh, jnp.log, lax.erf)]


def _specials() -> list[Probe]:
    return [(f, (_array(_SIDE, _SIDE),)) for f in (jnp.sin, lax.rsqrt, lambda x: x**1.7)]


def _horner(x: jax.Array) -> jax.Array:
    """A polynomial in x, which costs much arithmetic for each byte."""
    y = x
    for _ in range(_DEGREE):
        y = y * x + 0.5
    return y


def _random() -> list[Probe]:
    return [(lambda key: jax.random.bits(key, (_SIDE, _SIDE)), (jax.random.key(0),))]


def _reductions() -> list[Probe]:
    x = _array(_SIDE, _SIDE)
    return [(lambda x: x.sum(1), (x,)), (lambda x: x.sum(0), (x,)), (lambda x: x.max(1), (x,))]


def _movements() -> list[Probe]:
    x, rows = _array(_SIDE, _SIDE), _rows()
    return [
        (lambda x: jnp.concatenate([x, x]), (x,)),
        (lambda x: jnp.pad(x, ((1, 1), (2, 2))), (x,)),
        (lambda x, rows: x.at[rows].get(mode="clip"), (x, rows)),
    ]


def _transposes() -> list[Probe]:
    """Copies into another order, and the loops that they are mostly fused into, which go through memory as badly."""
    x, heads = _array(_SIDE, _SIDE), _array(8, 128, 16, 64)
    return [
        (lambda x: x.T, (x,)),
        (lambda x: x.transpose(0, 2, 1, 3), (heads,)),
        (lambda x: (x * x + x).T, (x,)),
        (lambda x, y, z: (x * y + z).T, (x, x + 1, x + 2)),
    ]


def _scatters() -> list[Probe]:
    x, rows = _array(_SIDE, _SIDE), _rows()
    return [(lambda x, rows, y: x.at[rows].add(y, mode="drop"), (x, rows, x))]


def _seconds_per_kernel(start_seconds: float) -> float:
    """Return what each of many kernels takes that hardly do anything."""

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(_N_SMALL):
            x = x @ x
        return x

    return max(_seconds((chain, (_array(4, 4) / 8,))) - start_seconds, 0.0) / _N_SMALL


def _seconds_per_loop_step(start_seconds: float, seconds_per_kernel: float) -> float:
    """Return what a step of a loop takes beside the one such kernel that it runs."""

    def loop(x: jax.Array) -> jax.Array:
        return lax.scan(lambda x, _: (x @ x, None), x, None, length=_N_STEPS)[0]

    each = (_seconds((loop, (_array(4, 4) / 8,))) - start_seconds) / _N_STEPS
    return max(each - seconds_per_kernel, 0.0)


def _seconds_per_fresh_byte() -> float:
    """Return what a byte costs more where the system has to map it, by filling arrays on both sides of the border."""
    used, fresh = _LEAST_FRESH_BYTES // 2, 4 * _LEAST_FRESH_BYTES
    per_byte = [_seconds((lambda x, n=n: jnp.full((n // 4,), x), (jnp.float32(1),))) / n for n in (used, fresh)]
    return max(per_byte[1] - per_byte[0], 0.0)
