"""The barrier that keeps a recomputation a recomputation.

`hold(tokens, values)` returns `values`, but no earlier than `tokens` are there, and as arrays of which XLA does not
know that they equal what it has already computed with. Without it, XLA's common-subexpression elimination would undo
every recomputation, and its scheduler might start one early.

On GPU and TPU this is `lax.optimization_barrier`. XLA:CPU removes optimisation barriers (pass `cse_barrier_expander`)
and merges afterwards. There, the values go through a conditional that passes them on when a predicate holds. The
predicate always holds, but is computed from one element of each token in a way that XLA does not fold: with its lowest
bit set, the element's bits are not zero. XLA neither looks through a conditional nor can it start before its predicate
is known. The price is a copy of the held values, and only where they outlive the conditional do both copies take
memory. This works in anybody's `jit`; `tests/run/test_hold.py` notices an XLA that folds it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import tiny_backprop.integration.jax.compat as compat

hold_p = Primitive("hold")
hold_p.multiple_results = True


def hold(tokens: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return `values` as arrays that are available only once `tokens` are; see the module's text.

    Args:
      tokens: Arrays of any shapes and dtypes.
      values: Arrays of any shapes and dtypes.

    Returns:
      The values, unchanged to the bit.
    """
    return hold_p.bind(*tokens, *values, n_tokens=len(tokens))


def _barrier(*operands: Any, n_tokens: int) -> list[Any]:
    return lax.optimization_barrier(list(operands))[n_tokens:]


def _conditional(*operands: Any, n_tokens: int) -> list[Any]:
    tokens, values = operands[:n_tokens], list(operands[n_tokens:])
    tokens = [t for t in tokens if t.size]
    if not tokens or not values:
        return _barrier(*operands, n_tokens=n_tokens)
    return lax.cond(_all_true(tokens), list, lambda xs: [_cleared(x) for x in xs], values)


def zeros_after(tokens: Sequence[Any], shape: Sequence[int], dtype: Any, number: int = 0) -> Any:
    """Return zeros that are not there before all `tokens` are: XLA would make constants at the start of a program.

    Args:
      tokens: Arrays with elements, of any dtypes, one or more.
      shape: Shape of the zeros.
      dtype: Their dtype; no key.
      number: Zeros of different numbers are computed differently, so that XLA does not merge them.
    """
    is_true = _all_true(tokens, number)
    return lax.broadcast(lax.convert_element_type(lax.bitwise_not(is_true), dtype), tuple(shape))


def _all_true(tokens: Sequence[Any], number: int = 0) -> jax.Array:
    """Return True, computed from the first elements of `tokens`, in a way of its own for each number."""
    return functools.reduce(jnp.logical_and, (_always_true(t, number) for t in tokens))


def _always_true(token: jax.Array, number: int) -> jax.Array:
    """Return True, computed from the first element of `token`."""
    if jnp.issubdtype(token.dtype, jax.dtypes.prng_key):
        token = jax.random.key_data(token)
    element = lax.slice(token, (0,) * token.ndim, (1,) * token.ndim).reshape(())
    if jnp.issubdtype(element.dtype, jnp.complexfloating):
        element = element.real
    bits = lax.bitcast_convert_type(element.astype(jnp.float32), jnp.uint32)
    return lax.ne(lax.bitwise_or(bits, jnp.uint32(2 * number + 1)), jnp.uint32(0))


def _cleared(value: jax.Array) -> jax.Array:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_cleared(jax.random.key_data(value)), impl=jax.random.key_impl(value))
    return jnp.zeros_like(value)


def _lower_conditional(ctx: Any, *operands: Any, n_tokens: int) -> Any:
    # One element of a sharded token is asked for, and shardings in types forbid such a slice; the compiler does not.
    plain = ctx.replace(avals_in=[compat.without_sharding(a) for a in ctx.avals_in])
    return mlir.lower_fun(_conditional, multiple_results=True)(plain, *operands, n_tokens=n_tokens)


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, n_tokens: int) -> tuple[Any, Any]:
    return hold_p.bind(*operands, n_tokens=n_tokens), dims[n_tokens:]


hold_p.def_impl(lambda *operands, n_tokens: list(operands[n_tokens:]))
hold_p.def_abstract_eval(lambda *avals, n_tokens: avals[n_tokens:])
batching.primitive_batchers[hold_p] = _batch
mlir.register_lowering(hold_p, mlir.lower_fun(_barrier, multiple_results=True))
mlir.register_lowering(hold_p, _lower_conditional, platform="cpu")
