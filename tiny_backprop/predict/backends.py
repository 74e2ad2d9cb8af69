"""Which compiler is modelled for each backend: the one place that chooses."""

from __future__ import annotations

from tiny_backprop.errors import PlanError
from tiny_backprop.predict.compiler import Compiler
from tiny_backprop.predict.xla_cpu.compiler import xla_cpu

_COMPILERS = {"cpu": xla_cpu}
BACKENDS = tuple(_COMPILERS)
"""Backends whose allocation is modelled."""


def compiler_of(backend: str, jax_version: tuple[int, ...]) -> Compiler:
    """Return the compiler of a backend.

    Args:
      backend: One of `BACKENDS`.
      jax_version: The version of JAX that it came with, see `Graph.jax_version`.

    Raises:
      PlanError: The backend is not modelled.
    """
    if backend not in _COMPILERS:
        raise PlanError(f"backend={backend!r} was asked for; what XLA allocates is modelled for {', '.join(BACKENDS)}")
    return _COMPILERS[backend](jax_version)
