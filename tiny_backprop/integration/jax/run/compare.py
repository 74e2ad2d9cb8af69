"""`compare`: plans of one gradient side by side, predicted beside measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from tiny_backprop.door import FUNCTION, TEXTS, Kind, door
from tiny_backprop.errors import PlanError
from tiny_backprop.integration.jax.capture.call import Call, check_argnums, check_donate_argnums, joined, separated
from tiny_backprop.integration.jax.capture.capture import capture_program
from tiny_backprop.integration.jax.run.gradient import height_compressed_value_and_grad
from tiny_backprop.integration.jax.xla.jit import jit
from tiny_backprop.integration.jax.xla.measure import Measurement, measure
from tiny_backprop.plan.blocks import plan_blocks, plan_height_compressed, plan_jax_gradient
from tiny_backprop.plan.plan import Plan
from tiny_backprop.schedule.cost import CostModel

if TYPE_CHECKING:
    import pandas as pd

_PLANS = Kind(
    "plans in a sequence, or in a mapping by their names",
    lambda x: (
        isinstance(x, (Sequence, Mapping))
        and all(isinstance(p, Plan) for p in (x.values() if isinstance(x, Mapping) else x))
    ),
    "Make them: plan_blocks(capture_gradient(fun, *args), block_size)",
)
_STOCK_POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)


@door(PlanError, fun=FUNCTION, plans=_PLANS.or_none(), stock_policies=TEXTS, progress=FUNCTION.or_none())
def compare(
    fun: Callable[..., Any],
    *args: Any,
    plans: Sequence[Plan] | Mapping[str, Plan] | None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    stock_policies: Sequence[str] = _STOCK_POLICIES,
    run: bool = False,
    cost_model: CostModel | None = None,
    progress: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    """Compile a function's value and gradient in several ways and return what each costs.

    All are compiled with the options of `tiny_backprop.jit`, so that XLA keeps everybody's recomputation.

    Args:
      fun: See `height_compressed_grad`.
      *args: Positional arguments: arrays or, unless `run`, `jax.ShapeDtypeStruct` objects.
      plans: Plans for this function and these shapes, as a mapping their names too; by default the best plan in blocks
        and the best with two levels.
      argnums: Which positional arguments to differentiate by.
      has_aux: Whether `fun` returns a pair whose second part is not differentiated.
      donate_argnums: Which positional arguments each of the programs may write over.
      stock_policies: Names in `jax.checkpoint_policies` to put around the whole function, each a row of its own.
      run: Whether to time each, too.
      cost_model: By which step times are predicted; see `calibrate`. Without one they are not.
      progress: Called with the name of each row before it is compiled.
      **kwargs: Keyword arguments of `fun`.

    Returns:
      One row each for `jax.value_and_grad`, the plans and the policies. `predicted_*` columns are empty where there is
      no plan; `measured_*` are XLA's: `measured_temp_bytes` is what it allocates for temporaries, `measured_peak_bytes`
      temporaries and outputs together, to be held against `predicted_peak_bytes`; `measured_flops` is counted in the
      compiled program. `is_worse` marks what is predicted or measured to take more memory than the first row.
      `temp_ratio` and `flops_ratio` are measured, in proportion to the first row; so is `time_ratio`, which is there
      with `run`, as `measured_step_seconds` is. `predicted_step_seconds` is there with a `cost_model`; of it, too, only
      the ratios mean much.

    Raises:
      PlanError: A plan does not fit, or a policy has no such name.
      CaptureError: The function cannot be differentiated, or an index names no argument.
    """
    import pandas as pd

    call = Call.of(fun, args, kwargs, argnums)
    donated = check_donate_argnums(call, donate_argnums)
    graph = capture_program(call, check_argnums(call, argnums), has_aux=has_aux, donated=donated)[0].graph
    if plans is None:
        plans = [plan_blocks(graph), plan_height_compressed(graph, levels=2)]
    named = dict(plans) if isinstance(plans, Mapping) else _named(plans)
    ways: list[tuple[str, Callable[..., Any], Plan | None]] = [
        ("jax.value_and_grad", jax.value_and_grad(fun, argnums, has_aux=has_aux), plan_jax_gradient(graph))
    ]
    for name, plan in named.items():
        planned = height_compressed_value_and_grad(fun, plan=plan, argnums=argnums, has_aux=has_aux, on_error="raise")
        ways.append((name, planned, plan.on(graph)))
    for name in stock_policies:
        policy = getattr(jax.checkpoint_policies, name, None)
        if policy is None:
            raise PlanError(f"{name!r} is no policy of jax.checkpoint_policies")
        inner = jax.checkpoint(fun, policy=policy)
        ways.append((f"jax.checkpoint, {name}", jax.value_and_grad(inner, argnums, has_aux=has_aux), None))
    rows = {}
    for name, way, plan in ways:
        if progress:
            progress(name)
        rows[name] = _row(
            plan, measure(_program(call, way, donated), *separated(call.arrays, donated), run=run), cost_model
        )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("gradient")
    first = table.iloc[0]
    predicted = table.predicted_peak_bytes > first.predicted_peak_bytes
    table["is_worse"] = predicted.astype(bool) | (table.measured_peak_bytes > first.measured_peak_bytes)
    table["temp_ratio"] = table.measured_temp_bytes / first.measured_temp_bytes
    table["flops_ratio"] = table.measured_flops / first.measured_flops
    if run:
        table["time_ratio"] = table.measured_step_seconds / first.measured_step_seconds
    return table


def _program(call: Call, way: Callable[..., Any], donated: Sequence[int]) -> Callable[..., Any]:
    """Return the compiled function of donated and other arrays that calls a gradient as its function was called."""
    called = dataclasses.replace(call, fun=way)
    return jit(lambda given, others: called.with_arrays(joined(given, others, donated)), donate_argnums=0)


def _named(plans: Sequence[Plan]) -> dict[str, Plan]:
    named: dict[str, Plan] = {}
    for i, plan in enumerate(plans):
        name = ", ".join(f"{k} {plan.meta[k]}" for k in ("strategy", "levels", "block_size") if k in plan.meta)
        named[name if name and name not in named else f"{name or 'plan'} ({i})"] = plan
    return named


def _row(plan: Plan | None, m: Measurement, cost_model: CostModel | None) -> dict[str, Any]:
    row = {
        "predicted_peak_bytes": plan.peak_bytes if plan else None,
        "predicted_saved_bytes": plan.saved_bytes if plan else None,
        "predicted_flops": plan.flops if plan else None,
        "measured_temp_bytes": m.temp_bytes,
        "measured_output_bytes": m.output_bytes,
        "measured_peak_bytes": m.peak_bytes,
        "measured_flops": m.flops,
        "compile_seconds": m.compile_seconds,
    }
    if cost_model is not None:
        row["predicted_step_seconds"] = plan.step_seconds(cost_model) if plan else None
    if m.step_seconds is not None:
        row["measured_step_seconds"] = m.step_seconds
    return row
