"""The door: what public functions ask of their arguments, and the one way in which they refuse others.

A `Kind` says what an argument must be and what to do where it is not. `door` holds a function's arguments against their
kinds before it runs, and raises the error that the function names: what was asked, what was found, what would work.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

MOST_BYTES = 2**63 - 1
"""Bytes are counted in int64."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an argument must be.

    Attributes:
      words: As in "must be ...".
      accepts: Whether a value is of the kind.
      cure: What to do otherwise, as a sentence, or nothing.
    """

    words: str
    accepts: Callable[[Any], bool]
    cure: str = ""

    def check(self, error: type[Exception], name: str, value: Any) -> None:
        """Raise `error` unless a value is of this kind."""
        if not self.accepts(value):
            raise error(f"{name} must be {self.words}; found {found(value)}. {self.cure}".rstrip())

    def or_none(self) -> Kind:
        """Return the kind that None belongs to, too."""
        return Kind(f"{self.words}, or None", lambda x: x is None or self.accepts(x), self.cure)


def found(value: Any) -> str:
    """Return a value in a few words."""
    if value is None or isinstance(value, (bool, numbers.Number, str, bytes)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of over 30 digits"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def instance(cls: type, cure: str = "") -> Kind:
    """Return the kind of the objects of a class."""
    return Kind(f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}", lambda x: isinstance(x, cls), cure)


def one_of(*texts: str) -> Kind:
    """Return the kind of some texts."""
    return Kind(" or ".join(map(repr, texts)), lambda x: isinstance(x, str) and x in texts)


def is_whole(x: Any, least: int, most: int) -> bool:
    """Return whether something is a whole number, and no bool, between two."""
    return isinstance(x, numbers.Integral) and not isinstance(x, bool) and least <= int(x) <= most


def _is_amount(x: Any) -> bool:
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        return False
    value: Any = x
    return bool(0 <= value <= 1e300) and math.isfinite(value)


def _are_whole(xs: Any) -> bool:
    kind = getattr(xs, "dtype", None)
    if kind is not None:
        return (getattr(kind, "kind", "") in "iu" and getattr(xs, "ndim", 0) == 1) or getattr(xs, "size", 1) == 0
    return isinstance(xs, Sequence) and all(is_whole(x, -MOST_BYTES, MOST_BYTES) for x in xs)


FUNCTION = Kind("a function, or another callable", callable)
TEXT = Kind("text", lambda x: isinstance(x, str))
TEXTS = Kind(
    "a sequence of texts",
    lambda x: isinstance(x, Sequence) and not isinstance(x, str) and all(isinstance(y, str) for y in x),
)
BYTES = Kind("bytes as a whole number, from 0 to 2**63 - 1", lambda x: is_whole(x, 0, MOST_BYTES))
COUNT = Kind("a whole number of at least 1", lambda x: is_whole(x, 1, MOST_BYTES))
POINTS = Kind("a whole number of at least 1 and at most 10,000", lambda x: is_whole(x, 1, 10_000))
AMOUNT = Kind("a number, finite and 0 or more", _is_amount)
WHOLE_NUMBERS = Kind("whole numbers in a row", _are_whole)
TRUTH = Kind("True or False", lambda x: isinstance(x, (bool, np.bool_)))
MAPPING = Kind("a mapping", lambda x: isinstance(x, Mapping))


def door(error: type[Exception], **kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: the function's arguments are held against their kinds, and `error` is raised otherwise."""

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(fun)

        @functools.wraps(fun)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # Python tells better which argument is missing
                return fun(*args, **kwargs)
            for name, value in given.items():
                if name in kinds:
                    kinds[name].check(error, f"{name} of {fun.__name__}", value)
            return fun(*args, **kwargs)

        return checked

    return decorate
