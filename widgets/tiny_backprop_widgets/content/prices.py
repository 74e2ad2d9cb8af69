"""What a plan is called, what it costs, and whether that is within its budget: in words, for panels and reports."""

from __future__ import annotations

import html
from collections.abc import Mapping

from tiny_backprop.plan.baseline import predict_jax_gradient
from tiny_backprop.plan.blocks import plan_jax_gradient
from tiny_backprop.plan.loops.front import lower_bound_bytes
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.cost import CostModel
from tiny_backprop.units import format_bytes, format_flops

PRICE_HEADER = (
    "predicted",
    "peak",
    "of save everything",
    "saved",
    "recompute",
    "steps",
    "step time",
    "liveness, of its lower bound",
)


def plan_name(plan: Plan) -> str:
    """Return how a plan was asked for, such as "blocks, levels 1, block size 64" or "byte budget, 24 MiB"."""
    meta = plan.meta
    if "budget_bytes" in meta:
        return f"{meta.get('strategy', 'plan')}, {format_bytes(meta['budget_bytes'])}"
    parts = [f"{k.replace('_', ' ')} {meta[k]}" for k in ("levels", "block_size") if k in meta]
    return ", ".join([str(meta.get("strategy", "plan")), *parts])


def price_rows(plans: Mapping[str, Plan], plain: Plan, cost_model: CostModel | None) -> list[tuple[str, ...]]:
    """Return, for each plan, the cells under `PRICE_HEADER`, all predicted.

    Args:
      plans: The plans by name.
      plain: Save-everything.
      cost_model: That of the machine; without one, ratios of step times are by the default model, and say so.
    """
    model = cost_model or CostModel()
    plain_seconds = max(plain.step_seconds(model), 1e-12)
    plain_bytes = max(plain.peak_bytes, 1)
    bound_bytes = max(lower_bound_bytes(plain.graph), 1)
    return [
        (
            name,
            format_bytes(p.peak_bytes),
            f"{p.peak_bytes / plain_bytes:.2f} ×",
            format_bytes(p.saved_bytes),
            f"+{p.recompute_fraction:.1%} ({format_flops(p.recompute_flops)})",
            f"{len(p.timeline.steps):,}",
            _step_time(p.step_seconds(model), plain_seconds, cost_model is not None),
            f"{p.liveness_peak_bytes / bound_bytes:.2f} × {format_bytes(bound_bytes)}",
        )
        for name, p in plans.items()
    ]


def references(plain: Plan) -> dict[str, Plan]:
    """Return what plans are held against: save-everything, and JAX's own gradient where the program has checkpoints."""
    own = {"jax.grad, your jax.checkpoint": plan_jax_gradient(plain.graph)} if plain.graph.has_checkpoints else {}
    return {**own, "save everything": plain}


def remarks_html(plan: Plan) -> str:
    """Say where a plan takes more than JAX's gradient, what `jax.checkpoint` does, and what is left as JAX has it."""
    listed = {"Your jax.checkpoint": plan.checkpointed_calls, "Left as JAX has it": plan.left_alone}
    remarks = [f"{what}: {'; '.join(map(str, those))}" for what, those in listed.items() if those]
    jax_bytes = predict_jax_gradient(plan.graph).peak_bytes if plan.graph.backend else plan.peak_bytes
    if plan.peak_bytes > jax_bytes:
        remarks.insert(0, f"More than jax.grad takes: {format_bytes(jax_bytes)} (predicted)")
    return "".join(f"<div>{html.escape(x)}</div>" for x in remarks)


def _step_time(seconds: float, plain_seconds: float, is_calibrated: bool) -> str:
    return f"{seconds / plain_seconds:.2f} × ({format_seconds(seconds) if is_calibrated else 'not calibrated'})"


def format_seconds(seconds: float) -> str:
    """Return seconds with a unit and three significant digits."""
    unit = next((u for u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= u[0]), (1e-6, "µs"))
    return f"{seconds / unit[0]:.3g} {unit[1]}"


def of_budget(plan: Plan, peak_bytes: int) -> str:
    """Say, as HTML, whether what XLA allocates is within the budget that a plan was made for; "" where it had none."""
    budget = plan.meta.get("budget_bytes")
    if budget is None:
        return ""
    if peak_bytes <= budget:
        return f"; <b>within</b> the budget of {format_bytes(budget)}"
    above = f"; <b>{format_bytes(peak_bytes - budget)} above</b> the budget of {format_bytes(budget)}"
    return f"{above}, which is for predicted bytes: <code>verify=True</code> makes it one for measured ones"
