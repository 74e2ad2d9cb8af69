"""`measure` against XLA's record, arithmetic that anybody can redo, and arrays of known size."""

import copy
import dataclasses
import functools
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled_programs import SQUARE, measured
from tiny_backprop.errors import MeasureError, TinyBackpropError
from tiny_backprop.integration.jax.xla.measure import Measurement, measure

KIB = 1024


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def square(x):
    return x @ x


def chain(x):
    for _ in range(4):
        x = jnp.tanh(x @ x)
    return x.sum()


def test_bytes_and_flops_of_a_matrix_product():
    m = measure(square, array(64, 64))
    assert (m.argument_bytes, m.output_bytes, m.alias_bytes) == (16 * KIB, 16 * KIB, 0)
    assert m.peak_bytes == m.temp_bytes + 16 * KIB
    assert m.flops == 2 * 64**3
    assert (m.name, m.jax_version, m.num_devices) == ("square", jax.__version__, 1)
    assert m.platform == jax.devices()[0].platform
    assert m.compile_seconds > 0
    assert m.trace_seconds > 0
    assert m.step_seconds is None


def test_a_jitted_function_is_measured_as_it_compiles_itself():
    jitted = jax.jit(jax.grad(chain))
    record = jitted.lower(array(64, 64)).compile().memory_analysis()
    m = measure(jitted, array(64, 64))
    assert m.temp_bytes == record.temp_size_in_bytes > 0
    assert m.output_bytes == record.output_size_in_bytes


def test_plain_functions_keep_their_recomputation():
    """`jax.checkpoint` saves nothing under XLA:CPU's own passes; `tiny_backprop.jit` keeps its barriers."""
    wide = jax.checkpoint(chain)
    kept = measure(jax.value_and_grad(wide), array(64, 64))
    assert kept.flops >= measure(jax.value_and_grad(chain), array(64, 64)).flops + 4 * 2 * 64**3


def test_lowered_and_compiled_programs():
    lowered = jax.jit(square).lower(array(64, 64))
    from_lowered, from_compiled = measure(lowered), measure(lowered.compile())
    assert from_lowered.trace_seconds is None
    assert from_lowered.compile_seconds > 0
    assert from_compiled.compile_seconds is None
    assert from_lowered.name == from_compiled.name == "jit_square"
    assert from_lowered.flops == from_compiled.flops == 2 * 64**3
    ran = measure(lowered.compile(), jnp.ones((64, 64)), run=True, repeats=2)
    assert 0 < ran.step_seconds < 10


def test_nothing_is_allocated_without_run():
    before = len(jax.live_arrays())
    m = measure(lambda x, *, scale: x * scale, array(2**20, 2**20), scale=array(1, 1))  # 4 TiB
    assert m.argument_bytes == 2**42 + 4
    assert len(jax.live_arrays()) == before


def test_run_calls_the_function_repeats_times_and_once_to_warm_up():
    calls = []

    def count_calls(x):
        jax.debug.callback(lambda: calls.append(1))
        return x + 1.0

    m = measure(count_calls, jnp.ones(3), run=True, repeats=4)
    jax.effects_barrier()
    assert len(calls) == 5
    assert m.step_seconds > 0
    assert any("callback" in target for target in m.uncounted_calls)
    assert "without" in repr(m)


def test_donated_arguments_are_aliased_and_survive():
    x = jnp.ones((64, 64))
    m = measure(jax.jit(lambda x: x + 1.0, donate_argnums=0), x, run=True, repeats=2)
    assert m.alias_bytes == 16 * KIB
    assert m.peak_bytes == m.temp_bytes
    assert not x.is_deleted()


def test_static_arguments_can_run():
    jitted = jax.jit(lambda x, n: x * n, static_argnums=1)
    assert measure(jitted, jnp.ones(4), 3, run=True, repeats=1).step_seconds > 0


def test_keyword_arguments_named_run_go_through_partial():
    m = measure(functools.partial(lambda x, run: x + run, run=1.0), array(4))
    assert m.flops == 4


def test_representations():
    m = measure(square, array(64, 64))
    assert "\n" not in repr(m)
    assert repr(m).startswith("Measurement(square: peak 16 KiB")
    risky = dataclasses.replace(m, name="<script>", uncounted_calls=("<b>",), unknown_trip_counts=2, step_seconds=0.002)
    html = risky._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html
    assert "2 loops of unknown length" in html
    assert html.count("measured by XLA") == 6
    assert html.count("counted from the compiled HLO") == 1
    assert "2 ms" in html
    assert "src=" not in html


def test_a_failing_display_shows_its_reason(monkeypatch):
    def fail(self):
        raise RuntimeError("<no table today>")

    monkeypatch.setattr(Measurement, "_html", fail)
    html = measure(square, array(4, 4))._repr_html_()
    assert "&lt;no table today&gt;" in html
    assert "Measurement(square" in html


def test_to_pandas():
    frame = measure(square, array(64, 64)).to_pandas()
    fields = {field.name for field in dataclasses.fields(Measurement)}
    assert set(frame.columns) == (fields - {"program"}) | {"peak_bytes"}
    row = frame.iloc[0]
    assert row["name"] == "square"
    assert row["peak_bytes"] == row["temp_bytes"] + row["output_bytes"] - row["alias_bytes"]
    assert np.issubdtype(frame["flops"].dtype, np.floating)


def test_measurements_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        measure(square, array(4, 4)).flops = 0.0


def test_requests_that_cannot_be_met():
    with pytest.raises(MeasureError, match="cannot measure a int: expected a function"):
        measure(3)
    with pytest.raises(TinyBackpropError, match=r"run=True needs arrays, but 1 .*\[0\]\[1\].*memory only"):
        measure(jnp.add, jnp.ones(2), array(2), run=True)
    for repeats in (0, -1, 2.5, True):
        with pytest.raises(MeasureError, match=f"repeats={repeats}"):
            measure(square, jnp.ones((2, 2)), run=True, repeats=repeats)


@pytest.mark.parametrize("method", ["memory_analysis", "as_text"])
def test_a_backend_without_records_is_named(monkeypatch, method):
    monkeypatch.setattr(jax.stages.Compiled, method, lambda self: None)
    with pytest.raises(MeasureError, match=rf"{jax.default_backend()}.*{method}"):
        measure(square, array(4, 4))

    def fail(self):
        raise NotImplementedError("not here")

    monkeypatch.setattr(jax.stages.Compiled, method, fail)
    with pytest.raises(MeasureError, match="not here"):
        measure(square, array(4, 4))


def test_errors_of_the_function_itself_pass_unchanged():
    with pytest.raises(TypeError, match="dot"):
        measure(square, array(2, 3))


def test_a_measurement_stays_a_plain_value():
    m = measured("scan")
    assert m.memory_map is m.memory_map
    for twin in (copy.copy(m), pickle.loads(pickle.dumps(m)), dataclasses.replace(m)):
        assert twin == m
        assert hash(twin) == hash(m)
        assert twin.memory_map.buffers == m.memory_map.buffers
    assert "HloModule" not in repr(m) + m._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.memory_map = None


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
