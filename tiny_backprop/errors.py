"""Every error and warning that tiny_backprop raises by itself; all errors share one base class."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)


class TinyBackpropError(Exception):
    """Base class of tiny_backprop's errors."""


class GraphError(TinyBackpropError, ValueError):
    """A graph is malformed, or a saved graph cannot be read."""


class CaptureError(TinyBackpropError):
    """A function cannot be captured as a graph."""


class UntraceableError(CaptureError):
    """A function looks at the values of its arguments, which tracing does not have."""


class RefError(UntraceableError):
    """A function reads or writes a ref (`jax.new_ref`), which no plan covers: its reads and writes have an order."""


class IrreversibleError(CaptureError, ValueError):
    """JAX cannot differentiate a function in reverse mode."""


class PlanError(TinyBackpropError, ValueError):
    """A plan was asked for that cannot be made, or does not fit the graph it is used with."""


class IllegalPlanError(PlanError):
    """A plan breaks a rule of the referee: it reads, saves or frees a value that is not there."""


class BudgetError(PlanError):
    """No plan was found that fits the byte budget.

    Attributes:
      budget_bytes: What was asked for.
      smallest_peak_bytes: The smallest peak that the planner can reach.
      bound_bytes: What every plan needs at least, because one node's operands and outputs take it.
    """

    def __init__(self, message: str, budget_bytes: int, smallest_peak_bytes: int, bound_bytes: int):
        super().__init__(message)
        self.budget_bytes = budget_bytes
        self.smallest_peak_bytes = smallest_peak_bytes
        self.bound_bytes = bound_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.budget_bytes, self.smallest_peak_bytes, self.bound_bytes), self.__dict__


class MeasureError(TinyBackpropError):
    """A program cannot be measured as asked."""


class FallbackWarning(UserWarning):
    """A gradient could not be planned and `jax.grad` ran instead, or, of a checkpointed function, `jax.checkpoint`.

    Pass `on_error="raise"` to gradient functions to have the reason raised, or silence it with
    `warnings.simplefilter("ignore", tiny_backprop.FallbackWarning)`.
    """


class NoGainWarning(UserWarning):
    """A planned gradient is predicted to take more memory than JAX's own.

    Where a plan was asked for, by `block_size`, `levels`, `loops` or as a plan, it runs all the same; where none was,
    JAX's own gradient runs instead. Silence it with
    `warnings.simplefilter("ignore", tiny_backprop.NoGainWarning)`.
    """


class LeftAloneWarning(UserWarning):
    """Something that no plan can touch holds more than a tenth of a gradient's peak; `plan.left_alone` lists it all.

    Silence it with `warnings.simplefilter("ignore", tiny_backprop.LeftAloneWarning)`.
    """


class CotangentWarning(UserWarning):
    """A gradient was captured of a function that `jax.grad` refuses, because it returns more than one number.

    What is captured has a cotangent for each array that is returned. Return the loss alone, or a pair and say
    `has_aux=True`; or silence it with `warnings.simplefilter("ignore", tiny_backprop.CotangentWarning)`.
    """


class CalibrationWarning(UserWarning):
    """A machine was busy with something else while `calibrate` measured it.

    Measure anew with `calibrate(again=True)`, or silence it with
    `warnings.simplefilter("ignore", tiny_backprop.CalibrationWarning)`.
    """


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line, outside of this package and of JAX, from which it was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and (frame.f_code.co_filename.startswith(_HERE) or _is_jax(frame.f_globals)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_jax(names: dict[str, object]) -> bool:
    return str(names.get("__name__", "")).partition(".")[0] == "jax"
