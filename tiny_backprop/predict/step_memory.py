"""What XLA allocates inside a loop: the bytes that one step of it, or one branch, needs beside what stands outside.

The body of a loop is compiled as a program of its own, so `materialize` predicts it, with a graph that says how the
body comes by its values:

- What it reads of a stacked array, an element of an operand or what was saved for the step, is sliced out. As any
  `CHEAP` instruction, the slice takes memory where a kernel reads it, and none where a loop does.
- What it writes into a stacked array, or adds to a gradient, is stored in place: only what a kernel makes takes memory.
- A carry has memory outside of the body, which the body's new carry is written into. Where the old one is read after
  that, or where two carries change places, the body holds another one until its end.
- The results of a branch have memory outside.

Each rule is held against XLA in `tests/predict/test_step_memory.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from tiny_backprop.graph import Graph
from tiny_backprop.predict.materialized import Materialized, materialize

_STATE, _SLICED, _STORED, _ADDED = "loop_carry", "dynamic_slice", "dynamic_update_slice", "add_any"


@dataclasses.dataclass(frozen=True)
class Body:
    """What a body runs, and where its values come from and go to; values and nodes as in the graph of the step.

    Attributes:
      steps: The nodes that it runs, in order.
      n_first_steps: How many of them run before anything is held.
      sliced: Values that it reads out of stacked arrays.
      state: Pairs of an input that the loop passes from step to step and the value that is its next one.
      stored: Values that it writes into stacked arrays.
      added: Values that it adds to what the loop passes on.
      returned: Values that a branch returns.
    """

    steps: Sequence[int]
    n_first_steps: int
    sliced: Sequence[int] = ()
    state: Sequence[tuple[int, int]] = ()
    stored: Sequence[int] = ()
    added: Sequence[int] = ()
    returned: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class BodyPrediction:
    """What XLA:CPU is predicted to make of a body.

    Attributes:
      n_bytes: The bytes that it needs; results and carries have theirs outside.
      allocated: Its kernels and buffers, those outside among them.
    """

    n_bytes: int
    allocated: Materialized


def predict_body(graph: Graph, body: Body) -> BodyPrediction:
    """Return what XLA:CPU is predicted to make of a body.

    Args:
      graph: The gradient graph of a step or a branch.
      body: What it runs.
    """
    olds = list(dict.fromkeys(old for old, _ in body.state))
    sources = [(v, _STATE) for v in olds] + [(v, _SLICED) for v in dict.fromkeys(body.sliced) if v not in olds]
    sinks = [(v, _STORED) for v in dict.fromkeys(body.stored)] + [(v, _ADDED) for v in dict.fromkeys(body.added)]
    changed = [(old, new) for old, new in body.state if new >= 0 and new != old]
    returned = [v for v in [*(new for _, new in changed), *body.returned] if v >= 0]
    program, now = _program(graph, sources, sinks, returned)
    first, last = range(len(sources)), range(program.n_nodes - len(sinks), program.n_nodes)
    steps = [*first, *(i + len(sources) for i in body.steps), *last]
    n_forward_steps = len(sources) + body.n_first_steps
    found = materialize(program, np.array(steps, np.int64), n_forward_steps, is_planned=True, lends=False)
    return BodyPrediction(_inside(found, [(now[old], now[new]) for old, new in changed], {now[v] for v in olds}), found)


def _inside(found: Materialized, changed: Sequence[tuple[int, int]], olds: Iterable[int]) -> int:
    """Return the peak of what has no memory outside: temporaries, and new carries that cannot go over the old ones."""
    values, n_bytes = found.values, found.n_bytes
    is_own = ~found.is_output & ~np.isin(values, list(olds))
    place = {v: i for i, v in enumerate(values.tolist())}  # of what is made anew, the latest
    swapped_bytes = 0
    for old, new in changed:
        i, j = place.get(old), place.get(new)
        if new in olds:
            swapped_bytes += int(found.graph.value_bytes[new])
        elif i is not None and j is not None and found.last[i] >= found.first[j]:
            is_own[j] = True
    n = len(found.live_bytes)
    delta = np.bincount(found.first[is_own], n_bytes[is_own], n + 2)
    delta -= np.bincount(found.last[is_own] + 1, n_bytes[is_own], n + 2)
    return int(np.cumsum(delta).max(initial=0.0)) + swapped_bytes


def _program(
    graph: Graph, sources: Sequence[tuple[int, str]], sinks: Sequence[tuple[int, str]], returned: Sequence[int]
) -> tuple[Graph, np.ndarray]:
    """Return the graph with nodes before that make some values and nodes behind that read some, which it returns.

    Also the number that each value has in it.
    """
    made, n, k = [v for v, _ in sources], graph.n_nodes, len(sources)
    inputs = [v for v in range(graph.n_inputs) if v not in set(made)]
    own = [*inputs, *made]
    stay = np.arange(graph.n_inputs, graph.n_values)
    order = np.concatenate([np.array(own, np.int64), stay, [v for v, _ in sinks]]).astype(np.int64)
    now = np.empty(graph.n_values, np.int64)
    now[stay] = len(own) + np.arange(len(stay))
    now[own] = np.arange(len(own))
    read = np.array([v for v, _ in sinks], np.int64)
    first_sink = len(order) - len(sinks)
    operands = np.where(graph.operands >= 0, now[graph.operands], graph.operands)
    starts = len(own) + graph.output_start - graph.n_inputs

    def moved(values: Iterable[int]) -> np.ndarray:
        return 2.0 * graph.value_bytes[np.fromiter(values, np.int64)]

    around, no_text = (k, len(sinks)), ("",) * (k + n + len(sinks))
    nested = [
        dataclasses.replace(x, forward_node=x.forward_node + k, backward_node=x.backward_node + k) for x in graph.nested
    ]
    program = Graph(
        name=graph.name,
        primitives=(*(p for _, p in sources), *graph.primitives, *(p for _, p in sinks)),
        is_backward=np.concatenate([np.zeros(k, bool), graph.is_backward, np.ones(len(sinks), bool)]),
        flops=np.pad(graph.flops, around),
        bytes_moved=np.concatenate([moved(made), graph.bytes_moved, moved(v for v, _ in sinks)]),
        rerun_flops=np.pad(graph.rerun_flops, around),
        rerun_bytes_moved=np.pad(graph.rerun_bytes_moved, around),
        has_effect=np.pad(graph.has_effect, around),
        sources=no_text,
        scopes=no_text,
        operand_start=np.concatenate(
            [np.zeros(k, np.int64), graph.operand_start, len(operands) + 1 + np.arange(len(sinks))]
        ),
        operands=np.concatenate([operands, now[read]]),
        relaid_operands=np.concatenate([graph.relaid_operands, np.zeros(len(sinks), np.int64)]),
        output_start=np.concatenate([len(inputs) + np.arange(k), starts, first_sink + 1 + np.arange(len(sinks))]),
        value_shapes=tuple(graph.value_shapes[v] for v in order.tolist()),
        value_dtypes=tuple(graph.value_dtypes[v] for v in order.tolist()),
        value_bytes=graph.value_bytes[order],
        relaid_values=np.concatenate([graph.relaid_values[order[:first_sink]], np.zeros(len(sinks), bool)]),
        input_names=tuple(graph.input_names[v] for v in inputs),
        outputs=np.concatenate([now[list(returned)], first_sink + np.arange(len(sinks))]).astype(np.int64),
        n_primal_outputs=0,
        nested=tuple(nested),
        jax_version=graph.jax_version,
    )
    if "nested plans" in graph.memo:
        program.memo["nested plans"] = graph.memo["nested plans"]
    return program, now
