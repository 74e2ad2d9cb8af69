"""FLOPs and bytes moved of JAXPR equations: a cost model by primitive.

Conventions, those of XLA's `HloCostAnalysis` unless said otherwise:

- an element-wise operation is one FLOP per output element; transcendentals (`exp`, `tanh`, `erf`, …), comparisons,
  conversions between dtypes and integer operations count one like the rest, and so does a complex operation;
- a multiply-add is two FLOPs; a convolution counts the multiply-adds that touch neither padding nor the holes of a
  dilated input, so a convolution and both of its gradients cost about the same;
- moving data costs no FLOPs; relabelling it (reshape, squeeze, `optimization_barrier`, …) costs no bytes either;
- bytes are those of every non-literal operand read plus every output written, as if nothing were fused;
- a loop costs its trips times its body, a conditional its most expensive branch, a call what it calls.

Known weak spots: `while` loops whose bounds are not literals count one trip; polynomial expansions (`erf`, `lgamma`)
count one FLOP where XLA emits some twenty; factorisations count the leading terms of Golub & Van Loan, Matrix
Computations, 4th edition (2013); a PRNG's bits count what the compiled program needs, to about 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.capture.sizes import aval_bytes, n_elements
from tiny_backprop.integration.jax.capture.trip_count import while_trip_count
from tiny_backprop.integration.jax.compat import Literal
from tiny_backprop.integration.jax.flops import (
    convolution_flops,
    factorization_flops,
    fft_flops,
    qr_flops,
    sort_flops,
    top_k_flops,
)

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
    for eqn in compat.open_jaxpr(jaxpr).eqns:
        eqn_flops, eqn_bytes = eqn_cost(eqn)
        flops += eqn_flops
        moved_bytes += eqn_bytes
    return flops, moved_bytes


# --- bytes moved -----------------------------------------------------------------------------------------------------


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
            if hasattr(compat.open_jaxpr(inner), "eqns"):
                return jaxpr_cost(inner)
    return _elementwise(eqn)


def _elementwise(eqn: Any) -> Cost:
    per_element = _FLOPS_PER_ELEMENT.get(eqn.primitive.name, 1)
    if len(eqn.outvars) == 1:
        return float(per_element * n_elements(eqn.outvars[0].aval)), _moved(eqn)
    return float(sum([n_elements(v.aval) for v in eqn.outvars if hasattr(v.aval, "shape")])), _moved(eqn)


def _polynomial(eqn: Any) -> Cost:
    """Horner's rule: a multiplication and an addition for each coefficient but the first."""
    return 2.0 * (len(eqn.invars) - 2) * n_elements(eqn.outvars[0].aval), _moved(eqn)


def _relabel(eqn: Any) -> Cost:
    return 0.0, 0.0


def _move(eqn: Any) -> Cost:
    return 0.0, _moved(eqn)


def _convert(eqn: Any) -> Cost:
    """A conversion is one operation, a change of weak type none."""
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    return (0.0, 0.0) if before.dtype == after.dtype else (float(n_elements(after)), _moved(eqn))


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
    flops = 0 if eqn.primitive.name == "scatter" else sum([n_elements(aval) for aval in updates])
    return float(flops), float(3 * update_bytes + aval_bytes(eqn.invars[n].aval))


def _integer_pow(eqn: Any) -> Cost:
    """Square and multiply, and a division for a negative power."""
    power = abs(eqn.params["y"])
    multiplies = power.bit_length() + power.bit_count() - 2 if power else 0
    return float((multiplies + (eqn.params["y"] < 0)) * n_elements(eqn.outvars[0].aval)), _moved(eqn)


# --- rules: contractions ---------------------------------------------------------------------------------------------


def _dot_general(eqn: Any) -> Cost:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    k = 1
    for i in contracting:
        k *= shape[i]
    size = n_elements(eqn.outvars[0].aval)
    return float(2 * size * k), _moved(eqn)


def _ragged_dot(eqn: Any) -> Cost:
    """The useful work: every row meets its own group only. XLA:CPU pays for all groups."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracting, _), _ = numbers.dot_dimension_numbers
    shape = eqn.invars[0].aval.shape
    k = math.prod(shape[i] for i in contracting)
    size = n_elements(eqn.outvars[0].aval)
    if set(numbers.lhs_ragged_dimensions) & set(contracting):  # the groups divide the contracted dimension
        size //= max(eqn.outvars[0].aval.shape[0], 1)
    return float(2 * size * k), _moved(eqn)


def _sparse_dot(eqn: Any) -> Cost:
    """Each element of the sparse matrix, or of the sampled product, meets a row of the other operand."""
    (contracting, other), (_, of_other) = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "bcoo_dot_general":
        _, indices, dense = (v.aval.shape for v in eqn.invars)
        n_row = math.prod(n for d, n in enumerate(dense) if d not in (*other, *of_other))
    else:
        left, _, indices = (v.aval.shape for v in eqn.invars)
        n_row = math.prod(left[d] for d in contracting)
    return float(2 * math.prod(indices[:-1]) * n_row), _moved(eqn)


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


# --- rules: reductions, windows, sorting -----------------------------------------------------------------------------


def _reduction(eqn: Any) -> Cost:
    """To reduce n elements to one takes n - 1 operations; argmax and argmin count their comparisons."""
    saved = n_elements(eqn.invars[0].aval) - n_elements(eqn.outvars[0].aval)
    return float(saved), _moved(eqn)


def _general_reduction(eqn: Any) -> Cost:
    body_flops, _ = jaxpr_cost(eqn.params["jaxpr"])
    flops, moved_bytes = _reduction(eqn)
    return body_flops * flops, moved_bytes


def _cumulative(eqn: Any) -> Cost:
    per_element = _LOGADDEXP_FLOPS if eqn.primitive.name == "cumlogsumexp" else 1
    return float(per_element * n_elements(eqn.invars[0].aval)), _moved(eqn)


def _window(eqn: Any) -> int:
    return math.prod(eqn.params["window_dimensions"])


def _reduce_window(eqn: Any) -> Cost:
    body = eqn.params.get("jaxpr")
    body_flops = 1.0 if body is None else jaxpr_cost(body)[0]
    return body_flops * (_window(eqn) - 1) * n_elements(eqn.outvars[0].aval), _moved(eqn)


def _select_and_scatter_add(eqn: Any) -> Cost:
    """A window's selection and one addition per element of the source."""
    return float(_window(eqn) * n_elements(eqn.invars[0].aval)), _moved(eqn)


def _sort(eqn: Any) -> Cost:
    aval = eqn.invars[0].aval
    return sort_flops(n_elements(aval), aval.shape[eqn.params["dimension"]]), _moved(eqn)


def _top_k(eqn: Any) -> Cost:
    return top_k_flops(n_elements(eqn.invars[0].aval), eqn.params["k"]), _moved(eqn)


# --- rules: linear algebra, random numbers ---------------------------------------------------------------------------


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
    return batch * qr_flops(m, n, bool(eqn.params.get("full_matrices"))), moved_bytes


def _svd(eqn: Any) -> Cost:
    if not eqn.params.get("compute_uv", True):
        return _factorization("svd_values")(eqn)
    return _factorization("svd_full" if eqn.params.get("full_matrices") else "svd")(eqn)


def _eig(eqn: Any) -> Cost:
    return _factorization("eig" if len(eqn.outvars) > 1 else "eig_values")(eqn)


def _triangular_solve(eqn: Any) -> Cost:
    """n² multiply-adds, half of a full product, for each right-hand side."""
    a, b = (v.aval for v in eqn.invars)
    return float(a.shape[-1] * n_elements(b)), _moved(eqn)


def _tridiagonal_solve(eqn: Any) -> Cost:
    """Thomas's algorithm: 8 FLOPs per unknown."""
    return 8.0 * n_elements(eqn.outvars[0].aval), _moved(eqn)


def _fft(eqn: Any) -> Cost:
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    is_complex = before.dtype.kind == "c" and after.dtype.kind == "c"
    return fft_flops(max(n_elements(before), n_elements(after)), eqn.params["fft_lengths"], is_complex), _moved(eqn)


def _random_bits(eqn: Any) -> Cost:
    words = n_elements(eqn.outvars[0].aval) * max(eqn.params["bit_width"], 32) / 32
    is_threefry = "fry" in str(eqn.invars[0].aval.dtype)
    return words * (_THREEFRY_FLOPS_PER_BLOCK if is_threefry else _PHILOX_FLOPS_PER_WORD), _moved(eqn)


def _threefry(eqn: Any) -> Cost:
    """New keys, folded keys and `threefry2x32`: a block of the cipher makes 8 bytes."""
    return _THREEFRY_FLOPS_PER_BLOCK * _written(eqn) / 8, _moved(eqn)


def _rng_bit_generator(eqn: Any) -> Cost:
    return float(_PHILOX_FLOPS_PER_WORD * n_elements(eqn.outvars[-1].aval)), _moved(eqn)


# --- rules: control flow, calls --------------------------------------------------------------------------------------


def _scan(eqn: Any) -> Cost:
    """Length times the body; each step also copies its slices in and out."""
    length, body = eqn.params["length"], compat.open_jaxpr(eqn.params["jaxpr"])
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
    "polynomial": _polynomial,  # from JAX 0.12 on
    "dot_general": _dot_general,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "bcoo_dot_general": _sparse_dot,
    "bcoo_dot_general_sampled": _sparse_dot,
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
