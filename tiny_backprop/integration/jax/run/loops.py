"""A `scan` whose reverse pass follows a schedule: few carries are saved, and the steps between them run again.

Both passes are loops with bounds that are read from a table at run time, so that the compiled program has as many
copies of the body for a million steps as for ten. What the steps read and write of stacked arrays is indexed in place:
nothing is sliced, padded or joined, whatever the length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.integration.jax.run.hold import zeros_after
from tiny_backprop.schedule.loop_schedule import LoopSchedule

Arrays = list[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """Some consecutive steps of a `scan`, and their reverse.

    Attributes:
      number: Of the loop among those of its program: what two of them make room for is not to be merged.
      first: The first of them; here they are numbered from 0 on.
      length: Their number.
      n_steps: Steps of the whole scan.
      is_reverse: Whether the steps go from the last element of the stacked arrays to the first.
      step: Function from constants, carry and the step's elements to the next carry and what the step returns.
      advance: The same function without what the step returns.
      step_forward: Function from the same to the next carry and what `step_backward` wants saved.
      step_backward: Function from constants, carry, next carry, elements, saved values and cotangents to gradients.
      read_carries: Which carries the backward step reads, as they were before the step or are after it.
      n_kept: How many arrays `step_forward` returns to be saved.
      differentiated: Which constants, carries and elements have a gradient.
      cotangent_of: Which of what the step returns has a cotangent; of the carry, those with a gradient have.
    """

    number: int
    first: int
    length: int
    n_steps: int
    is_reverse: bool
    step: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]
    advance: Callable[[Arrays, Arrays, Arrays], Arrays]
    step_forward: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]
    step_backward: Callable[[Arrays, Arrays, Arrays, Arrays, Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]
    n_kept: int
    read_carries: frozenset[int]
    differentiated: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cotangent_of: tuple[int, ...]

    def position(self, step: Any) -> Any:
        """Return where a step's elements stand in the stacked arrays."""
        step = self.first + step
        return self.n_steps - 1 - step if self.is_reverse else step

    def elements(self, stacked: Arrays, step: Any) -> Arrays:
        """Return the elements of a step."""
        return [_read(x, self.position(step)) for x in stacked]

    def read_slots(self, schedule: LoopSchedule, slots: Arrays) -> Arrays:
        """Return those of the arrays of saved values that `run_backward` reads; XLA removes the others."""
        if schedule.reruns:
            return slots
        first_kept = len(slots) - self.n_kept
        return [x for i, x in enumerate(slots) if i >= first_kept or i in self.read_carries]

    def read_of(self, carry: Arrays) -> Arrays:
        """Return those of the carries that the backward step reads."""
        return [x for i, x in enumerate(carry) if i in self.read_carries]

    def with_unread(self, read: Arrays, like: Arrays) -> Arrays:
        """Return all carries, zeros like some others in the place of those that the backward step does not read."""
        given = iter(read)
        return [next(given) if i in self.read_carries else compat.zeros_of(jax.typeof(x)) for i, x in enumerate(like)]

    def without(self, returned: frozenset[int]) -> Loop:
        """Return the loop without some of what its steps return."""

        def step(consts: Arrays, carry: Arrays, elements: Arrays) -> tuple[Arrays, Arrays]:
            carry, ys = self.step(consts, carry, elements)
            return carry, [y for i, y in enumerate(ys) if i not in returned]

        return dataclasses.replace(self, step=step) if returned else self

    def zeros(self, x: Any, n: int | None, after: Sequence[Any]) -> Any:
        """Return zeros such as x, or room for n arrays such as x, that are not made before all in `after` are.

        Zeros that depend on nothing are made when the program starts, and live until their loop runs. So are those that
        depend on an argument alone: where a loop runs again, only one of its operands is held, and this is among
        `after`. Equal zeros of two loops would be made once, at the earlier time, and copied.
        """
        aval = x if isinstance(x, compat.ShapedArray) else jax.typeof(x)
        shape = aval.shape if n is None else (n, *aval.shape)
        tokens = [t for t in after if t.size and not compat.is_sharded(jax.typeof(t))]
        if not tokens or compat.is_sharded(aval) or jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            zeros = compat.zeros_of(aval)
            return zeros if n is None else lax.broadcast(zeros, (n,))
        return zeros_after(tokens, shape, aval.dtype, self.number)


def _loop(start: Any, end: Any, body: Callable[[Any, Any], Any], state: Any, trips: int, runs: int) -> Any:
    """Return `lax.fori_loop(start, end, body, state)`, of which is known that `runs` runs have `trips` trips together.

    The compiled program does not tell: the bounds are data. The scope's name does, for whoever counts its FLOPs.
    """
    with jax.named_scope(f"mean_trips_{trips}_of_{max(runs, 1)}"):
        return lax.fori_loop(start, end, body, state)


def _read(stack: Any, i: Any) -> Any:
    return lax.dynamic_index_in_dim(stack, i, 0, keepdims=False)


def _write(stacks: Arrays, values: Arrays, i: Any) -> Arrays:
    return [lax.dynamic_update_index_in_dim(s, x, i, 0) for s, x in zip(stacks, values, strict=True)]


def _results(step: Callable[..., tuple[Arrays, Arrays]], *parts: Arrays) -> Arrays:
    """Return the abstract values of what a step returns."""
    flat, tree = jax.tree.flatten(parts)
    return compat.out_avals(lambda *xs: jax.tree.leaves(step(*jax.tree.unflatten(tree, xs))), map(jax.typeof, flat))


def room_for_returned(loop: Loop, consts: Arrays, init: Arrays, stacked: Arrays) -> Arrays:
    """Return room for what all steps of the scan return, stacked."""
    results = _results(loop.step, consts, init, loop.elements(stacked, 0))
    return [loop.zeros(y, loop.n_steps, [*consts, *init, *stacked]) for y in results[len(init) :]]


def run_forward(
    loop: Loop, schedule: LoopSchedule, consts: Arrays, init: Arrays, stacked: Arrays, returned: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """Run the steps.

    Args:
      loop: The steps.
      schedule: Their schedule.
      consts: Constants.
      init: Carry before the first step.
      stacked: Stacked operands of the whole scan.
      returned: Room for what the steps return; see `room_for_returned`.

    Returns:
      The last carry, `returned` with what these steps return, and what the schedule saves: carries, stacked; where no
      step runs again, all of them, the last one too, and what each step saves.
    """
    if not schedule.reruns:
        return _run_keeping_all(loop, consts, init, stacked, returned)
    starts = jnp.append(jnp.asarray(schedule.forward[:, 1]), loop.length)

    def one(k: Any, state: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        carry, returned = state
        carry, y = loop.step(consts, carry, loop.elements(stacked, k))
        return carry, _write(returned, y, loop.position(k))

    def run(slot: Any, state: tuple[Arrays, Arrays, Arrays]) -> tuple[Arrays, Arrays, Arrays]:
        carry, returned, slots = state
        slots = _write(slots, carry, slot)
        carry, returned = _loop(
            starts[slot], starts[slot + 1], one, (carry, returned), loop.length, len(schedule.forward)
        )
        return carry, returned, slots

    slots = [loop.zeros(x, schedule.n_saved, [*consts, *init, *stacked]) for x in init]
    return lax.fori_loop(0, len(schedule.forward), run, (init, returned, slots))


def _run_keeping_all(
    loop: Loop, consts: Arrays, init: Arrays, stacked: Arrays, returned: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    saved = _results(loop.step_forward, consts, init, loop.elements(stacked, 0))[len(init) :]
    after, n = [*consts, *init, *stacked], loop.length
    carries, kept = [loop.zeros(x, n + 1, after) for x in init], [loop.zeros(x, n, after) for x in saved]

    def one(k: Any, state: Any) -> Any:
        carry, returned, carries, kept = state
        elements = loop.elements(stacked, k)
        following, saved = loop.step_forward(consts, carry, elements)
        _, y = loop.step(consts, carry, elements)  # XLA merges it with the line above
        return following, _write(returned, y, loop.position(k)), _write(carries, carry, k), _write(kept, saved, k)

    carry, returned, carries, kept = lax.fori_loop(0, loop.length, one, (init, returned, carries, kept))
    return carry, returned, [*_write(carries, carry, loop.length), *kept]


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """The backward phase of a schedule by blocks: a carry is taken, advanced with stops where it is saved, and used.

    Attributes:
      blocks: Per block (slot to take, first save, end of saves, step after the last of them, first step, end).
      saves: Per save (step to advance from, step to save at, slot).
      n_advanced: Steps that carries are advanced over, all together.
    """

    blocks: Any
    saves: Any
    n_advanced: int

    @classmethod
    def of(cls, schedule: LoopSchedule) -> _Table:
        source, start, stop, target, end = schedule.backward.T
        (last,) = np.nonzero(end > stop)  # the row that ends with the gradient of a block; those before it save
        first = np.append(0, last[:-1] + 1)
        end_save = last - np.arange(len(last))
        first_save = np.append(0, end_save[:-1])
        blocks = np.stack([source[first], first_save, end_save, start[last], stop[last], end[last]], axis=1)
        saves = np.stack([start, stop, target], axis=1)[end == stop]
        as_table = functools.partial(jnp.asarray, dtype=jnp.int32)
        saves = saves if len(saves) else np.zeros((1, 3))  # a table without rows cannot be read, not even in no trip
        return cls(as_table(blocks), as_table(saves), int((stop - start).sum()))


def no_gradients(
    loop: Loop, consts: Arrays, stacked: Arrays, carry_cotangents: Arrays, after: Sequence[Any]
) -> tuple[Arrays, ...]:
    """Return the gradients with which `run_backward` begins: those of the last carry, and zeros made `after` others."""
    of_consts, _, of_elements = loop.differentiated
    zeros_of_consts, zeros_of_stacked = (
        [loop.zeros(x[i], None, [*carry_cotangents, *after]) for i in places]
        for x, places in ((consts, of_consts), (stacked, of_elements))
    )
    return carry_cotangents, zeros_of_consts, zeros_of_stacked


def run_backward(
    loop: Loop,
    schedule: LoopSchedule,
    consts: Arrays,
    n_carry: int,
    stacked: Arrays,
    slots: Arrays,
    gradients: tuple[Arrays, ...],
    returned_cotangents: Arrays,
) -> tuple[Arrays, ...]:
    """Reverse the steps.

    Args:
      loop: The steps.
      schedule: Their schedule.
      consts: Constants.
      n_carry: Number of carries.
      stacked: Stacked operands of the whole scan.
      slots: What the forward phase has saved.
      gradients: Gradients so far: of the carry after these steps, of constants, and of stacked operands.
      returned_cotangents: Of what all steps return, stacked, where it has a gradient.

    Returns:
      The gradients, these steps included: of the carry before them, of constants, and of stacked operands.
    """

    def gradients_of_step(k: Any, carry: Arrays, following: Arrays, saved: Arrays, gradients: Any) -> Any:
        ct_carry, ct_consts, ct_stacked = gradients
        returned = [_read(y, loop.position(k)) for y in returned_cotangents]
        of_consts, ct_carry, of_elements = loop.step_backward(
            consts, carry, following, loop.elements(stacked, k), saved, [*ct_carry, *returned]
        )
        ct_consts = [a + b for a, b in zip(ct_consts, of_consts, strict=True)]
        return ct_carry, ct_consts, _write(ct_stacked, of_elements, loop.position(k))

    if not schedule.reruns:

        def reverse_kept(i: Any, gradients: Any) -> Any:
            k = loop.length - 1 - i
            carry, following = ([_read(x, k + d) for x in slots[:n_carry]] for d in (0, 1))
            return gradients_of_step(k, carry, following, [_read(x, k) for x in slots[n_carry:]], gradients)

        return lax.fori_loop(0, loop.length, reverse_kept, gradients)
    table = _Table.of(schedule)
    first_carry = [_read(s, 0) for s in slots]
    saved = _results(loop.step_forward, consts, first_carry, loop.elements(stacked, 0))[len(slots) :]
    # Of a block: the carry at the start of each step and at its end, and what each step saves.
    size = schedule.block_size if schedule.block_size > 1 else 0
    after = [*gradients[0], *returned_cotangents]
    rooms = ((loop.read_of(first_carry), size + 1), (saved, size))
    room = tuple([loop.zeros(x, n, after) for x in arrays] if size else [] for arrays, n in rooms)

    def reverse_block(first: Any, end: Any, carry: Arrays, room: Any, gradients: Any) -> tuple[Any, Any]:
        if not size:
            following, saved = loop.step_forward(consts, carry, loop.elements(stacked, first))
            return room, gradients_of_step(first, carry, following, saved, gradients)

        def keep(k: Any, state: tuple[Arrays, Arrays, Arrays]) -> tuple[Arrays, Arrays, Arrays]:
            carry, carries, kept = state
            carries = _write(carries, loop.read_of(carry), k - first)
            carry, saved = loop.step_forward(consts, carry, loop.elements(stacked, k))
            return carry, carries, _write(kept, saved, k - first)

        def reverse(i: Any, gradients: Any) -> Any:
            k = end - 1 - i
            carry, following = (loop.with_unread([_read(x, k - first + d) for x in carries], last) for d in (0, 1))
            return gradients_of_step(k, carry, following, [_read(x, k - first) for x in kept], gradients)

        last, carries, kept = _loop(first, end, keep, (carry, *room), loop.length, schedule.n_blocks)
        carries = _write(carries, loop.read_of(last), end - first)
        return (carries, kept), _loop(0, end - first, reverse, gradients, loop.length, schedule.n_blocks)

    def advance(k: Any, carry: Arrays) -> Arrays:
        return loop.advance(consts, carry, loop.elements(stacked, k))

    def advanced(start: Any, stop: Any, carry: Arrays) -> Arrays:
        return _loop(start, stop, advance, carry, table.n_advanced, len(table.saves) + schedule.n_blocks)

    def save(i: Any, state: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        start, stop, target = table.saves[i]
        carry, slots = state
        carry = advanced(start, stop, carry)
        return carry, _write(slots, carry, target)

    def block(i: Any, state: Any) -> Any:
        slots, room, gradients = state
        source, first_save, end_save, start, first, end = table.blocks[i]
        carry = [_read(s, source) for s in slots]
        carry, slots = _loop(first_save, end_save, save, (carry, slots), len(table.saves), schedule.n_blocks)
        carry = advanced(start, first, carry)
        return slots, *reverse_block(first, end, carry, room, gradients)

    return lax.fori_loop(0, schedule.n_blocks, block, (slots, room, gradients))[-1]
