"""Memory maps against XLA's totals, against XLA's own dump of its lifetimes, and in what they say."""

import dataclasses
import glob
import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled_programs import PROGRAMS, SQUARE, array, measured, mlp, recurrent
from tiny_backprop import measure
from tiny_backprop.integration.jax.xla import hlo, memory_map
from tiny_backprop.integration.jax.xla.assignment import Assignment, read_assignment
from tiny_backprop.integration.jax.xla.lifetimes import follow
from tiny_backprop.integration.jax.xla.memory_map import GAP, MemoryMap

KIB = 1024
PROGRAMS_FILE = mlp.__code__.co_filename


# ---- sums ----


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_map_adds_up_to_xlas_totals(name):
    m = measured(name)
    found = m.memory_map
    assert (found.missing, found.doubts) == ("", ())
    assert found.temp_bytes == found.extent_bytes == m.temp_bytes
    assert found.peak_live_bytes + found.gap_bytes == m.temp_bytes
    assert found.gap_bytes >= 0
    assert found.at_peak().bytes.sum() == m.temp_bytes
    assert found.at_peak("output").bytes.sum() == found.output_bytes == m.output_bytes
    assert found.at_peak().bytes.iloc[-1] == found.gap_bytes
    places = found.to_pandas().query("memory == 'argument'").drop_duplicates("allocation")
    assert places.bytes.sum() == m.argument_bytes - m.alias_bytes


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_two_buffers_share_a_byte_at_a_time(name):
    """Painted byte by byte, position by position, on a coarse canvas of what each allocation has."""
    found = measured(name).memory_map
    unit = 4 if max([b.offset_bytes + b.bytes for b in found.buffers], default=0) < 200_000 else 64
    canvas = {}
    for b in found.buffers:
        if b.memory not in ("temp", "output") or b.bytes < unit:
            continue
        rows = 1 + max(o.offset_bytes + o.bytes for o in found.buffers if o.allocation == b.allocation) // unit
        painted = canvas.setdefault(b.allocation, np.zeros((rows, len(found.schedule)), np.uint8))
        area = painted[-(-b.offset_bytes // unit) : (b.offset_bytes + b.bytes) // unit, b.first_use : b.freed_at]
        assert not area.any(), b
        area[:] = 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_live_bytes_are_counted_position_by_position(name):
    found = measured(name).memory_map
    for memory, live in (("temp", found.live_bytes), ("output", found.live_output_bytes)):
        assert len(live) == len(found.schedule)
        for position in range(0, len(live), 1 + len(live) // 25):
            assert live[position] == sum(b.bytes for b in found.alive_at(position, memory))


# ---- against XLA's own dump ----


@pytest.mark.parametrize("name", ["nested loops' gradient", "switch", "mlp's gradient", "donated and updated"])
def test_lifetimes_are_those_that_xla_writes_down(tmp_path, name):
    """`*-live-range.txt` has the flattened schedule and each buffer's first and last position."""
    fun, *args = PROGRAMS[name]
    jitted = fun if hasattr(fun, "lower") else jax.jit(fun)
    compiled = jitted.lower(*args).compile(compiler_options={"xla_dump_to": str(tmp_path)})
    m = measure(compiled)
    (path,) = glob.glob(str(tmp_path / "*live-range.txt"))
    with open(path) as file:
        dumped = file.read()
    lives, assignment = followed(m.program)
    order = re.findall(r"^    (\d+):(\S+)$", dumped, re.M)
    assert [name for _, name in order] == [i.name for i in lives.schedule]
    ours = {(assignment.buffers[i].instruction, assignment.buffers[i].index): i for i in lives.first}
    last = shortened(lives, assignment)
    n_checked = 0
    for name, index, first, end in re.findall(r"^    (\S+?)\{([\d,]*)\}:(\d+)-(\d+)$", dumped, re.M):
        i = ours[name, tuple(map(int, index.split(","))) if index else ()]
        if assignment.allocations[assignment.buffers[i].allocation].memory != "argument":  # those XLA keeps throughout
            assert (lives.first[i], last[i]) == (int(first), min(int(end), len(order) - 1)), (name, index)
            n_checked += 1
    assert n_checked >= len(order) // 3


def followed(program):
    assignment = read_assignment(program.assignment, program.names)
    return follow(hlo.parse_hlo(program.hlo_text), assignment), assignment


def shortened(lives, assignment: Assignment):
    """Return last positions as XLA has them where buffers must share memory: each ends where the next one begins."""
    last = dict(lives.last)
    groups = {}
    for i in lives.first:
        groups.setdefault(assignment.group[i], []).append(i)
    for members in groups.values():
        members.sort(key=lambda i: (lives.first[i], i))
        for a, b in itertools.pairwise(members):
            last[b] = max(last[a], last[b])
            last[a] = min(last[a], lives.first[b])
    return last


# ---- what a map says ----


def test_saved_tensors_come_with_their_lines():
    """Four layers keep four activations of 128 × 64 float32; the last one dies in the gradient of the square."""
    found = measured("mlp's gradient").memory_map
    table = found.at_peak()
    saved = table[table.kind == "saved"]
    assert set(saved.bytes) == {32 * KIB}
    assert 3 <= len(saved) <= 4
    line = mlp.__code__.co_firstlineno + 2
    assert set(saved.source) == {f"{PROGRAMS_FILE}:{line} (mlp)"}
    assert set(saved["shape"]) == {"f32[128,64]"}
    assert list(table.bytes[:-1]) == sorted(table.bytes[:-1], reverse=True)
    assert table.kind.iloc[-1] == GAP


def test_kinds_of_a_recomputed_gradient():
    for name in ("planned gradient", "gpt's planned gradient"):
        kinds = measured(name).memory_map.to_pandas().query("memory == 'temp' and bytes > 1024").kind
        assert {"saved", "recomputed", "gradient"} <= set(kinds)
    plain = measured("mlp's gradient").memory_map.to_pandas()
    assert "recomputed" not in set(plain.kind)


def test_planned_gradients_say_what_they_recompute():
    """In the word that `jax.checkpoint` uses, so that XLA's own tools show it too."""
    for name in ("planned gradient", "checkpointed gradient"):
        assert "rematted_computation" in measured(name).program.hlo_text
    assert "rematted_computation" not in measured("mlp's gradient").program.hlo_text


def test_source_lines_are_the_users_own():
    for name in ("gpt's planned gradient", "scan's planned gradient", "planned gradient"):
        sources = set(measured(name).memory_map.to_pandas().source)
        assert len(sources) > 1
        assert not [s for s in sources if "/tiny_backprop/" in s.replace("\\", "/")]


def test_scopes_are_the_users():
    def loss(w, x):
        with jax.named_scope("encoder"), jax.named_scope("first"):
            x = jnp.tanh(x @ w)
        with jax.named_scope("decoder"):
            return (jnp.tanh(x @ w) @ w).sum()

    frame = measure(jax.grad(loss), SQUARE, array(128, 64)).memory_map.to_pandas()
    scopes = set(frame.query("memory == 'temp' and kind == 'saved'").scope)
    assert scopes == {"encoder/first", "decoder"}


def test_loops_are_opened_once_and_their_buffers_lie_inside():
    found = measured("scan's gradient").memory_map
    bodies = [loop for loop in found.loops if loop.name.endswith("body")]
    assert [loop.trip_count for loop in bodies] == [17, 17]
    names = [p.instruction for p in found.schedule]
    assert len(set(names)) == len(names)
    for loop in bodies:
        assert names.index(loop.name.split(" ")[0]) > loop.last
        inside = [b for b in found.buffers if b.loop == loop.name and b.memory == "temp"]
        assert all(loop.first <= b.first_use <= loop.last for b in inside)
        assert sum(b.last_use <= loop.last for b in inside) >= 3  # the others are handed to the next step
    stacked = [b for b in found.buffers if b.shape == "f32[17,8,32]"]
    assert len(stacked) >= 2
    assert all(b.kind == "saved" and b.first_use < bodies[0].first and b.last_use > bodies[1].last for b in stacked)
    line = recurrent.__code__.co_firstlineno + 2
    assert f"{PROGRAMS_FILE}:{line} (recurrent.<locals>.step)" in {b.source for b in stacked}


def test_a_loop_in_a_loop_lies_deeper():
    loops = measured("nested loops").memory_map.loops
    bodies = {loop.trip_count: loop for loop in loops if loop.trip_count}
    assert bodies[5].depth == bodies[7].depth + 1
    assert bodies[7].first < bodies[5].first <= bodies[5].last < bodies[7].last
    branches = [loop for loop in loops if "branch" in loop.name]
    assert len(branches) == 2


def test_a_branch_that_does_not_run_takes_no_room_of_the_other():
    """Both branches' temporaries lie in the same bytes, at positions of their own."""
    found = measured("switch").memory_map
    assert len([loop for loop in found.loops if "branch" in loop.name]) == 3


def test_table_of_all_buffers():
    found = measured("planned gradient").memory_map
    frame = found.to_pandas()
    assert list(frame.columns) == [f.name for f in dataclasses.fields(memory_map.Buffer)]
    assert len(frame) == len(found.buffers)
    assert (frame.first_use < frame.freed_at).sum() >= 0.9 * len(frame)
    assert (frame.first_use <= frame.last_use).all()
    assert set(frame.memory) <= {"temp", "output", "argument", "constant"}


def test_representations():
    found = measured("gpt's gradient").memory_map
    assert "\n" not in repr(found)
    assert repr(found).startswith("MemoryMap(loss: temp ")
    html = found._repr_html_()
    assert "measured by XLA" in html
    assert "gpt.py" in html
    assert "<svg" in html
    assert "src=" not in html
    assert len(html) < 100 * KIB
    buffers = tuple(dataclasses.replace(b, source="<script>", scope='"><b>') for b in found.buffers)
    risky = dataclasses.replace(found, name="<script>", doubts=("<img>",), buffers=buffers)
    assert "<script>" not in risky._repr_html_()
    assert "<img>" not in risky._repr_html_()
    assert "Doubtful: &lt;img&gt;." in risky._repr_html_()
    assert "1 doubts" in repr(risky)


def test_a_failing_display_shows_its_reason(monkeypatch):
    def fail(self):
        raise RuntimeError("<no picture today>")

    monkeypatch.setattr(MemoryMap, "_html", fail)
    assert "&lt;no picture today&gt;" in measured("identity").memory_map._repr_html_()


def test_programs_from_the_compilation_cache_keep_their_map(tmp_path):
    """A second process finds the compiled program on disk, with instruction numbers that still fit."""
    code = (
        "import jax, jax.numpy as jnp, tiny_backprop as tb\n"
        f"jax.config.update('jax_compilation_cache_dir', {str(tmp_path)!r})\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)\n"
        "m = tb.measure(jax.jit(lambda x: jnp.tanh(x @ x) @ x @ x), jnp.ones((64, 64)))\n"
        "print(repr(m.memory_map), m.memory_map.doubts, m.temp_bytes == m.memory_map.extent_bytes)\n"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert any(tmp_path.iterdir())
    assert first == second
    assert first.endswith("() True\n")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["products", "scan's gradient", "mlp's gradient", "planned gradient"])
def test_gpu_maps_add_up(name):
    fun, *args = PROGRAMS[name]
    found = measure(fun, *args).memory_map
    assert (found.missing, found.doubts) == ("", ())
    assert found.extent_bytes == found.temp_bytes
