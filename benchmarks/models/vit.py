"""Transformers' own FlaxViTForImageClassification, its source untouched, with random weights from a configuration made
here.

Nothing is fetched from a hub. Needs what `flax_gpt2.py` needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.untouched import TRANSFORMERS, from_library, layers_checkpointed

_LAYERS = "transformers.models.vit.modeling_flax_vit:FlaxViTLayer"


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are ViT-Ti/16 (Touvron et al. 2021, arXiv:2012.12877).

    Attributes:
      n_layers: Transformer layers.
      n_heads: Attention heads; divides `width`.
      width: Model width.
      n_pixels: Side of the square images.
      n_patch_pixels: Side of a patch, which is one token.
      n_classes: Classes to tell apart.
      n_batch: Images per batch.
    """

    n_layers: int = 12
    n_heads: int = 3
    width: int = 192
    n_pixels: int = 224
    n_patch_pixels: int = 16
    n_classes: int = 1000
    n_batch: int = 8


def _model(config: ViTConfig) -> Any:
    Model, Sizes = from_library("transformers", "FlaxViTForImageClassification", "ViTConfig", install=TRANSFORMERS)
    sizes = Sizes(
        hidden_size=config.width,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        intermediate_size=4 * config.width,
        image_size=config.n_pixels,
        patch_size=config.n_patch_pixels,
        num_labels=config.n_classes,
    )
    return Model(sizes, seed=0)


def example(config: ViTConfig | None = None, seed: int = 0, layer_policy: Callable[..., Any] | None = None):
    """Return `(loss, (params, images, labels))`: the mean cross-entropy of one random batch.

    Args:
      config: Sizes.
      seed: Of the batch.
      layer_policy: Policy of a `jax.checkpoint` written by hand around each layer; None writes none.

    Raises:
      ModuleNotFoundError: Transformers or Flax is not installed; the message says what to install.
    """
    config = config or ViTConfig()
    model = _model(config)
    key_images, key_labels = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(key_images, (config.n_batch, 3, config.n_pixels, config.n_pixels))
    labels = jax.random.randint(key_labels, (config.n_batch,), 0, config.n_classes)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        with layers_checkpointed(_LAYERS, layer_policy):
            logits = model(images, params=params).logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    return loss, (model.params, images, labels)
