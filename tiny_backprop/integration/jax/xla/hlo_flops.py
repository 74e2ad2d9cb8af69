"""The FLOPs of a compiled program, counted in its HLO.

`compiled.cost_analysis()["flops"]` counts the body of a loop once and gives up at custom calls; `count_flops` follows
loops as often as they run. On programs without either the two agree (`flops` and `transcendentals` of XLA together
are `flops` here): the rules are those of XLA's `HloCostAnalysis`, except for sorting and Fourier transforms (see
`flops.sort_flops`, `flops.fft_flops`).

Known weak spots: a loop whose trip count XLA has not written down counts one trip, a custom call that is neither a
matrix product, a convolution nor LAPACK counts nothing; both are reported. The rules for cuBLAS, cuDNN and oneDNN calls
are tested on hand-written text only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tiny_backprop.integration.jax.flops import (
    convolution_flops,
    factorization_flops,
    fft_flops,
    sort_flops,
    top_k_flops,
)
from tiny_backprop.integration.jax.xla.hlo import Computation, Instruction, Shape, parse_hlo


@dataclass(frozen=True, slots=True)
class HloFlops:
    """FLOPs of a compiled program, per device, and what could not be counted.

    Attributes:
      flops: Floating-point (and integer) operations of one run.
      unknown_trip_counts: `while` instructions that do not tell their trip count; each counted one trip.
      uncounted_calls: Targets of custom calls that counted nothing.
    """

    flops: float
    unknown_trip_counts: int = 0
    uncounted_calls: tuple[str, ...] = ()


def count_flops(hlo_text: str) -> HloFlops:
    """Count the FLOPs of a compiled program, loops as often as they run.

    Element-wise operations count one per element, transcendentals too; a loop its trip count times body and
    condition; a conditional its most expensive branch. Under SPMD this is the work of one device. Linear in the text,
    about 20 µs per instruction.

    Args:
      hlo_text: `compiled.as_text()`.

    Returns:
      The count, and how many loops and which calls it does not know.

    Raises:
      HloError: The text is not the HLO of a compiled program.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> count_flops(jax.jit(jnp.dot).lower(jnp.ones((2, 3)), jnp.ones((3, 4))).compile().as_text()).flops
      48.0
    """
    module = parse_hlo(hlo_text)
    totals: dict[str, HloFlops] = {}

    def total(name: str) -> HloFlops:
        if name not in totals:
            computation = module.computations[name]
            totals[name] = _sum(_instruction_flops(computation, i, total) for i in computation.instructions)
        return totals[name]

    return total(module.entry_name)


_NOTHING = HloFlops(0.0)
_MEAN_TRIPS = re.compile(r'/mean_trips_(\d+)_of_(\d+)/while"')  # our own loops say it in the name of their scope
_CONTRACTING = re.compile(r'"?lhs_contracting_dim(?:ension)?s"?[=:]\s*[\[{]([^\]}]*)[\]}]')
_ELEMENTWISE_OPCODES = (
    "abs acos acosh add and asin asinh atan2 atanh bitcast-convert cbrt ceil clamp compare complex convert cosh "
    "cosine count-leading-zeros divide erf exponential exponential-minus-one floor imag is-finite log log-plus-one "
    "logistic maximum minimum multiply negate not or popcnt power real reduce-precision remainder rng "
    "rng-bit-generator round-nearest-afz round-nearest-even rsqrt select shift-left shift-right-arithmetic "
    "shift-right-logical sign sine sinh sqrt stochastic-convert subtract tan tanh xor"
)
_ELEMENTWISE = frozenset(_ELEMENTWISE_OPCODES.split())

Total = Callable[[str], HloFlops]


def _instruction_flops(computation: Computation, instruction: Instruction, total: Total) -> HloFlops:
    """What one instruction costs, with `total` giving the cost of a computation."""
    if instruction.opcode in _ELEMENTWISE:
        return HloFlops(float(instruction.shape.num_elements))
    if instruction.opcode in _CONTROL:
        return _CONTROL[instruction.opcode](instruction, total)
    if instruction.opcode == "custom-call":
        return _custom_call(computation, instruction)
    if instruction.opcode in _APPLIED:
        times = _APPLIED[instruction.opcode](instruction, computation.operand_shapes(instruction))
        return _times(times, total(instruction.called[0])) if instruction.called else HloFlops(times)
    if instruction.opcode in _DIRECT:
        return HloFlops(_DIRECT[instruction.opcode](instruction, computation.operand_shapes(instruction)))
    if instruction.opcode == "select-and-scatter":
        return _select_and_scatter(computation, instruction, total)
    return _NOTHING


def _sum(counts: Iterator[HloFlops]) -> HloFlops:
    flops, unknown, uncounted = 0.0, 0, []
    for count in counts:
        if count is not _NOTHING:
            flops += count.flops
            unknown += count.unknown_trip_counts
            uncounted += count.uncounted_calls
    return HloFlops(flops, unknown, tuple(dict.fromkeys(uncounted)))


def _times(n: float, count: HloFlops) -> HloFlops:
    return HloFlops(n * count.flops, count.unknown_trip_counts, count.uncounted_calls)


def _call(instruction: Instruction, total: Total) -> HloFlops:
    return _sum(map(total, instruction.called))


def _while(instruction: Instruction, total: Total) -> HloFlops:
    once = _call(instruction, total)
    if instruction.trip_count is not None:
        return _times(instruction.trip_count, once)
    mean = _MEAN_TRIPS.search(instruction.attribute_text)
    if mean:
        return _times(int(mean[1]) / int(mean[2]), once)
    return HloFlops(once.flops, once.unknown_trip_counts + 1, once.uncounted_calls)


def _conditional(instruction: Instruction, total: Total) -> HloFlops:
    branches = [total(name) for name in instruction.called]
    every = _sum(iter(branches))
    return HloFlops(max(b.flops for b in branches), every.unknown_trip_counts, every.uncounted_calls)


def _select_and_scatter(computation: Computation, instruction: Instruction, total: Total) -> HloFlops:
    """Per source element a window's selection, and one application of the scatter function."""
    source = computation.operand_shapes(instruction)[1].num_elements
    select, scatter = instruction.called
    selections = source * (math.prod(_window(instruction, 0)["size"]) - 1)
    return _sum(iter([_times(selections, total(select)), _times(source, total(scatter))]))


def _reductions(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    return float(shapes[0].num_elements - instruction.shape.leaves[0].num_elements)


def _window_reductions(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    window_size = math.prod(_window(instruction, len(shapes[0].dims))["size"])
    return float((window_size - 1) * instruction.shape.leaves[0].num_elements)


def _updates(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    """Elements of a scatter's updates, the operands after the targets and the indices."""
    return float(shapes[len(shapes) // 2 + 1].num_elements)


def _elements(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    return float(instruction.shape.leaves[0].num_elements)


def _dot(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    """Also for library calls, which keep the dimension numbers in their backend configuration."""
    lhs = shapes[0].dims
    found = _CONTRACTING.search(instruction.attribute_text)
    contracted = [int(i.strip(' "')) for i in found[1].split(",") if i.strip()] if found else [len(lhs) - 1]
    return 2.0 * instruction.shape.leaves[0].num_elements * math.prod(lhs[i] for i in contracted)


def _convolution(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    """Also for cuDNN's gradients, whose window describes the forward convolution."""
    lhs, rhs, out = shapes[0].dims, shapes[1].dims, instruction.shape.leaves[0].dims
    if "convBackwardInput" in instruction.attribute_text:
        lhs, out = out, lhs
    elif "convBackwardFilter" in instruction.attribute_text:
        rhs, out = out, rhs
    attributes = instruction.attributes
    lhs_labels, rhs_labels, out_labels = re.split("_|->", attributes["dim_labels"])
    window = _window(instruction, len(lhs_labels) - 2)
    return convolution_flops(
        lhs,
        rhs,
        out,
        _label_dims(lhs_labels, "bf"),
        _label_dims(rhs_labels, "oi"),
        _label_dims(out_labels, "bf"),
        strides=window["stride"],
        padding=window["pad"],
        lhs_dilation=window["lhs_dilate"],
        rhs_dilation=window["rhs_dilate"],
        feature_group_count=int(attributes.get("feature_group_count", 1)),
        batch_group_count=int(attributes.get("batch_group_count", 1)),
    )


def _label_dims(labels: str, first: str) -> list[int]:
    """Dimension numbers of the two labels in `first` and of the spatial ones `0`, `1`, ….

    `b01f` gives [0, 3, 1, 2].
    """
    return [labels.index(label) for label in first] + [labels.index(str(i)) for i in range(len(labels) - 2)]


def _window(instruction: Instruction, rank: int) -> dict[str, list]:
    """A window's fields per dimension, defaults filled in; `rank` where the text leaves the size out."""
    text = instruction.attributes.get("window", "{}").strip("{}")
    fields = dict(item.split("=") for item in text.split())
    numbers = {key: [int(i) for i in fields[key].split("x")] for key in fields if key not in ("pad", "rhs_reversal")}
    size = numbers.get("size", [1] * rank)
    pads = [tuple(int(i) for i in pair.split("_")) for pair in fields["pad"].split("x")] if "pad" in fields else None
    ones = [1] * len(size)
    defaults = {"size": size, "stride": ones, "lhs_dilate": ones, "rhs_dilate": ones}
    return {**defaults, **numbers, "pad": pads or [(0, 0)] * len(size)}


def _fft(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    lengths = [int(i) for i in instruction.attributes["fft_length"].strip("{}").split(",")]
    is_complex = shapes[0].dtype[0] == instruction.shape.dtype[0] == "c"
    return fft_flops(max(shapes[0].num_elements, instruction.shape.num_elements), lengths, is_complex)


def _sort(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    dimension = int(instruction.attributes["dimensions"].strip("{}"))
    return sort_flops(shapes[0].num_elements, shapes[0].dims[dimension])


def _triangular_solve(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    return float(shapes[0].dims[-1] * shapes[1].num_elements)


def _cholesky(instruction: Instruction, shapes: tuple[Shape, ...]) -> float:
    return _factorization("cholesky", shapes)


def _factorization(algorithm: str, shapes: tuple[Shape, ...]) -> float:
    *batch, m, n = shapes[0].dims
    return math.prod(batch) * factorization_flops(algorithm, m, n)


_LAPACK = {
    "potrf": "cholesky",
    "getrf": "lu",
    "geqrf": "geqrf",
    "geqp3": "geqrf",
    "orgqr": "householder_product",
    "ungqr": "householder_product",
    "syev": "eigh",
    "heev": "eigh",
    "gesdd": "svd",
    "gesvd": "svd",
    "geev": "eig",
    "gees": "schur",
    "gehrd": "hessenberg",
    "sytrd": "tridiagonal",
    "hetrd": "tridiagonal",
}


def _custom_call(computation: Computation, instruction: Instruction) -> HloFlops:
    """Matrix products, convolutions and LAPACK by name; anything else is reported."""
    target = instruction.attributes.get("custom_call_target", "").strip('"')
    shapes = computation.operand_shapes(instruction)
    name = target.lower()
    if "gemm" in name or "matmul" in name:
        return HloFlops(_dot(instruction, shapes))
    if "conv" in name and "dim_labels" in instruction.attributes:
        return HloFlops(_convolution(instruction, shapes))
    if "trsm" in name:
        return HloFlops(_triangular_solve(instruction, shapes))
    if name == "topk":
        return HloFlops(top_k_flops(shapes[0].num_elements, instruction.shape.leaves[0].dims[-1]))
    algorithm = next((_LAPACK[routine] for routine in _LAPACK if routine in name), None)
    if algorithm is not None:
        return HloFlops(_factorization(algorithm, shapes))
    return HloFlops(0.0, 0, (target,))


_CONTROL: dict[str, Callable[[Instruction, Total], HloFlops]] = {
    "fusion": _call,
    "call": _call,
    "async-start": _call,
    "while": _while,
    "conditional": _conditional,
}

# How often an instruction applies the computation that it names.
_APPLIED: dict[str, Callable[[Instruction, tuple[Shape, ...]], float]] = {
    "map": _elements,
    "reduce": _reductions,
    "reduce-window": _window_reductions,
    "scatter": _updates,
    "all-reduce": _elements,
    "all-reduce-start": _elements,
    "reduce-scatter": _elements,
}

_DIRECT: dict[str, Callable[[Instruction, tuple[Shape, ...]], float]] = {
    "dot": _dot,
    "ragged-dot": _dot,
    "convolution": _convolution,
    "fft": _fft,
    "sort": _sort,
    "triangular-solve": _triangular_solve,
    "cholesky": _cholesky,
}
