"""The joint trace: a function and its reverse pass as one list of equations, with their graph.

A gradient is traced once, as `jax.vjp` of the function with its cotangents as arguments. Before that, the function
alone is traced and its `jit` and `checkpoint` calls are inlined, so that the graph does not depend on how the program
was cut into calls. Whatever the trace meets after the cotangents arrive is the backward phase.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.errors import IrreversibleError, RefError, UntraceableError
from tiny_backprop.graph import LITERAL, ONE, Checkpoint, Graph, Nested
from tiny_backprop.integration.jax.capture.call import Call, Outputs, is_array_type
from tiny_backprop.integration.jax.capture.checkpoints import checkpoints_of, without_marks
from tiny_backprop.integration.jax.capture.cost import NESTED, NESTED_GRADIENT, eqn_cost
from tiny_backprop.integration.jax.capture.inline import FlatJaxpr, drop_dead, flatten
from tiny_backprop.integration.jax.capture.layout import relaid
from tiny_backprop.integration.jax.capture.left_alone import what_is_not_kept, why_left_alone
from tiny_backprop.integration.jax.capture.pads import join_pads
from tiny_backprop.integration.jax.capture.sizes import aval_bytes
from tiny_backprop.integration.jax.capture.while_loops import while_lines
from tiny_backprop.integration.jax.compat import Literal
from tiny_backprop.plan.loops.nested import keeping_everything

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced gradient: the graph, and for each node its equation.

    Attributes:
      graph: The graph; its inputs are the constants, the arguments and the cotangents, in that order.
      eqns: Equation of each node, forward nodes first.
      variables: Variable of each value of the graph, inputs first.
      n_constants: Number of constants, which are the first inputs. Their values are kept apart: they may be tracers.
      primal: The function alone, as a closed jaxpr of constants and arguments; derivative rules are intact, and so is
        each `jax.checkpoint` of its own.
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
    def input_variables(self) -> Sequence[Any]:
        """Variables of the constants and arguments."""
        return self.variables[: self.n_primal_inputs]

    @property
    def cotangent_variables(self) -> Sequence[Any]:
        """Variables of the cotangents."""
        return self.variables[self.n_primal_inputs : self.graph.n_inputs]


class Unplanned:
    """Control flow that became a pair of primitives and waits for its plan; see `nested`.

    Attributes:
      kind: `"scan"` or `"cond"`.
      eqn: Its equation, as JAX has it.
    """

    kind: str
    eqn: Any

    def nested(self, forward_node: int, backward_node: int) -> Nested:
        """Return it as the graph has it."""
        raise AssertionError("each kind has its own")


def trace_function(call: Call) -> tuple[FlatJaxpr, FlatJaxpr, Outputs]:
    """Trace the function of a call and inline what does not concern derivatives.

    Returns:
      The program; the same with the calls under `jax.checkpoint` kept; and what it returns.
    """
    traced: list[Outputs] = []

    def fun(*arrays: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(call.with_arrays(arrays))
        fixed = {i: x for i, x in enumerate(leaves) if not is_array_type(type(x))}
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
    flat = flatten(closed, keep_custom_rules=True)
    kept = flatten(closed, keep_custom_rules=True, keep_checkpoints=True) if flat.checkpoints else flat
    return flat, kept, traced[-1]


def trace_gradient(
    call: Call,
    positions: Sequence[int] | None,
    has_aux: bool,
    prepare: Callable[[Any], Any],
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
      RefError: The function uses refs.
      IrreversibleError: The function cannot be differentiated in reverse mode.
      CaptureError: `has_aux` does not fit what the function returns.
    """
    flat, kept, outputs, differentiated, cotangent_of = _differentiated(call, positions, has_aux)
    primal = flat.closed()
    of_ref = compat.ref_equation(primal.jaxpr)
    if of_ref is not None:
        raise RefError(
            f"the gradient of {call.name} cannot be planned, because it reads or writes a ref (jax.new_ref) at "
            f"{compat.source_line(of_ref) or 'a line that JAX does not tell'}, and a plan may run reads again after "
            "later writes. Pass arrays on as values (a carry of lax.scan, say) to have it planned."
        )
    try:
        traced = _trace_joint(prepare(compat.without_unused(primal)), differentiated, cotangent_of)
    except Exception as e:
        raise IrreversibleError(_why_not(call.name, primal, differentiated, cotangent_of, e)) from e
    joint = join_pads(flatten(traced, keep_custom_rules=False))
    program = _split(call, flat, kept, joint, outputs, differentiated, cotangent_of)
    return program, [*flat.consts, *joint.consts]


def trace_symbolically(call: Call, positions: Sequence[int], has_aux: bool) -> Any:
    """Return the closed jaxpr of a gradient whose arguments have symbolic dimensions, as JAX traces it.

    Raises:
      Exception: Whatever JAX or the function raises where it needs a size as a number.
    """
    flat, _, _, differentiated, cotangent_of = _differentiated(call, positions, has_aux)
    return _trace_joint(compat.without_unused(flat.closed()), differentiated, cotangent_of)


def _differentiated(
    call: Call, positions: Sequence[int] | None, has_aux: bool
) -> tuple[FlatJaxpr, FlatJaxpr, Outputs, list[int], tuple[int, ...]]:
    """Trace the function of a call; return also what is differentiated, and which outputs have a cotangent."""
    flat, kept, outputs = trace_function(call)
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
    return flat, kept, outputs, differentiated, cotangent_of


def _trace_joint(primal: Any, differentiated: Sequence[int], cotangent_of: Sequence[int]) -> Any:
    """Trace `(inputs, cotangents) -> (outputs, gradients)`; optimisation barriers mark where cotangents arrive."""
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
        return outs, list(pullback([lax.optimization_barrier(c) for c in cotangents]))  # one alone keeps its type

    inputs = [compat.struct_of(v.aval) for v in primal.jaxpr.invars]
    cotangents = [compat.struct_of(primal.jaxpr.outvars[i].aval) for i in cotangent_of]
    return jax.make_jaxpr(joint)(inputs, cotangents)


def _why_not(
    name: str, primal: Any, differentiated: Sequence[int], cotangent_of: Sequence[int], error: Exception
) -> str:
    """Say why a function cannot be differentiated in reverse mode."""
    try:
        lines = while_lines(primal, differentiated, cotangent_of)
    except Exception:  # nor in forward mode: it is no while_loop, and the first error tells
        lines = []
    asked = f"the gradient of {name} was asked for; JAX cannot differentiate it in reverse mode:"
    if not lines:
        return (
            f"{asked}\n  {type(error).__name__}: {str(error).strip()}\n"
            "Operations without a derivative need jax.custom_vjp or stop_gradient; what works in jax.grad alone, "
            "because it does not trace first, is not planned."
        )
    return (
        f"{asked} a while_loop, or a fori_loop whose bounds are not constant, is on the differentiated path at\n"
        + "".join(f"  {line}\n" for line in lines)
        + "How many steps there are, and so how much they save, is known only when they run. Where the "
        "steps are bounded, "
        "write lax.scan with lax.cond inside, or fori_loop with "
        "constant bounds, or equinox.internal.while_loop(kind='checkpointed'): see checkpointed_while in "
        "docs/while-loops.md. Where no gradient is wanted through it, wrap what it reads in lax.stop_gradient."
    )


def _split(
    call: Call,
    flat: FlatJaxpr,
    kept: FlatJaxpr,
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
    eqns, around = without_marks(eqns)
    names = [f"constant {i}" for i in range(n_constants + n_rules)] + call.argument_names()
    names += [f"cotangent {i}" for i in range(n_cotangents)]
    n_outs = len(flat.outvars)
    checkpoints = checkpoints_of(eqns, n_forward, around, flat.checkpoints)
    graph, variables = build_graph(call.name, eqns, n_forward, inputs, names, outvars, n_outs, checkpoints)
    constants = _variables_of(flat.consts, flat.constvars, kept)
    primal_inputs = [*constants, *joint.constvars, *kept.invars]
    return Program(
        graph=graph,
        eqns=eqns,
        variables=variables,
        n_constants=n_constants + n_rules,
        primal=compat.close_jaxpr(primal_inputs, kept.outvars, kept.eqns),
        outputs=outputs,
        primal_outs=outvars[:n_outs],
        gradients=outvars[n_outs:],
        differentiated=tuple(i if i < n_constants else i + n_rules for i in differentiated),
        cotangent_of=tuple(cotangent_of),
    )


def _variables_of(consts: Sequence[Any], constvars: Sequence[Any], kept: FlatJaxpr) -> list[Any]:
    """Return the variables of constants in a program that keeps some calls; new ones for those of the calls."""
    variables: dict[int, list[Any]] = {}
    for v, c in zip(kept.constvars, kept.consts, strict=True):
        variables.setdefault(id(c), []).append(v)
    found = [variables.get(id(c), []) for c in consts]
    return [vs.pop(0) if vs else compat.Var(v.aval) for vs, v in zip(found, constvars, strict=True)]


def _phases(joint: FlatJaxpr, cotangents: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the equations before and after the marks where cotangents arrive, and the results, without them."""
    marks = (i for i, e in enumerate(joint.eqns) if cotangents and e.invars and e.invars[0] is cotangents[0])
    at = next(marks, None)
    if at is None:
        return joint.eqns, [], joint.outvars
    end = at + len(cotangents)
    assert all(e.primitive.name == "optimization_barrier" for e in joint.eqns[at:end])
    unmarked = {e.outvars[0]: v for e, v in zip(joint.eqns[at:end], cotangents, strict=True)}

    def without_mark(atoms: Sequence[Any]) -> list[Any]:
        return [v if isinstance(v, Literal) else unmarked.get(v, v) for v in atoms]

    backward = [e.replace(invars=without_mark(e.invars)) for e in joint.eqns[end:]]
    return joint.eqns[:at], backward, without_mark(joint.outvars)


def build_graph(
    name: str,
    eqns: Sequence[Any],
    n_forward: int,
    inputs: Sequence[Any],
    input_names: Sequence[str],
    outvars: Sequence[Any],
    n_primal_outputs: int,
    checkpoints: Sequence[Checkpoint] = (),
) -> tuple[Graph, list[Any]]:
    """Return the graph of equations and the variable of each of its values."""
    variables = list(inputs)
    for eqn in eqns:
        variables += eqn.outvars
    number = {v: i for i, v in enumerate(variables)}
    describe = functools.cache(_describe_aval)
    described = [describe(v.aval) for v in variables]
    n_bytes = [d[2] for d in described]
    costs = [eqn_cost(e) for e in eqns]
    copies = [relaid(e) for e in eqns]
    literals = _Literals()
    is_backward = np.arange(len(eqns)) >= n_forward
    graph = Graph(
        name=name,
        primitives=tuple(map(_name, eqns)),
        is_backward=is_backward,
        flops=np.array([c[0] for c in costs], float),
        bytes_moved=np.array([c[1] for c in costs], float),
        rerun_flops=np.zeros(len(eqns)),
        rerun_bytes_moved=np.zeros(len(eqns)),
        has_effect=np.array([any(map(compat.is_side_effect, e.effects)) for e in eqns], bool),
        sources=_texts(eqns, lambda info: info.traceback, compat.source_line),
        scopes=_texts(eqns, lambda info: info.name_stack, lambda eqn: str(eqn.source_info.name_stack)),
        operand_start=np.cumsum([0, *(len(e.invars) for e in eqns)]),
        operands=np.array([_number(v, number) for e in eqns for v in e.invars], np.int64),
        relaid_operands=np.array(
            [n for e, (how, _) in zip(eqns, copies, strict=True) for n in literals.numbered(e, how)], np.int64
        ),
        output_start=len(inputs) + np.cumsum([0, *(len(e.outvars) for e in eqns)]),
        value_shapes=tuple(d[0] for d in described),
        value_dtypes=tuple(d[1] for d in described),
        value_bytes=np.array(n_bytes, np.int64),
        relaid_values=np.array([*(False for _ in inputs), *(c for _, of_outs in copies for c in of_outs)], bool),
        input_names=tuple(input_names),
        outputs=np.array([_number(v, number) for v in outvars], np.int64),
        n_primal_outputs=n_primal_outputs,
        nested=_nested(eqns),
        backend="cpu",
        left_alone=tuple((i, why) for i, e in enumerate(eqns[:n_forward]) if (why := _left_alone(e))),
        jax_version=compat.JAX_VERSION,
        checkpoints=tuple(checkpoints),
    )
    return keeping_everything(graph), variables


def _left_alone(eqn: Any) -> str:
    what = eqn.params.get("what")
    return what_is_not_kept(what.eqn) if isinstance(what, Unplanned) else why_left_alone(eqn)


def _name(eqn: Any) -> str:
    return eqn.params["what"].kind if isinstance(eqn.params.get("what"), Unplanned) else eqn.primitive.name


def _nested(eqns: Sequence[Any]) -> tuple[Nested, ...]:
    """Return the loops and branches that are to be planned: those whose backward node is needed."""
    pairs = []
    # One loop's gradient may be another's cotangent: only what forward nodes hand on makes a pair.
    unplanned = [(i, e) for i, e in enumerate(eqns) if isinstance(e.params.get("what"), Unplanned)]
    forward = {e.outvars[-2]: i for i, e in unplanned if e.primitive.name == NESTED}
    for j, eqn in unplanned:
        if eqn.primitive.name == NESTED_GRADIENT:
            pairs += [(forward[v], j) for v in eqn.invars if not isinstance(v, Literal) and v in forward]
    return tuple(eqns[i].params["what"].nested(i, j) for i, j in sorted(pairs))


def _number(v: Any, number: dict[Any, int]) -> int:
    return LITERAL if isinstance(v, Literal) else number[v]


_SCALES = ("add", "sub", "mul", "div")


class _Literals:
    """Numbers for the values of scalar literals that arrays are scaled or shifted by: `ONE`, and more as they come."""

    def __init__(self):
        self.known: dict[tuple[str, bytes], int] = {}

    def numbered(self, eqn: Any, how: Sequence[int]) -> Sequence[int]:
        """Return what XLA does to each operand, and instead of it the numbers of literals."""
        if eqn.primitive.name not in _SCALES or not eqn.outvars[0].aval.shape:
            return how
        return [self._number(v) if isinstance(v, Literal) else h for v, h in zip(eqn.invars, how, strict=True)]

    def _number(self, v: Any) -> int:
        if np.shape(v.val):
            return 0
        key = str(v.aval.dtype), np.asarray(v.val, v.aval.dtype).tobytes()
        return ONE if v.val == 1 else self.known.setdefault(key, ONE + 1 + len(self.known))


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
