"""XLA's figures in the explorer: asked for, cancelled, kept with their plan."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import tiny_backprop
from tests.widgets.explored import ARGS, CHAIN, loss
from tiny_backprop import (
    PlanError,
)
from tiny_backprop.units import format_bytes
from tiny_backprop_widgets import PlanExplorer
from tiny_backprop_widgets.panels import verify_panel


def test_verify_shows_what_xla_allocates_for_this_plan():
    ui = PlanExplorer(loss, *ARGS, argnums=(0, 1), scale=2.0)
    ui.budget.value = 0.7
    click_and_wait(ui)
    assert ui.errors == []
    planned = tiny_backprop.height_compressed_value_and_grad(loss, plan=ui.plan, argnums=(0, 1))
    expected = tiny_backprop.measure(planned, *ARGS, scale=2.0)
    measured = ui.measurement
    assert measured is ui.verify()
    assert (measured.temp_bytes, measured.output_bytes) == (expected.temp_bytes, expected.output_bytes)
    text = re.sub("<[^>]*>", "", ui._verify_panel.line.value)
    assert f"measured by XLA on {expected.platform}: {format_bytes(expected.peak_bytes)} (temp " in text
    assert f"predicted {format_bytes(ui.plan.peak_bytes)}" in text
    away = measured.peak_bytes - ui.budget.bytes
    assert (f"{format_bytes(away)} above the budget" if away > 0 else "within the budget of") in text
    assert ui._verify_panel.button.layout.display is None


def test_what_was_measured_stays_with_its_plan(monkeypatch):
    calls = []
    real = verify_panel.Compilation
    monkeypatch.setattr(verify_panel, "Compilation", lambda *args: calls.append(args) or real(*args))
    ui = PlanExplorer(loss, *ARGS)
    ui.block_size.value = 4
    click_and_wait(ui)
    text = ui._verify_panel.line.value
    assert "measured by XLA" in text
    assert "budget" not in text
    ui.block_size.value = 5
    assert ui._verify_panel.line.value == ""
    ui.block_size.value = 4
    assert ui._verify_panel.line.value == text
    click_and_wait(ui)
    assert len(calls) == 1


def test_arguments_named_as_those_of_measure_are_the_functions():
    def fun(x, run=False, repeats=1):
        return jnp.sum(jnp.sin(x) * repeats)

    ui = PlanExplorer(fun, jnp.ones(4), run=True, repeats=3)
    assert ui.verify().step_seconds is None


def test_arguments_that_are_no_arrays_are_passed_on():
    def fun(x, activation, offset):
        return jnp.sum(activation(x) + offset)

    ui = PlanExplorer(fun, jnp.ones(4), jnp.sin, offset=1.5)
    assert ui.verify().output_bytes >= 4 + 16


def test_a_graph_alone_cannot_be_verified():
    ui = PlanExplorer(CHAIN)
    assert ui._verify_panel.children == ()
    with pytest.raises(PlanError, match=r"make the explorer by PlanExplorer\(fun, \*args\)"):
        ui.verify()


def test_a_gradient_that_cannot_be_compiled_says_so_in_place():
    ui = PlanExplorer(lambda x: jnp.sin(jnp.sin(x)), jnp.ones(4))
    click_and_wait(ui)
    assert "needs one real number as output" in ui._guarded.message.value
    assert ui._verify_panel.line.value == ""
    assert ui._verify_panel.button.layout.display is None
    assert len(ui.errors) == 1
    ui.block_size.value = 2
    assert ui._guarded.message.value == ""


def test_a_compilation_that_is_cancelled_is_forgotten_and_its_process_ends():
    ui = PlanExplorer(loss, *ARGS)
    ui._verify_panel.button.click()
    compilation = ui._verify_panel.compilation
    assert "tracing" in ui._verify_panel.line.value or "compiling" in ui._verify_panel.line.value
    while compilation._process is None and compilation.is_running:
        compilation.join(0.01)
    ui._verify_panel.cancel_button.click()
    compilation.join(60)
    assert compilation._process.returncode == -9
    assert (ui.measurement, ui._verify_panel.compilation, compilation.measurement) == (None, None, None)
    assert ui._verify_panel.line.value == "cancelled"
    assert ui.errors == []
    click_and_wait(ui)
    assert ui.measurement.temp_bytes > 0


def test_sliders_work_while_xla_compiles_and_the_figures_stay_with_their_plan():
    ui = PlanExplorer(loss, *ARGS)
    ui.block_size.value = 4
    plan, compilation = ui.plan, start(ui)
    ui.block_size.value = 2
    compilation.join(120)
    assert ui.measurement is None
    ui.block_size.value = 4
    assert ui.plan == plan
    assert ui.measurement == dataclasses.replace(
        compilation.measurement, name="loss"
    )  # not what was compiled around it


def test_what_cannot_be_exported_is_compiled_in_the_kernel():
    def fun(x):
        jax.debug.print("x {}", x[0])
        return jnp.sum(jnp.sin(x))

    ui = PlanExplorer(fun, jnp.ones(4))
    compilation = start(ui)
    compilation.join(120)
    assert compilation._process is None
    assert "in the kernel's own process" in compilation.stage
    assert ui.measurement.output_bytes >= 4 + 16


def start(ui):
    """Click on Verify and return the compilation."""
    ui._verify_panel.button.click()
    return ui._verify_panel.compilation


def click_and_wait(ui):
    """Click on Verify and wait for what comes of it."""
    compilation = start(ui)
    if compilation is not None:
        compilation.join(120)
        assert not compilation.is_running
