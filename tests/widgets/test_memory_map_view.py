"""What the memory map sends to the page."""

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ET

import jax.numpy as jnp
import pandas as pd
import pytest
import traitlets

from tests.widgets.viewed import EVIL, array, memory_map, sent
from tiny_backprop import (
    MeasureError,
    measure,
)
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import DisplayError, MemoryMapView


def test_the_memory_map_sends_every_buffer_of_the_arenas_and_outputs():
    found = memory_map()
    view = MemoryMapView(found)
    rows = sent(view)
    wanted = {i for i, b in enumerate(found.buffers) if b.memory in ("temp", "output")}
    assert {row[0] for row in rows} == wanted != set(range(len(found.buffers)))
    for i, first, last, freed, n_bytes, offset, _, texts in rows:
        b = found.buffers[i]
        assert (first, last, freed, n_bytes, offset) == (b.first_use, b.last_use, b.freed_at, b.bytes, b.offset_bytes)
        assert texts == {name: getattr(b, name) for name in texts}
    assert len(set(view._strings)) == len(view._strings)
    assert array(view._live_bytes, "f8").tolist() == found.live_bytes.tolist()
    schedule = [[view._strings[t] for t in row] for row in array(view._schedule, "i4", -1, 2)]
    assert schedule == [[p.instruction, p.op_name] for p in found.schedule]


def test_buffers_lie_beside_each_other_temporaries_below_outputs():
    found = memory_map()
    view = MemoryMapView(found)
    facts, rows = view._facts, sent(view)
    assert facts["top_bytes"] == found.temp_bytes + found.output_bytes
    for row in rows:
        is_temp, border = row[7]["memory"] == "temp", facts["temp_extent_bytes"]
        low, high = (0, border) if is_temp else (border, facts["top_bytes"])
        assert low <= row[6] <= row[6] + row[4] <= high
    for position in range(len(found.schedule)):  # no byte belongs to two tensors at once
        alive = sorted((row[6], row[6] + row[4]) for row in rows if row[1] <= position < row[3])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(alive))
    peak = facts["peak_position"]
    alive = [r for r in rows if r[1] <= peak < r[3] and r[7]["memory"] == "temp"]
    assert sum(row[4] for row in alive) == facts["peak_live_bytes"] == found.peak_live_bytes


def test_groups_are_kinds_and_scopes():
    found = memory_map()
    view = MemoryMapView(found)
    kinds, scopes = array(view._groups, "u1", -1, 2).T
    names = view._facts["groups"]
    for row, kind, scope in zip(sent(view), kinds, scopes, strict=True):
        assert names["kind"][kind].startswith(row[7]["kind"])
        assert names["scope"][scope] == (row[7]["scope"].split("/")[0] or "no scope")
    assert {"before", "after"} <= set(names["scope"])
    assert {loop["trip_count"] for loop in view._facts["loops"]} >= {9}


def test_a_title_says_whose_map_it_is_and_that_it_is_measured():
    title = MemoryMapView(memory_map())._facts["title"]
    assert title.startswith(f"loss: temporaries {format_bytes(memory_map().temp_bytes)}, at most ")
    assert title.endswith("not shown; measured by XLA")


def test_the_chosen_buffer_and_position_can_be_observed_and_are_checked():
    found = memory_map()
    view, seen = MemoryMapView(found), []
    view.observe(lambda change: seen.append((change["name"], change["new"])), ["value", "position", "color_by"])
    view.value, view.position, view.color_by = 3, len(found.schedule) - 1, "scope"
    view.value = None
    assert seen == [("value", 3), ("position", len(found.schedule) - 1), ("color_by", "scope"), ("value", None)]
    for number in (-1, len(found.buffers)):
        wanted = f"value is the number of a tensor, 0 to {len(found.buffers) - 1}; found {number}"
        with pytest.raises(traitlets.TraitError, match=wanted):
            view.value = number
    with pytest.raises(traitlets.TraitError, match="position is the number of a position, 0 to "):
        view.position = len(found.schedule)
    with pytest.raises(traitlets.TraitError):
        view.color_by = "taste"
    assert (view.value, view.position, view.color_by) == (None, len(found.schedule) - 1, "scope")
    with pytest.raises(DisplayError, match="color_by='taste': expected 'kind' or 'scope'"):
        MemoryMapView(found, color_by="taste")
    assert MemoryMapView(found, color_by="scope").color_by == "scope"


def test_a_map_that_is_missing_says_why_and_one_without_instructions_is_shown():
    with pytest.raises(MeasureError, match="no memory map of loss: it rained"):
        MemoryMapView(dataclasses.replace(memory_map(), missing="it rained"))
    view = MemoryMapView(MemoryMap("nothing", 0, 0, 0))
    assert (view._facts["n_positions"], view._facts["top_bytes"], view._strings, view._lives) == (0, 0, [], b"")
    assert view._repr_mimebundle_()["image/png"]
    with pytest.raises(traitlets.TraitError, match="found 0"):
        view.value = 0
    only = MemoryMapView(measure(lambda x: x, jnp.ones(4)).memory_map)  # an argument handed through
    assert only._facts["peak_live_bytes"] == 0
    assert only._repr_mimebundle_()["image/png"]


def test_hostile_texts_of_a_map_are_data_and_short(tmp_path):
    evil = "$\\bad$ " + EVIL  # mathematics that matplotlib would refuse, too
    names = dict.fromkeys(("shape", "instruction", "op_name", "scope", "source", "loop"), evil)
    found = memory_map()
    view = MemoryMapView(
        dataclasses.replace(
            found,
            name=evil,
            doubts=(evil,),
            buffers=tuple(dataclasses.replace(b, **names) for b in found.buffers),
            schedule=tuple(dataclasses.replace(p, instruction=evil, op_name=evil) for p in found.schedule),
            loops=tuple(dataclasses.replace(loop, name=evil) for loop in found.loops),
        ),
        color_by="scope",
    )
    assert max(map(len, view._strings)) <= 300
    assert max(len(text) for text in [*view._facts["doubts"], *view._facts["groups"]["scope"]]) <= 300
    assert len(json.dumps([view._strings, view._facts])) < 20_000
    bundle = view._repr_mimebundle_()
    assert "no picture" not in bundle.get("text/html", "")
    assert bundle["image/png"]
    text = view.save(tmp_path / "a.svg").read_text()
    ET.fromstring(text)
    assert "<img" not in text
    assert set(pd.read_csv(view.save(tmp_path / "a.csv")).memory) == {b.memory for b in found.buffers}


def test_a_map_of_thousands_of_buffers_stays_small():
    found = memory_map()
    own = [b for b in found.buffers if b.memory == "temp"]
    many = tuple(
        dataclasses.replace(own[i % len(own)], instruction=f"fusion.{i}", offset_bytes=64 * i) for i in range(10_000)
    )
    view = MemoryMapView(dataclasses.replace(found, buffers=many))
    state = view.get_state()
    n_bytes = sum(len(v) for v in state.values() if isinstance(v, bytes)) + len(json.dumps(view._strings))
    assert n_bytes < 100 * len(many)
