"""What it costs to run a node: seconds by a roofline for each class of primitives, or FLOPs alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tiny_backprop.door import Kind
from tiny_backprop.errors import PlanError
from tiny_backprop.graph import Graph

CLASSES = (
    "matmul",
    "convolution",
    "kernel_gradient",
    "transcendental",
    "special",
    "elementwise",
    "reduction",
    "movement",
    "transpose",
    "scatter",
    "random",
    "other",
)
"""Classes of primitives whose speeds a `CostModel` can tell apart; see `node_classes`."""
_PRIMITIVES = {
    "matmul": "dot_general ragged_dot_general scaled_dot scaled_matmul",
    "convolution": "conv_general_dilated",
    "transcendental": "erf exp exp2 expm1 log log1p log2 logistic tanh",
    # Those that XLA:CPU computes element by element, or several times slower than the ones above.
    "special": "acos acosh asin asinh atan atan2 atanh cbrt cos cosh pow rem rsqrt sin sinh tan",
    # With those that XLA writes out as many cheap operations, which `flops` counts.
    "elementwise": "abs add add_any and bessel_i0e bessel_i1e bitcast_convert_type ceil clamp clz complex conj "
    "convert_element_type copy digamma div eq eq_to erf_inv erfc floor ge gt imag integer_pow is_finite "
    "le le_to lgamma lt lt_to max min mul ne neg nextafter not one_minus_square or polynomial population_count real "
    "reduce_precision round select_n shift_left shift_right_arithmetic shift_right_logical sign sqrt square sub xor",
    "reduction": "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min "
    "reduce_or reduce_prod reduce_sum reduce_window reduce_window_max reduce_window_min reduce_window_sum "
    "reduce_xor",
    "movement": "broadcast_in_dim concatenate dynamic_slice dynamic_update_slice gather iota pad reshape rev slice "
    "split squeeze stack tile unstack",
    "transpose": "transpose",
    "scatter": "scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub select_and_gather_add "
    "select_and_scatter select_and_scatter_add",
    "random": "philox2x32 philox4x32 random_bits random_fold_in random_gamma random_seed random_split "
    "rng_bit_generator rng_uniform threefry2x32 threefry4x32",
}
_CLASS_OF = {p: CLASSES.index(name) for name, primitives in _PRIMITIVES.items() for p in primitives.split()}
_OTHER = CLASSES.index("other")
_NEVER_NEGATIVE = ("seconds_per_kernel", "seconds_per_loop_step", "seconds_per_fresh_byte", "least_fresh_bytes")


@dataclasses.dataclass(frozen=True)
class CostModel:
    """A roofline: what is run takes as long as its FLOPs or its bytes, whichever takes longer (Williams et al. 2009).

    Planners price nodes one by one, as if nothing were fused; for the choice of a plan only ratios of speeds matter.
    `Plan.step_seconds` prices kernels, as XLA is predicted to fuse them, and all that is below. The defaults are a few
    cores of a CPU; `calibrate` measures the machine, `CostModel.preset` gives data-sheet speeds of common accelerators.
    doi:10.1145/1498765.1498785

    Attributes:
      flops_per_second: Floating-point operations per second.
      bytes_per_second: Bytes moved per second.
      by_class: For some of `CLASSES`, its own FLOPs and bytes per second instead.
      seconds_per_kernel: What starting a kernel takes.
      seconds_per_loop_step: What a step of a loop takes beside its kernels.
      seconds_per_fresh_byte: What it takes to have a byte of memory mapped anew, in every run of a program.
      least_fresh_bytes: Allocations smaller than this are memory that was used before.
    """

    flops_per_second: float = 1e11
    bytes_per_second: float = 1e10
    by_class: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict, hash=False)
    seconds_per_kernel: float = 0.0
    seconds_per_loop_step: float = 0.0
    seconds_per_fresh_byte: float = 0.0
    least_fresh_bytes: int = 0

    def __post_init__(self):
        for name in ("flops_per_second", "bytes_per_second"):
            _check_speed(name, getattr(self, name))
        for name in _NEVER_NEGATIVE:
            if not _is_number(getattr(self, name)) or not getattr(self, name) >= 0:
                raise PlanError(f"{name} must be a number, 0 or more; found {getattr(self, name)!r}")
        if not isinstance(self.by_class, Mapping):
            raise PlanError(f"by_class must map classes to pairs of speeds; found {self.by_class!r}")
        for name, speeds in self.by_class.items():
            if name not in CLASSES:
                raise PlanError(f"{name!r} is no class of primitives; there are {', '.join(CLASSES)}")
            if not isinstance(speeds, tuple | list) or len(speeds) != 2:
                raise PlanError(f"by_class[{name!r}] must be (FLOPs per second, bytes per second); found {speeds!r}")
            for unit, speed in zip(("FLOPs", "bytes"), speeds, strict=True):
                _check_speed(f"{unit} per second of {name!r}", speed)
        object.__setattr__(self, "by_class", {k: (float(f), float(b)) for k, (f, b) in self.by_class.items()})

    @classmethod
    def preset(cls, name: str) -> CostModel:
        """Return the data-sheet speeds of a common accelerator: peaks, which programs come near, but do not reach.

        Matrix products and convolutions have the peak of dense bfloat16, which halves for TF32; all else has that of
        the vector units in float32. What a kernel takes to start is left out. Sources stand beside the figures.

        Args:
          name: One of `PRESETS`, such as `"h100"` or `"tpu v5p"`; capitals, `_` and `-` do not matter.

        Raises:
          PlanError: There is no such preset.
        """
        known = name.lower().replace("_", " ").replace("-", " ") if isinstance(name, str) else ""
        if known not in PRESETS:
            raise PlanError(f"{name!r} is no preset; there are {', '.join(PRESETS)}")
        return PRESETS[known]

    def speeds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return FLOPs per second, and bytes per second, of each of `CLASSES`."""
        default = self.flops_per_second, self.bytes_per_second
        flops, moved = np.array([self.by_class.get(c, default) for c in CLASSES]).T
        return flops, moved

    def seconds(self, flops: np.ndarray, bytes_moved: np.ndarray, classes: np.ndarray | int = _OTHER) -> np.ndarray:
        """Return the predicted seconds of nodes, each priced by itself.

        Args:
          flops: Their FLOPs.
          bytes_moved: The bytes that they move, of the same shape.
          classes: The place in `CLASSES` of each.

        Returns:
          float64 of the same shape.
        """
        flops_per_second, bytes_per_second = self.speeds()
        return np.maximum(flops / flops_per_second[classes], bytes_moved / bytes_per_second[classes])


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _check_speed(name: str, speed: Any) -> None:
    if not _is_number(speed) or not speed > 0:
        raise PlanError(f"{name} must be a number above 0; found {speed!r}")


def _accelerator(matmul_flops: float, vector_flops: float, bytes_per_second: float) -> CostModel:
    contractions = ("matmul", "convolution", "kernel_gradient")
    return CostModel(vector_flops, bytes_per_second, dict.fromkeys(contractions, (matmul_flops, bytes_per_second)))


PRESETS: Mapping[str, CostModel] = {
    # NVIDIA's data sheets of the SXM boards: dense bfloat16, float32 outside of tensor cores, memory.
    "a100": _accelerator(312e12, 19.5e12, 2.039e12),  # the board of 80 GB
    "h100": _accelerator(989e12, 67e12, 3.35e12),
    "h200": _accelerator(989e12, 67e12, 4.8e12),
    # Google's "System architecture" pages of Cloud TPU: bfloat16, memory. They say nothing of the vector units, which
    # are taken for a fiftieth, so that element-wise work is bound by memory, as it is there.
    "tpu v4": _accelerator(275e12, 5.5e12, 1.228e12),
    "tpu v5e": _accelerator(197e12, 3.9e12, 0.819e12),
    "tpu v5p": _accelerator(459e12, 9.2e12, 2.765e12),
}
"""Cost models of common accelerators, see `CostModel.preset`."""

Cost = str | CostModel | Mapping[str, Any]
"""What a planner minimises: `"seconds"` (the default `CostModel`), `"flops"`, a preset, a `CostModel` or its fields."""


def node_classes(graph: Graph) -> np.ndarray:
    """Return the place in `CLASSES` of each node's primitive, that of `"other"` for one that none names.

    A convolution of the backward phase that reads its first operand in another order of dimensions is the gradient with
    respect to a kernel, which XLA:CPU takes several times longer for than for as many FLOPs of others.

    Returns:
      int64 of shape (n_nodes,).
    """
    if "classes of nodes" not in graph.memo:
        classes = np.array([_CLASS_OF.get(p, _OTHER) for p in graph.primitives], np.int64)
        convolutions = np.flatnonzero(graph.is_backward & (classes == CLASSES.index("convolution")))
        is_relaid = graph.relaid_operands[graph.operand_start[convolutions]] > 0
        classes[convolutions[is_relaid]] = CLASSES.index("kernel_gradient")
        graph.memo["classes of nodes"] = classes
    return graph.memo["classes of nodes"]


COST = Kind(
    f"'seconds', 'flops', a preset ({', '.join(PRESETS)}) or a CostModel",
    lambda x: isinstance(x, (CostModel, Mapping)) or (isinstance(x, str) and x in ("seconds", "flops", *PRESETS)),
)


def cost_model(cost: Cost) -> CostModel:
    """Return the cost model that a cost other than `"flops"` names.

    Raises:
      PlanError: `cost` is none of what `Cost` says, or `"flops"`.
    """
    if isinstance(cost, CostModel):
        return cost
    if isinstance(cost, Mapping) and set(cost) <= {f.name for f in dataclasses.fields(CostModel)}:
        return CostModel(**cost)
    if isinstance(cost, str) and cost == "seconds":
        return CostModel()
    if isinstance(cost, str) and cost != "flops":
        try:
            return CostModel.preset(cost)
        except PlanError:
            pass
    raise PlanError(f"cost must be 'seconds', 'flops', a preset ({', '.join(PRESETS)}) or a CostModel; found {cost!r}")


def costs_of(flops: np.ndarray, bytes_moved: np.ndarray, cost: Cost, classes: np.ndarray | int = _OTHER) -> np.ndarray:
    """Return what nodes with so many FLOPs and bytes moved cost, in the unit that `cost_unit` names.

    Args:
      flops: FLOPs of each node.
      bytes_moved: Bytes that each node moves, of the same shape.
      cost: See `Cost`.
      classes: The place in `CLASSES` of each.

    Returns:
      float64 of the same shape.

    Raises:
      PlanError: `cost` is none of these.
    """
    if isinstance(cost, str) and cost == "flops":
        return np.asarray(flops, float)
    return cost_model(cost).seconds(flops, bytes_moved, classes)


def node_costs(graph: Graph, cost: Cost) -> np.ndarray:
    """Return what each node costs, steps of loops that run again included; float64 of shape (n_nodes,).

    Args:
      graph: Any graph.
      cost: See `costs_of`.

    Raises:
      PlanError: `cost` is unknown.
    """
    return costs_of(graph.flops, graph.bytes_moved, cost, node_classes(graph))


def least_cost(graph: Graph, cost: Cost) -> float:
    """Return what every node costs once, no step of a loop running again; see `costs_of` for arguments and errors."""
    once = graph.flops - graph.rerun_flops, graph.bytes_moved - graph.rerun_bytes_moved
    return float(costs_of(*once, cost, node_classes(graph)).sum())


def cost_unit(cost: Cost) -> str:
    """Return the unit of a cost, `"flops"` or `"seconds"`."""
    return "flops" if isinstance(cost, str) and cost == "flops" else "seconds"
