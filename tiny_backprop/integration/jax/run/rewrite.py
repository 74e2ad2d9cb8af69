"""Play a plan's actions into new jaxprs: the gradient that runs.

The backward phase falls into *segments*: a segment begins where the plan turns from backward nodes to forward ones.
What a segment reads of the forward phase, saved or recomputed earlier, goes through one `hold`, together with the
cotangents that the segment before has just made, so that XLA neither merges the recomputation with what it repeats nor
starts it early. The backward nodes of the segment read the held values too: otherwise XLA would share, say, the
broadcast of a saved row sum between forward and backward and keep the broadcast alive.

What the backward phase makes for a contraction and for something else too is held when it is made: otherwise XLA fuses
its making into each reader anew and keeps everything that it is made from alive for all of them. So is the result of a
primitive that XLA expands into many operations, such as `erfc`, when it is recomputed for several readers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.graph import Graph
from tiny_backprop.integration.jax.capture.cost import EXPANDED
from tiny_backprop.integration.jax.capture.trace import Program
from tiny_backprop.integration.jax.compat import Literal, Var
from tiny_backprop.integration.jax.run.hold import hold_p
from tiny_backprop.integration.jax.run.nested import drop_unread, realized
from tiny_backprop.integration.jax.run.pooling import in_slices
from tiny_backprop.plan.plan import Plan
from tiny_backprop.predict.step_plan import StepPlan

_SMALL_BYTES = 64  # keys and scalars
_LEAST_SHARED_BYTES = 4096  # below that a hold costs more than it spares
_CONTRACTIONS = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedJaxprs:
    """A gradient as a plan runs it.

    Attributes:
      forward: Closed jaxpr from constants and arguments to what the function returns and then the saved values.
      backward: Closed jaxpr from constants and arguments, saved values and cotangents to the gradients.
      n_outs: Number of values that the function returns.
    """

    forward: Any
    backward: Any
    n_outs: int


def rewrite(program: Program, plan: Plan) -> PlannedJaxprs:
    """Turn a plan into the jaxprs that carry it out; linear in the number of actions.

    Args:
      program: The traced gradient.
      plan: A plan for `program.graph`.

    Returns:
      The jaxprs; their equations are those of the program, each as often as the plan runs it, and the holds.

    Raises:
      PlanError: The plan belongs to another graph.
    """
    plan = plan.on(program.graph)
    n_forward_steps = plan.timeline.n_forward_steps if program.graph.n_backward else len(plan.timeline.steps)
    steps = plan.timeline.steps.tolist()
    forward, backward = steps[:n_forward_steps], steps[n_forward_steps:]
    return _play(program, plan.graph, forward, backward, plan.saved.tolist(), forward[-1:])


def rewrite_step(program: Program, step: StepPlan) -> PlannedJaxprs:
    """Turn the plan of a loop's step into the jaxprs that carry it out.

    Both phases run in loops of their own, between which XLA merges nothing. Unless the backward part is planned by
    itself, nothing runs again in it, and it is XLA's to order.
    """
    forward, backward = step.steps[: step.n_forward_steps], step.steps[step.n_forward_steps :]
    if not step.keeps_nothing:
        backward = sorted(backward)
    return _play(program, step.graph, forward, backward, step.saved, [])


def _play(
    program: Program,
    graph: Graph,
    forward: Sequence[int],
    backward: Sequence[int],
    saved: Sequence[int],
    last: Sequence[int],
) -> PlannedJaxprs:
    """Emit both phases, loops planned as in the graph, where the backward phase waits for the nodes `last`."""
    kept = [program.variables[v] for v in saved]
    program, handed_on = realized(program, graph, rewrite_step)
    player = _Player(program, [w for ws in handed_on.values() for w in ws])
    saved = [player.number[w] for v in kept for w in handed_on.get(v, [v])]
    player.play_segment(forward, [])
    outs = [player.current(v) for v in program.primal_outs]
    # A saved value may itself be recomputed before the border; what crosses is its latest making.
    # Without a cotangent there is no backward phase, and the gradients (zeros) are made beside the function itself.
    made = {player.env[k] for k in player.env if k >= program.graph.n_inputs}
    early = [v for v in program.gradients if not isinstance(v, Literal) and v in made]
    crossing = list(dict.fromkeys([*(player.env[v] for v in saved), *early]))
    player.at_border = [*range(program.n_primal_inputs), *saved]
    jaxpr = compat.close_jaxpr(
        program.input_variables, [*outs, *crossing], drop_unread(player.take_eqns(), [*outs, *crossing])
    )
    _play_backward(player, program, backward, last)
    gradients = [player.current(v) for v in program.gradients]
    inputs = [*program.input_variables, *crossing, *program.cotangent_variables]
    assert not _free_variables(player.eqns, gradients) - set(inputs), "the backward phase reads what was not saved"
    return PlannedJaxprs(
        jaxpr, compat.close_jaxpr(inputs, gradients, drop_unread(player.take_eqns(), gradients)), len(outs)
    )


def _depends_on_arguments(program: Program) -> list[bool]:
    """Return which values of the graph depend on an argument, not on constants and cotangents alone."""
    graph = program.graph
    varies = [False] * graph.n_values
    varies[program.n_constants : program.n_primal_inputs] = [True] * (program.n_primal_inputs - program.n_constants)
    starts, operands = graph.operand_start.tolist(), graph.operands.tolist()
    for node, (i, j) in enumerate(itertools.pairwise(starts)):
        if any(varies[k] for k in operands[i:j] if k >= 0):
            for k in range(graph.output_start[node], graph.output_start[node + 1]):
                varies[k] = True
    return varies


def _shared(graph: Graph) -> np.ndarray:
    """Return which values several nodes read that XLA should not make anew for each; bool of shape (n_values,).

    Those that the backward phase makes for a contraction and another node, and results of expanded primitives.
    """
    node, value = graph.reads
    is_contraction = np.isin(graph.primitives, _CONTRACTIONS)
    n_readers = np.bincount(value, minlength=graph.n_values)
    n_contractions = np.bincount(value[is_contraction[node]], minlength=graph.n_values)
    is_backward = graph.value_node >= graph.n_forward
    is_large = graph.value_bytes >= _LEAST_SHARED_BYTES
    is_expanded = np.isin(graph.primitives, EXPANDED)[graph.value_node]
    return is_large & (n_readers >= 2) & (is_backward & (n_contractions >= 1) | is_expanded)


def _free_variables(eqns: Sequence[Any], outvars: Sequence[Any]) -> set[Any]:
    read = {v for e in eqns for v in e.invars if not isinstance(v, Literal)}
    read.update(v for v in outvars if not isinstance(v, Literal))
    return read - {v for e in eqns for v in e.outvars}


def _play_backward(player: _Player, program: Program, steps: Sequence[int], last: Sequence[int]) -> None:
    """Play the backward phase segment by segment, the first one after the nodes `last`."""
    n_forward = program.graph.n_forward
    starts = [0]
    seen: set[int] = set()
    for i, node in enumerate(steps):
        # A repeated node within one run of recomputations is a segment of its own: nothing else would keep it apart.
        if i and node < n_forward and (steps[i - 1] >= n_forward or node in seen):
            starts.append(i)
            seen.clear()
        if node < n_forward:
            seen.add(node)
    previous = list(last)
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        segment = list(steps[start:end])
        recomputes = bool(segment) and segment[0] < n_forward
        player.play_segment(segment, previous if recomputes else [])
        previous = segment


class _Player:
    """Emits equations in the order of a plan's steps and knows the variable that now stands for each value."""

    def __init__(self, program: Program, handed_on: Sequence[Any]):
        self.program = program
        self.graph = program.graph
        self.number = {v: i for i, v in enumerate(program.variables)}
        self.of_loops = {self.number[v] for v in handed_on}
        self.env: dict[int, Any] = dict(enumerate(program.variables[: program.graph.n_inputs]))
        self.ran: set[int] = set()
        self.eqns: list[Any] = []
        self.output_start = program.graph.output_start.tolist()
        self.varies = _depends_on_arguments(program)
        self.is_shared = _shared(program.graph).tolist()
        self.at_border: list[int] = []

    def take_eqns(self) -> list[Any]:
        """Return the equations emitted so far and forget them."""
        eqns, self.eqns = self.eqns, []
        return eqns

    def current(self, atom: Any) -> Any:
        """Return the variable that now stands for a variable of the program."""
        return atom if isinstance(atom, Literal) else self.env[self.number[atom]]

    def play_segment(self, steps: Sequence[int], tokens_from: Sequence[int]) -> None:
        """Emit nodes, with what they read from outside held until the backward nodes of `tokens_from` are done."""
        tokens = self._tokens(steps, tokens_from) if tokens_from else []
        held = self._hold(self._values_to_hold(steps), tokens) if tokens else {}
        env = self.env
        for node in steps:
            eqn = self.program.eqns[node]
            outs = range(self.output_start[node], self.output_start[node + 1])
            fresh = eqn.outvars
            if node in self.ran:
                eqn, fresh = compat.as_recomputed(eqn), [Var(v.aval) for v in eqn.outvars]
            operands = []
            for v in eqn.invars:
                if isinstance(v, Literal):
                    operands.append(v)
                else:
                    k = self.number[v]
                    operands.append(held.get(k) or env[k])
            self.eqns.append(in_slices(eqn.replace(invars=operands, outvars=fresh)))
            for k, v in zip(outs, fresh, strict=True):
                env[k] = v
                held.pop(k, None)
            if tokens and node in self.ran and self._is_small_root(node):
                env.update(self._hold(outs, tokens))
            if node >= self.graph.n_forward or node in self.ran:
                shared = [k for k in outs if self.is_shared[k] and self.varies[k]]  # constants would fold the hold
                env.update(self._hold(shared, shared))
            self.ran.add(node)

    def _is_small_root(self, node: int) -> bool:
        """Return whether a node makes a key or a scalar from literals alone.

        Whatever grows from it would be merged with its first run, so that it is held. Larger constants are not: they
        would have to be stored, where now XLA fuses them.
        """
        reads = any(not isinstance(v, Literal) for v in self.program.eqns[node].invars)
        return not reads and self.graph.node_bytes[node] <= _SMALL_BYTES

    def _hold(self, values: Sequence[int], tokens: Sequence[int]) -> dict[int, Any]:
        """Emit the `hold` of some values and return the held variable of each."""
        if not values:
            return {}
        operands = [*(self.env[k] for k in tokens), *(self.env[k] for k in values)]
        fresh = [Var(self.env[k].aval) for k in values]
        template = self.program.eqns[0]
        self.eqns.append(
            template.replace(
                primitive=hold_p,
                params={"n_tokens": len(tokens)},
                invars=operands,
                outvars=fresh,
                effects=frozenset(),
            )
        )
        return dict(zip(values, fresh, strict=True))

    def _values_to_hold(self, steps: Sequence[int]) -> list[int]:
        """Return what a segment reads of the forward phase, and the inputs that a recomputation must not share.

        Inputs are the caller's, so most reads of them need no hold. But a recomputed node that reads nothing else would
        be merged with its first run: its smallest operand is held. Recomputed constants are merged and tell nothing
        apart. What a loop hands on to its reverse needs no hold either, nobody else reads it; and it may be large.
        """
        graph, border = self.graph, self.output_start[self.graph.n_forward]
        made, constant = set(self.of_loops), set[int]()
        apart: dict[int, None] = {}
        for node in steps:
            reads = [self.number[v] for v in self.program.eqns[node].invars if not isinstance(v, Literal)]
            apart.update((k, None) for k in reads if graph.n_inputs <= k < border and not (k in made or k in constant))
            if node < graph.n_forward:
                outs = range(self.output_start[node], self.output_start[node + 1])
                shared = [k for k in reads if k not in constant]
                if shared and not any(k in made or k in apart for k in shared):
                    apart[min(shared, key=lambda k: graph.value_bytes[k])] = None
                is_constant = not shared and not self._is_small_root(node)
                (constant if is_constant else made).update(outs)
        return list(apart)

    def _tokens(self, steps: Sequence[int], tokens_from: Sequence[int]) -> list[int]:
        """Return what must be there before a segment starts: what it reads of the backward nodes just before it.

        Where all of that is constant, as the first cotangents of a sum are, the latest value of the forward phase is a
        token too: XLA would fold a predicate made of constants.
        """
        made = [k for node in tokens_from for k in range(self.output_start[node], self.output_start[node + 1])]
        read = {self.number[v] for n in steps for v in self.program.eqns[n].invars if not isinstance(v, Literal)}
        tokens = [k for k in made if k in read and k >= self.output_start[self.graph.n_forward]] or made[-1:]
        if not any(self.varies[k] for k in tokens):
            tokens += [k for k in self.at_border if self.varies[k]][-1:]
        return tokens
