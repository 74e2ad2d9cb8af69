"""The calls under `jax.checkpoint` of a program, as its graph has them.

Calls are inlined before a gradient is traced, so that plans are free of them; but JAX's own gradient runs them as the
user wrote them, and it is what plans are held against. What is inlined is marked in its name stack, where its
derivatives have the mark too, and the policy is asked of each equation, as JAX asks it when it differentiates the call.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.graph import Checkpoint

Around = Sequence[tuple[int, ...]]


def without_marks(eqns: Sequence[Any]) -> tuple[list[Any], Around]:
    """Return equations without the marks of `flatten`, and the numbers of the calls that each stood in."""
    infos: dict[Any, tuple[Any, tuple[int, ...]]] = {}
    for stack, info in {e.source_info.name_stack: e.source_info for e in eqns}.items():
        infos[stack] = compat.without_checkpoints(info).name_stack, compat.checkpoints_around(info)
    found = [infos[e.source_info.name_stack] for e in eqns]
    if not any(around for _, around in found):
        return list(eqns), [()] * len(eqns)
    plain = [
        e.replace(source_info=e.source_info.replace(name_stack=stack)) if around else e
        for e, (stack, around) in zip(eqns, found, strict=True)
    ]
    return plain, [around for _, around in found]


def checkpoints_of(eqns: Sequence[Any], n_forward: int, around: Around, calls: Sequence[Any]) -> list[Checkpoint]:
    """Return the calls under `jax.checkpoint` that anything of a gradient is left of.

    Args:
      eqns: The equations of the gradient, one for each node, forward ones first.
      n_forward: How many of them are forward.
      around: The numbers of the calls that each stood in, the outermost first.
      calls: The equations of the calls.
    """
    nodes: dict[int, list[int]] = {}
    parents: dict[int, int] = {}
    for i, numbers in enumerate(around):
        for parent, number in zip((-1, *numbers), numbers, strict=False):
            nodes.setdefault(number, []).append(i)
            parents[number] = parent
    place = {number: k for k, number in enumerate(sorted(nodes))}
    found = []
    for number in place:
        policy = compat.policy_of(calls[number])
        verdicts = {i: compat.verdict(policy, _as_jax_has_it(eqns[i])) for i in nodes[number] if i < n_forward}
        found.append(
            Checkpoint(
                policy=policy_text(policy),
                source=compat.source_line(calls[number]),
                parent=place.get(parents[number], -1),
                nodes=tuple(nodes[number]),
                saved=tuple(i for i, what in verdicts.items() if what == "save"),
                offloaded=tuple(i for i, what in verdicts.items() if what == "offload"),
            )
        )
    return found


def _as_jax_has_it(eqn: Any) -> Any:
    """Return an equation of the program as JAX shows it to a policy: a loop that is to be planned as it was."""
    return getattr(eqn.params.get("what"), "eqn", eqn)


def policy_text(policy: Callable[..., Any] | None) -> str:
    """Return a policy in words, such as `save_only_these_names('a', 'b')`: who made it, and from what."""
    if policy is None:
        return "nothing_saveable"
    if dataclasses.is_dataclass(policy):  # as in JAX 0.10, where a function makes objects of that name
        made_by = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(policy).__name__).lower()
        given = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    else:
        made_by, _, inner = getattr(policy, "__qualname__", type(policy).__name__).rpartition(".<locals>.")
        if not made_by or not (policy.__module__ or "").startswith("jax."):
            return inner
        cells = getattr(policy, "__closure__", None) or ()
        given = dict(zip(policy.__code__.co_freevars, (c.cell_contents for c in cells), strict=True))
    texts = {name: _argument_text(x) for name, x in given.items()}
    return f"{made_by}({', '.join(texts.values() if len(texts) == 1 else (f'{k}={x}' for k, x in texts.items()))})"


def _argument_text(x: Any) -> str:
    if callable(x):
        return policy_text(x)
    if isinstance(x, (frozenset, set, list, tuple)):
        return ", ".join(map(repr, sorted(x, key=repr)))
    return repr(x)
