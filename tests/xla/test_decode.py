"""Memory maps of damaged and contradictory records: they say what is wrong, and never lie."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from tests.compiled_programs import SQUARE, array, mlp
from tiny_backprop import MeasureError, measure, plot_memory_map
from tiny_backprop.integration.jax.xla.decode import decode
from tiny_backprop.integration.jax.xla.memory_map import Program

KIB = 1024


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
        lambda: plot_memory_map(found),
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
    assert "doubts, see .doubts" in plot_memory_map(found).get_title()
