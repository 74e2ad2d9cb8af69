"""FLOPs of operations that take some counting: convolutions, factorisations, transforms, sorting, selection.

They are given as shapes and numbers, so that both count by them: the cost of an equation before it is compiled
(`capture.cost`) and that of an instruction that XLA has made (`xla.hlo_flops`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache


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


def qr_flops(m: int, n: int, is_full: bool) -> float:
    """Give the leading terms of a QR decomposition's FLOPs: R and reflectors, then Q from these.

    Args:
      m: Rows.
      n: Columns.
      is_full: Whether Q is square.

    Returns:
      FLOPs for one matrix.

    Raises:
      Nothing.
    """
    return _geqrf(m, n) + _householder_product(m, m if is_full else min(m, n), min(m, n))


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
