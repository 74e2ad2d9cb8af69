"""Where the predicted and the measured bytes of a peak are: explanations add up, and name lines."""

import dataclasses

import jax.numpy as jnp
import pytest

import tiny_backprop as tb
from tests.compiled_programs import array, gpt_plan
from tiny_backprop import MeasureError, PlanError, measure
from tiny_backprop.integration.jax.xla.explain import OUTPUTS_TO_COME

KIB = 1024


@pytest.mark.parametrize("name", ["save everything", "blocks"])
def test_explanations_add_up_on_both_sides(name):
    plan, m = gpt_plan(name)
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


def test_explanations_are_shown():
    found = tb.explain(*gpt_plan("blocks"))
    assert "\n" not in repr(found)
    assert "most at " in repr(found)
    html = dataclasses.replace(found, name="<script>", doubts=("<b>",))._repr_html_()
    assert "<script>" not in html
    assert "&lt;b&gt;" in html
    assert "measured by XLA" in html


def test_requests_for_an_explanation_that_cannot_be_met():
    plan, m = gpt_plan("blocks")
    with pytest.raises(PlanError, match="explain needs a Plan; found int"):
        tb.explain(3, m)
    with pytest.raises(MeasureError, match="explain needs a Measurement of the planned gradient; found int"):
        tb.explain(plan, 3)
    blind = dataclasses.replace(m, program=dataclasses.replace(m.program, hlo_text=""))
    with pytest.raises(MeasureError, match="no memory map"):
        tb.explain(plan, blind)
