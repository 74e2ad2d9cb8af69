"""See where the memory of a JAX gradient goes, plan what to save and what to recompute, and run the plan.

The names here are the public interface; `__init__.pyi` says where each lives. Each is loaded, with what it needs, when
it is first asked for, so that to import the package takes next to no time. The interactive ones come from
`tiny_backprop_widgets`. `%load_ext tiny_backprop` brings `%memplan` into a notebook.

This is the roof of the house: it may name every room, and no room imports it.
"""

import ast
import pkgutil
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """Return the module in which each public name lives."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    return {alias.name: str(n.module) for n in stub.body if isinstance(n, ast.ImportFrom) for alias in n.names}


_HOMES = _homes()
_ROOMS = ("analysis", "errors", "graph", "integration", "plan", "predict", "schedule")

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load a public name, or a room, when it is first asked for."""
    if name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]


def load_ipython_extension(ipython: Any) -> None:
    """Bring `%memplan` and `%%memplan` into a notebook, as `%load_ext tiny_backprop` asks for."""
    ipython.register_magics(import_module("tiny_backprop_widgets.magic").MemplanMagics)
