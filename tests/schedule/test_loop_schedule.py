"""Schedules of loops: what they save and run again, against brute force."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_backprop import PlanError
from tiny_backprop.plan.loops.choice import LoopChoice
from tiny_backprop.schedule.loop_schedule import LoopSchedule


def play(schedule):
    """Carry a schedule out on a toy loop; return how often each step runs again."""
    runs = np.zeros(schedule.length, int)
    slots = dict(schedule.forward.tolist())
    assert len(slots) <= schedule.n_saved
    left = schedule.length
    for source, start, stop, target, end in schedule.backward.tolist():
        assert slots[source] == start <= stop <= end
        runs[start:end] += 1
        if target != source:
            slots[target] = stop
        assert max(slots) < schedule.n_saved
        if end > stop:
            assert end == left
            assert end - stop <= schedule.block_size
            left = stop
    assert left == 0
    assert runs.sum() == schedule.n_again
    return runs


@functools.cache
def least_again(n, n_slots, is_first=True):
    """Return the fewest steps that must be advanced over to reverse n steps; what the forward phase does is free."""
    if n <= 1:
        return 0
    if n_slots == 1:
        return n * (n - 1) // 2
    return min(
        (0 if is_first else m) + least_again(n - m, n_slots - 1, is_first) + least_again(m, n_slots, False)
        for m in range(1, n)
    )


@pytest.mark.parametrize("n_slots", range(1, 11))
def test_no_schedule_with_as_many_slots_advances_over_fewer_steps(n_slots):
    for length in range(41):
        schedule = LoopSchedule(length, 1, n_slots)
        assert play(schedule).sum() - length == least_again(length, n_slots)


@given(st.integers(0, 200), st.integers(1, 60), st.integers(1, 30))
def test_every_step_is_reversed_once_whatever_the_sizes(length, block_size, n_slots):
    play(LoopSchedule(length, block_size, n_slots))


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 100), st.integers(1, 100))
def test_levels_bound_how_often_a_step_runs_again(length, levels, carry_bytes, step_bytes):
    schedule = LoopChoice(levels=levels).schedule(length, carry_bytes, step_bytes)
    assert play(schedule).max() <= levels


@given(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 100), st.integers(1, 100))
def test_memory_is_not_exceeded(length, memory_bytes, carry_bytes, step_bytes):
    schedule = LoopChoice(memory_bytes=memory_bytes).schedule(length, carry_bytes, step_bytes)
    if schedule is None:
        assert carry_bytes + step_bytes > memory_bytes
    else:
        play(schedule)
        assert schedule.n_slots * carry_bytes + schedule.block_size * step_bytes <= memory_bytes


def test_more_memory_runs_fewer_steps_again():
    again = [LoopChoice(memory_bytes=m).schedule(1000, 3, 5).n_again for m in range(8, 400, 7)]
    assert again == sorted(again, reverse=True)
    assert again[0] > 100 * again[-1]
    assert again[-1] == 1000


def test_saved_carries_grow_as_a_root_of_the_length():
    for levels, exponent in ((1, 1 / 2), (2, 1 / 3), (3, 1 / 4)):
        sizes = []
        for length in (1000, 64_000):
            schedule = LoopChoice(levels=levels).schedule(length, 1, 1)
            sizes.append(schedule.n_slots + schedule.block_size)
        assert np.log(sizes[1] / sizes[0]) / np.log(64) <= exponent + 0.03


def test_a_block_size_saves_one_carry_per_block():
    schedule = LoopChoice(block_size=10).schedule(95, 1, 1)
    assert (schedule.n_blocks, schedule.n_slots, schedule.n_again) == (10, 10, 95)
    assert LoopChoice(block_size=7, levels=3).schedule(1000, 1, 1).block_size == 7


def test_bad_numbers_are_refused():
    with pytest.raises(PlanError, match="block_size of a loop must be at least 1; found 0"):
        LoopSchedule(10, 0, 1)
    with pytest.raises(PlanError, match="n_slots of a loop must be at least 1; found 0"):
        LoopSchedule(10, 1, 0)
