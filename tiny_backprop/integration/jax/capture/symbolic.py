"""Gradients whose arguments have symbolic dimensions: captured once, and a graph for any sizes in milliseconds.

Tracing with symbolic dimensions (`jax.export.symbolic_shape`) shows that nothing in the function depends on the sizes
but sizes: a branch on one cannot be decided, and raises. But JAX makes another program of symbolic shapes than of
numbers: slices become gathers, sizes become equations. The program that runs is the one of numbers. So the function is
traced with numbers, too, at two sizes that share no factor with anything else; what the two programs differ in are
numbers, each of which is one of the symbolic trace's dimensions, or a multiple of one plus a number. A third trace, at
sizes that none of it was made from, has to give the graph that the first two predict; so have traces with each
dimension as small and as large as may be, where `einsum` may contract in another order.

JAX leaves out or replaces operations at single sizes: where a dimension becomes 1 or less (it broadcasts), and where an
operation no longer changes a shape (a reshape of a square). Such sizes are traced.

Known weakness: what JAX or a rule of differentiation hides from symbolic tracing, and decides one way at all the sizes
that are traced here and another way between them, is not seen. A plan for such a graph is refused where it is to run,
by its fingerprint.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.door import FUNCTION, door
from tiny_backprop.errors import CaptureError, TinyBackpropError
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.call import Call, check_argnums, check_donate_argnums, symbolic_dimensions
from tiny_backprop.integration.jax.capture.capture import capture_program
from tiny_backprop.integration.jax.capture.possible_sizes import PossibleSizes, Sizes, in_words
from tiny_backprop.integration.jax.capture.template import DifferentProgramsError, Template
from tiny_backprop.integration.jax.capture.trace import trace_symbolically

_MOST_KEPT = 32
_PACKAGE = str(Path(__file__).parents[3])


@dataclasses.dataclass(frozen=True, eq=False)
class _Expression:
    """`factor * dimension + offset`."""

    factor: int
    dimension: Any
    offset: int

    def at(self, sizes: Sizes) -> int:
        return self.factor * compat.dimension_at(self.dimension, sizes) + self.offset


@dataclasses.dataclass(frozen=True)
class _Written:
    """An argument with symbolic dimensions, as text."""

    shape: str
    dtype: Any
    weak_type: bool

    @classmethod
    def of(cls, x: Any) -> _Written:
        return cls(", ".join(map(str, x.shape)) + ",", x.dtype, x.weak_type)

    def read(self, scope: jax.export.SymbolicScope) -> jax.ShapeDtypeStruct:
        shape = jax.export.symbolic_shape(self.shape, scope=scope)
        return jax.ShapeDtypeStruct(shape, self.dtype, weak_type=self.weak_type)


def _traced_again(call_parts: Any, traced: tuple[int, ...], constraints: Sequence[str], *options: Any) -> SymbolicGraph:
    """Return the graph that was pickled, its function traced anew."""
    scope = jax.export.SymbolicScope(constraints)
    fun, args, kwargs = call_parts
    args, kwargs = jax.tree.map(lambda x: x.read(scope) if isinstance(x, _Written) else x, (args, kwargs))
    return SymbolicGraph(dataclasses.replace(Call.of(fun, args, kwargs), traced=traced), *options)


class SymbolicGraph:
    """The gradient of a function whose arguments have symbolic dimensions; made by `capture_symbolic_gradient`.

    Attributes:
      name: Name of the function.
      dimensions: Names of the symbolic dimensions, in the order in which they first appear in the arguments.
      constraints: What sizes have to meet, as it was written, such as `"mod(batch, 8) == 0"`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 4"), jnp.float32)
      >>> symbolic = capture_symbolic_gradient(lambda w, x: jnp.sum(jnp.sin(x @ w)), jnp.ones((4, 4)), x)
      >>> symbolic.at(batch=32).value(1).shape
      (32, 4)
    """

    def __init__(self, call: Any, positions: Sequence[int], has_aux: bool, donated: Sequence[int]):
        self.name = call.name
        self._call: Call = call
        self._positions, self._has_aux, self._donated = positions, has_aux, donated
        self._possible = PossibleSizes.of(call)
        self.dimensions: tuple[str, ...] = self._possible.dimensions
        self.constraints: tuple[str, ...] = self._possible.constraints
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._template, self._numbers = self._trace()

    def at(self, **sizes: int) -> Graph:
        """Return the graph for given sizes: the one that `capture_gradient` gives for arguments of these sizes.

        Takes some ten microseconds per equation, and no tracing, but where a dimension becomes 1 or less, or an
        operation gives the shape that it is given at these sizes alone. The last 32 graphs are kept.

        Args:
          **sizes: A size for each of `dimensions`.

        Returns:
          The graph.

        Raises:
          CaptureError: A size is missing, unknown or no whole number of at least 1, a constraint is not met, or the
            function cannot be captured at sizes that are traced.
        """
        sizes = self.checked(sizes)
        key = tuple(sizes.values())
        if key not in self._graphs:
            self._graphs[key] = self._graph(sizes)
            if len(self._graphs) > _MOST_KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def args_at(self, **sizes: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments of given sizes, `jax.ShapeDtypeStruct` where they were symbolic.

        Args:
          **sizes: A size for each of `dimensions`.

        Raises:
          CaptureError: See `at`.
        """
        call = self._call_at(self.checked(sizes))
        return jax.tree.unflatten(call.tree, call.leaves)

    def example_sizes(self) -> dict[str, int]:
        """Return some sizes that meet the constraints: 32 for all dimensions, or another power of two, if that does."""
        return self._possible.example()

    def checked(self, sizes: Mapping[str, Any]) -> Sizes:
        """Return sizes in the order of `dimensions`.

        Args:
          sizes: A size for each of `dimensions`.

        Raises:
          CaptureError: See `at`.
        """
        return self._possible.checked(sizes)

    def __repr__(self) -> str:
        under = f" under {', '.join(self.constraints)}" if self.constraints else ""
        n_eqns = self._template.n_eqns
        return f"SymbolicGraph({self.name!r}, {n_eqns} nodes, dimensions {', '.join(self.dimensions)}{under})"

    def __deepcopy__(self, memo: Any) -> SymbolicGraph:
        return self  # nobody can change it

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the question, not the trace: tracebacks and primitives belong to this process."""
        call = self._call
        leaves = [_Written.of(x) if symbolic_dimensions(x) else x for x in call.leaves]
        args, kwargs = jax.tree.unflatten(call.tree, leaves)
        options = self._positions, self._has_aux, self._donated
        return _traced_again, ((call.fun, args, kwargs), call.traced, self.constraints, *options)

    # ---- tracing ----

    def _trace(self) -> tuple[Template, Sequence[_Expression]]:
        *pair, third = self._possible.samples()
        dimensions = _dimensions_in(self._trace_symbolically(pair[0]))
        first, second = map(self._program, pair)
        try:
            template = Template.of(first, second)
        except DifferentProgramsError as e:
            raise self._depends_on_sizes(pair, str(e)) from e
        at_pair = [(d, compat.dimension_at(d, pair[0]), compat.dimension_at(d, pair[1])) for d in dimensions]
        numbers = []
        for a, b in template.numbers:
            expression = _expression(a, b, at_pair)
            if expression is None:
                raise self._depends_on_sizes(pair, f"{a} and {b} are no multiple of a dimension plus a number")
            numbers.append(expression)
        for sizes in (third, *self._possible.ends(third)):
            self._check_at(sizes, template, numbers, pair[1])
        return template, numbers

    def _check_at(self, sizes: Sizes, template: Template, numbers: Sequence[_Expression], other: Sizes) -> None:
        """Hold what is predicted for sizes against their trace."""
        predicted = template.graph([n.at(sizes) for n in numbers])
        try:
            traced = self._program(sizes).graph
        except CaptureError as e:
            raise self._depends_on_sizes([other, sizes], _first_line(e)) from e
        if predicted.to_data() != traced.to_data() and not _is_traced_at(sizes, template, numbers):
            raise self._depends_on_sizes([other, sizes], _difference(predicted, traced))

    def _program(self, sizes: Sizes) -> Any:
        return capture_program(self._call_at(sizes), self._positions, self._has_aux, self._donated)[0]

    def _trace_symbolically(self, sample: Sizes) -> Any:
        """Return the symbolic trace; where there is none, say whether there is one at the sizes of a sample."""
        try:
            return trace_symbolically(self._call, self._positions, self._has_aux)
        except Exception as e:
            line = f"{_user_line(e)}:\n  {type(_cause(e)).__name__}: {_first_line(e)}\n"
            constrained = "symbolic_shape('batch', constraints=['mod(batch, 8) == 0', 'batch >= 16'])"
            try:
                self._program(sample)
            except Exception as at_sample:
                raise CaptureError(
                    f"{self.name} can be captured neither with symbolic dimensions, because of an error{line}nor with "
                    f"{in_words(sample)}: {_first_line(at_sample)}\nWhere only some sizes are possible, say which: "
                    f"{constrained}."
                ) from e
            raise CaptureError(
                f"{self.name} can be captured with {in_words(sample)}, but not with symbolic dimensions, because "
                f"something wants a size as a number{line}Python's if and loops over a size, numpy, int(size) and "
                f"operations of JAX that look at sizes do. Where a constraint decides it, give it: {constrained}. Else "
                "make that dimension a number, or capture each size by capture_gradient."
            ) from e

    def _depends_on_sizes(self, samples: Sequence[Sizes], how: str) -> CaptureError:
        return CaptureError(
            f"{self.name} becomes another program with {in_words(samples[0])} than with {in_words(samples[1])}: {how}. "
            "There is no one graph for all sizes; capture each by capture_gradient, or leave sizes out by constraints: "
            "symbolic_shape('batch', constraints=['batch <= 64'])."
        )

    def _graph(self, sizes: Sizes) -> Graph:
        if _is_traced_at(sizes, self._template, self._numbers):
            return self._program(sizes).graph
        return self._template.graph([n.at(sizes) for n in self._numbers])

    def _call_at(self, sizes: Sizes) -> Call:
        """Return the call with arguments of given sizes."""

        def concrete(x: Any) -> Any:
            if not symbolic_dimensions(x):
                return x
            shape = [compat.dimension_at(d, sizes) if jax.export.is_symbolic_dim(d) else d for d in x.shape]
            return x.update(shape=tuple(shape))

        return dataclasses.replace(self._call, leaves=[concrete(x) for x in self._call.leaves])


@door(CaptureError, fun=FUNCTION)
def capture_symbolic_gradient(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    **kwargs: Any,
) -> SymbolicGraph:
    """Capture a gradient whose arguments have symbolic dimensions, as a graph for any sizes.

    The function is traced once with symbolic dimensions, three times with numbers, and twice more for each dimension:
    with one, about six times what `capture_gradient` takes. Nothing is computed or allocated.

    Args:
      fun: A function that JAX can differentiate in reverse mode, and trace with symbolic dimensions.
      *args: Positional arguments: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them. The shapes of some come
        from `jax.export.symbolic_shape`, all with the same scope.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is not differentiated.
      donate_argnums: See `capture_gradient`.
      **kwargs: Keyword arguments; they are not differentiated.

    Returns:
      The graph for any sizes; `.at(batch=32)` is that for one.

    Raises:
      CaptureError: No dimension is symbolic, the function looks at a size in a way that only a number allows, it
        becomes another program at other sizes, or it cannot be captured for the reasons of `capture_gradient`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 4"), jnp.float32)
      >>> symbolic = capture_symbolic_gradient(lambda w, x: jnp.sum(jnp.sin(x @ w)), jnp.ones((4, 4)), x)
      >>> symbolic
      SymbolicGraph('<lambda>', 8 nodes, dimensions batch)
      >>> symbolic.at(batch=32).activation_bytes, symbolic.at(batch=64).activation_bytes
      (1540, 3076)
    """
    call = Call.of(fun, args, kwargs, argnums)
    scopes = {id(compat.dimension_scope(d)): d for d in call.symbolic_dimensions()}
    if len(scopes) != 1:
        found = f"dimensions {', '.join(map(str, scopes.values()))} of {len(scopes)} scopes" if scopes else "none"
        raise CaptureError(
            f"capture_symbolic_gradient needs arguments with symbolic dimensions, all of one scope; {call.name} was "
            f"given {found}. Make them together: a, b = jax.export.symbolic_shape('a, b'), or with scope="
            "jax.export.SymbolicScope(). Without symbolic dimensions use capture_gradient."
        )
    return SymbolicGraph(call, check_argnums(call, argnums), has_aux, check_donate_argnums(call, donate_argnums))


def has_symbolic_dimensions(tree: Any) -> bool:
    """Return whether some leaf of a pytree has a symbolic dimension.

    Args:
      tree: The pytree, such as the arguments of a function.
    """
    return any(symbolic_dimensions(x) for x in jax.tree.leaves(tree))


# ---- numbers as functions of sizes ----


def _dimensions_in(closed: Any) -> list[Any]:
    """Return the symbolic dimensions in a jaxpr, each once, the shortest first."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(x: Any) -> None:
        if jax.export.is_symbolic_dim(x):
            found.setdefault(str(x), x)
        elif isinstance(x, tuple | list):
            for y in x:
                walk(y)
        elif hasattr(x, "eqns"):
            for eqn in compat.open_jaxpr(x).eqns:
                walk(list(eqn.params.values()))
                for v in (*eqn.invars, *eqn.outvars):
                    if id(v.aval) not in seen:
                        seen.add(id(v.aval))
                        walk(getattr(v.aval, "shape", ()))

    walk(closed)
    for v in closed.jaxpr.invars:
        walk(v.aval.shape)
    return [found[k] for k in sorted(found, key=lambda k: (len(k), k))]


def _expression(a: int, b: int, dimensions: Sequence[tuple[Any, int, int]]) -> _Expression | None:
    """Return what is a at the first sample and b at the second: a dimension, or else the simplest of its kind."""
    found = []
    for dimension, at_first, at_second in dimensions:
        if (at_first, at_second) == (a, b):
            return _Expression(1, dimension, 0)
        if at_first != at_second and (a - b) % (at_first - at_second) == 0:
            factor = (a - b) // (at_first - at_second)
            found.append(_Expression(factor, dimension, a - factor * at_first))
    return min(found, key=lambda e: (abs(e.offset), abs(e.factor)), default=None)


def _is_traced_at(sizes: Sizes, template: Template, expressions: Sequence[_Expression]) -> bool:
    """Return whether JAX may choose other operations at sizes than at the samples, for all that is known."""
    numbers = [e.at(sizes) for e in expressions]
    is_broadcast = any(n <= 1 < min(sampled) for n, sampled in zip(numbers, template.numbers, strict=True))
    return is_broadcast or template.has_idle_operation(numbers)


def _difference(predicted: Graph, traced: Graph) -> str:
    """Say in which node, or in what, two graphs differ first."""
    if predicted.primitives != traced.primitives:
        i = next(i for i, (a, b) in enumerate(zip(predicted.primitives, traced.primitives, strict=False)) if a != b)
        return f"node {i} is {traced.primitives[i]} at {traced.sources[i]} where {predicted.primitives[i]} was expected"
    for i, (a, b) in enumerate(zip(predicted.value_shapes, traced.value_shapes, strict=True)):
        if a != b:
            return f"value {i} has the shape {b} where {a} was expected"
    found = predicted.to_data()
    names = [k for k, x in traced.to_data().items() if x != found[k]]
    return f"other {', '.join(names)} than expected"


# ---- words ----


def _cause(error: BaseException) -> BaseException:
    """Return what an error of ours wraps."""
    while isinstance(error, TinyBackpropError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return next(iter(str(_cause(error)).strip().splitlines()), "")


def _user_line(error: BaseException) -> str:
    """Return ` at file:line (function)` of the user's line that an error came from, or `""`."""
    frames = traceback.extract_tb(_cause(error).__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(_PACKAGE)]
    return f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].name})" if own else ""
