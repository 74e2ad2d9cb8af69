"""What travels into a report says the same as the link that the explorer asks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_backprop import capture_gradient, height_compressed_value_and_grad, measure, plan_blocks
from tiny_backprop_widgets.views.map_link import MapLink, _packed_texts

EVIL = "</script><img src=x onerror=alert(1)>\"'\u202e\U0001f600: a; b. " + "x" * 10_000


def loss(w, x):
    for name in ("a", "b", EVIL):
        with jax.named_scope(name):
            x = jnp.tanh(jnp.tanh(x @ w) @ w)
    return jnp.sum(x**2)


@pytest.fixture(scope="module")
def link():
    args = jax.ShapeDtypeStruct((32, 32), "float32"), jax.ShapeDtypeStruct((64, 32), "float32")
    plan = plan_blocks(capture_gradient(loss, *args), 3)
    return MapLink(plan, measure(height_compressed_value_and_grad(loss, plan=plan), *args).memory_map)


def rows(starts, entries):
    return [entries[a:b].tolist() for a, b in itertools.pairwise(starts)]


def test_packed_answers_are_those_of_the_link(link):
    packed = link.packed_answers()
    numbers = {k: np.frombuffer(v, "<i4") for k, v in packed.items() if isinstance(v, bytes)}
    n_values, buffers = link.plan.graph.n_values, link.memory_map.buffers
    assert rows(numbers["_starts"], numbers["_buffers"]) == [link.buffers_of(v) for v in range(n_values)]
    assert numbers["_values"].tolist() == [-1 if (v := link.value_of(i)) is None else v for i in range(len(buffers))]
    assert set(numbers["_values"]) > {-1}
    notes = ["".join(packed["_parts"][k] for k in row) for row in rows(numbers["_note_starts"], numbers["_notes"])]
    assert notes[:n_values] == [link.note_of_value(v)[:1000] for v in range(n_values)]
    for i, note in enumerate(notes[n_values:]):
        assert note == ("" if link.value_of(i) is not None else link.note_of_buffer(i)[:1000])


def test_a_tensor_chooses_its_heaviest_buffer_and_a_position_at_which_that_is_alive(link):
    positions = np.frombuffer(link.packed_answers()["_positions"], "<i4")
    peak, found = link.memory_map.peak_position, 0
    for value, position in enumerate(positions.tolist()):
        if not link.buffers_of(value):
            assert position == -1
            continue
        weights = [(b := link.memory_map.buffers[i]).bytes * (b.freed_at - b.first_use) for i in link.buffers_of(value)]
        assert weights == sorted(weights, reverse=True)
        first = link.memory_map.buffers[link.buffers_of(value)[0]]
        assert first.first_use <= (peak if position < 0 else position) < first.freed_at
        found += position >= 0
    assert found


def test_notes_take_a_few_numbers_each():
    how = "the only one (by phase, scope, source line, operation and size)"
    made = "In the plan: tensor {0}, float32[64,32], made by tanh. In XLA's memory: fusion.{0}: {1}."
    notes = [made.format(i, how) for i in range(1_000)]
    packed = _packed_texts([*notes, EVIL])
    assert len(packed["_notes"]) + sum(map(len, packed["_parts"])) < 0.6 * sum(map(len, notes))
    assert max(map(len, packed["_parts"])) <= 1_000
