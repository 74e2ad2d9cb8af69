"""The live trade-off."""

import pytest
import traitlets

from tests.widgets.viewed import GRAPH
from tiny_backprop import (
    pareto,
)
from tiny_backprop_widgets import ParetoView


def test_points_are_plans_and_the_current_plan_is_marked():
    found = pareto(GRAPH, n_points=6)
    view = ParetoView(found, current=found.knee)
    curve = view._curve
    assert [p["peak_bytes"] for p in curve["points"]] == [p.peak_bytes for p in found.plans]
    assert curve["points"][curve["knee"]]["peak_bytes"] == found.knee.peak_bytes
    assert {p["name"] for p in curve["references"]} == set(found.references)
    assert curve["current"]["peak_bytes"] == found.knee.peak_bytes
    assert view.plan is None
    view.value = 1
    assert view.plan is found.plans[1]
    with pytest.raises(traitlets.TraitError, match=f"value is the number of a plan, 0 to {len(found) - 1}; found 99"):
        view.value = 99
    view.show(found.plans[0])
    assert view.value == 0
    view.show(None)
    assert (view.value, view._curve["current"]) == (None, None)
