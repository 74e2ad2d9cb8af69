"""What differs between versions of XLA:CPU: the one table, by the version of JAX that they came with.

It has what changes memory and was found by compiling the same program on both; `tests/predict` holds each entry.
"""

from __future__ import annotations

import dataclasses

from tiny_backprop.predict.compiler import Margin
from tiny_backprop.predict.kinds import names


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of XLA:CPU.

    Attributes:
      since: The first version of JAX that came with it.
      absorbed: Primitives of the chains that a reduction takes in.
      reads_bfloat16: Primitives that read and make bfloat16 as it is, not in float32; `dot_general` only of
        matrices, the left one contracted by its last dimension, and neither of them a transpose.
      loops_read_arguments: Whether a loop that saves nothing but its first carry reads an argument where it stands.
      slices_bfloat16: Whether loops slice stacked 16-bit floats as they are, not out of a copy in float32.
      shares_exponentials: Whether the exponential inside `erfc(x)` is shared with an exp(-x * x) of the program.
      margin: How far plans exceeded their predictions; see `tiny_backprop.predict.margin`.
    """

    since: tuple[int, ...]
    absorbed: frozenset[str]
    reads_bfloat16: frozenset[str]
    loops_read_arguments: bool
    slices_bfloat16: bool
    shares_exponentials: bool
    margin: Margin


_ABSORBED = names(
    "reshape squeeze expand_dims broadcast_in_dim iota convert_element_type add sub mul div max min neg abs sign floor "
    "ceil round square integer_pow pow sqrt rsqrt exp expm1 log log1p tanh logistic erf add_any stop_gradient "
    "one_minus_square log2"
)
VERSIONS = (
    Version(
        (0, 10),
        _ABSORBED,
        reads_bfloat16=names(""),
        loops_read_arguments=False,
        slices_bfloat16=False,
        shares_exponentials=True,
        margin=Margin(values=1.01, share=0.265),
    ),
    Version(
        (0, 12),
        _ABSORBED | names("sin cos tan"),
        reads_bfloat16=names("dot_general scatter-add"),
        loops_read_arguments=True,
        slices_bfloat16=True,
        shares_exponentials=False,
        margin=Margin(values=1.15, share=0.195),
    ),
)


def version_of(jax_version: tuple[int, ...]) -> Version:
    """Return the version of XLA:CPU that came with one of JAX: the latest known up to it, the newest for ()."""
    known = [v for v in VERSIONS if v.since <= jax_version] if jax_version else VERSIONS
    return known[-1] if known else VERSIONS[0]
