"""Callable objects that stand for a function, in a class body too."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any


class FunctionWrapper:
    """Base of callable objects that take the name and documentation of a function, and bind as its methods do."""

    def __init__(self, fun: Callable[..., Any]):
        functools.update_wrapper(self, fun, updated=())  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by name where the name means this, as after a decorator; otherwise by parts."""
        qualname = getattr(self, "__qualname__", "")  # a partial has none
        found: Any = sys.modules.get(self.__module__)
        for name in qualname.split("."):
            found = getattr(found, name, None)
        return qualname if found is self else super().__reduce_ex__(protocol)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance, as a function in a class body does."""
        return self if instance is None else types.MethodType(self, instance)  # type: ignore[arg-type]
