"""Haiku's own ResNet-18 and ResNet-50, their source untouched, with random weights.

Batch normalisation trains; its moving averages, which no gradient reads, are dropped. Needs `pip install dm-haiku`; the
extra `benchmarks` has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet.

    Attributes:
      n_layers: 18 or 50.
      n_pixels: Side of the square images.
      n_classes: Classes to tell apart.
      n_batch: Images per batch.
    """

    n_layers: int = 18
    n_pixels: int = 128
    n_classes: int = 1000
    n_batch: int = 8


def _model(config: ResNetConfig, layer_policy: Callable[..., Any] | None) -> Any:
    try:
        import haiku as hk
    except ImportError as error:
        raise ModuleNotFoundError("the ResNets need Haiku: pip install dm-haiku") from error

    def checkpointed(block: Any) -> Callable[..., Any]:
        return lambda x, *flags: hk.remat(lambda x: block(x, *flags), policy=layer_policy)(x)

    def forward(images: jax.Array) -> jax.Array:
        # Haiku's own logits start at 0 and so does the gradient of all that lies below them: nothing to compare.
        logits = {"w_init": hk.initializers.TruncatedNormal(0.01)}
        net = {18: hk.nets.ResNet18, 50: hk.nets.ResNet50}[config.n_layers](config.n_classes, logits_config=logits)
        if layer_policy is not None:
            for group in net.block_groups:
                group.blocks = [checkpointed(block) for block in group.blocks]
        return net(images, is_training=True)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def example(config: ResNetConfig | None = None, seed: int = 0, layer_policy: Callable[..., Any] | None = None):
    """Return `(loss, (params, state, images, labels))`: the mean cross-entropy of one random batch.

    Args:
      config: Sizes.
      seed: Of weights and batch.
      layer_policy: Policy of a `jax.checkpoint` written by hand around each residual block; None writes none.

    Raises:
      ModuleNotFoundError: Haiku is not installed; the message says what to install.
    """
    config = config or ResNetConfig()
    key_params, key_images, key_labels = jax.random.split(jax.random.key(seed), 3)
    images = jax.random.normal(key_images, (config.n_batch, config.n_pixels, config.n_pixels, 3))
    labels = jax.random.randint(key_labels, (config.n_batch,), 0, config.n_classes)
    params, state = jax.jit(_model(config, None).init)(key_params, images)
    model = _model(config, layer_policy)

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = model.apply(params, state, images)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    return loss, (params, state, images, labels)
