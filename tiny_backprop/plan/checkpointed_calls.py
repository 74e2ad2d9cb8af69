"""What a program's own calls under `jax.checkpoint` save, offload and run again, as JAX's own gradient has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from tiny_backprop.display import short_path
from tiny_backprop.graph import Graph
from tiny_backprop.schedule.checkpointed import jax_schedule
from tiny_backprop.units import format_bytes, format_flops


@dataclasses.dataclass(frozen=True)
class CheckpointedCalls:
    """All calls under `jax.checkpoint` of one source line and policy, those that a loop repeats included.

    Attributes:
      policy: The policy, such as `"save_only_these_names('a')"`.
      source: `file:line (function)` in the user's code, or `""`.
      n_calls: How many calls there are; each step of a loop counts.
      saved_bytes: Bytes that the policy saves and the backward phase reads; what the calls read is not counted.
      offloaded_bytes: The same of what it moves to other memory.
      again_flops: FLOPs that run again for the backward phase.
    """

    policy: str
    source: str
    n_calls: int
    saved_bytes: int
    offloaded_bytes: int
    again_flops: float

    def __str__(self) -> str:
        does = [f"saves {format_bytes(self.saved_bytes)}"]
        does += [f"offloads {format_bytes(self.offloaded_bytes)}"] if self.offloaded_bytes else []
        does += [f"runs {format_flops(self.again_flops)} again"]
        calls = "1 call" if self.n_calls == 1 else f"{self.n_calls:,} calls"
        where = short_path(self.source) or "a line that JAX does not tell"
        return f"{where}, {calls}, {self.policy}: {', '.join(does)} (predicted)"


def checkpointed_calls(graph: Graph) -> tuple[CheckpointedCalls, ...]:
    """Return the calls under `jax.checkpoint` of a program, by source line and policy, in the order of the program.

    Args:
      graph: A gradient graph; what is inside its loops and branches is looked at, too.
    """
    found: dict[tuple[str, str], CheckpointedCalls] = {}
    for call in _calls(graph, 1):
        key = call.source, call.policy
        found[key] = _together(found[key], call) if key in found else call
    return tuple(found.values())


def _together(a: CheckpointedCalls, b: CheckpointedCalls) -> CheckpointedCalls:
    return CheckpointedCalls(
        policy=a.policy,
        source=a.source,
        n_calls=a.n_calls + b.n_calls,
        saved_bytes=a.saved_bytes + b.saved_bytes,
        offloaded_bytes=a.offloaded_bytes + b.offloaded_bytes,
        again_flops=a.again_flops + b.again_flops,
    )


def _calls(graph: Graph, n_times: int) -> Iterator[CheckpointedCalls]:
    as_jax = jax_schedule(graph)
    is_again = as_jax.steps < graph.n_forward
    is_again[: as_jax.n_forward_steps] = False
    for k, call in enumerate(graph.checkpoints):
        again = as_jax.steps[is_again & (as_jax.call_of_step == k)]
        yield CheckpointedCalls(
            policy=call.policy,
            source=call.source,
            n_calls=n_times,
            saved_bytes=n_times * _kept_bytes(graph, call.saved),
            offloaded_bytes=n_times * _kept_bytes(graph, call.offloaded),
            again_flops=n_times * float(graph.flops[again].sum()),
        )
    for nested in graph.nested:
        for body in nested.bodies:
            yield from _calls(body, n_times * nested.length)


def _kept_bytes(graph: Graph, nodes: tuple[int, ...]) -> int:
    kept = np.array(jax_schedule(graph).kept, np.int64)
    return int(graph.value_bytes[kept[np.isin(graph.value_node[kept], nodes)]].sum())
