"""A call taken apart: arrays, other leaves and structure of what a function is given and returns."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from tiny_backprop.errors import CaptureError


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A function together with its arguments, leaves separated from structure.

    Attributes:
      fun: The function.
      name: Its name, for messages.
      leaves: All leaves of `(args, kwargs)`.
      tree: Their tree.
      traced: Positions of the leaves that are arrays; the others (strings, callables, …) are passed on as they are, and
        so are Python's bools and ints in arguments that are not differentiated, as `jax.grad` does.
    """

    fun: Callable[..., Any]
    name: str
    leaves: list[Any]
    tree: Any
    traced: tuple[int, ...]

    @classmethod
    def of(cls, fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], argnums: Any = None) -> Call:
        """Take a call apart; in all arguments but `argnums`, where given, Python's bools and ints are no arrays."""
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        traced = tuple([i for i, x in enumerate(leaves) if is_array_type(type(x))])
        if argnums is not None and any(type(leaves[i]) in (bool, int) for i in traced):
            kept = _leaves_of(tree, argnums)
            traced = tuple([i for i in traced if type(leaves[i]) not in (bool, int) or i in kept])
        return cls(fun, function_name(fun), leaves, tree, traced)

    @property
    def arrays(self) -> list[Any]:
        """The leaves that are arrays."""
        return [self.leaves[i] for i in self.traced]

    @property
    def n_args(self) -> int:
        """Number of positional arguments."""
        return len(self.tree.children()[0].children())

    def with_arrays(self, arrays: Sequence[Any]) -> Any:
        """Call the function with other arrays in the places of these.

        Raises:
          CaptureError: The function changes an object among its arguments, such as a module with a running mean: it was
            given a copy, and what it has changed would be lost.
        """
        leaves = list(self.leaves)
        for i, x in zip(self.traced, arrays, strict=True):
            leaves[i] = x
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        objects = [x for x in jax.tree.leaves((args, kwargs), is_leaf=_is_object) if _is_object(x)]
        before = [_held(x) for x in objects]
        is_stable = [held == _held(x) for held, x in zip(before, objects, strict=True)]
        try:
            out = self.fun(*args, **kwargs)
        except TypeError:
            check_signature(CaptureError, self.fun, args, kwargs)
            raise
        returned = set(map(id, jax.tree.leaves(out)))
        for x, held, stable in zip(objects, before, is_stable, strict=True):
            # Who returns some of what has changed knows that the rest is lost, as under jax.jit.
            if stable and held != _held(x) and returned.isdisjoint(set(_held(x)[0]).difference(held[0])):
                raise CaptureError(
                    f"{self.name} changes its argument of type {type(x).__name__} in place (a running mean, or "
                    "the count of a random stream). It is planned as a pure function, and the change would be lost. "
                    "Return what changes: split the module before (flax.nnx.split, equinox.partition), merge inside, "
                    "and return its new state beside the output, as has_aux=True has it."
                )
        return out

    def argument_names(self) -> list[str]:
        """Return a name such as `args[0]['w']` for each array."""
        paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(self.tree, self.leaves))
        names = ["args" + jax.tree_util.keystr(p[1:]) if p[0].idx == 0 else _keyword(p) for p, _ in paths]
        return [names[i] for i in self.traced]

    def symbolic_dimensions(self) -> list[Any]:
        """Return the symbolic dimensions of all arrays, one after the other."""
        return [d for x in self.arrays for d in symbolic_dimensions(x)]

    def positions(self, argnums: Sequence[int]) -> list[int]:
        """Return which of `arrays` belong to the positional arguments `argnums`, -1 for a leaf that is none of them."""
        leaves = _leaves_of(self.tree, argnums)
        return [self.traced.index(i) if i in self.traced else -1 for i in leaves]


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a function returned, leaves separated from structure.

    Attributes:
      tree: Tree of all leaves.
      fixed: The leaves that are no arrays, by position; each call returns them as the traced one did.
    """

    tree: Any
    fixed: Mapping[int, Any]

    def unflatten(self, arrays: Sequence[Any]) -> Any:
        """Return what the function returns, with these arrays in their places."""
        if not self.fixed:
            return jax.tree.unflatten(self.tree, arrays)
        rest = iter(arrays)
        leaves = [self.fixed[i] if i in self.fixed else next(rest) for i in range(self.tree.num_leaves)]
        return jax.tree.unflatten(self.tree, leaves)

    def main(self, name: str) -> tuple[Any, int]:
        """Return the tree and the number of arrays of the first part of a pair.

        Raises:
          CaptureError: The function `name` does not return a pair.
        """
        kind = (self.tree.node_data() or (None,))[0]
        children = self.tree.children()
        if not (isinstance(kind, type) and issubclass(kind, (tuple, list)) and len(children) == 2):
            raise CaptureError(f"has_aux=True: {name} must return a pair (output, aux); found {self.tree}")
        n_leaves = children[0].num_leaves
        return children[0], n_leaves - sum(i < n_leaves for i in self.fixed)


def _leaves_of(tree: Any, argnums: Any) -> list[int]:
    """Return the positions of the leaves of some positional arguments; whatever names none has none."""
    ends = list(itertools.accumulate(t.num_leaves for t in tree.children()[0].children()))
    wanted = [k for k in (argnums if isinstance(argnums, Sequence) else [argnums]) if isinstance(k, numbers.Integral)]
    indices = [operator.index(k) for k in wanted]
    indices = [k % len(ends) for k in indices if -len(ends) <= k < len(ends)]
    return [i for k in indices for i in range(ends[k - 1] if k else 0, ends[k])]


def _keyword(path: tuple[Any, ...]) -> str:
    return str(path[1].key) + jax.tree_util.keystr(path[2:])


def check_signature(error: type[Exception], fun: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `error` where a function does not take these arguments, as far as it tells."""
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # what is written in C does not tell
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as e:
        given = f"{len(args)} positional arguments" + (f" and {', '.join(kwargs)}" if kwargs else "")
        raise error(
            f"{function_name(fun)}{signature} was given {given}: {e}. Pass the function's own arguments after it."
        ) from None


def function_name(fun: Any) -> str:
    """Return the name of a function, or of the class of a callable object, for messages."""
    return getattr(fun, "__name__", type(fun).__name__)


@functools.cache
def is_array_type(kind: type) -> bool:
    """Return whether objects of a type are arrays to JAX, Python's numbers among them."""
    return issubclass(kind, (bool, int, float, complex)) or (hasattr(kind, "shape") and hasattr(kind, "dtype"))


def _is_object(x: Any) -> bool:
    """Return whether a tree has a node of its own kind here, which a function may write to."""
    return type(x) not in (tuple, list, dict, type(None)) and not jax.tree_util.all_leaves([x])


def _held(x: Any) -> tuple[list[int], Any]:
    leaves, tree = jax.tree.flatten(x)
    return list(map(id, leaves)), tree


def symbolic_dimensions(x: Any) -> list[Any]:
    """Return the symbolic dimensions of an argument's shape; none for what has no shape."""
    return [d for d in getattr(x, "shape", ()) if type(d) is not int and jax.export.is_symbolic_dim(d)]


def check_argnums(call: Call, argnums: int | Sequence[int]) -> list[int]:
    """Return the positions, among the arrays of a call, of the leaves of `argnums`.

    Raises:
      CaptureError: An index is no integer, repeated or out of range, or a leaf cannot be differentiated.
    """
    wanted = _check_indices(call, argnums, "argnums")
    if not wanted:
        raise CaptureError(f"argnums={argnums!r} must name at least one argument")
    positions = call.positions(wanted)
    names = call.argument_names()
    for i in positions:
        if i < 0:
            raise CaptureError(f"argnums={argnums!r} of {call.name} has a leaf that is no array; it has no gradient")
        dtype = getattr(call.arrays[i], "dtype", None) or jnp.result_type(call.arrays[i])
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise CaptureError(
                f"argnums={argnums!r} of {call.name}: {names[i]} has dtype {dtype}, which has no gradient. "
                "Differentiate "
                "by floating-point arguments alone (see argnums), or convert it."
            )
    return positions


def check_donate_argnums(call: Call, donate_argnums: int | Sequence[int]) -> list[int]:
    """Return the positions, among the arrays of a call, of the arrays that are donated, in order.

    Raises:
      CaptureError: An index is no integer, repeated or out of range.
    """
    return sorted(i for i in call.positions(_check_indices(call, donate_argnums, "donate_argnums")) if i >= 0)


def _check_indices(call: Call, argnums: int | Sequence[int], word: str) -> list[int]:
    """Return which positional arguments are meant, from 0 on."""
    n_args = call.n_args
    try:
        wanted = [operator.index(k) for k in (argnums if isinstance(argnums, Sequence) else [argnums])]
    except (TypeError, ValueError):
        raise CaptureError(f"{word} must be an integer or a tuple of them; found {argnums!r}") from None
    for k in wanted:
        if not -n_args <= k < n_args:
            raise CaptureError(f"{word}={argnums!r} was asked for; {call.name} was given {n_args} positional arguments")
    found = [k % n_args for k in wanted]
    if len(set(found)) < len(found):
        raise CaptureError(f"{word}={argnums!r} must name no argument twice")
    return found


def separated(arrays: Sequence[Any], donated: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Return the arrays that are donated, and the others."""
    kept = set(range(len(arrays))).difference(donated)
    return [arrays[i] for i in donated], [x for i, x in enumerate(arrays) if i in kept]


def joined(given: Sequence[Any], others: Sequence[Any], donated: Sequence[int]) -> list[Any]:
    """Return all arrays in order, of which `separated` made two lists."""
    arrays = list(others)
    for i, x in zip(donated, given, strict=True):
        arrays.insert(i, x)
    return arrays
