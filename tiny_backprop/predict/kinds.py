"""What a compiler can do with an instruction, and what primitives are to every XLA compiler."""

from __future__ import annotations

import enum


class Kind(enum.IntEnum):
    """What a compiler can do with an instruction; the first three can be fused into the loop that reads them.

    * `ALIAS`: the same bytes under another shape; it never takes memory beside its operand.
    * `CHEAP`: element-wise or moving data; computed again in each loop that reads it.
    * `EXPENSIVE`: element-wise, but computed once; which these are, each compiler says.
    * `REDUCTION`: a kernel of its own that takes chains of element-wise operations in.
    * `KERNEL`: anything else: contractions, scatters, sorts, loops.
    * `HOLD`: what passes held values on (see `tiny_backprop.schedule.holds`).
    """

    ALIAS = 0
    CHEAP = 1
    EXPENSIVE = 2
    REDUCTION = 3
    KERNEL = 4
    HOLD = 5


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


_ALIASES = names(
    "reshape squeeze expand_dims copy copy_p stop_gradient optimization_barrier pvary random_wrap random_unwrap"
)
_ELEMENT_WISE = names(
    "add sub mul neg abs sign floor ceil round max min and or not xor eq ne lt le gt ge select_n clamp "
    "convert_element_type bitcast_convert_type integer_pow square is_finite nextafter real imag complex conj "
    "shift_left shift_right_logical shift_right_arithmetic population_count clz add_any reduce_precision eq_to le_to "
    "lt_to one_minus_square exp exp2 expm1 log log1p log2 tanh sin cos tan rsqrt sqrt cbrt erf erfc erf_inv logistic "
    "pow atan2 lgamma digamma asin acos atan sinh cosh asinh acosh atanh div rem polynomial"
)
MOVES = names(
    "broadcast_in_dim iota pad slice concatenate transpose gather dynamic_slice rev split dynamic_update_slice stack "
    "unstack"
)
"""Primitives that make an element of another place of their operand."""
REDUCTIONS = names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin")
KINDS = {
    **dict.fromkeys(_ALIASES, Kind.ALIAS),
    **dict.fromkeys(_ELEMENT_WISE | MOVES, Kind.CHEAP),
    **dict.fromkeys(REDUCTIONS, Kind.REDUCTION),
}
"""Kind of each primitive; what is not named is a `KERNEL`."""
MERGED = names(
    "broadcast_in_dim exp tanh neg mul add sub div convert_element_type max min log rsqrt sqrt square select_n "
    "logistic one_minus_square"
)
"""Element-wise primitives whose result is told by operands, shape and dtype alone."""
CONTRACTIONS = ("dot_general", "conv_general_dilated")
