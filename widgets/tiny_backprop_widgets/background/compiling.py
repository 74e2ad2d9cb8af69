"""Compile a gradient in the background: in a process of its own, so that to cancel is to end it.

The kernel traces and exports the program; `python -m tiny_backprop_widgets.background.compiling` compiles it and tells
what XLA allocates. Where that cannot be (an accelerator, which one process holds; several devices; effects, which
cannot be exported) a thread of the kernel compiles, and says so: to cancel then is to drop what it finds.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.xla.jit import jit
from tiny_backprop.integration.jax.xla.measure import Measurement, measure

Program = tuple[Callable[..., Any], Sequence[Any], Sequence[Any]]
"""A function of a list of arrays that it may write over and a list of others, and those arrays or their shapes."""

_TRACING, _APART, _HERE = "tracing", "compiling in a process of its own", "compiling in the kernel's own process"


class Compilation:
    """A gradient that is being compiled in the background.

    Attributes:
      measurement: What XLA allocates, once that is known.
      error: What went wrong, if anything did.
      is_cancelled: Whether it was cancelled; there is no measurement then.
      stage: What is being done, in words.
    """

    def __init__(self, program: Program, done: Callable[[Compilation], None]):
        """Prepare to compile a program; `done(self)` is called from another thread when there is an end to it."""
        self.measurement: Measurement | None = None
        self.error: Exception | None = None
        self.is_cancelled = False
        self.stage = _TRACING
        self._program, self._done = program, done
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="tiny_backprop compilation", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._start = time.monotonic()
        self._thread.start()

    def cancel(self) -> None:
        """Give up; a process of its own ends at once, a thread drops what it finds."""
        with self._lock:
            self.is_cancelled = True
            if self._process is not None:
                self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    @property
    def is_running(self) -> bool:
        """Whether there is no end to it yet."""
        return self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def _run(self) -> None:
        try:
            measurement = self._measure()
            if not self.is_cancelled:
                self.measurement = measurement
        except Exception as e:
            if not self.is_cancelled:
                self.error = e
        self._done(self)

    def _measure(self) -> Measurement | None:
        program = self._exported()
        if self.is_cancelled:
            return None
        if program is None:
            self.stage = _HERE
            return measure_program(self._program)
        self.stage = _APART
        return self._measure_apart(program)

    def _exported(self) -> bytes | None:
        """Return the program for another process, or None where it has to be compiled here."""
        if jax.default_backend() != "cpu" or jax.device_count() > 1:
            return None
        try:
            fun, *arrays = self._program
            return bytes(export.export(jax.jit(fun))(*arrays).serialize())
        except (NotImplementedError, ValueError):  # effects, custom calls without a promise to stay as they are
            return None

    def _measure_apart(self, program: bytes) -> Measurement | None:
        folders = [str(Path(inspect.getfile(MeasureError)).parents[1]), str(Path(__file__).parents[2])]
        known = os.environ.get("PYTHONPATH", "")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *([known] if known else [])])}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(jax.config.read("jax_enable_x64")))}
        with self._lock:
            if self.is_cancelled:
                return None
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
            )
        out, errors = self._process.communicate(program)
        if self.is_cancelled:
            return None
        if self._process.returncode:
            reason = errors.decode(errors="replace").strip()[-2000:] or f"exit status {self._process.returncode}"
            raise MeasureError(f"the process that was to compile the gradient failed: {reason}")
        return pickle.loads(out)  # what our own process below has written


def measure_program(program: Program) -> Measurement:
    """Compile a program here, and return what XLA allocates for it."""
    fun, *arrays = program
    return measure(jit(fun, donate_argnums=0), *arrays)


def main() -> None:
    """Compile the exported program on standard input and write the measurement to standard output, pickled."""
    program = export.deserialize(bytearray(sys.stdin.buffer.read()))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals]
    (given, others), _ = jax.tree.unflatten(program.in_tree, shapes)
    measurement = measure_program((program.call, given, others))
    sys.stdout.buffer.write(pickle.dumps(dataclasses.replace(measurement, name=program.fun_name)))


if __name__ == "__main__":
    main()
