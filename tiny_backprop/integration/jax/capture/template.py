"""A traced program for many sizes: what two traces of one function have in common, and the numbers they differ in.

Two traces at different sizes are walked side by side. Where both hold the same number, it is fixed; where they do not,
it is a function of the sizes, which the caller knows how to find. Anything else that differs (another operation,
another dtype, other operands) means that tracing went another way, and there is no common program.

What comes out is filled in at other sizes in a few microseconds per equation. Its graph is right, and so are shapes,
costs and layouts; it is not meant to run: constants of nested jaxprs and the values of literals, and so which of them
are equal, are those of the first trace.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.errors import CaptureError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.trace import Program, build_graph
from tiny_backprop.integration.jax.compat import JaxprEqn, Var

_COMPARED = (str, bool, type(None), enum.Enum, np.dtype)


class DifferentProgramsError(CaptureError):
    """Two traces of one function have no common program; the message says where they part."""


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """A program with places for numbers.

    Attributes:
      numbers: What each distinct number was in the first and in the second trace.
      n_eqns: Number of its equations.
    """

    numbers: Sequence[tuple[int, int]]
    n_eqns: int
    _program: Any
    _avals: Sequence[tuple[Any, Any]]
    _unlike: Sequence[tuple[Any, Any]]

    @classmethod
    def of(cls, first: Program, second: Program) -> Template:
        """Return what two programs have in common.

        Raises:
          DifferentProgramsError: They differ in more than numbers.
        """
        common = _Common()
        program = common.program(first, second)
        return cls(list(common.numbers), len(first.eqns), program, common.avals, common.unlike())

    def has_idle_operation(self, numbers: Sequence[int]) -> bool:
        """Return whether an operation that changed a shape no longer does: JAX leaves some of these out."""
        filling = _Filling(numbers, ())
        return any(_filled(a, filling) == _filled(b, filling) for a, b in self._unlike)

    def graph(self, numbers: Sequence[int]) -> Graph:
        """Return the graph of the program with these in the places of `numbers`."""
        program = _filled(self._program, _Filling(numbers, self._avals))
        return program.graph


# ---- places in a template; whatever is none of these is the same at all sizes ----


class _Place:
    def fill(self, filling: _Filling) -> Any:
        raise AssertionError("each kind has its own")


def _filled(x: Any, filling: _Filling) -> Any:
    return x.fill(filling) if isinstance(x, _Place) else x


class _Filling:
    """Numbers for a template, and what has been made of them so far."""

    def __init__(self, numbers: Sequence[int], avals: Sequence[tuple[Any, Any]]):
        self.numbers = numbers
        self._avals = [aval.update(shape=_filled(shape, self)) for aval, shape in avals]
        self._variables: dict[Any, Any] = {}
        self.objects: dict[int, Any] = {}

    def variable(self, place: _Variable) -> Any:
        """Return the variable that stands for one of the first trace."""
        v = self._variables.get(place.variable)
        if v is None:
            v = self._variables[place.variable] = Var(self._avals[place.aval])
        return v


@dataclasses.dataclass(frozen=True, eq=False)
class _Number(_Place):
    index: int

    def fill(self, filling: _Filling) -> int:
        return filling.numbers[self.index]


@dataclasses.dataclass(frozen=True, eq=False)
class _Variable(_Place):
    variable: Any
    aval: int

    def fill(self, filling: _Filling) -> Any:
        return filling.variable(self)


@dataclasses.dataclass(frozen=True, eq=False)
class _Aval(_Place):
    aval: Any
    shape: Any

    def fill(self, filling: _Filling) -> Any:
        return self.aval.update(shape=_filled(self.shape, filling))


@dataclasses.dataclass(frozen=True, eq=False)
class _Items(_Place):
    of: Any
    items: Sequence[Any]

    def fill(self, filling: _Filling) -> Any:
        items = [_filled(x, filling) for x in self.items]
        return type(self.of)(*items) if hasattr(self.of, "_fields") else type(self.of)(items)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fields(_Place):
    of: Any
    fields: Mapping[str, Any]

    def fill(self, filling: _Filling) -> Any:
        made = filling.objects.get(id(self.of))
        if made is None:
            fields = {k: _filled(x, filling) for k, x in self.fields.items()}
            made = filling.objects[id(self.of)] = dataclasses.replace(self.of, **fields)
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class _Eqn(_Place):
    eqn: Any
    invars: Sequence[Any]
    outvars: Sequence[Any]
    params: Mapping[str, Any]

    def fill(self, filling: _Filling) -> Any:
        changed = {k: _filled(x, filling) for k, x in self.params.items()}
        return self.eqn.replace(
            invars=[_filled(v, filling) for v in self.invars],
            outvars=[_filled(v, filling) for v in self.outvars],
            params={**self.eqn.params, **changed} if changed else self.eqn.params,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Jaxpr(_Place):
    jaxpr: Any
    invars: Sequence[Any]
    outvars: Sequence[Any]
    eqns: Sequence[Any]

    def fill(self, filling: _Filling) -> Any:
        parts = ([_filled(x, filling) for x in part] for part in (self.invars, self.outvars, self.eqns))
        return compat.with_eqns(self.jaxpr, *parts)


@dataclasses.dataclass(frozen=True, eq=False)
class _OfProgram(_Place):
    program: Program
    inputs: Sequence[Any]
    outvars: Sequence[Any]
    eqns: Sequence[Any]

    def fill(self, filling: _Filling) -> Program:
        eqns, inputs, outvars = ([_filled(x, filling) for x in part] for part in (self.eqns, self.inputs, self.outvars))
        old = self.program.graph
        graph, variables = build_graph(
            old.name, eqns, old.n_forward, inputs, old.input_names, outvars, old.n_primal_outputs, old.checkpoints
        )
        graph = dataclasses.replace(graph, donated=old.donated)
        return dataclasses.replace(self.program, graph=graph, eqns=eqns, variables=variables)


# ---- walking two traces side by side ----


class _Common:
    """What two traces have in common, found so far."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, int], int] = {}
        self.avals: list[tuple[Any, Any]] = []
        self._aval_of: dict[Any, int | None] = {}
        self._variables: dict[Any, tuple[Any, Any]] = {}
        self._objects: dict[tuple[int, int], Any] = {}
        self._resized: dict[tuple[Any, Any], tuple[Any, Any]] = {}
        self._line = ""

    def unlike(self) -> list[tuple[Any, Any]]:
        """Return the shapes of operands and results of an operation that may be alike at other sizes only."""
        pairs = ((self._aval_shape(a), self._aval_shape(b)) for a, b in self._resized.values())
        return [pair for pair in pairs if _has_place(pair)]

    def _aval_shape(self, v: Any) -> Any:
        index = self._aval_of[v.aval, self._variables[v][0].aval]
        return v.aval.shape if index is None else self.avals[index][1]

    def program(self, a: Program, b: Program) -> Any:
        """Return the place of a program."""
        n_inputs = a.graph.n_inputs
        parts = (
            (a.variables[:n_inputs], b.variables[: b.graph.n_inputs]),
            (a.eqns, b.eqns),
            ([*a.primal_outs, *a.gradients], [*b.primal_outs, *b.gradients]),
        )
        inputs, eqns, outvars = (self._all(x, y, "inputs, equations and results") for x, y in parts)
        return _OfProgram(a, inputs, outvars, eqns)

    def _parted(self, what: str, a: Any, b: Any) -> DifferentProgramsError:
        return DifferentProgramsError(
            f"{what}: {_short(a)} and {_short(b)}" + (f" at {self._line}" if self._line else "")
        )

    def _all(self, a: Sequence[Any], b: Sequence[Any], what: str) -> list[Any]:
        if len(a) != len(b):
            for x, y in zip(a, b, strict=False):  # the first pair that does not fit says more than the numbers
                self.common(x, y)
            raise self._parted(f"another number of {what}", len(a), len(b))
        return [self.common(x, y) for x, y in zip(a, b, strict=True)]

    def common(self, a: Any, b: Any) -> Any:
        """Return the place of two things, or the thing itself where it is the same at all sizes."""
        if a is b and not isinstance(a, Var):
            return a
        if isinstance(a, JaxprEqn):
            return self._eqn(a, b)
        if isinstance(a, Var):
            return self._variable(a, b)
        if isinstance(a, _COMPARED):
            if a != b:
                raise self._parted("another setting", a, b)
            return a
        if isinstance(a, int | np.integer):
            return self._number(a, b)
        if type(a) is not type(b):
            raise self._parted("another kind of parameter", type(a).__name__, type(b).__name__)
        if isinstance(a, tuple | list):
            items = self._all(a, b, "entries of a parameter")
            return _Items(a, items) if _has_place(items) else a
        return self._object(a, b)

    def _object(self, a: Any, b: Any) -> Any:
        key = (id(a), id(b))
        if key not in self._objects:
            self._objects[key] = self._part_by_part(a, b)
        return self._objects[key]

    def _part_by_part(self, a: Any, b: Any) -> Any:
        if isinstance(a, Program):
            return self.program(a, b)
        if hasattr(a, "eqns"):
            return self._jaxpr(a, b)
        if isinstance(a, compat.ShapedArray):
            shape = self._shape(a, b)
            return _Aval(a, shape) if isinstance(shape, _Place) else a
        if dataclasses.is_dataclass(a) and type(a).__module__.startswith("tiny_backprop."):
            fields = {f.name: self.common(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)}
            changed = {k: x for k, x in fields.items() if isinstance(x, _Place)}
            return _Fields(a, changed) if changed else a
        return a  # functions, arrays, shardings: not what costs and shapes are read from

    def _number(self, a: Any, b: Any) -> Any:
        if isinstance(b, bool) or not isinstance(b, int | np.integer):
            raise self._parted("another kind of parameter", a, b)
        if a == b:
            return a
        return _Number(self.numbers.setdefault((int(a), int(b)), len(self.numbers)))

    def _shape(self, a: Any, b: Any) -> Any:
        if getattr(a, "dtype", None) != getattr(b, "dtype", None):
            raise self._parted("another dtype", a, b)
        shapes = getattr(a, "shape", ()), getattr(b, "shape", ())
        if len(shapes[0]) != len(shapes[1]):
            raise self._parted("another number of dimensions", a, b)
        return self.common(*shapes)

    def _variable(self, a: Any, b: Any) -> Any:
        known = self._variables.get(a)
        if known is None:
            if not isinstance(b, Var):
                raise self._parted("another kind of operand", "a value", "a number")
            key = (a.aval, b.aval)
            if key not in self._aval_of:
                shape = self._shape(a.aval, b.aval)
                self._aval_of[key] = len(self.avals) if isinstance(shape, _Place) else None
                self.avals += [(a.aval, shape)] if isinstance(shape, _Place) else []
            index = self._aval_of[key]
            known = self._variables[a] = (b, a if index is None else _Variable(a, index))
        if known[0] is not b:
            raise self._parted("another operand", a, b)
        return known[1]

    def _eqn(self, a: Any, b: Any) -> Any:
        outer, self._line = self._line, compat.source_line(a) or self._line
        if a.primitive is not b.primitive or a.params.keys() != b.params.keys():
            raise self._parted("another operation", a.primitive.name, b.primitive.name)
        invars = self._all(a.invars, b.invars, "operands")
        params = {k: self.common(x, b.params[k]) for k, x in a.params.items()}
        outvars = self._all(a.outvars, b.outvars, "results")
        self._note_resizing(a)
        self._line = outer
        params = {k: x for k, x in params.items() if isinstance(x, _Place)}
        return _Eqn(a, invars, outvars, params) if params or _has_place(invars) or _has_place(outvars) else a

    def _note_resizing(self, eqn: Any) -> None:
        for v in (v for v in eqn.invars if isinstance(v, Var)):
            for out in eqn.outvars:
                shapes = getattr(v.aval, "shape", ()), getattr(out.aval, "shape", ())
                if shapes[0] != shapes[1] and len(shapes[0]) == len(shapes[1]):
                    self._resized.setdefault((v.aval, out.aval), (v, out))

    def _jaxpr(self, a: Any, b: Any) -> Any:
        a_open, b_open = map(compat.open_jaxpr, (a, b))
        self._all(a_open.constvars, b_open.constvars, "constants")
        invars = self._all(a_open.invars, b_open.invars, "inputs")
        eqns = self._all(a_open.eqns, b_open.eqns, "equations")
        outvars = self._all(a_open.outvars, b_open.outvars, "results")
        parts = (*invars, *outvars, *eqns)
        return _Jaxpr(a, invars, outvars, eqns) if _has_place(parts) else a


def _has_place(xs: Sequence[Any]) -> bool:
    return any(isinstance(x, _Place) for x in xs)


def _short(x: Any) -> str:
    text = str(x)
    return text if len(text) <= 80 else f"{text[:77]}..."
