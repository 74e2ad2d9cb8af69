"""Compilation with the options by which XLA keeps optimisation barriers, and with them every recomputation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.door import FUNCTION
from tiny_backprop.errors import CaptureError
from tiny_backprop.integration.jax.wrapper import FunctionWrapper

_CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compiler_options() -> dict[str, str]:
    """Return the compiler options with which the default backend keeps optimisation barriers.

    XLA:CPU of JAX 0.12 keeps them by itself, and aborts the process where the pass that the option disables is missing.
    """
    return dict(_CPU_OPTIONS) if jax.default_backend() == "cpu" and compat.CPU_DROPS_BARRIERS else {}


class Jitted(FunctionWrapper):
    """A compiled function whose compiler keeps optimisation barriers; made by `tiny_backprop.jit`."""

    def __init__(self, fun: Callable[..., Any], **jit_options: Any):
        super().__init__(fun)
        self._fun, self._options = fun, jit_options
        self._compiler_options = jit_options.pop("compiler_options", None) or {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_jitted", "_nested")}

    @functools.cached_property
    def _jitted(self) -> Any:  # made at the first call: which options are right is known once JAX has chosen a backend
        options = {**compiler_options(), **self._compiler_options}
        return jax.jit(self._fun, compiler_options=options or None, **self._options)

    @functools.cached_property
    def _nested(self) -> Any:  # only the outermost jit can carry compiler options
        return jax.jit(self._fun, **self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function, compiled; inside a transformation, as `jax.jit` does."""
        return (self._nested if compat.is_tracing() else self._jitted)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Return the lowered program for arguments or `jax.ShapeDtypeStruct` objects, as `jax.jit(fun).lower` does."""
        return self._jitted.lower(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget every compiled program, as `jax.jit(fun).clear_cache` does."""
        self._jitted.clear_cache()
        self._nested.clear_cache()


def jit(fun: Callable[..., Any] | None = None, **jit_options: Any) -> Any:
    """Compile as `jax.jit` does, with the compiler options that keep every recomputation.

    Planned gradients keep theirs in any `jit`. The barriers of `jax.checkpoint` are another matter: on CPU, XLA (as of
    JAX 0.10) removes them unless it is told otherwise, and a program without loops then saves no memory.
    `tiny_backprop.jit` tells it, so that gradients of both kinds can be compared. On GPU and TPU it is `jax.jit`.

    Args:
      fun: Function to compile; leave it out to use `jit` as a decorator with options.
      **jit_options: Passed on to `jax.jit`; `compiler_options` are added to ours.

    Returns:
      The compiled function, called as `fun` is, with `lower` and `clear_cache`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(jit(lambda x: jnp.sum(x * x))(jnp.arange(3.0)))
      5.0
    """
    FUNCTION.or_none().check(CaptureError, "the function to compile", fun)
    if fun is None:
        return functools.partial(jit, **jit_options)
    return Jitted(fun, **jit_options)
