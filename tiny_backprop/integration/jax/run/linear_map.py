"""The derivative of a function at a point, as a linear map whose transpose is planned.

`jax.custom_vjp` knows reverse mode alone. Here, the tangents of what a function returns are made by one primitive, from
the function's inputs, the values that its plan saves and the inputs' tangents. Forward mode evaluates it: that is JAX's
own derivative, and reads nothing that is saved. Reverse mode transposes it: that is the plan's backward phase, and all
that is kept for it are the inputs and the saved values. Where the point itself moves, in higher derivatives, what is
differentiated is JAX's own derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.capture.reach import reached

_MOST_BATCHED = 64

linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


class LinearMap:
    """A linear map of tangents, at a point that is given by the inputs and the saved values of a function.

    Attributes:
      inputs: Abstract values of the inputs.
      saved: Those of the saved values.
      tangents: Those of the tangents, one for each position in `along`.
      outs: Those of what the map makes of them: tangents of the function's outputs.
      along: Positions of the inputs that have a tangent.
      apply: Compiled function from inputs, saved values and tangents to `outs`.
      transpose: Compiled function from inputs, saved values and cotangents of `outs` to those of `tangents`.
    """

    def __init__(
        self,
        primal: Any,
        avals: tuple[Sequence[Any], Sequence[Any], Sequence[Any]],
        along: tuple[int, ...],
        apply: Callable[..., list[Any]],
        transpose: Callable[..., list[Any]],
    ):
        """Make a linear map.

        Args:
          primal: Closed jaxpr from the inputs to the outputs that have a tangent.
          avals: `inputs`, `saved` and `tangents`.
          along: See the attributes.
          apply: See the attributes.
          transpose: See the attributes.
        """
        self.primal, self.along, self.apply, self.transpose = primal, along, apply, transpose
        self.inputs, self.saved, self.tangents = avals
        self.outs = [compat.tangent_aval(a) for a in primal.out_avals]
        self.batched = functools.lru_cache(_MOST_BATCHED)(self._batched)

    @classmethod
    def of(
        cls,
        primal: Any,
        saved: Sequence[Any],
        along: tuple[int, ...],
        transpose: Callable[..., list[Any]],
        check: Callable[[], None],
    ) -> LinearMap:
        """Return the derivative of a function along some of its inputs.

        Args:
          primal: Closed jaxpr of the function.
          saved: Abstract values of what `transpose` reads beside the inputs.
          along: Positions of the inputs that have a tangent.
          transpose: See the attributes.
          check: Called before the map is evaluated; raises where that must not be.
        """
        run, n_inputs = compat.jaxpr_as_fun(primal), len(primal.in_avals)

        def derivative(*operands: Any) -> list[Any]:
            check()
            inputs, tangents = operands[:n_inputs], operands[n_inputs + len(saved) :]
            return jax.jvp(_partial(run, inputs, along), [inputs[i] for i in along], list(tangents))[1]

        tangents = [compat.tangent_aval(primal.in_avals[i]) for i in along]
        return cls(primal, (primal.in_avals, saved, tangents), along, jax.jit(derivative), transpose)

    @functools.cached_property
    def closed(self) -> Any:
        """Closed jaxpr of `apply`."""
        operands = (*self.inputs, *self.saved, *self.tangents)
        return jax.make_jaxpr(self.apply)(*map(compat.struct_of, operands))

    @property
    def jaxpr(self) -> Any:
        """Jaxpr of `apply`, and with `consts` what takes an equation apart needs to inline one of this map."""
        return compat.open_jaxpr(self.closed)

    @property
    def consts(self) -> Sequence[Any]:
        """Constants of `jaxpr`."""
        return self.closed.consts

    def _batched(self, axis: Any, dims: tuple[int | None, ...], avals: tuple[Any, ...]) -> tuple[LinearMap, Any]:
        """Return the map over a batch, and the batch dimension of each thing that it makes.

        The cotangent of an output without a batch dimension is one for the whole batch: its first element has all.
        """
        point, of_tangents = self.split(dims)
        primal, of_outs = self._batched_primal(axis, dims)
        apply = compat.batched(self.apply, (*self._point, *self.tangents), axis, dims, of_outs)
        is_shared = [d is None for d in of_outs]
        of_cotangents = [0 if d is None else d for d in of_outs]
        transpose = compat.batched(
            self.transpose, (*self._point, *self.outs), axis, (*point, *of_cotangents), of_tangents, sums=True
        )

        def transpose_shared(*operands: Any) -> list[Any]:
            point, cotangents = operands[: len(self._point)], operands[len(self._point) :]
            pairs = zip(cotangents, is_shared, strict=True)
            return transpose(*point, *(compat.first_of_batch(axis, c) if s else c for c, s in pairs))

        batched_point, tangents = self.split(avals)
        inputs, saved = batched_point[: len(self.inputs)], batched_point[len(self.inputs) :]
        made = LinearMap(primal, (inputs, saved, tangents), self.along, jax.jit(apply), jax.jit(transpose_shared))
        return made, of_outs

    def _batched_primal(self, axis: Any, dims: tuple[int | None, ...]) -> tuple[Any, Sequence[int | None]]:
        """Return the function over a batch and the batch dimensions of its outputs, and so of their tangents.

        Inputs have one where they or their tangents have. A derivative rule may make tangents of what the function's
        value does not depend on, so that all that it could depend on by such rules has one, too.
        """
        point, of_tangents = self.split(dims)
        of_inputs = list(point[: len(self.inputs)])
        for i, d in zip(self.along, of_tangents, strict=True):
            of_inputs[i] = d if of_inputs[i] is None else of_inputs[i]
        primal, of_outs = compat.batch_jaxpr(self.primal, axis, of_inputs)
        rules: list[Any] = []
        is_batched = [d is not None for d in of_inputs]
        may_be = reached(self.primal.jaxpr, is_batched, lambda e: rules.append(e) if compat.has_rule(e) else None)
        wanted = [0 if d is None and rules and b else d for d, b in zip(of_outs, may_be, strict=True)]
        if wanted != list(of_outs):
            run = compat.batched(compat.jaxpr_as_fun(self.primal), self.primal.in_avals, axis, of_inputs, wanted)
            primal = jax.make_jaxpr(run)(*map(compat.struct_of, primal.in_avals))
        return primal, wanted

    @property
    def _point(self) -> Sequence[Any]:
        return (*self.inputs, *self.saved)

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the operands that give the point, and the others."""
        n = len(self.inputs) + len(self.saved)
        return operands[:n], operands[n:]


def _partial(run: Callable[..., list[Any]], inputs: Sequence[Any], along: Sequence[int]) -> Callable[..., list[Any]]:
    """Return a function of some inputs, the others being as they are."""

    def of_some(*xs: Any) -> list[Any]:
        full = list(inputs)
        for i, x in zip(along, xs, strict=True):
            full[i] = x
        return run(*full)

    return of_some


def apply(linear: LinearMap, inputs: Sequence[Any], saved: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """Return the tangents of what a function returns; their derivative in reverse mode runs as planned.

    Args:
      linear: The derivative of the function.
      inputs: What the function was given.
      saved: What the transpose of `linear` reads beside the inputs.
      tangents: One for each position in `linear.along`.
    """
    return linear_map_p.bind(*inputs, *saved, *tangents, linear=linear)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, linear: LinearMap) -> tuple[list[Any], list[Any]]:
    """Differentiate by the tangents, where the map is its own derivative, and by the inputs, unplanned."""
    outs = linear_map_p.bind(*primals, linear=linear)
    point, of_tangents = linear.split(primals)
    moving, along = linear.split(tangents)
    made = [ad.Zero(compat.tangent_aval(jax.typeof(x))) for x in outs]
    if any(type(t) is not ad.Zero for t in along):
        made = linear_map_p.bind(*point, *map(ad.instantiate_zeros, along), linear=linear)
    by = [i for i, t in enumerate(moving[: len(linear.inputs)]) if type(t) is not ad.Zero]
    if by:
        of_point = _partial(lambda *point: linear.apply(*point, *of_tangents), point, by)
        _, terms = jax.jvp(of_point, [point[i] for i in by], [moving[i] for i in by])
        made = [ad.add_tangents(a, b) for a, b in zip(made, terms, strict=True)]
    return outs, made


def _transpose(cotangents: Sequence[Any], *operands: Any, linear: LinearMap) -> list[Any]:
    point, tangents = linear.split(operands)
    made = linear.transpose(*point, *map(ad.instantiate_zeros, cotangents))
    wanted = [c if ad.is_undefined_primal(t) else None for c, t in zip(made, tangents, strict=True)]
    return [*[None] * len(point), *wanted]


def _batch(axis: Any, operands: Sequence[Any], dims: Sequence[Any], *, linear: LinearMap) -> tuple[list[Any], Any]:
    batched, out_dims = linear.batched(axis, tuple(dims), tuple(map(jax.typeof, operands)))
    return linear_map_p.bind(*operands, linear=batched), out_dims


linear_map_p.def_impl(lambda *operands, linear: linear.apply(*operands))
linear_map_p.def_abstract_eval(lambda *avals, linear: linear.outs)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.fancy_primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(
    linear_map_p, mlir.lower_fun(lambda *operands, linear: linear.apply(*operands), multiple_results=True)
)
