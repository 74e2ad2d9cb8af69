"""Libraries' own Flax models, their source untouched: imported offline, with `jax.checkpoint` by hand in each layer."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

TRANSFORMERS = 'pip install "flax>=0.12" "transformers==4.50.3"'
DIFFUSERS = 'pip install "flax>=0.12" "diffusers==0.35.2"'


def from_library(module: str, *names: str, install: str) -> list[Any]:
    """Return what a library's module calls `names`; nothing is fetched from a hub, now or later.

    Raises:
      ModuleNotFoundError: The library or Flax is not installed; the message says what to install.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        found = importlib.import_module(module)
        return [getattr(found, name) for name in names]
    except (ImportError, RuntimeError) as error:
        raise ModuleNotFoundError(f"this model needs {module} with its Flax models: {install}") from error


@contextlib.contextmanager
def layers_checkpointed(layers: str, policy: Callable[..., Any] | None) -> Iterator[None]:
    """Within the context, a library's Flax models have `jax.checkpoint` around each layer, as if written by hand.

    Args:
      layers: Module and name of the class of the layers, `"module:class"`. Arguments by keyword are static.
      policy: What `jax.checkpoint` may save; with None nothing is done.
    """
    if policy is None:
        yield
        return
    from flax import linen as nn

    module, name = layers.split(":")
    layer = getattr(importlib.import_module(module), name)

    class Checkpointed(layer):
        def __call__(self, *args: Any, **static: Any) -> Any:
            return nn.remat(lambda _, *args: layer.__call__(self, *args, **static), policy=policy)(self, *args)

    with mock.patch(f"{module}.{name}", Checkpointed):
        yield
