"""`compare`: rows, columns, and what they are measured by."""

import jax
import jax.numpy as jnp
import pytest

import tiny_backprop as tb
from tests.programs import KEY, PARAMS, X, loss
from tiny_backprop import PlanError


def test_rows_and_columns():
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, X, KEY))
    graph = tb.capture_gradient(loss, *structs)
    names = []
    plans = {"mine": tb.plan_blocks(graph, 12)}
    table = tb.compare(loss, *structs, plans=plans, stock_policies=["dots_saveable"], progress=names.append)
    assert list(table.index) == names == ["jax.value_and_grad", "mine", "jax.checkpoint, dots_saveable"]
    assert table.predicted_peak_bytes["mine"] == plans["mine"].peak_bytes
    assert table.predicted_peak_bytes.isna().tolist() == [False, False, True]
    plain = jax.jit(jax.value_and_grad(loss)).lower(*structs).compile().memory_analysis()
    assert table.measured_temp_bytes.iloc[0] == plain.temp_size_in_bytes
    assert table.measured_peak_bytes.iloc[0] == plain.temp_size_in_bytes + plain.output_size_in_bytes
    assert table.temp_ratio.iloc[0] == table.flops_ratio.iloc[0] == 1
    assert table.flops_ratio["mine"] > 1
    assert "measured_step_seconds" not in table


def test_default_plans_timing_and_errors():
    table = tb.compare(lambda x: jnp.sum(jnp.sin(jnp.sin(x))), X, stock_policies=(), run=True)
    assert len(table) == 3
    assert (table.measured_step_seconds > 0).all()
    assert table.time_ratio.iloc[0] == 1
    with pytest.raises(PlanError, match=r"'none' is no policy of jax\.checkpoint_policies"):
        tb.compare(loss, PARAMS, X, KEY, plans=[], stock_policies=["none"])
    with pytest.raises(PlanError, match="the plan was made for a graph"):
        tb.compare(loss, PARAMS, X, KEY, plans=[tb.plan_blocks(tb.capture_gradient(loss, PARAMS, X[:2], KEY), 3)])
