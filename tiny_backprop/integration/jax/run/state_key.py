"""`state_key`: what an argument that is no array is, as far as a function can see it, as something to look up by.

`jax.jit` asks for hashable arguments and takes their hash for what they are. Bound methods, partials and functions are
hashable, and what they hold may change all the same: here it is part of the key. What a function finds by a global name
is taken as it is at the first call, as with `jax.jit`, numbers and texts excepted.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

_PLAIN = (type(None), type(...), bool, int, str, bytes, np.dtype)
_CONSTANT = (types.ModuleType, np.ufunc, jax.stages.Wrapped)
_LIBRARIES = ("builtins", "jax", "jaxlib", "numpy")
_MOST_OBJECTS = 2000
_MOST_BYTES = 1 << 20


class NoKeyError(Exception):
    """An object may have changed without a way to tell."""


class _Same:
    """Equal to what holds the very same object, which it keeps alive."""

    def __init__(self, held: Any):
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._held is other._held

    def __hash__(self) -> int:
        return id(self._held)


def state_key(x: Any) -> Any:
    """Return a hashable key of an object and all that it holds.

    Raises:
      NoKeyError: It holds what may change unseen, or too much.
    """
    return _Keys().of(x)


class _Keys:
    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def of(self, x: Any) -> Any:
        kind = type(x)
        if kind in (float, complex):
            return kind, repr(x)  # -0.0 and nan are what they are
        if isinstance(x, _PLAIN):
            return kind, x
        if isinstance(x, (jax.Array, *_CONSTANT)):
            return _Same(x)
        if id(x) in self._seen:
            return "seen", self._seen[id(x)]
        if len(self._seen) >= _MOST_OBJECTS:
            raise NoKeyError
        self._seen[id(x)] = len(self._seen)
        return kind, *self._parts(x, kind)

    def _parts(self, x: Any, kind: type) -> Iterable[Any]:
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return self.of(x.__func__), self.of(x.__self__)
        if isinstance(x, types.BuiltinFunctionType):
            return x.__name__, self.of(x.__self__)
        if isinstance(x, functools.partial):
            return self.of(x.func), self._all(x.args), self._mapping(x.keywords), self._mapping(vars(x))
        if isinstance(x, type):
            return self._class(x)
        if kind in (tuple, list):
            return self._all(x)
        if kind is dict:
            return (self._mapping(x),)
        if isinstance(x, np.ndarray):
            return self._ndarray(x)
        if kind.__hash__ is not object.__hash__ and kind.__hash__ is not None:
            return (_hashable(x),)
        if isinstance(x, types.CellType) or not hasattr(x, "__dict__"):
            raise NoKeyError
        return _Same(x), self.of(kind), self._mapping(vars(x))

    def _all(self, xs: Iterable[Any]) -> tuple[Any, ...]:
        return tuple([self.of(x) for x in xs])

    def _mapping(self, xs: Mapping[Any, Any]) -> tuple[Any, ...]:
        return tuple([(self.of(k), self.of(v)) for k, v in xs.items()])

    def _function(self, x: types.FunctionType) -> Iterable[Any]:
        if _is_library(x):
            return (_Same(x),)
        code, known = x.__code__, x.__globals__
        cells = [c.cell_contents if _is_full(c) else None for c in x.__closure__ or ()]
        named = [known[n] for n in code.co_names if n in known]
        seen = [(type(v), v) if isinstance(v, _PLAIN) else (type(v), repr(v)) if type(v) is float else _Same(v)
                for v in named]  # fmt: skip
        defaults = self.of(x.__defaults__), self.of(x.__kwdefaults__)
        return _Same(x), _Same(code), self._all(cells), *defaults, tuple(seen)

    def _class(self, x: type) -> Iterable[Any]:
        """A class and what is written in it: data by what they are, everything else by identity."""
        bodies = [vars(c) for c in x.__mro__ if not _is_library(c)]
        data = [
            (name, self.of(v) if isinstance(v, (*_PLAIN, float, complex, list, dict, tuple)) else _Same(v))
            for body in bodies
            for name, v in body.items()
            if name not in ("__dict__", "__weakref__")
        ]
        return _Same(x), tuple(data)

    def _ndarray(self, x: np.ndarray) -> Iterable[Any]:
        if x.nbytes > _MOST_BYTES or x.dtype.hasobject:
            raise NoKeyError
        return x.shape, x.dtype, x.tobytes()


def _is_library(x: Any) -> bool:
    return str(getattr(x, "__module__", "")).partition(".")[0] in _LIBRARIES


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _hashable(x: Any) -> Any:
    try:
        hash(x)
    except TypeError:
        raise NoKeyError from None
    return x
