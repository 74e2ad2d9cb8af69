"""The outline of a program: runs of consecutive equations, grouped by scope or by block, each group of a few children.

The tree does not depend on what a plan does with values, so that a drawing of it stays in place while a slider moves.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tiny_backprop.display import plain_scope
from tiny_backprop.graph import Graph
from tiny_backprop_widgets.content.block_groups import backward_starts

MOST_CHILDREN = 32
_MOST_EQUATIONS = 24  # in a group that shows equations


@dataclasses.dataclass(frozen=True)
class Group:
    """The equations `start` to `end - 1`, all of one phase; one equation alone is a group, too.

    Attributes:
      start: The first node.
      end: One more than the last node.
      label: What they have in common: a scope, a block, the first and last of several.
      depth: How many parts of the scope the equations have in common.
    """

    start: int
    end: int
    label: str
    depth: int

    @property
    def is_equation(self) -> bool:
        """Whether it is one equation."""
        return self.end - self.start == 1


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """A graph as a tree of groups; `roots` are the forward and the backward phase, those that there are.

    Attributes:
      graph: The graph.
      by_block: First nodes of the blocks that the groups below the roots are, or None to group by scope.
    """

    graph: Graph
    by_block: np.ndarray | None = None

    @functools.cached_property
    def roots(self) -> tuple[Group, ...]:
        """The phases."""
        n, whole = self.graph.n_forward, self.graph.n_nodes
        both = Group(0, n, "forward", 0), Group(n, whole, "backward", 0)
        return tuple(g for g in both if g.end > g.start)

    @functools.cached_property
    def _known(self) -> dict[Group, tuple[Group, ...]]:
        return {}

    @functools.cached_property
    def _parts(self) -> list[tuple[str, ...]]:
        """The parts of each node's scope."""
        return [tuple(p for p in plain_scope(s).split("/") if p) for s in self.graph.scopes]

    def children(self, group: Group) -> tuple[Group, ...]:
        """Return the groups that a group consists of, at most 32; none for one equation."""
        if group not in self._known:
            self._known[group] = self._split(group)
        return self._known[group]

    def _split(self, group: Group) -> tuple[Group, ...]:
        if group.is_equation:
            return ()
        if group in self.roots and self.by_block is not None:
            return _gathered(self._blocks(group))
        runs, depth = [group], group.depth
        while len(runs) == 1 and runs[0].label:
            runs = self._runs(group, depth)
            depth += 1
        if len(runs) > 1:
            return _gathered(runs)
        return self._pieces(group)

    def _runs(self, group: Group, depth: int) -> list[Group]:
        """Return runs of equations whose scopes have the same part at a depth; "" where they have none."""
        parts = [p[depth] if len(p) > depth else "" for p in self._parts[group.start : group.end]]
        runs, at = [], group.start
        for label, members in itertools.groupby(parts):
            end = at + sum(1 for _ in members)
            runs.append(Group(at, end, label, depth + 1))
            at = end
        return runs

    def _pieces(self, group: Group) -> tuple[Group, ...]:
        """Return pieces of equal size, down to single equations, of equations that no scope tells apart."""
        n = group.end - group.start
        n_pieces = n if n <= _MOST_EQUATIONS else min(MOST_CHILDREN, math.ceil(math.sqrt(n)))
        bounds = np.linspace(group.start, group.end, n_pieces + 1).round().astype(int).tolist()
        return tuple(Group(a, b, "", group.depth) for a, b in itertools.pairwise(bounds))

    def _blocks(self, root: Group) -> list[Group]:
        assert self.by_block is not None
        graph, forward = self.graph, self.by_block
        is_backward = root.start == graph.n_forward and graph.n_backward > 0
        starts = backward_starts(graph, forward) if is_backward else forward
        bounds = [*starts.tolist(), root.end]
        order = range(len(starts))
        names = [f"block {len(starts) - 1 - i if is_backward else i}" for i in order]
        return [Group(a, b, name, 0) for (a, b), name in zip(itertools.pairwise(bounds), names, strict=True)]

    def bulky(self) -> list[Group]:
        """Return the groups that hold most equations of what is around them, as the scope of a whole model does."""
        found, todo = [], [*self.roots]
        while todo:
            around = todo.pop()
            most = [g for g in self.children(around) if around.end - around.start < 2 * (g.end - g.start)]
            found += [g for g in most if not g.is_equation]
            todo += [g for g in most if not g.is_equation]
        return found

    def path_to(self, node: int) -> list[Group]:
        """Return the groups that contain a node, from its phase down to the equation itself."""
        path = [next(g for g in self.roots if g.start <= node < g.end)]
        while not path[-1].is_equation:
            path.append(next(g for g in self.children(path[-1]) if g.start <= node < g.end))
        return path


def _gathered(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return at most 32 groups: neighbours are gathered where there are more."""
    if len(groups) <= MOST_CHILDREN:
        return tuple(groups)
    n = min(MOST_CHILDREN, math.ceil(math.sqrt(len(groups))))
    bounds = np.linspace(0, len(groups), n + 1).round().astype(int).tolist()
    gathered = []
    for a, b in itertools.pairwise(bounds):
        named = [g.label for g in groups[a:b] if g.label]
        label = "" if not named else named[0] if named[0] == named[-1] else f"{named[0]} … {named[-1]}"
        # Its children are told apart by the same part of the scope as it is itself.
        gathered.append(Group(groups[a].start, groups[b - 1].end, label, max(groups[a].depth - 1, 0)))
    return tuple(gathered)
