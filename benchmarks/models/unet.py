"""Diffusers' own FlaxUNet2DConditionModel, its source untouched, with random weights from a configuration made here.

The U-Net of diffusion models: residual blocks of convolutions on the way down and up, skip connections between them,
attention at the lowest resolution alone. Nothing is fetched from a hub. Needs `pip install "flax>=0.12"
"diffusers==0.35.2"`, the last line of releases with Flax models; the extra `benchmarks` has both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models.untouched import DIFFUSERS, from_library, layers_checkpointed

_MODULE = "diffusers.models.unets.unet_2d_condition_flax"
_LAYERS = "diffusers.models.unets.unet_2d_blocks_flax:FlaxResnetBlock2D"
_TEXT = (4, 32)  # tokens and width of the text that attention looks at


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net.

    Attributes:
      widths: Channels at each resolution, each half of the one before; multiples of 32.
      n_blocks: Residual blocks per resolution on the way down; one more on the way up.
      n_pixels: Side of the square images.
      n_batch: Images per batch.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    n_blocks: int = 2
    n_pixels: int = 64
    n_batch: int = 2


def _model(config: UNetConfig) -> Any:
    (Model,) = from_library(_MODULE, "FlaxUNet2DConditionModel", install=DIFFUSERS)
    return Model(
        sample_size=config.n_pixels,
        in_channels=3,
        out_channels=3,
        block_out_channels=config.widths,
        down_block_types=("DownBlock2D",) * len(config.widths),
        up_block_types=("UpBlock2D",) * len(config.widths),
        layers_per_block=config.n_blocks,
        attention_head_dim=4,
        cross_attention_dim=_TEXT[1],
    )


def example(config: UNetConfig | None = None, seed: int = 0, layer_policy: Callable[..., Any] | None = None):
    """Return `(loss, (params, images, times, texts))`: how well one random batch's noise is told, mean square error.

    Args:
      config: Sizes.
      seed: Of weights and batch.
      layer_policy: Policy of a `jax.checkpoint` written by hand around each residual block; None writes none.

    Raises:
      ModuleNotFoundError: Diffusers or Flax is not installed; the message says what to install.
    """
    config = config or UNetConfig()
    model = _model(config)
    key_params, key_images, key_texts = jax.random.split(jax.random.key(seed), 3)
    images = jax.random.normal(key_images, (config.n_batch, 3, config.n_pixels, config.n_pixels))
    times = jnp.linspace(0, 999, config.n_batch).astype(jnp.int32)
    texts = jax.random.normal(key_texts, (config.n_batch, *_TEXT))

    def loss(params: Any, images: jax.Array, times: jax.Array, texts: jax.Array) -> jax.Array:
        with layers_checkpointed(_LAYERS, layer_policy):
            noise = model.apply({"params": params}, images, times, texts).sample
        return jnp.square(noise - images).mean()

    return loss, (jax.jit(model.init_weights)(key_params), images, times, texts)
