"""Every error and warning that tiny_backprop raises by itself; all errors share one base class."""


class TinyBackpropError(Exception):
    """Base class of tiny_backprop's errors."""


class GraphError(TinyBackpropError, ValueError):
    """A graph is malformed, or a saved graph cannot be read."""


class CaptureError(TinyBackpropError):
    """A function cannot be captured as a graph."""


class UntraceableError(CaptureError):
    """A function looks at the values of its arguments, which tracing does not have."""


class PlanError(TinyBackpropError, ValueError):
    """A plan was asked for that cannot be made, or does not fit the graph it is used with."""


class IllegalPlanError(PlanError):
    """A plan breaks a rule of the referee: it reads, saves or frees a value that is not there."""


class MeasureError(TinyBackpropError):
    """A program cannot be measured as asked."""


class FallbackWarning(UserWarning):
    """A gradient could not be planned and `jax.grad` ran instead.

    Pass `on_error="raise"` to have the reason raised, or silence it with
    `warnings.simplefilter("ignore", tiny_backprop.FallbackWarning)`.
    """
