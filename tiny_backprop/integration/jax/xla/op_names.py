"""What an op name says: JAX writes an equation's name stack and primitive into every instruction that comes from it."""

from __future__ import annotations

import functools
import re

_CONTROL = re.compile(
    r"while|body|cond|closed_call|call_exported|checkpoint|rematted_computation|remat\d?|custom_[jv][vj]p_call|shard_map|"
    r"branch_\d+_fun|mean_trips_\d+_of_\d+|p?jit\(.*\)"
)
_TRANSFORM = re.compile(r"(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)", re.DOTALL)


def split_name(op_name: str) -> list[str]:
    """Return the parts of an op name, which slashes inside parentheses do not separate."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[()/]", op_name):
        if match[0] == "/" and not depth:
            parts.append(op_name[start : match.start()])
            start = match.end()
        depth = max(0, depth + {"(": 1, ")": -1, "/": 0}[match[0]])
    return [*parts, op_name[start:]]


@functools.lru_cache(maxsize=65536)
def scope_of(op_name: str) -> str:
    """Return the user's scopes in an op name: without primitive, transformations, calls and control flow.

    Example:
      >>> scope_of("jit(loss)/transpose(jvp(block0))/while/body/attention/dot_general")
      'block0/attention'
    """
    kept: list[str] = []
    for part in split_name(op_name)[:-1]:
        while match := _TRANSFORM.fullmatch(part):
            part = match[1]
        kept += [p for p in split_name(part) if p and not _CONTROL.fullmatch(p)]
    return "/".join(kept)


@functools.lru_cache(maxsize=65536)
def phase_of(op_name: str) -> str:
    """Return the phase that an op name tells: `forward`, `gradient`, `recomputed` or `other`.

    What `jvp` marks inside something transposed is a forward phase that runs again, and so is what JAX and planned
    gradients mark as `rematted_computation`.
    """
    phase = "other"
    for part in split_name(op_name):
        part = re.sub(r"^(?:vmap\()+", "", part)
        if part.startswith("transpose("):
            phase = "gradient"
        elif part.startswith("jvp("):
            phase = "recomputed" if phase in ("gradient", "recomputed") else "forward"
        if "rematted_computation" in part:
            phase = "recomputed"
    return phase
