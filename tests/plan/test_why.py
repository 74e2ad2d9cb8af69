"""Why a value is saved or made anew: readers, prices and changes, against the graph and the referee."""

import jax
import numpy as np
import pytest

from tests.graphs import chain
from tests.programs import KEY, PARAMS, X, loss
from tiny_backprop import PlanError, capture_gradient, plan_blocks, plan_budget, plan_save_everything
from tiny_backprop.schedule.simulate import Op


def test_a_chain_in_blocks():
    graph = chain(9)
    plan = plan_blocks(graph, 3)
    answers = [plan.why(v)[0] for v in range(1, 9)]  # value 0 is the input
    saved = set(plan.saved.tolist())
    assert {a.value.index for a in answers if a.fate == "saved"} == saved
    for a in answers:
        assert [n.index for n in a.needed_by] == [17 - a.value.index]  # f[v - 1] is read by b[v], node 9 + 8 - v
        since = max((v for v in saved if v < a.value.index), default=0)
        assert [n.index for n in a.recompute_nodes] == list(range(since, a.value.index))
        assert a.recompute_flops == a.value.index - since
    (last,) = plan.why(9)
    assert last.fate == "freed"
    assert "no backward node reads it" in last.verdict


def test_by_line_and_by_scope_the_largest_first():
    with jax.numpy_rank_promotion("allow"):
        graph = capture_gradient(loss, PARAMS, X, KEY)
    plan = plan_budget(graph, 0.8)
    answers = plan.why("programs.py:")
    assert {a.value.index for a in answers} == set(graph.residuals.tolist())
    assert np.all(np.diff([a.value.bytes for a in answers]) <= 0)
    again = set(plan.timeline.steps[plan.timeline.ops == Op.RECOMPUTE].tolist())
    for a in answers:
        if a.fate == "recomputed":
            assert a.value.node in again or a.value.node in plan.timeline.steps[plan.timeline.n_forward_steps :]
    assert {a.fate for a in answers} == {"saved", "recomputed"}
    assert plan.why("programs.py:")[0].recompute_seconds > 0


def test_where_the_answer_changes():
    graph = chain(40, n_bytes=1000)
    plan = plan_budget(graph, 0.4)
    changing = [a for v in range(1, 40) if (a := plan.why(v)[0]).changes]
    assert changing
    for a in changing[:5]:
        for n_bytes, fate in a.changes:
            assert fate != a.fate
            assert plan_budget(graph, n_bytes).why(a.value.index)[0].fate == fate
    everything = plan_save_everything(graph)
    assert all(n < everything.peak_bytes for n, _ in everything.why(5)[0].changes)
    text = changing[0]._repr_html_()
    assert "needed by node" in text
    assert "within" in text


def test_what_is_not_there_is_refused():
    plan = plan_save_everything(chain(3))
    with pytest.raises(PlanError, match="value 99 was asked for; the forward phase makes values 1 to 3"):
        plan.why(99)
    with pytest.raises(PlanError, match=r"no residual of 'graph' has a source line or scope with 'nowhere\.py'"):
        plan.why("nowhere.py")
