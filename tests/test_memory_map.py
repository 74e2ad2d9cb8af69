"""Memory maps against XLA's totals, against XLA's own dump of its lifetimes, and against damage."""

import copy
import dataclasses
import glob
import itertools
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import tiny_backprop as tb
from benchmarks.models import gpt
from tiny_backprop import MeasureError, PlanError, measure
from tiny_backprop.integration.jax.xla import hlo, memory_map
from tiny_backprop.integration.jax.xla.assignment import Assignment, instruction_names, read_assignment
from tiny_backprop.integration.jax.xla.decode import decode
from tiny_backprop.integration.jax.xla.explain import OUTPUTS_TO_COME
from tiny_backprop.integration.jax.xla.lifetimes import follow
from tiny_backprop.integration.jax.xla.memory_map import GAP, MemoryMap, Program
from tiny_backprop.integration.jax.xla.op_names import phase_of, scope_of
from tiny_backprop_widgets import DisplayError, plot_frontier, plot_memory_map
from tiny_backprop_widgets.plots.figure import render

KIB = 1024


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def mlp(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return (x**2).sum()


def recurrent(w, x):
    def step(c, _):
        return jnp.tanh(c @ w), c

    return (lax.scan(step, x, None, length=17)[0] ** 2).sum()


def nested(w, x):
    def outer(c, _):
        c = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), c, None, length=5)[0]
        c = lax.cond(c[0, 0] > 0, lambda c: jnp.sin(c @ w), lambda c: c * 2, c)
        return c, c.sum()

    c, sums = lax.scan(outer, x, None, length=7)
    return c.sum() + sums.sum()


def convolution(w, x):
    y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (y**2).sum()


CONFIG = gpt.GPTConfig(n_layers=2, width=32, n_heads=2, n_tokens=16, n_vocabulary=64, n_batch=2)
LOSS, GPT_ARGS = gpt.example(CONFIG)
SQUARE = array(64, 64)
LOOP_ARGS = array(32, 32), array(8, 32)
PROGRAMS = {
    "fused": (lambda x: jnp.tanh(jnp.sin(x) * 2 + x).sum(), SQUARE),
    "products": (lambda x: jnp.tanh(x @ x) @ x @ x, SQUARE),
    "nothing": (lambda: (),),
    "identity": (lambda x: x, array(4)),
    "a constant": (lambda x: x @ jnp.arange(4096.0).reshape(64, 64), SQUARE),
    "empty arrays": (lambda x: jnp.concatenate([x[:0], x]) * 2, SQUARE),
    "several outputs": (lambda x: (x @ x, x + 1, (x @ x @ x).sum()), SQUARE),
    "an output twice": (lambda x: (y := x @ x, y), SQUARE),
    "donated": (jax.jit(lambda x: jnp.tanh(x @ x) @ x, donate_argnums=0), SQUARE),
    "donated and updated": (jax.jit(lambda x, y: (x @ y, y.at[3].set(1.0)), donate_argnums=1), SQUARE, SQUARE),
    "cond": (lambda p, x: lax.cond(p, lambda x: (x @ x) @ x, lambda x: x + 1, x), array(dtype="bool"), SQUARE),
    "switch": (
        lambda i, x: lax.switch(i, [lambda x: x, lambda x: x @ x, lambda x: jnp.sin(x @ x) @ x], x),
        array(dtype="int32"),
        SQUARE,
    ),
    "sort": (lambda x: jnp.sort(x @ x), SQUARE),
    "solve": (lambda a: jnp.linalg.solve(a, a), array(32, 32)),
    "eigenvectors": (lambda a: jnp.linalg.eigh(a @ a.T), array(32, 32)),
    "fft": (lambda x: jnp.fft.fft(x @ x).real, SQUARE),
    "callback": (lambda x: jax.pure_callback(lambda x: x, x, x) @ x, SQUARE),
    "half precision": (jax.grad(lambda x: (x @ x).sum().astype("float32")), array(64, 64, dtype="bfloat16")),
    "four bits": (lambda x: (x.astype(jnp.int4) + 1).astype("float32") @ x, SQUARE),
    "random numbers": (lambda k, x: jax.random.normal(k, (64, 64)) @ x, jax.random.key(0), SQUARE),
    "while": (lambda x: lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x), array(32, 32)),
    "scan": (recurrent, *LOOP_ARGS),
    "scan's gradient": (jax.value_and_grad(recurrent), *LOOP_ARGS),
    "scan's planned gradient": (tb.height_compressed_grad(recurrent, block_size=4), *LOOP_ARGS),
    "nested loops": (nested, *LOOP_ARGS),
    "nested loops' gradient": (jax.grad(nested, (0, 1)), *LOOP_ARGS),
    "mlp's gradient": (jax.grad(mlp), [array(64, 64)] * 4, array(128, 64)),
    "checkpointed gradient": (jax.grad(jax.checkpoint(mlp)), [array(64, 64)] * 4, array(128, 64)),
    "planned gradient": (tb.height_compressed_grad(mlp, block_size=8), [array(64, 64)] * 12, array(128, 64)),
    "convolution's gradient": (jax.grad(convolution), array(3, 3, 3, 8), array(4, 16, 16, 3)),
    "gpt's gradient": (jax.value_and_grad(LOSS), *GPT_ARGS),
    "gpt's planned gradient": (tb.height_compressed_value_and_grad(LOSS, levels=2), *GPT_ARGS),
}


@pytest.fixture(scope="module")
def measured():
    """Measure programs by name, each once."""
    made = {}

    def get(name):
        if name not in made:
            fun, *args = PROGRAMS[name]
            with jax.numpy_rank_promotion("allow"):  # the GPT's own
                made[name] = measure(fun, *args)
        return made[name]

    return get


# ---- sums ----


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_map_adds_up_to_xlas_totals(measured, name):
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
def test_no_two_buffers_share_a_byte_at_a_time(measured, name):
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
def test_live_bytes_are_counted_position_by_position(measured, name):
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


def test_saved_tensors_come_with_their_lines(measured):
    """Four layers keep four activations of 128 × 64 float32; the last one dies in the gradient of the square."""
    found = measured("mlp's gradient").memory_map
    table = found.at_peak()
    saved = table[table.kind == "saved"]
    assert set(saved.bytes) == {32 * KIB}
    assert 3 <= len(saved) <= 4
    line = mlp.__code__.co_firstlineno + 2
    assert set(saved.source) == {f"{__file__}:{line} (mlp)"}
    assert set(saved["shape"]) == {"f32[128,64]"}
    assert list(table.bytes[:-1]) == sorted(table.bytes[:-1], reverse=True)
    assert table.kind.iloc[-1] == GAP


def test_kinds_of_a_recomputed_gradient(measured):
    for name in ("planned gradient", "gpt's planned gradient"):
        kinds = measured(name).memory_map.to_pandas().query("memory == 'temp' and bytes > 1024").kind
        assert {"saved", "recomputed", "gradient"} <= set(kinds)
    plain = measured("mlp's gradient").memory_map.to_pandas()
    assert "recomputed" not in set(plain.kind)


def test_planned_gradients_say_what_they_recompute(measured):
    """In the word that `jax.checkpoint` uses, so that XLA's own tools show it too."""
    for name in ("planned gradient", "checkpointed gradient"):
        assert "rematted_computation" in measured(name).program.hlo_text
    assert "rematted_computation" not in measured("mlp's gradient").program.hlo_text


def test_source_lines_are_the_users_own(measured):
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


def test_names_are_read_as_jax_writes_them():
    assert scope_of("jit(f)/jvp(a/b)/c/dot_general") == "a/b/c"
    assert scope_of("jit(f)/vmap(transpose(jvp(block0)))/while/body/closed_call/attention/mul") == "block0/attention"
    assert scope_of("jit(f)/jit(planned_gradient_of_f)/jvp(x)/rematted_computation/tanh") == "x"
    assert scope_of("w") == scope_of("") == ""
    assert scope_of("jit(f)/jvp(rematted_computation)/tanh") == ""
    assert phase_of("jit(f)/jvp(rematted_computation)/tanh") == "recomputed"
    assert phase_of("jit(f)/jvp(block0)/tanh") == "forward"
    assert phase_of("jit(f)/transpose(jvp(jvp()))/checkpoint/mul") == "gradient"
    assert phase_of("jit(f)/transpose(jvp())/while/body/checkpoint/rematted_computation/cos") == "recomputed"
    assert phase_of("jit(f)/transpose(jvp())/while/body/jvp()/cos") == "recomputed"
    assert phase_of("jit(f)/transpose(jvp())/while/body/transpose(jvp())/mul") == "gradient"
    assert phase_of("jit(f)/transpose") == phase_of("") == "other"


def test_loops_are_opened_once_and_their_buffers_lie_inside(measured):
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
    assert f"{__file__}:{line} (recurrent.<locals>.step)" in {b.source for b in stacked}


def test_a_loop_in_a_loop_lies_deeper(measured):
    loops = measured("nested loops").memory_map.loops
    bodies = {loop.trip_count: loop for loop in loops if loop.trip_count}
    assert bodies[5].depth == bodies[7].depth + 1
    assert bodies[7].first < bodies[5].first <= bodies[5].last < bodies[7].last
    branches = [loop for loop in loops if "branch" in loop.name]
    assert len(branches) == 2


def test_a_branch_that_does_not_run_takes_no_room_of_the_other(measured):
    """Both branches' temporaries lie in the same bytes, at positions of their own."""
    found = measured("switch").memory_map
    assert len([loop for loop in found.loops if "branch" in loop.name]) == 3


def test_table_of_all_buffers(measured):
    found = measured("planned gradient").memory_map
    frame = found.to_pandas()
    assert list(frame.columns) == [f.name for f in dataclasses.fields(memory_map.Buffer)]
    assert len(frame) == len(found.buffers)
    assert (frame.first_use < frame.freed_at).sum() >= 0.9 * len(frame)
    assert (frame.first_use <= frame.last_use).all()
    assert set(frame.memory) <= {"temp", "output", "argument", "constant"}


def test_representations(measured):
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


def test_a_failing_display_shows_its_reason(measured, monkeypatch):
    def fail(self):
        raise RuntimeError("<no picture today>")

    monkeypatch.setattr(MemoryMap, "_html", fail)
    assert "&lt;no picture today&gt;" in measured("identity").memory_map._repr_html_()


def test_a_measurement_stays_a_plain_value(measured):
    m = measured("scan")
    assert m.memory_map is m.memory_map
    for twin in (copy.copy(m), pickle.loads(pickle.dumps(m)), dataclasses.replace(m)):
        assert twin == m
        assert hash(twin) == hash(m)
        assert twin.memory_map.buffers == m.memory_map.buffers
    assert "HloModule" not in repr(m) + m._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.memory_map = None


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


# ---- damage ----

WHOLE = Program("", b"", {}, 0, 0, 0)


@pytest.fixture(scope="module")
def program():
    return measure(jax.grad(mlp), [SQUARE] * 3, array(128, 64)).program


def damaged(program, **changes):
    return decode(dataclasses.replace(program, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"assignment": b""}, "the backend gives no buffer assignment"),
        (lambda p: {"assignment": b"\xff\xff\xff\xff"}, "BufferAssignmentProto of 4 bytes cannot be read"),
        (
            lambda p: {"assignment": p.assignment[: len(p.assignment) // 2]},
            "cannot be read|bytes of memory for|not define",
        ),
        (lambda p: {"names": {}}, "the backend does not tell which numbers its instructions have"),
        (lambda p: {"names": {0: "a"}}, "speaks of instruction [0-9]+, which the program does not have"),
        (lambda p: {"temp_bytes": p.temp_bytes + 64}, "bytes of memory for temp, XLA's totals have"),
        (lambda p: {"output_bytes": 1}, "bytes of memory for output, XLA's totals have 1"),
        (lambda p: {"hlo_text": ""}, "no ENTRY computation"),
        (lambda p: {"hlo_text": "module @jit_f"}, "no ENTRY computation"),
        (
            lambda p: {"hlo_text": p.hlo_text.replace("f32[128,64]", "f32[128,32]")},
            "f32\\[128,32\\]: they are not of the same",
        ),
        (lambda p: {"hlo_text": p.hlo_text.replace("f32[128,64]", "f32<128x64>")}, "cannot read the HLO line"),
        (
            lambda p: {"names": dict.fromkeys(p.names, "elsewhere")},
            "speaks of elsewhere, which the HLO text does not have",
        ),
    ],
)
def test_a_map_that_cannot_be_had_says_why_and_keeps_the_totals(program, change, message):
    changes = change(program)
    found = damaged(program, **changes)
    assert re.search(message, found.missing), found.missing
    assert found.temp_bytes == changes.get("temp_bytes", program.temp_bytes)
    assert found.buffers == ()
    assert "no map: " in repr(found)
    assert "No map: " in found._repr_html_()
    for ask in (
        found.at_peak,
        found.to_pandas,
        found.plot,
        lambda: found.live_bytes,
        lambda: found.live_output_bytes,
        lambda: found.extent_bytes,
        lambda: found.alive_at(0),
    ):
        with pytest.raises(MeasureError, match=r"no memory map of .*XLA's totals are known: temporaries"):
            ask()


def test_an_assignment_of_another_program_is_refused(program):
    """Same totals, other instructions: shapes and names tell."""
    other = measure(jax.grad(mlp), [SQUARE] * 2, array(128, 64)).program
    for names in (program.names, other.names):
        found = damaged(
            program,
            assignment=other.assignment,
            names=names,
            temp_bytes=other.temp_bytes,
            output_bytes=other.output_bytes,
        )
        assert found.missing or found.doubts


@pytest.mark.parametrize("step", [7, 61])
def test_no_cut_of_the_text_gives_a_map_without_a_word(program, step):
    """Wherever an instruction is missing, the map is refused, or a doubt is raised, or nothing changes."""
    lines = program.hlo_text.splitlines()
    whole = decode(program)
    at = [i for i, line in enumerate(lines) if re.match(r"  (ROOT )?%?\S+ = ", line)]
    for i in at[::step]:
        found = damaged(program, hlo_text="\n".join(lines[:i] + lines[i + 1 :]))
        if not (found.missing or found.doubts):
            assert found.extent_bytes == whole.extent_bytes
            assert [dataclasses.astuple(b)[:6] for b in found.buffers] == [
                dataclasses.astuple(b)[:6] for b in whole.buffers
            ]


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_never_raise_and_never_lie(program, seed):
    """A damaged assignment still has to add up: a map without doubts has the extent that XLA reserves."""
    rng = np.random.default_rng(seed)
    data = bytearray(program.assignment)
    for i in rng.integers(0, len(data), 3):
        data[i] ^= 1 << rng.integers(0, 8)
    found = damaged(program, assignment=bytes(data))
    if not (found.missing or found.doubts):
        assert found.extent_bytes == program.temp_bytes


def test_lifetimes_that_contradict_the_assignment_are_doubted(program):
    """The last product reads the first one again, whose bytes XLA has long given to others."""
    start = program.hlo_text.index("ENTRY")
    entry = program.hlo_text[start:]
    products = re.findall(r"^  %(\S+) = f32\[128,64\]\S* fusion\(%x", entry, re.M)
    changed = re.sub(r"^(  %dot = \S+ dot\()%x[\w.]*", rf"\g<1>%{products[0]}", entry, flags=re.M)
    assert changed != entry
    found = damaged(program, hlo_text=program.hlo_text[:start] + changed)
    assert re.match(r"\d+ pairs of buffers overlap in place and time, first \S+ and \S+", found.doubts[0])
    assert "Doubtful: " in found._repr_html_()


def test_an_instruction_before_its_operand_is_refused(program):
    lines = program.hlo_text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  %dot = "))
    first = next(i for i, line in enumerate(lines) if line.startswith("ENTRY")) + 1
    lines.insert(first, lines.pop(at))
    assert re.match(
        r"dot reads \S+, which the HLO text does not make before it",
        damaged(program, hlo_text="\n".join(lines)).missing,
    )


def test_a_program_that_breaks_the_rules_of_hlo_is_refused(program):
    """A fusion that calls nothing is found only while describing it."""
    text = re.sub(r"kind=kLoop, calls=%[\w.]+", "kind=kLoop", program.hlo_text)
    found = damaged(program, hlo_text=text)
    assert found.missing.startswith("this version of tiny_backprop cannot follow the program: ")


def test_an_unscheduled_text_is_doubted(program):
    found = damaged(program, hlo_text=program.hlo_text.replace("is_scheduled=true", "is_scheduled=false"))
    assert "order in which they run" in found.doubts[0]
    assert "doubts, see .doubts" in found.plot().get_title()


def test_a_measurement_of_unreadable_hlo_still_has_its_bytes(monkeypatch):
    compiled = jax.jit(lambda x: jnp.tanh(x @ x) @ x).lower(SQUARE).compile()
    monkeypatch.setattr(
        jax.stages.Compiled, "as_text", lambda self: "HloModule jit_f, version=99\n\nENTRY ~ {\n  ?\n}\n"
    )
    m = measure(compiled)
    assert m.temp_bytes == compiled.memory_analysis().temp_size_in_bytes
    assert np.isnan(m.flops)
    assert "the HLO cannot be read" in repr(m)
    assert "HLO" in m.memory_map.missing


def test_a_backend_without_numbers_or_assignment_is_named(monkeypatch):
    compiled = jax.jit(lambda x: jnp.tanh(x @ x) @ x).lower(SQUARE).compile()
    memory = compiled.memory_analysis()

    class Bare:
        argument_size_in_bytes, output_size_in_bytes, temp_size_in_bytes, alias_size_in_bytes = (
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.temp_size_in_bytes,
            0,
        )

    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: Bare)
    m = measure(compiled)
    assert m.temp_bytes == memory.temp_size_in_bytes
    assert m.memory_map.missing.startswith("the backend gives no buffer assignment")


def test_what_is_no_program_is_refused():
    with pytest.raises(MeasureError, match="cannot measure a int"):
        measure(3)
    made = dataclasses.replace(measure(lambda x: x, array(4)), program=None)
    with pytest.raises(MeasureError, match=r"holds no program to decode.*measure\(fun, \*args\)"):
        _ = made.memory_map
    with pytest.raises(MeasureError, match=r"at_peak\('heap'\): expected 'temp' or 'output'"):
        measure(lambda x: x, array(4)).memory_map.at_peak("heap")


def test_source_lines_written_into_instructions_are_read_too():
    text = (
        "HloModule jit_f, is_scheduled=true\n\nENTRY %main (a: f32[4]) -> f32[4] {\n"
        "  %a = f32[4]{0} parameter(0)\n"
        '  ROOT %t = f32[4]{0} tanh(%a), metadata={op_name="jit(f)/tanh" source_file="/me/f.py" source_line=7}\n}\n'
    )
    module = hlo.parse_hlo(text)
    assert module.is_scheduled
    assert module.source_line(module.entry.root) == "/me/f.py:7"
    assert module.entry.root.op_name == "jit(f)/tanh"
    assert module.source_line(module.entry.by_name["a"]) == ""


def test_numbers_of_older_modules_are_read_too():
    """Field 35 holds numbers that are unique in the program, or within the computation, whose number is field 5."""

    def message(*fields):
        """Serialize fields: (number, int or bytes)."""
        out = b""
        for number, value in fields:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                out += varint(number << 3 | 2) + varint(len(value)) + value
        return out

    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    def module(*ids):
        instructions = [(2, message((1, f"i{k}".encode()), (35, i))) for k, i in enumerate(ids)]
        return message((3, message(*instructions, (5, 9))))

    assert instruction_names(module(1, 2))[(9 << 32) + 2] == "i1"
    assert instruction_names(module(1, 2))[2] == "i1"
    assert instruction_names(module((9 << 32) + 5)) == {(9 << 32) + 5: "i0"}
    with pytest.raises(MeasureError, match="HloModuleProto of 3 bytes cannot be read"):
        instruction_names(b"\x1a\x7f\x01")


ASYNC = """\
HloModule jit_f, is_scheduled=true

%async (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %inside = f32[256]{0} negate(%p)
}

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %x = f32[256]{0} tanh(%a)
  %start = ((f32[256]{0}), f32[256]{0}, u32[]) async-start(%x), calls=%async
  %copy-start = (f32[256]{0}, f32[256]{0}, u32[]) copy-start(%x)
  %y = f32[256]{0} sine(%a)
  %done = f32[256]{0} async-done(%start)
  %copy-done = f32[256]{0} copy-done(%copy-start)
  %z = f32[256]{0} add(%done, %copy-done)
  ROOT %r = f32[256]{0} multiply(%z, %y)
}
"""


def test_asynchronous_instructions_keep_their_operands_until_they_are_done():
    places = {("x", ()): 0, ("inside", ()): 1, ("copy-start", (0,)): 2, ("y", ()): 3, ("z", ()): 4, ("r", ()): 5}
    from tiny_backprop.integration.jax.xla.assignment import Allocation, LogicalBuffer

    buffers = {i: LogicalBuffer(i, name, index, 0, 1024 * i, 1024) for (name, index), i in places.items()}
    assignment = Assignment({0: Allocation(0, 6 * 1024, "temp")}, buffers, {i: i for i in buffers})
    lives = follow(hlo.parse_hlo(ASYNC), assignment)
    order = [i.name for i in lives.schedule]
    assert order == ["a", "x", "p", "inside", "start", "copy-start", "y", "done", "copy-done", "z", "r"]
    spans = {buffers[i].instruction: (order[lives.first[i]], order[lives.last[i]]) for i in buffers}
    assert spans["x"] == ("x", "copy-done")
    assert spans["inside"] == ("inside", "z")
    assert spans["copy-start"] == ("copy-start", "z")
    assert spans["y"] == ("y", "r")


# ---- pictures ----


def polygons(ax):
    return sum(len(c.get_paths()) for c in ax.collections if isinstance(c, PolyCollection))


@pytest.mark.parametrize("color_by", ["kind", "scope"])
def test_every_large_buffer_is_a_rectangle(measured, color_by):
    found = measured("gpt's planned gradient").memory_map
    ax = plot_memory_map(found, color_by=color_by)
    total = found.temp_bytes + found.output_bytes
    large = [b for b in found.buffers if b.memory in ("temp", "output") and b.bytes > total / 500]
    drawn = [p.vertices for c in ax.collections if isinstance(c, PolyCollection) for p in c.get_paths()]
    spans = {(v[:, 0].min(), v[:, 0].max()) for v in drawn}
    assert all((b.first_use, b.freed_at) in spans for b in large)
    assert ax.get_ylabel().startswith("offset in memory, by XLA (")
    assert "measured by XLA" in ax.get_title()


def test_colour_is_never_alone(measured):
    ax = plot_memory_map(measured("gpt's planned gradient").memory_map)
    handles = ax.get_legend().legend_handles
    assert len({(h.get_facecolor(), h.get_hatch()) for h in handles}) == len(handles) >= 4
    by_hatch = {h.get_hatch() for h in handles}
    assert len(by_hatch) >= 3
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert {"saved for the backward phase", "recomputed", "gradient"} <= set(labels)


def test_labels_name_lines_loops_and_the_peak(measured):
    found = measured("scan's gradient").memory_map
    texts = [t.get_text() for t in plot_memory_map(found).texts]
    assert any(re.match(r"test_memory_map\.py:\d+  f32\[17,8,32\]", t) for t in texts)
    assert any(re.match(r"while\.\d+ body × 17", t) for t in texts)
    assert any(t.startswith("peak: ") for t in texts)


def test_thousands_of_buffers_are_drawn_together():
    found = measure(lambda x: x, array(4)).memory_map
    template = dataclasses.replace(found.buffers[0], memory="temp", kind="saved", bytes=1, allocation=9)
    n = 20_000
    buffers = tuple(
        dataclasses.replace(template, offset_bytes=i, first_use=i, last_use=i + n // 4, freed_at=i + n // 4 + 1)
        for i in range(n)
    )
    big = dataclasses.replace(
        found, temp_bytes=n, output_bytes=0, buffers=buffers, schedule=found.schedule[:1] * (2 * n), loops=()
    )
    ax = plot_memory_map(big)
    assert 500 < polygons(ax) < n // 4
    left, right = ax.get_xlim()
    assert (left, right) == (0, 2 * n)


@pytest.mark.parametrize("name", ["nothing", "identity", "empty arrays", "fused"])
def test_programs_without_temporaries_are_drawn(measured, name):
    assert measured(name).memory_map.plot()._repr_png_().startswith(b"\x89PNG")


def test_draws_into_given_axes_and_says_what_is_wrong(measured):
    ax = Figure().add_subplot()
    assert plot_memory_map(measured("scan").memory_map, ax) is ax
    with pytest.raises(DisplayError, match=r"needs a MemoryMap; found Measurement.*memory_map"):
        plot_memory_map(measured("scan"))
    with pytest.raises(DisplayError, match="color_by='size': expected 'kind' or 'scope'"):
        measured("scan").memory_map.plot(color_by="size")
    assert tb.plot_memory_map is plot_memory_map


def test_the_same_map_gives_the_same_picture(measured):
    found = measured("nested loops' gradient").memory_map
    pictures = {render(plot_memory_map(found).get_figure(), "svg") for _ in range(2)}
    assert len(pictures) == 1


def test_names_that_are_no_formula_are_drawn(measured):
    found = measured("scan's gradient").memory_map
    buffers = tuple(dataclasses.replace(b, source="$\\frac{<b>:3 (f)", scope="$_{") for b in found.buffers)
    odd = dataclasses.replace(found, name="$\\frac{", buffers=buffers)
    for color_by in ("kind", "scope"):
        assert odd.plot(color_by=color_by)._repr_png_().startswith(b"\x89PNG")


# ---- predicted beside measured ----


@pytest.fixture(scope="module")
def gpt_plans():
    with jax.numpy_rank_promotion("allow"):
        return planned_and_measured()


def planned_and_measured():
    graph = tb.capture_gradient(LOSS, *GPT_ARGS)
    plans = {"save everything": tb.plan_save_everything(graph), "blocks": tb.plan_blocks(graph, 20)}
    return {
        name: (plan, measure(tb.height_compressed_value_and_grad(LOSS, plan=plan), *GPT_ARGS))
        for name, plan in plans.items()
    }


def test_the_frontier_plot_lays_xlas_bytes_over_the_prediction(gpt_plans):
    plan, m = gpt_plans["blocks"]
    ax = plot_frontier(plan, measured=m).axes[0]
    live = m.memory_map.live_bytes + m.memory_map.live_output_bytes
    (line,) = [x for x in ax.get_lines() if x.get_label().startswith("live by XLA: peak ")]
    assert line.get_ydata().max() * KIB == live.max()
    (reserved,) = [x for x in ax.get_lines() if x.get_label().startswith("reserved by XLA: ")]
    assert reserved.get_ydata()[0] * KIB == m.peak_bytes
    assert "stand at their kernel, by scope and source line" in ax.get_xlabel()
    assert "predicted" in ax.get_ylabel()
    assert "XLA" in ax.get_ylabel()
    assert len(plot_frontier(plan).axes[0].get_lines()) == len(ax.get_lines()) - 2


def test_the_frontier_plot_says_where_live_bytes_are_not_known(gpt_plans):
    plan, m = gpt_plans["blocks"]
    blind = dataclasses.replace(m, program=dataclasses.replace(m.program, assignment=b""))
    ax = plot_frontier(plan, measured=blind).axes[0]
    assert "XLA's live bytes are not known: the backend gives no buffer assignment" in ax.get_xlabel()
    assert any(x.get_label().startswith("reserved by XLA: ") for x in ax.get_lines())
    with pytest.raises(DisplayError, match="expected a Measurement"):
        plot_frontier(plan, measured=3)


@pytest.mark.parametrize("name", ["save everything", "blocks"])
def test_explanations_add_up_on_both_sides(gpt_plans, name):
    plan, m = gpt_plans[name]
    found = tb.explain(plan, m)
    frame = found.to_pandas()
    live = m.memory_map.live_bytes + m.memory_map.live_output_bytes
    assert frame.predicted_bytes.sum() == plan.peak_bytes == found.predicted_peak_bytes
    to_come = frame.measured_bytes[OUTPUTS_TO_COME]
    assert frame.measured_bytes.sum() - to_come == live.max() == found.measured_peak_bytes
    assert 0 <= to_come <= m.output_bytes
    assert (frame.difference_bytes == frame.predicted_bytes - frame.measured_bytes).all()
    assert (frame.difference_bytes.abs().diff().dropna() <= 0).all()
    assert found.reserved_bytes == m.peak_bytes
    assert any("gpt.py" in source for source in frame.index)


def test_an_explanation_finds_the_line_that_xla_fuses():
    """Liveness counts two copies of an array that XLA never stores; the line that makes it is named first."""

    def loss(w, x):
        h = x @ w
        wide = h[:, :, None] * h[:, None, :]  # fused into the sum that follows
        return jnp.tanh(wide).sum(2) @ w

    args = array(16, 16), array(64, 16)
    graph = tb.capture_graph_jaxpr(loss, example_inputs=args)
    measured = measure(loss, *args)
    found = tb.explain(tb.plan_save_everything(dataclasses.replace(graph, backend="")), measured)
    first = found.lines[0]
    line = loss.__code__.co_firstlineno
    assert first.source in {f"{__file__}:{line + k} ({loss.__qualname__})" for k in (2, 3)}
    assert first.difference_bytes >= 64 * 16 * 16 * 4
    assert first.measured_bytes == 0 or first.measured_bytes < first.predicted_bytes / 4
    by_model = tb.explain(tb.plan_save_everything(graph), measured)
    assert abs(by_model.lines[0].difference_bytes) < first.difference_bytes / 4


def test_explanations_are_shown(gpt_plans):
    found = tb.explain(*gpt_plans["blocks"])
    assert "\n" not in repr(found)
    assert "most at " in repr(found)
    html = dataclasses.replace(found, name="<script>", doubts=("<b>",))._repr_html_()
    assert "<script>" not in html
    assert "&lt;b&gt;" in html
    assert "measured by XLA" in html


def test_requests_for_an_explanation_that_cannot_be_met(gpt_plans):
    plan, m = gpt_plans["blocks"]
    with pytest.raises(PlanError, match="explain needs a Plan; found int"):
        tb.explain(3, m)
    with pytest.raises(MeasureError, match="explain needs a Measurement of the planned gradient; found int"):
        tb.explain(plan, 3)
    blind = dataclasses.replace(m, program=dataclasses.replace(m.program, hlo_text=""))
    with pytest.raises(MeasureError, match="no memory map"):
        tb.explain(plan, blind)


# ---- the device's own count ----


def test_cpu_keeps_no_count_of_its_peak():
    if jax.default_backend() != "cpu":
        pytest.skip("for the CPU backend")
    m = measure(lambda x: x @ x, jnp.ones((8, 8)), run=True, repeats=1)
    assert m.device_peak_bytes_before is None
    assert m.device_peak_bytes_after is None
    assert "device_peak_bytes" not in m._repr_html_()


def test_a_device_that_keeps_count_is_asked_before_and_after(monkeypatch):
    counts = iter([1000, 5000])
    module = sys.modules[measure.__module__]
    monkeypatch.setattr(module, "_device_peak_bytes", lambda device: next(counts))
    m = measure(lambda x: x @ x, jnp.ones((8, 8)), run=True, repeats=1)
    assert (m.device_peak_bytes_before, m.device_peak_bytes_after) == (1000, 5000)
    assert m._repr_html_().count("measured by the device") == 2
    assert measure(lambda x: x @ x, array(8, 8)).device_peak_bytes_after is None


@pytest.mark.gpu
def test_gpu_peak_covers_what_xla_planned():
    m = measure(lambda x: jnp.tanh(x @ x) @ x @ x, jnp.ones((2048, 2048)), run=True, repeats=2)
    assert m.device_peak_bytes_before >= m.argument_bytes
    assert m.device_peak_bytes_after >= m.device_peak_bytes_before
    assert m.device_peak_bytes_after >= m.argument_bytes + m.peak_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["products", "scan's gradient", "mlp's gradient", "planned gradient"])
def test_gpu_maps_add_up(name):
    fun, *args = PROGRAMS[name]
    found = measure(fun, *args).memory_map
    assert (found.missing, found.doubts) == ("", ())
    assert found.extent_bytes == found.temp_bytes
