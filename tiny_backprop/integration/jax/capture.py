"""Capture: trace a function, or the function and its reverse pass together, into a graph of equations.

A gradient is traced once, as `jax.vjp` of the function with its cotangents as arguments. Before that, the function
alone is traced and its `jit` and `checkpoint` calls are inlined, so that the graph does not depend on how the program
was cut into calls. Whatever the trace meets after the cotangents arrive is the backward phase.

A `scan`, `while` or `cond` is one node; `scans` plans scans before the gradient is traced.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tiny_backprop.errors import CaptureError, UntraceableError
from tiny_backprop.graph import LITERAL, Graph
from tiny_backprop.integration.jax import compat
from tiny_backprop.integration.jax.compat import Literal
from tiny_backprop.integration.jax.cost import RERUN_FLOPS, SCRATCH, aval_bytes, eqn_cost
from tiny_backprop.integration.jax.inline import FlatJaxpr, drop_dead, flatten
from tiny_backprop.integration.jax.layout import relaid

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A function together with its arguments, leaves separated from structure.

    Attributes:
      fun: The function.
      name: Its name, for messages.
      leaves: All leaves of `(args, kwargs)`.
      tree: Their tree.
      traced: Positions of the leaves that are arrays; the others (strings, callables, …) are passed on as they are.
    """

    fun: Callable[..., Any]
    name: str
    leaves: list[Any]
    tree: Any
    traced: tuple[int, ...]

    @classmethod
    def of(
        cls, fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], fix_numbers: bool = False
    ) -> Call:
        """Take a call apart; with `fix_numbers`, Python's bools and ints are passed on as they are, too."""
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        is_array = _is_array_type if not fix_numbers else _is_array_type_but_no_number
        traced = tuple([i for i, x in enumerate(leaves) if is_array(type(x))])
        return cls(fun, function_name(fun), leaves, tree, traced)

    @property
    def arrays(self) -> list[Any]:
        """The leaves that are arrays."""
        return [self.leaves[i] for i in self.traced]

    @property
    def n_args(self) -> int:
        """Number of positional arguments."""
        return len(self.tree.children()[0].children())

    def with_arrays(self, arrays: Sequence[Any]) -> Any:
        """Call the function with other arrays in the places of these."""
        leaves = list(self.leaves)
        for i, x in zip(self.traced, arrays, strict=True):
            leaves[i] = x
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        return self.fun(*args, **kwargs)

    def argument_names(self) -> list[str]:
        """Return a name such as `args[0]['w']` for each array."""
        paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(self.tree, self.leaves))
        names = ["args" + jax.tree_util.keystr(p[1:]) if p[0].idx == 0 else _keyword(p) for p, _ in paths]
        return [names[i] for i in self.traced]

    def positions(self, argnums: Sequence[int]) -> list[int]:
        """Return which of `arrays` belong to the positional arguments `argnums`, -1 for a leaf that is none of them."""
        ends = list(itertools.accumulate(t.num_leaves for t in self.tree.children()[0].children()))
        leaves = [i for k in argnums for i in range(ends[k - 1] if k else 0, ends[k])]
        return [self.traced.index(i) if i in self.traced else -1 for i in leaves]


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a function returned, leaves separated from structure.

    Attributes:
      tree: Tree of all leaves.
      fixed: The leaves that are no arrays, by position; each call returns them as the traced one did.
    """

    tree: Any
    fixed: Mapping[int, Any]

    def unflatten(self, arrays: Sequence[Any]) -> Any:
        """Return what the function returns, with these arrays in their places."""
        if not self.fixed:
            return jax.tree.unflatten(self.tree, arrays)
        rest = iter(arrays)
        leaves = [self.fixed[i] if i in self.fixed else next(rest) for i in range(self.tree.num_leaves)]
        return jax.tree.unflatten(self.tree, leaves)

    def main(self, name: str) -> tuple[Any, int]:
        """Return the tree and the number of arrays of the first part of a pair.

        Raises:
          CaptureError: The function `name` does not return a pair.
        """
        kind = (self.tree.node_data() or (None,))[0]
        children = self.tree.children()
        if not (isinstance(kind, type) and issubclass(kind, (tuple, list)) and len(children) == 2):
            raise CaptureError(f"has_aux=True: {name} must return a pair (output, aux); found {self.tree}")
        n_leaves = children[0].num_leaves
        return children[0], n_leaves - sum(i < n_leaves for i in self.fixed)


def _keyword(path: tuple[Any, ...]) -> str:
    return str(path[1].key) + jax.tree_util.keystr(path[2:])


def function_name(fun: Any) -> str:
    """Return the name of a function, or of the class of a callable object, for messages."""
    return getattr(fun, "__name__", type(fun).__name__)


@functools.cache
def _is_array_type(kind: type) -> bool:
    return issubclass(kind, (bool, int, float, complex)) or (hasattr(kind, "shape") and hasattr(kind, "dtype"))


@functools.cache
def _is_array_type_but_no_number(kind: type) -> bool:
    return _is_array_type(kind) and (not issubclass(kind, int) or hasattr(kind, "shape"))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced gradient: the graph, and for each node its equation.

    Attributes:
      graph: The graph; its inputs are the constants, the arguments and the cotangents, in that order.
      eqns: Equation of each node, forward nodes first.
      variables: Variable of each value of the graph, inputs first.
      n_constants: Number of constants, which are the first inputs. Their values are kept apart: they may be tracers.
      primal: The function alone, as a closed jaxpr of constants and arguments; derivative rules are intact.
      outputs: Structure of what the function returns.
      primal_outs: Variables or literals of what the function returns.
      gradients: Variables or literals of the gradients, one for each of `differentiated`.
      differentiated: Positions, among constants and arguments, of what is differentiated.
      cotangent_of: Positions, among `primal_outs`, of the outputs that have a cotangent.
    """

    graph: Graph
    eqns: Sequence[Any]
    variables: Sequence[Any]
    n_constants: int
    primal: Any
    outputs: Outputs
    primal_outs: Sequence[Any]
    gradients: Sequence[Any]
    differentiated: tuple[int, ...]
    cotangent_of: tuple[int, ...]

    @property
    def n_primal_inputs(self) -> int:
        """Number of constants and arguments."""
        return self.graph.n_inputs - len(self.cotangent_of)

    @property
    def has_scans(self) -> bool:
        """Whether the forward phase has scans that are left to JAX."""
        return "scan" in self.graph.primitives[: self.graph.n_forward]

    @property
    def input_variables(self) -> Sequence[Any]:
        """Variables of the constants and arguments."""
        return self.variables[: self.n_primal_inputs]

    @property
    def cotangent_variables(self) -> Sequence[Any]:
        """Variables of the cotangents."""
        return self.variables[self.n_primal_inputs : self.graph.n_inputs]


def capture_graph_jaxpr(
    fun: Callable[..., Any], example_inputs: Sequence[Any] | Mapping[str, Any] = (), **example_kwargs: Any
) -> Graph:
    """Capture a function, without its gradient, as a graph.

    Calls (`jit`, `checkpoint`, functions with custom derivatives) are inlined, and what no output needs is left out.
    Nothing is computed or allocated.

    Args:
      fun: Any function that JAX can trace.
      example_inputs: The positional arguments, or a mapping with the keyword arguments: arrays,
        `jax.ShapeDtypeStruct` objects, or pytrees of them.
      **example_kwargs: Keyword arguments, likewise.

    Returns:
      The graph; `graph.nodes` are its equations in execution order.

    Raises:
      CaptureError: `example_inputs` is neither a sequence nor a mapping.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = capture_graph_jaxpr(lambda x: jnp.tanh(jnp.sin(x)), example_inputs=(jnp.ones(4),))
      >>> [node.primitive for node in graph.nodes]
      ['sin', 'tanh']
    """
    if isinstance(example_inputs, Mapping):
        example_inputs, example_kwargs = (), {**example_inputs, **example_kwargs}
    elif not isinstance(example_inputs, (tuple, list)):
        raise CaptureError(
            "example_inputs must be a tuple of the positional arguments or a mapping of the keyword arguments; found "
            f"{type(example_inputs).__name__}. For one argument write example_inputs=(x,)."
        )
    call = Call.of(fun, example_inputs, example_kwargs)
    traced, _ = _trace(call)
    flat = flatten(traced.closed(), keep_custom_rules=False)
    eqns = drop_dead(flat.eqns, flat.outvars)
    inputs = [*flat.constvars, *flat.invars]
    n_hoisted = len(flat.constvars)
    names = [f"constant {i}" for i in range(n_hoisted + len(traced.constvars))] + call.argument_names()
    graph, _ = _build_graph(call.name, eqns, len(eqns), inputs, names, flat.outvars, len(flat.outvars))
    return graph


def capture_gradient(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Graph:
    """Capture the forward and the backward phase of a function's gradient together, as a graph.

    The function may return any arrays, not only a scalar. Nothing is computed or allocated.

    Args:
      fun: A function that JAX can differentiate in reverse mode.
      *args: Positional arguments: arrays, `jax.ShapeDtypeStruct` objects, or pytrees of them.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is not differentiated.
      **kwargs: Keyword arguments; they are not differentiated.

    Returns:
      The gradient graph; arguments and constants are its inputs, and so are the cotangents.

    Raises:
      CaptureError: `argnums` does not fit the arguments, an argument is not of floating-point or complex dtype, or the
        function cannot be differentiated in reverse mode.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = capture_gradient(lambda w, x: jnp.sum(jnp.sin(w @ x)), jnp.ones((4, 4)), jnp.ones(4))
      >>> graph.n_forward > 0 and graph.n_backward > 0
      True
    """
    call = Call.of(fun, args, kwargs)
    program, _ = capture_program(call, check_argnums(call, argnums), has_aux=has_aux)
    return program.graph


def check_argnums(call: Call, argnums: int | Sequence[int]) -> list[int]:
    """Return the positions, among the arrays of a call, of the leaves of `argnums`.

    Raises:
      CaptureError: An index is no integer, repeated or out of range, or a leaf cannot be differentiated.
    """
    n_args = call.n_args
    try:
        wanted = [operator.index(k) for k in (argnums if isinstance(argnums, Sequence) else [argnums])]
    except TypeError:
        raise CaptureError(f"argnums must be an integer or a tuple of them; found {argnums!r}") from None
    for k in wanted:
        if not -n_args <= k < n_args:
            raise CaptureError(
                f"argnums={argnums!r} was asked for; {call.name} was given {n_args} positional arguments"
            )
    if not wanted or len({k % n_args for k in wanted}) < len(wanted):
        raise CaptureError(f"argnums={argnums!r} must name at least one argument, and none twice")
    positions = call.positions([k % n_args for k in wanted])
    names = call.argument_names()
    for i in positions:
        if i < 0:
            raise CaptureError(f"argnums={argnums!r} of {call.name} has a leaf that is no array; it has no gradient")
        dtype = getattr(call.arrays[i], "dtype", None) or jnp.result_type(call.arrays[i])
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise CaptureError(
                f"argnums={argnums!r} of {call.name}: {names[i]} has dtype {dtype}, which has no gradient. "
                "Differentiate "
                "by floating-point arguments alone (see argnums), or convert it."
            )
    return positions


def _trace(call: Call) -> tuple[FlatJaxpr, Outputs]:
    """Trace the function of a call, inline what does not concern derivatives, and return it with its outputs."""
    traced: list[Outputs] = []

    def fun(*arrays: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(call.with_arrays(arrays))
        fixed = {i: x for i, x in enumerate(leaves) if not _is_array_type(type(x))}
        traced.append(Outputs(tree, fixed))
        return [x for i, x in enumerate(leaves) if i not in fixed]

    try:
        closed = jax.make_jaxpr(fun)(*call.arrays)
    except _UNTRACEABLE as e:
        raise UntraceableError(
            f"{call.name} cannot be captured, because it looks at the values of its arguments ({type(e).__name__}: "
            f"{str(e).splitlines()[0]}). Use lax.cond and jnp.where instead of Python's if, and functools.partial to "
            "fix arguments that are no arrays."
        ) from e
    return flatten(closed, keep_custom_rules=True), traced[-1]


def capture_program(
    call: Call,
    positions: Sequence[int] | None,
    has_aux: bool = False,
    prepare: Callable[[Any], Any] = lambda primal: primal,
) -> tuple[Program, list[Any]]:
    """Trace a call and its reverse pass.

    Args:
      call: The function and its arguments.
      positions: Which of `call.arrays` to differentiate by; None means all that can be, closed-over tracers included.
      has_aux: Whether the function returns a pair whose second part is not differentiated.
      prepare: Applied to the closed jaxpr of the function before its gradient is traced.

    Returns:
      The program, and the values of its constants: tracers where the function closed over some.

    Raises:
      UntraceableError: The function looks at the values of its arguments.
      CaptureError: The function cannot be differentiated in reverse mode, or `has_aux` does not fit what it returns.
    """
    flat, outputs = _trace(call)
    n_constants, n_outs = len(flat.constvars), len(flat.outvars)
    n_differentiable = outputs.main(call.name)[1] if has_aux else n_outs
    if positions is None:
        closed_over = [i for i, c in enumerate(flat.consts) if compat.is_tracer(c)]
        candidates = [*closed_over, *range(n_constants, n_constants + len(flat.invars))]
        variables = [*flat.constvars, *flat.invars]
        differentiated = [i for i in candidates if compat.is_inexact(variables[i].aval)]
    else:
        differentiated = [n_constants + i for i in positions]
    cotangent_of = tuple(i for i, v in enumerate(flat.outvars[:n_differentiable]) if compat.is_inexact(v.aval))
    joint = flatten(_trace_joint(call, prepare(flat.closed()), differentiated, cotangent_of), keep_custom_rules=False)
    program = _split(call, flat, joint, outputs, differentiated, cotangent_of)
    return program, [*flat.consts, *joint.consts]


def _trace_joint(call: Call, primal: Any, differentiated: Sequence[int], cotangent_of: Sequence[int]) -> Any:
    """Trace `(inputs, cotangents) -> (outputs, gradients)`; an optimisation barrier marks where cotangents arrive."""
    run = compat.jaxpr_as_fun(primal)

    def joint(inputs: list[Any], cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
        def by_differentiated(*xs: Any) -> tuple[list[Any], list[Any]]:
            full = list(inputs)
            for i, x in zip(differentiated, xs, strict=True):
                full[i] = x
            outs = run(*full)
            return [outs[i] for i in cotangent_of], outs

        _, pullback, outs = jax.vjp(by_differentiated, *(inputs[i] for i in differentiated), has_aux=True)
        if not cotangents:
            return outs, [lax.full_like(inputs[i], 0) for i in differentiated]
        return outs, list(pullback(lax.optimization_barrier(cotangents)))

    inputs = [compat.struct_of(v.aval) for v in primal.jaxpr.invars]
    cotangents = [compat.struct_of(primal.jaxpr.outvars[i].aval) for i in cotangent_of]
    try:
        return jax.make_jaxpr(joint)(inputs, cotangents)
    except Exception as e:
        raise CaptureError(
            f"the gradient of {call.name} was asked for; JAX cannot differentiate it in reverse mode:\n  "
            f"{type(e).__name__}: {str(e).strip()}\n"
            "jax.grad by the same arguments fails likewise. A while_loop on the differentiated path needs a static "
            "trip count (lax.scan, or fori_loop with constant bounds); other operations without a derivative need "
            "jax.custom_vjp or stop_gradient."
        ) from e


def _split(
    call: Call,
    flat: FlatJaxpr,
    joint: FlatJaxpr,
    outputs: Outputs,
    differentiated: Sequence[int],
    cotangent_of: Sequence[int],
) -> Program:
    """Separate the phases of a joint trace, build its graph, and add the constants of derivative rules."""
    n_constants, n_rules, n_cotangents = len(flat.constvars), len(joint.constvars), len(cotangent_of)
    inputs = [*joint.invars[:n_constants], *joint.constvars, *joint.invars[n_constants:]]
    forward, backward, outvars = _phases(joint, inputs[len(inputs) - n_cotangents :])
    eqns = drop_dead([*forward, *backward], outvars)
    in_forward = set(map(id, forward))
    n_forward = sum(id(e) in in_forward for e in eqns)
    names = [f"constant {i}" for i in range(n_constants + n_rules)] + call.argument_names()
    names += [f"cotangent {i}" for i in range(n_cotangents)]
    n_outs = len(flat.outvars)
    graph, variables = _build_graph(call.name, eqns, n_forward, inputs, names, outvars, n_outs)
    primal_inputs = [*flat.constvars, *joint.constvars, *flat.invars]
    return Program(
        graph=graph,
        eqns=eqns,
        variables=variables,
        n_constants=n_constants + n_rules,
        primal=compat.close_jaxpr(primal_inputs, flat.outvars, flat.eqns),
        outputs=outputs,
        primal_outs=outvars[:n_outs],
        gradients=outvars[n_outs:],
        differentiated=tuple(i if i < n_constants else i + n_rules for i in differentiated),
        cotangent_of=tuple(cotangent_of),
    )


def _phases(joint: FlatJaxpr, cotangents: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the equations before and after the mark where cotangents arrive, and the results, without it."""
    marks = (i for i, e in enumerate(joint.eqns) if cotangents and e.invars and e.invars[0] is cotangents[0])
    at = next(marks, None)
    if at is None:
        return joint.eqns, [], joint.outvars
    unmarked = dict(zip(joint.eqns[at].outvars, cotangents, strict=True))

    def without_mark(atoms: Sequence[Any]) -> list[Any]:
        return [v if isinstance(v, Literal) else unmarked.get(v, v) for v in atoms]

    backward = [e.replace(invars=without_mark(e.invars)) for e in joint.eqns[at + 1 :]]
    return joint.eqns[:at], backward, without_mark(joint.outvars)


def _build_graph(
    name: str,
    eqns: Sequence[Any],
    n_forward: int,
    inputs: Sequence[Any],
    input_names: Sequence[str],
    outvars: Sequence[Any],
    n_primal_outputs: int,
) -> tuple[Graph, list[Any]]:
    """Return the graph of equations and the variable of each of its values."""
    variables = list(inputs)
    for eqn in eqns:
        variables += eqn.outvars
    number = {v: i for i, v in enumerate(variables)}
    describe = functools.cache(_describe_aval)
    described = [describe(v.aval) for v in variables]
    n_bytes = [d[2] for d in described]
    for eqn in eqns:
        if eqn.primitive.name in SCRATCH:  # stands as a value that nobody reads
            n_bytes[number[eqn.outvars[-1]]] = SCRATCH[eqn.primitive.name](eqn)
    costs = [eqn_cost(e) for e in eqns]
    copies = [relaid(e) for e in eqns]
    is_backward = np.arange(len(eqns)) >= n_forward
    graph = Graph(
        name=name,
        primitives=tuple(e.primitive.name for e in eqns),
        is_backward=is_backward,
        flops=np.array([c[0] for c in costs], float),
        bytes_moved=np.array([c[1] for c in costs], float),
        rerun_flops=np.array([RERUN_FLOPS.get(e.primitive.name, _none)(e) for e in eqns], float),
        has_effect=np.array([any(map(compat.is_side_effect, e.effects)) for e in eqns], bool),
        sources=_texts(eqns, lambda info: info.traceback, compat.source_line),
        scopes=_texts(eqns, lambda info: info.name_stack, lambda eqn: str(eqn.source_info.name_stack)),
        operand_start=np.cumsum([0, *(len(e.invars) for e in eqns)]),
        operands=np.array([_number(v, number) for e in eqns for v in e.invars], np.int64),
        relaid_operands=np.array([c for of_operands, _ in copies for c in of_operands], np.int64),
        output_start=len(inputs) + np.cumsum([0, *(len(e.outvars) for e in eqns)]),
        value_shapes=tuple(d[0] for d in described),
        value_dtypes=tuple(d[1] for d in described),
        value_bytes=np.array(n_bytes, np.int64),
        relaid_values=np.array([*(False for _ in inputs), *(c for _, of_outs in copies for c in of_outs)], bool),
        input_names=tuple(input_names),
        outputs=np.array([_number(v, number) for v in outvars], np.int64),
        n_primal_outputs=n_primal_outputs,
    )
    return graph, variables


def _none(_: Any) -> float:
    return 0.0


def _number(v: Any, number: dict[Any, int]) -> int:
    return LITERAL if isinstance(v, Literal) else number[v]


def _describe_aval(aval: Any) -> tuple[tuple[int, ...], str, int]:
    return tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", aval)), aval_bytes(aval)


def _texts(eqns: Sequence[Any], key: Callable[[Any], Any], text: Callable[[Any], str]) -> tuple[str, ...]:
    """Return the text of each equation, made once for all equations of the same key."""
    known: dict[Any, str] = {}
    texts = []
    for eqn in eqns:
        k = key(eqn.source_info)
        if k not in known:
            known[k] = text(eqn)
        texts.append(known[k])
    return tuple(texts)
