"""FLOPs and bytes moved of JAXPR equations: a cost model by primitive.

Conventions, those of XLA's `HloCostAnalysis` unless said otherwise:

- an element-wise operation is one FLOP per output element; transcendentals (`exp`, `tanh`, `erf`, …), comparisons,
  conversions between dtypes and integer operations count one like the rest, and so does a complex operation;
- a multiply-add is two FLOPs; a convolution counts the multiply-adds that touch neither padding nor the holes of a
  dilated input, so a convolution and both of its gradients cost about the same;
- moving data costs no FLOPs; relabelling it (reshape, squeeze, `optimization_barrier`, …) costs no bytes either;
- bytes are those of every non-literal operand read plus every output written, as if nothing were fused;
- a loop costs its trips times its body, a conditional its dearest branch, a call what it calls.

Known weak spots: `while` loops whose bounds are not literals count one trip; polynomial expansions (`erf`, `lgamma`)
count one FLOP where XLA emits some twenty; factorisations count the leading terms of Golub & Van Loan, Matrix
Computations, 4th edition (2013); a PRNG's bits count what the compiled program needs, to about 10 %.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend.core import Literal

from tiny_backprop.errors import TinyBackpropError

Cost = tuple[float, float]

# Integer operations per block (Threefry-2x32) or 32-bit word (Philox-4x32), counted in XLA:CPU's compiled programs.
# JAX's partitionable Threefry spends a block on every word.
_THREEFRY_FLOPS_PER_BLOCK = 200
_PHILOX_FLOPS_PER_WORD = 38
# What XLA expands into several operations, counted in the HLO that JAX 0.10 compiles for CPU; all others count 1.
_FLOPS_PER_ELEMENT = {
    "erfc": 61,
    "erf_inv": 39,
    "logistic": 4,
    "lgamma": 56,
    "digamma": 76,
    "bessel_i0e": 84,
    "bessel_i1e": 84,
    "sinh": 13,
    "cosh": 5,
    "asinh": 14,
    "acosh": 11,
    "atanh": 8,
    "asin": 7,
    "acos": 5,
    "exp2": 2,
    "log2": 2,  # from JAX 0.12 on
    "one_minus_square": 3,  # from JAX 0.12 on: (1 + x) (1 - x), of tanh's derivative and others
}
_LOGADDEXP_FLOPS = 6
NESTED, NESTED_GRADIENT = "nested", "nested_gradient"
"""Primitives of `nested`. What they cost depends on their plan, which the graph knows; here they are not planned."""

_element_bits_by_dtype: dict[Any, int] = {}


class CostError(TinyBackpropError, TypeError):
    """An equation's cost cannot be told: a dimension is symbolic, or a dtype has no known size."""


def eqn_cost(eqn: Any) -> Cost:
    """Estimate the work of one JAXPR equation.

    Takes a few microseconds, more for equations that hold a JAXPR of their own.

    Args:
      eqn: An equation of a `Jaxpr`, as in `jax.make_jaxpr(f)(x).jaxpr.eqns`.

    Returns:
      `(flops, bytes_moved)`, by the conventions at the top of this module.

    Raises:
      CostError: A dimension is symbolic, or a dtype has no known size.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jaxpr = jax.make_jaxpr(lambda x, y: x @ y)(jnp.ones((2, 3)), jnp.ones((3, 4)))
      >>> eqn_cost(jaxpr.jaxpr.eqns[0])
      (48.0, 104.0)
    """
    return _RULES.get(eqn.primitive.name, _call_or_elementwise)(eqn)


def jaxpr_cost(jaxpr: Any) -> Cost:
    """Sum `eqn_cost` over the equations of a `Jaxpr` or `ClosedJaxpr`.

    Args:
      jaxpr: The program; dead equations count too.

    Returns:
      `(flops, bytes_moved)`.

    Raises:
      CostError: A dimension is symbolic, or a dtype has no known size.
    """
    flops = moved_bytes = 0.0
    for eqn in _open(jaxpr).eqns:
        eqn_flops, eqn_bytes = eqn_cost(eqn)
        flops += eqn_flops
        moved_bytes += eqn_bytes
    return flops, moved_bytes


def aval_bytes(aval: Any) -> int:
    """Count the bytes of an array with this abstract value.

    Sub-byte dtypes are packed (`int4` takes half a byte, the array rounded up), a PRNG key counts its underlying
    words, `float0` and tokens are 0. Under explicit sharding these are the bytes of the whole array.

    Args:
      aval: Anything with `shape` and `dtype` (a `ShapedArray`, `ShapeDtypeStruct` or array), or a token.

    Returns:
      Bytes, without padding or tiling.

    Raises:
      CostError: A dimension is symbolic, or the dtype has no known size.

    Example:
      >>> aval_bytes(jax.ShapeDtypeStruct((3,), "int4"))
      2
    """
    try:
        dtype, size = aval.dtype, math.prod(aval.shape)
    except AttributeError:  # a token
        return 0
    bits = _element_bits_by_dtype.get(dtype)
    if bits is None:
        bits = _element_bits_by_dtype[dtype] = _element_bits(dtype)
    if type(size) is not int:
        size = _concrete_size(size, aval)
    return (size * bits + 7) >> 3


def while_trip_count(eqn: Any) -> int | None:
    """Find how often a `while` equation runs its body, where literals tell.

    Recognised: a condition `i < n` (or `<=`, `>`, `>=`, either way round) where the carry `i` starts at an integer
    literal and the body adds or subtracts an integer literal, and `n` is an integer literal, directly or through a
    carry that the body hands on unchanged. `lax.fori_loop` with static bounds needs none of this: it becomes a `scan`.

    Args:
      eqn: An equation of the primitive `while`.

    Returns:
      The trip count, or `None` if the equation does not tell it.

    Raises:
      Nothing.
    """
    condition = _open(eqn.params["cond_jaxpr"])
    test = _defining_eqn(condition, condition.outvars[0])
    if test is None or test.primitive.name not in _MIRRORED:
        return None
    comparison, (left, right) = test.primitive.name, test.invars
    for counter, bound, name in ((left, right, comparison), (right, left, _MIRRORED[comparison])):
        progression, limit = _counter(eqn, counter), _invariant(eqn, bound)
        if progression is not None and limit is not None:
            return _count_trips(*progression, limit, name)
    return None


def convolution_flops(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    out_shape: Sequence[int],
    lhs_dims: Sequence[int],
    rhs_dims: Sequence[int],
    out_dims: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> float:
    """Count a convolution's useful multiply-adds, twice.

    Products with padding or with the zeros that `lhs_dilation` inserts are left out, as XLA's `HloCostAnalysis`
    leaves them out. Takes O(sum over spatial dimensions of the smaller of kernel and output size).

    Args:
      lhs_shape: The input's shape.
      rhs_shape: The kernel's shape.
      out_shape: The output's shape.
      lhs_dims: The input's dimensions as (batch, feature, spatial...).
      rhs_dims: The kernel's dimensions as (output feature, input feature, spatial...).
      out_dims: The output's dimensions as (batch, feature, spatial...).
      strides: Window strides, one per spatial dimension.
      padding: (low, high) per spatial dimension.
      lhs_dilation: Input dilation per spatial dimension.
      rhs_dilation: Kernel dilation per spatial dimension.
      feature_group_count: Groups of input features.
      batch_group_count: Groups of the input's batch.

    Returns:
      FLOPs.

    Raises:
      Nothing.
    """
    taps = 1
    for i, stride in enumerate(strides):
        taps *= _count_taps(
            lhs_shape[lhs_dims[2 + i]],
            rhs_shape[rhs_dims[2 + i]],
            out_shape[out_dims[2 + i]],
            stride,
            padding[i][0],
            lhs_dilation[i],
            rhs_dilation[i],
        )
    features_in = lhs_shape[lhs_dims[1]] // feature_group_count
    batch = lhs_shape[lhs_dims[0]] // batch_group_count
    return 2.0 * batch * features_in * out_shape[out_dims[1]] * taps


def factorization_flops(name: str, m: int, n: int) -> float:
    """Give the leading terms of a dense matrix algorithm's FLOPs (Golub & Van Loan 2013; LAPACK Working Note 41).

    Args:
      name: One of `cholesky`, `lu`, `geqrf` (R and reflectors), `householder_product` (Q from reflectors), `eigh`,
        `eigh_values`, `svd` (thin), `svd_full`, `svd_values`, `eig`, `eig_values`, `schur`, `hessenberg`,
        `tridiagonal`.
      m: Rows.
      n: Columns.

    Returns:
      FLOPs for one matrix.

    Raises:
      KeyError: No such algorithm.
    """
    return _FACTORIZATIONS[name](m, n)


def fft_flops(num_elements: int, lengths: Sequence[int], is_complex: bool) -> float:
    """Give 5 n log2 n per transform, half of it for real data.

    XLA's `HloCostAnalysis` says 8 n times the product of the floors of log2 instead.

    Args:
      num_elements: Elements of the whole signal, batch included.
      lengths: Lengths of the transformed dimensions.
      is_complex: Whether the transform goes from complex to complex.

    Returns:
      FLOPs.

    Raises:
      Nothing.
    """
    return (5.0 if is_complex else 2.5) * num_elements * math.log2(max(math.prod(lengths), 1))


def sort_flops(num_elements: int, length: int) -> float:
    """Give n log2(length) comparisons for sorting rows of `length`, n elements in all.

    Args:
      num_elements: Elements of one sorted operand.
      length: Size of the sorted dimension.

    Returns:
      FLOPs.

    Raises:
      Nothing.
    """
    return num_elements * math.log2(length) if length > 1 else 0.0


def top_k_flops(num_elements: int, k: int) -> float:
    """Give the comparisons of a heap of k: log2(k) per element, at least one.

    Args:
      num_elements: Elements of the operand.
      k: How many are kept per row.

    Returns:
      FLOPs.

    Raises:
      Nothing.
    """
    return num_elements * max(1.0, math.log2(max(k, 1)))


# --- sizes -----------------------------------------------------------------------------------------------------------


def _open(jaxpr: Any) -> Any:
    """The `Jaxpr` inside a `ClosedJaxpr`; newer JAX has one class for both."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _size(aval: Any) -> int:
    """Number of elements."""
    size = math.prod(aval.shape)
    return size if type(size) is int else _concrete_size(size, aval)


def _concrete_size(size: Any, aval: Any) -> int:
    try:
        return operator.index(size)
    except Exception as error:
        symbolic = ", ".join(str(d) for d in aval.shape if not isinstance(d, (int, np.integer)))
        raise CostError(
            f"cannot count the elements of {aval}: dimension {symbolic} is symbolic. Cost and bytes need numbers: "
            "trace again with concrete shapes, for instance jax.ShapeDtypeStruct((8, 128), 'float32')."
        ) from error


def _element_bits(dtype: Any) -> int:
    """Bits of one element of any dtype that JAX knows."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
        return math.prod(words.shape) * words.dtype.itemsize * 8
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise CostError(f"cannot count the bytes of the extended dtype {dtype}: only PRNG keys are known.")
    dtype = np.dtype(dtype)
    if dtype.kind != "V" or dtype.itemsize != 1:  # ml_dtypes' narrow types are one opaque byte to NumPy
        return dtype.itemsize * 8
    info = ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo
    return info(dtype).bits


def _moved(eqn: Any) -> float:
    """Bytes of the operands that are not literals, and of the outputs."""
    return float(_read(eqn) + _written(eqn))


def _read(eqn: Any) -> int:
    return sum([aval_bytes(v.aval) for v in eqn.invars if type(v) is not Literal])


def _written(eqn: Any) -> int:
    return sum([aval_bytes(v.aval) for v in eqn.outvars])


# --- rules: element-wise work, moved data ----------------------------------------------------------------------------


def _call_or_elementwise(eqn: Any) -> Cost:
    """What an equation calls, if it calls; else one FLOP per output element."""
    params = eqn.params
    if params:
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee"):
            inner = params.get(key)
            if hasattr(_open(inner), "eqns"):
                return jaxpr_cost(inner)
    return _elementwise(eqn)


def _elementwise(eqn: Any) -> Cost:
    per_element = _FLOPS_PER_ELEMENT.get(eqn.primitive.name, 1)
    if len(eqn.outvars) == 1:
        return float(per_element * _size(eqn.outvars[0].aval)), _moved(eqn)
    return float(sum([_size(v.aval) for v in eqn.outvars if hasattr(v.aval, "shape")])), _moved(eqn)


def _relabel(eqn: Any) -> Cost:
    return 0.0, 0.0


def _move(eqn: Any) -> Cost:
    return 0.0, _moved(eqn)


def _convert(eqn: Any) -> Cost:
    """A conversion is one operation, a change of weak type none."""
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    return (0.0, 0.0) if before.dtype == after.dtype else (float(_size(after)), _moved(eqn))


def _slice(eqn: Any) -> Cost:
    """Slices and gathers read what they take, and their indices."""
    indices = sum([aval_bytes(v.aval) for v in eqn.invars[1:] if type(v) is not Literal])
    return 0.0, float(2 * _written(eqn) + indices)


def _dynamic_update_slice(eqn: Any) -> Cost:
    """Written in place: the update is read and written, the rest stays."""
    return 0.0, float(_read(eqn) - aval_bytes(eqn.invars[0].aval) + aval_bytes(eqn.invars[1].aval))


def _scatter(eqn: Any) -> Cost:
    """In place: target read and written and updates read, one operation per update unless they overwrite."""
    n = (len(eqn.invars) - 1) // 2
    updates = [v.aval for v in eqn.invars[n + 1 :]]
    update_bytes = sum([aval_bytes(aval) for aval in updates])
    flops = 0 if eqn.primitive.name == "scatter" else sum([_size(aval) for aval in updates])
    return float(flops), float(3 * update_bytes + aval_bytes(eqn.invars[n].aval))


def _integer_pow(eqn: Any) -> Cost:
    """Square and multiply, and a division for a negative power."""
    power = abs(eqn.params["y"])
    multiplies = power.bit_length() + power.bit_count() - 2 if power else 0
    return float((multiplies + (eqn.params["y"] < 0)) * _size(eqn.outvars[0].aval)), _moved(eqn)


# --- rules: contractions ---------------------------------------------------------------------------------------------


def _dot_general(eqn: Any) -> Cost:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    k = 1
    for i in contracting:
        k *= shape[i]
    size = _size(eqn.outvars[0].aval)
    return float(2 * size * k), _moved(eqn)


def _ragged_dot(eqn: Any) -> Cost:
    """The useful work: every row meets its own group only. XLA:CPU pays for all groups."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracting, _), _ = numbers.dot_dimension_numbers
    shape = eqn.invars[0].aval.shape
    k = math.prod(shape[i] for i in contracting)
    size = _size(eqn.outvars[0].aval)
    if set(numbers.lhs_ragged_dimensions) & set(contracting):  # the groups divide the contracted dimension
        size //= max(eqn.outvars[0].aval.shape[0], 1)
    return float(2 * size * k), _moved(eqn)


def _convolution(eqn: Any) -> Cost:
    params, (lhs, rhs), out = eqn.params, [v.aval for v in eqn.invars], eqn.outvars[0].aval
    moved_bytes = _moved(eqn)  # first, so that a symbolic shape gets its own error
    numbers = params["dimension_numbers"]
    flops = convolution_flops(
        lhs.shape,
        rhs.shape,
        out.shape,
        numbers.lhs_spec,
        numbers.rhs_spec,
        numbers.out_spec,
        strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        feature_group_count=params["feature_group_count"],
        batch_group_count=params["batch_group_count"],
    )
    return flops, moved_bytes


@lru_cache(maxsize=4096)
def _count_taps(size: int, kernel: int, out: int, stride: int, low: int, dilation: int, kernel_dilation: int) -> int:
    """Pairs (k, o) of kernel and output positions that meet an input element, in one dimension.

    They are those with `o * stride + k * kernel_dilation - low` a multiple of `dilation` inside the dilated input.
    The longer of the two progressions is counted in closed form for each step of the shorter one.
    """
    long, short = sorted(((kernel, kernel_dilation), (out, stride)), reverse=True)
    return sum(_count_hits(i * short[1] - low, *long, dilation, size) for i in range(short[0]))


def _count_hits(start: int, n: int, step: int, dilation: int, size: int) -> int:
    """How many of `start + i * step`, 0 <= i < n, are `dilation` times an index below `size`."""
    common = math.gcd(step, dilation)
    if start % common:
        return 0
    period = dilation // common
    first = -start // common * pow(step // common, -1, period) % period
    lowest = max(0, -(start // step))
    highest = min(n - 1, ((size - 1) * dilation - start) // step)
    return max(0, (highest - first) // period - (lowest - 1 - first) // period)


# --- rules: reductions, windows, sorting -----------------------------------------------------------------------------


def _reduction(eqn: Any) -> Cost:
    """To reduce n elements to one takes n - 1 operations; argmax and argmin count their comparisons."""
    saved = _size(eqn.invars[0].aval) - _size(eqn.outvars[0].aval)
    return float(saved), _moved(eqn)


def _general_reduction(eqn: Any) -> Cost:
    body_flops, _ = jaxpr_cost(eqn.params["jaxpr"])
    flops, moved_bytes = _reduction(eqn)
    return body_flops * flops, moved_bytes


def _cumulative(eqn: Any) -> Cost:
    per_element = _LOGADDEXP_FLOPS if eqn.primitive.name == "cumlogsumexp" else 1
    return float(per_element * _size(eqn.invars[0].aval)), _moved(eqn)


def _window(eqn: Any) -> int:
    return math.prod(eqn.params["window_dimensions"])


def _reduce_window(eqn: Any) -> Cost:
    body = eqn.params.get("jaxpr")
    body_flops = 1.0 if body is None else jaxpr_cost(body)[0]
    return body_flops * (_window(eqn) - 1) * _size(eqn.outvars[0].aval), _moved(eqn)


def _select_and_scatter_add(eqn: Any) -> Cost:
    """A window's selection and one addition per element of the source."""
    return float(_window(eqn) * _size(eqn.invars[0].aval)), _moved(eqn)


def _sort(eqn: Any) -> Cost:
    aval = eqn.invars[0].aval
    return sort_flops(_size(aval), aval.shape[eqn.params["dimension"]]), _moved(eqn)


def _top_k(eqn: Any) -> Cost:
    return top_k_flops(_size(eqn.invars[0].aval), eqn.params["k"]), _moved(eqn)


# --- rules: linear algebra, random numbers ---------------------------------------------------------------------------


def _lu(m: int, n: int) -> float:
    k = min(m, n)
    return 2.0 * (m * n * k - (m + n) * k * k / 2 + k**3 / 3)


def _geqrf(m: int, n: int) -> float:
    return 2.0 * n * n * (m - n / 3) if m >= n else 2.0 * m * m * (n - m / 3)


def _householder_product(m: int, n: int, k: int | None = None) -> float:
    k = min(m, n) if k is None else k
    return 4.0 * m * n * k - 2.0 * (m + n) * k * k + 4.0 * k**3 / 3


def _svd_by(long: float, mixed: float, short: float) -> Callable[[int, int], float]:
    """FLOPs `long` p²q + `mixed` pq² + `short` q³ with p the larger and q the smaller dimension."""

    def flops(m: int, n: int) -> float:
        p, q = max(m, n), min(m, n)
        return long * p * p * q + mixed * p * q * q + short * q**3

    return flops


def _cubic(factor: float) -> Callable[[int, int], float]:
    return lambda m, n: factor * n**3


_FACTORIZATIONS: dict[str, Callable[[int, int], float]] = {
    "cholesky": _cubic(1 / 3),
    "lu": _lu,
    "geqrf": _geqrf,
    "householder_product": _householder_product,
    "eigh": _cubic(9.0),
    "eigh_values": _cubic(4 / 3),
    "svd": _svd_by(0.0, 6.0, 20.0),
    "svd_full": _svd_by(4.0, 0.0, 22.0),
    "svd_values": _svd_by(0.0, 4.0, -4 / 3),
    "eig": _cubic(25.0),
    "eig_values": _cubic(10.0),
    "schur": _cubic(25.0),
    "hessenberg": _cubic(10 / 3),
    "tridiagonal": _cubic(4 / 3),
}


def _batch_and_matrix(aval: Any) -> tuple[int, int, int]:
    """Number of matrices, rows, columns."""
    *batch, m, n = aval.shape
    return math.prod(batch), m, n


def _factorization(algorithm: str) -> Callable[[Any], Cost]:
    def rule(eqn: Any) -> Cost:
        moved_bytes = _moved(eqn)
        batch, m, n = _batch_and_matrix(eqn.invars[0].aval)
        return batch * factorization_flops(algorithm, m, n), moved_bytes

    return rule


def _qr(eqn: Any) -> Cost:
    moved_bytes = _moved(eqn)
    batch, m, n = _batch_and_matrix(eqn.invars[0].aval)
    q_columns = m if eqn.params.get("full_matrices") else min(m, n)
    flops = _geqrf(m, n) + _householder_product(m, q_columns, min(m, n))
    return batch * flops, moved_bytes


def _svd(eqn: Any) -> Cost:
    if not eqn.params.get("compute_uv", True):
        return _factorization("svd_values")(eqn)
    return _factorization("svd_full" if eqn.params.get("full_matrices") else "svd")(eqn)


def _eig(eqn: Any) -> Cost:
    return _factorization("eig" if len(eqn.outvars) > 1 else "eig_values")(eqn)


def _triangular_solve(eqn: Any) -> Cost:
    """n² multiply-adds, half of a full product, for each right-hand side."""
    a, b = (v.aval for v in eqn.invars)
    return float(a.shape[-1] * _size(b)), _moved(eqn)


def _tridiagonal_solve(eqn: Any) -> Cost:
    """Thomas's algorithm: 8 FLOPs per unknown."""
    return 8.0 * _size(eqn.outvars[0].aval), _moved(eqn)


def _fft(eqn: Any) -> Cost:
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    is_complex = before.dtype.kind == "c" and after.dtype.kind == "c"
    return fft_flops(max(_size(before), _size(after)), eqn.params["fft_lengths"], is_complex), _moved(eqn)


def _random_bits(eqn: Any) -> Cost:
    words = _size(eqn.outvars[0].aval) * max(eqn.params["bit_width"], 32) / 32
    is_threefry = "fry" in str(eqn.invars[0].aval.dtype)
    return words * (_THREEFRY_FLOPS_PER_BLOCK if is_threefry else _PHILOX_FLOPS_PER_WORD), _moved(eqn)


def _threefry(eqn: Any) -> Cost:
    """New keys, folded keys and `threefry2x32`: a block of the cipher makes 8 bytes."""
    return _THREEFRY_FLOPS_PER_BLOCK * _written(eqn) / 8, _moved(eqn)


def _rng_bit_generator(eqn: Any) -> Cost:
    return float(_PHILOX_FLOPS_PER_WORD * _size(eqn.outvars[-1].aval)), _moved(eqn)


# --- rules: control flow, calls --------------------------------------------------------------------------------------


def _scan(eqn: Any) -> Cost:
    """Length times the body; each step also copies its slices in and out."""
    length, body = eqn.params["length"], _open(eqn.params["jaxpr"])
    body_flops, body_bytes = jaxpr_cost(body)
    # What is sliced has one dimension more outside; JAX 0.10 and 0.12 name the parameters that say so differently.
    pairs = [*zip(eqn.invars, body.invars, strict=True), *zip(eqn.outvars, body.outvars, strict=True)]
    sliced = [v.aval for v, inner in pairs if len(v.aval.shape) != len(inner.aval.shape)]
    slice_bytes = sum([aval_bytes(aval) for aval in sliced])
    return length * body_flops, length * body_bytes + 2.0 * slice_bytes


def _while(eqn: Any) -> Cost:
    """Trips times body and condition; one trip where the count is unknown."""
    known = while_trip_count(eqn)
    trips = 1 if known is None else known
    body_flops, body_bytes = jaxpr_cost(eqn.params["body_jaxpr"])
    test_flops, test_bytes = jaxpr_cost(eqn.params["cond_jaxpr"])
    return trips * (body_flops + test_flops), trips * (body_bytes + test_bytes)


def _cond(eqn: Any) -> Cost:
    costs = [jaxpr_cost(branch) for branch in eqn.params["branches"]]
    return max(flops for flops, _ in costs), max(moved_bytes for _, moved_bytes in costs)


def _linear_solve(eqn: Any) -> Cost:
    return jaxpr_cost(eqn.params["jaxprs"].solve)


def _shard_map(eqn: Any) -> Cost:
    """The work of all devices: the body's shapes are one device's."""
    num_devices = getattr(eqn.params.get("mesh"), "size", 1)
    flops, moved_bytes = jaxpr_cost(eqn.params["jaxpr"])
    return num_devices * flops, num_devices * moved_bytes


def _pallas_call(eqn: Any) -> Cost:
    """The kernel's own estimate; without one, one FLOP per output element."""
    estimate = eqn.params.get("cost_estimate")
    if estimate is None:
        return _elementwise(eqn)
    return float(estimate.flops + estimate.transcendentals), float(estimate.bytes_accessed)


_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def _defining_eqn(jaxpr: Any, var: Any) -> Any:
    return next((eqn for eqn in jaxpr.eqns if any(out is var for out in eqn.outvars)), None)


def _integer(atom: Any) -> int | None:
    """The value of an integer literal."""
    if type(atom) is not Literal or np.ndim(atom.val) or np.asarray(atom.val).dtype.kind not in "iu":
        return None
    return int(atom.val)


def _carry_index(eqn: Any, atom: Any) -> int | None:
    """Which carry an atom of the condition is."""
    invars = _open(eqn.params["cond_jaxpr"]).invars[eqn.params["cond_nconsts"] :]
    return next((i for i, var in enumerate(invars) if var is atom), None)


def _counter(eqn: Any, atom: Any) -> tuple[int, int] | None:
    """(start, step) of a carry that counts."""
    index = _carry_index(eqn, atom)
    if index is None:
        return None
    body, skip = _open(eqn.params["body_jaxpr"]), eqn.params["body_nconsts"]
    update = _defining_eqn(body, body.outvars[index])
    if update is None or update.primitive.name not in ("add", "sub"):
        return None
    left, right = update.invars
    if update.primitive.name == "add" and right is body.invars[skip + index]:
        left, right = right, left
    start, step = _integer(eqn.invars[eqn.params["cond_nconsts"] + skip + index]), _integer(right)
    if left is not body.invars[skip + index] or start is None or step is None:
        return None
    return start, step if update.primitive.name == "add" else -step


def _invariant(eqn: Any, atom: Any) -> int | None:
    """The integer that an atom of the condition has in every trip."""
    if type(atom) is Literal:
        return _integer(atom)
    condition, body = _open(eqn.params["cond_jaxpr"]), _open(eqn.params["body_jaxpr"])
    for var, operand in zip(condition.invars[: eqn.params["cond_nconsts"]], eqn.invars, strict=False):
        if var is atom:
            return _integer(operand)
    index = _carry_index(eqn, atom)
    skip = eqn.params["body_nconsts"]
    if index is None or body.outvars[index] is not body.invars[skip + index]:
        return None
    return _integer(eqn.invars[eqn.params["cond_nconsts"] + skip + index])


def _count_trips(start: int, step: int, limit: int, comparison: str) -> int | None:
    """Trips of `i = start; while i <comparison> limit: i += step`; `None` if it never ends."""
    if comparison in ("gt", "ge"):
        start, step, limit = -start, -step, -limit
    distance = limit - start + (comparison in ("le", "ge"))
    if distance <= 0:
        return 0
    return -(-distance // step) if step > 0 else None


def _table(rule: Callable[[Any], Cost], names: str | Iterable[str]) -> dict[str, Callable[[Any], Cost]]:
    return dict.fromkeys(names.split() if isinstance(names, str) else names, rule)


_RULES: dict[str, Callable[[Any], Cost]] = {
    **_table(
        _elementwise,
        "add add_any sub mul div rem neg max min exp exp2 log log1p log2 expm1 tanh logistic sin cos sqrt rsqrt pow "
        "square one_minus_square abs sign floor ceil round erf erf_inv select_n clamp eq ne lt le gt ge and or not xor "
        "is_finite",
    ),
    **_table(
        _relabel,
        "reshape squeeze expand_dims stop_gradient optimization_barrier name pvary pcast sharding_constraint "
        "layout_constraint mesh_cast bitcast_convert_type random_wrap random_unwrap create_token after_all axis_index "
        "empty dce_sink reduced_vary_cast vary_unreduced_cast hold",
    ),
    **_table(
        _move,
        "broadcast_in_dim transpose rev concatenate pad iota copy copy_p split unstack tile device_put reshard "
        "debug_callback debug_print pure_callback io_callback ffi_call all_gather all_to_all ppermute pbroadcast "
        "get swap lu_pivots_to_permutation",
    ),
    **_table(_slice, "slice dynamic_slice gather"),
    **_table(
        _scatter,
        ["scatter", *(f"scatter{mark}{kind}" for mark in "-_" for kind in ("add", "sub", "mul", "min", "max"))],
    ),
    **_table(
        _reduction,
        "reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or reduce_xor argmax argmin",
    ),
    **_table(_cumulative, "cumsum cumprod cummax cummin cumlogsumexp"),
    **_table(_reduce_window, "reduce_window reduce_window_sum reduce_window_max reduce_window_min"),
    **_table(_threefry, "threefry2x32 random_split random_fold_in random_seed"),
    **{
        name: _factorization(name)
        for name in ("cholesky", "lu", "geqrf", "householder_product", "eigh", "schur", "hessenberg", "tridiagonal")
    },
    "select_and_gather_add": _reduce_window,
    "select_and_scatter_add": _select_and_scatter_add,
    "convert_element_type": _convert,
    "dynamic_update_slice": _dynamic_update_slice,
    "integer_pow": _integer_pow,
    "dot_general": _dot_general,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "reduce": _general_reduction,
    "sort": _sort,
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "qr": _qr,
    "svd": _svd,
    "eig": _eig,
    "triangular_solve": _triangular_solve,
    "tridiagonal_solve": _tridiagonal_solve,
    "fft": _fft,
    "random_bits": _random_bits,
    "rng_bit_generator": _rng_bit_generator,
    "scan": _scan,
    NESTED: lambda eqn: eqn_cost(getattr(eqn.params["what"], "program", eqn.params["what"]).eqn),
    NESTED_GRADIENT: lambda eqn: (0.0, 0.0),
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
}
