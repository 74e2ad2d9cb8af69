"""What XLA made of a program: the bytes it allocates, the FLOPs it runs, the seconds it takes.

Bytes are XLA's own record (`compiled.memory_analysis()`), FLOPs are counted in the compiled HLO
(`hlo_flops.count_flops`), seconds are taken by the wall clock. All are per device. Where the bytes go is decoded when
it is asked for (`Measurement.memory_map`).

Not covered: memory that XLA does not plan (what callbacks and FFI libraries allocate, the runtime's own).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.display import guarded, table
from tiny_backprop.errors import MeasureError
from tiny_backprop.integration.jax.capture.call import check_signature
from tiny_backprop.integration.jax.xla.assignment import instruction_names
from tiny_backprop.integration.jax.xla.decode import decode
from tiny_backprop.integration.jax.xla.hlo import HloError
from tiny_backprop.integration.jax.xla.hlo_flops import HloFlops, count_flops
from tiny_backprop.integration.jax.xla.jit import jit
from tiny_backprop.integration.jax.xla.memory_map import MemoryMap, Program
from tiny_backprop.units import format_bytes, format_flops

if TYPE_CHECKING:
    import pandas as pd

_BY_XLA, _BY_HLO, _BY_CLOCK = "measured by XLA", "counted from the compiled HLO", "measured by the clock"
_BY_DEVICE = "measured by the device"


@dataclasses.dataclass(frozen=True, repr=False)
class Measurement:
    """What one compiled program takes on one device; made by `measure`.

    Attributes:
      name: The function's name, or the program's where it came lowered or compiled.
      argument_bytes: Bytes of the arguments.
      output_bytes: Bytes of the outputs, those that share an argument's buffer included.
      temp_bytes: Bytes of the arena in which XLA keeps temporaries: their peak, as laid out.
      alias_bytes: Bytes of the outputs that share the buffer of a donated argument.
      generated_code_bytes: Bytes of machine code, 0 where the backend does not tell.
      flops: Operations of one run, loops as often as they run; NaN where this version cannot read the HLO, and then
        `memory_map.missing` says why.
      unknown_trip_counts: Loops whose trip count the HLO does not tell; `flops` counts one trip of each.
      uncounted_calls: Custom calls of which `flops` counts nothing.
      trace_seconds: Seconds of tracing and lowering; `None` where the program came compiled or lowered.
      compile_seconds: Seconds of XLA's compilation; `None` where the program came compiled.
      step_seconds: Median seconds of one run; `None` unless asked for.
      device_peak_bytes_before: The most bytes in use at any time so far on the first device, by its allocator, just
        before the runs; `None` unless they were asked for and the device keeps count (GPU and TPU do, CPU does not).
      device_peak_bytes_after: The same just after the runs. Where it is larger, these runs made the difference.
      platform: `cpu`, `gpu`, `tpu`, ….
      device_kind: The device's name.
      num_devices: Devices of this process that run the program.
      jax_version: Version of JAX that compiled it.
      program: What `memory_map` is decoded from.
    """

    name: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    generated_code_bytes: int
    flops: float
    unknown_trip_counts: int
    uncounted_calls: tuple[str, ...]
    trace_seconds: float | None
    compile_seconds: float | None
    step_seconds: float | None
    platform: str
    device_kind: str
    num_devices: int
    jax_version: str
    device_peak_bytes_before: int | None = None
    device_peak_bytes_after: int | None = None
    program: Program | None = dataclasses.field(default=None, compare=False)

    @functools.cached_property
    def memory_map(self) -> MemoryMap:
        """Every buffer of the compiled program: where, from when to when, from which line; decoded on first use.

        Raises:
          MeasureError: The measurement was not made by `measure`, so that there is no program to decode.
        """
        if self.program is None:
            raise MeasureError(f"{self!r} holds no program to decode: take the measurement with measure(fun, *args).")
        return dataclasses.replace(decode(self.program), name=self.name[:200])

    @property
    def peak_bytes(self) -> int:
        """`temp_bytes + output_bytes - alias_bytes`: what a run adds to the memory its arguments already hold.

        The counterpart of a plan's predicted `peak_bytes`. An upper bound, in that XLA reserves outputs and temporaries
        for the whole run.
        """
        return self.temp_bytes + self.output_bytes - self.alias_bytes

    def __repr__(self) -> str:
        """One line: the peak and its parts, FLOPs, seconds where they were taken, the platform."""
        parts = [
            f"peak {format_bytes(self.peak_bytes)}",
            f"temp {format_bytes(self.temp_bytes)}",
            f"output {format_bytes(self.output_bytes)}",
            f"arguments {format_bytes(self.argument_bytes)}",
            format_flops(self.flops) + self._doubt,
        ]
        if self.step_seconds is not None:
            parts.append(f"step {_format_seconds(self.step_seconds)}")
        return f"Measurement({self.name}: {', '.join(parts)}, on {self.platform})"

    def _repr_html_(self) -> str:
        return guarded(self._html, self)

    def _html(self) -> str:
        rows: list[tuple[str, str, str]] = [
            ("peak_bytes = temp + output - alias", format_bytes(self.peak_bytes), _BY_XLA),
            ("temp_bytes", format_bytes(self.temp_bytes), _BY_XLA),
            ("output_bytes", format_bytes(self.output_bytes), _BY_XLA),
            ("alias_bytes", format_bytes(self.alias_bytes), _BY_XLA),
            ("argument_bytes", format_bytes(self.argument_bytes), _BY_XLA),
            ("generated_code_bytes", format_bytes(self.generated_code_bytes), _BY_XLA),
            ("flops", format_flops(self.flops) + self._doubt, _BY_HLO),
        ]
        for field in ("trace_seconds", "compile_seconds", "step_seconds"):
            seconds = getattr(self, field)
            if seconds is not None:
                rows.append((field, _format_seconds(seconds), _BY_CLOCK))
        for field in ("device_peak_bytes_before", "device_peak_bytes_after"):
            n_bytes = getattr(self, field)
            if n_bytes is not None:
                rows.append((field, format_bytes(n_bytes), _BY_DEVICE))
        devices = f"{self.num_devices} × {self.device_kind} ({self.platform})"
        rows.append(("devices", devices, f"jax {self.jax_version}"))
        return f"<div>{table(rows, (self.name, 'per device', 'source'))}</div>"

    @property
    def _doubt(self) -> str:
        """What `flops` leaves out, in words."""
        doubts = []
        if math.isnan(self.flops):
            doubts.append("the HLO cannot be read")
        if self.unknown_trip_counts:
            doubts.append(f"{self.unknown_trip_counts} loops of unknown length counted once")
        if self.uncounted_calls:
            doubts.append(f"without {', '.join(self.uncounted_calls)}")
        return f" ({'; '.join(doubts)})" if doubts else ""

    def to_pandas(self) -> pd.DataFrame:
        """Return a table of one row, a column per attribute but `program`, and `peak_bytes`.

        Returns:
          A `pandas.DataFrame`; bytes and FLOPs are plain numbers.

        Raises:
          ImportError: pandas is not installed.
        """
        import pandas as pd

        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "program"
        }
        values["uncounted_calls"] = ", ".join(self.uncounted_calls)
        return pd.DataFrame([{"name": values.pop("name"), "peak_bytes": self.peak_bytes, **values}])


def measure(
    fun: Callable[..., Any] | jax.stages.Lowered | jax.stages.Compiled,
    *args: Any,
    run: bool = False,
    repeats: int = 5,
    **kwargs: Any,
) -> Measurement:
    """Compile a function and report what XLA allocates for it; run it too, if asked.

    A plain function is compiled by `tiny_backprop.jit`; one that has a `lower` method, such as a `jax.jit`-ted one, as
    it compiles itself. Without `run` nothing is allocated, so `jax.ShapeDtypeStruct` objects will do, and programs
    larger than the machine can be measured. Donated arguments are copied before every run, outside the timed part.

    Args:
      fun: A function, a `jax.jit`-ted function, or a program already lowered or compiled.
      *args: Its arguments: arrays, or `jax.ShapeDtypeStruct` objects; none are needed for a lowered or compiled program
        unless it shall run.
      run: Whether to run it, for `step_seconds`.
      repeats: How many runs to take the median of, after one that is not counted.
      **kwargs: Its keyword arguments. To pass it one named `run` or `repeats`, use `functools.partial`.

    Returns:
      The measurement; `peak_bytes` is the number to hold against a plan's prediction.

    Raises:
      MeasureError: `fun` is nothing to compile, the backend keeps no record of memory, `repeats` is below 1, or `run`
        is asked for without arrays to run on.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> m = measure(lambda x: jnp.sin(x) @ x, jax.ShapeDtypeStruct((256, 256), "float32"))
      >>> m.argument_bytes, m.output_bytes
      (262144, 262144)
    """
    if run:
        _check_runnable(args, kwargs, repeats)
    call, compiled, trace_seconds, compile_seconds = _compile(fun, args, kwargs)
    memory, device = _memory_of(compiled), _devices_of(compiled)
    hlo_text = _hlo_text_of(compiled)
    count = _count(hlo_text)
    before = _device_peak_bytes(device[0]) if run else None
    step_seconds = _time_step(call, compiled, args, kwargs, repeats) if run else None
    after = _device_peak_bytes(device[0]) if run else None
    return Measurement(
        name=_name_of(fun, hlo_text),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        generated_code_bytes=getattr(memory, "generated_code_size_in_bytes", 0),
        flops=count.flops,
        unknown_trip_counts=count.unknown_trip_counts,
        uncounted_calls=count.uncounted_calls,
        trace_seconds=trace_seconds,
        compile_seconds=compile_seconds,
        step_seconds=step_seconds,
        platform=device[0].platform,
        device_kind=device[0].device_kind,
        num_devices=len(device),
        jax_version=jax.__version__,
        device_peak_bytes_before=before,
        device_peak_bytes_after=after,
        program=_program_of(compiled, memory, hlo_text),
    )


def compiled_bytes(fun: Any, *args: Any) -> int:
    """Compile a function by itself and return the bytes XLA allocates for temporaries and outputs.

    Args:
      fun: A `jax.jit`-ted function of pytrees of arrays.
      *args: Its arguments; of arrays and traced values only shape, dtype and sharding are used.

    Raises:
      MeasureError: The function cannot be compiled by itself (inside `shard_map` it may need the mesh's axes, say), or
        the backend keeps no record of memory.
    """
    try:
        compiled = fun.lower(*jax.tree.map(_abstract, args)).compile()
    except Exception as error:
        raise MeasureError(
            f"to verify a byte budget, the planned gradient is compiled by itself, which failed: {error}. Inside "
            "shard_map and the like, plan without verify=True."
        ) from error
    memory = _memory_of(compiled)
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    is_array = isinstance(x, jax.Array) and not compat.is_tracer(x)
    x = x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)
    sharding = x.sharding if is_array and len(x.sharding.device_set) > 1 else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _compile(fun: Any, args: tuple, kwargs: dict) -> tuple[Any, jax.stages.Compiled, float | None, float | None]:
    """What to call, the compiled program, seconds of tracing and of compiling."""
    if isinstance(fun, jax.stages.Compiled):
        return fun, fun, None, None
    trace_seconds = None
    lowered = fun
    if not isinstance(fun, jax.stages.Lowered):
        if not callable(fun):
            raise MeasureError(
                f"cannot measure a {type(fun).__name__}: expected a function, a jax.jit-ted function, "
                "a jax.stages.Lowered or a jax.stages.Compiled."
            )
        fun = fun if hasattr(fun, "lower") else jit(fun)
        start = time.perf_counter()
        try:
            lowered = fun.lower(*args, **kwargs)
        except TypeError:
            check_signature(MeasureError, fun, args, kwargs)
            raise
        trace_seconds = time.perf_counter() - start
    start = time.perf_counter()
    compiled = lowered.compile()
    return fun, compiled, trace_seconds, time.perf_counter() - start


def _name_of(fun: Any, hlo_text: str) -> str:
    """The function's name, or the program's, which for a function f is jit_f."""
    if hasattr(fun, "__name__"):
        return fun.__name__
    module = re.match(r"HloModule ([^\s,]+)", hlo_text)
    return module[1] if module else type(fun).__name__


def _check_runnable(args: tuple, kwargs: dict, repeats: int) -> None:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise MeasureError(f"repeats={repeats!r}: expected how many runs to take the median of, 1 or more.")
    abstract = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs))
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if abstract:
        raise MeasureError(
            f"run=True needs arrays, but {len(abstract)} of the arguments are jax.ShapeDtypeStruct "
            f"(the first at (args, kwargs){abstract[0]}). Pass arrays, or leave run=True out to measure memory only."
        )


def _memory_of(compiled: jax.stages.Compiled) -> Any:
    try:
        memory = compiled.memory_analysis()
    except Exception as error:
        raise MeasureError(f"{_no_record('memory_analysis()')}: {error}") from error
    if memory is None:
        raise MeasureError(f"{_no_record('memory_analysis()')}.")
    return memory


def _hlo_text_of(compiled: jax.stages.Compiled) -> str:
    try:
        text = compiled.as_text()
    except Exception as error:
        raise MeasureError(f"{_no_record('as_text()')}: {error}") from error
    if not text:
        raise MeasureError(f"{_no_record('as_text()')}.")
    return text


def _count(hlo_text: str) -> HloFlops:
    """The FLOPs, NaN where the text cannot be read: the bytes, which XLA tells, are worth having without them."""
    try:
        return count_flops(hlo_text)
    except (HloError, KeyError, IndexError, ValueError):
        return HloFlops(math.nan)


def _program_of(compiled: jax.stages.Compiled, memory: Any, hlo_text: str) -> Program:
    """What the memory map is decoded from; where the backend lacks something, decoding says so."""
    try:
        executable: Any = compiled.runtime_executable()
        names = instruction_names(executable.hlo_modules()[0].as_serialized_hlo_module_proto())
    except Exception:  # plugins raise errors of their own; without numbers, decoding names the instruction it misses
        names = {}
    return Program(
        hlo_text=hlo_text,
        assignment=bytes(getattr(memory, "serialized_buffer_assignment_proto", b"") or b""),
        names=names,
        temp_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
    )


def _device_peak_bytes(device: Any) -> int | None:
    """The most bytes in use on a device so far, by its allocator, or None where that keeps no count."""
    stats = device.memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def _no_record(method: str) -> str:
    return (
        f"the backend {jax.default_backend()!r} gives no {method} of a compiled program; cpu, gpu and tpu do: "
        "measure there"
    )


def _devices_of(compiled: jax.stages.Compiled) -> list[Any]:
    """This process's devices that run the program."""
    try:
        executable: Any = compiled.runtime_executable()
        return executable.local_devices()
    except (AttributeError, NotImplementedError) as error:
        raise MeasureError(f"{_no_record('devices')}: {error}") from error


def _time_step(call: Any, compiled: jax.stages.Compiled, args: tuple, kwargs: dict, repeats: int) -> float:
    """Median seconds of one run, arguments in place."""
    if isinstance(call, jax.stages.Lowered) or jax.tree.structure((args, kwargs)) == compiled.in_tree:
        call = compiled  # otherwise there are static arguments, which only the function itself accepts
    donates = any(getattr(info, "donated", False) for info in jax.tree.leaves(compiled.args_info))
    seconds = []
    for _ in range(repeats + 1):
        a, k = jax.tree.map(_copy, (args, kwargs)) if donates else (args, kwargs)
        jax.block_until_ready((a, k))
        start = time.perf_counter()
        jax.block_until_ready(call(*a, **k))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _copy(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, jax.Array) else leaf


def _format_seconds(seconds: float) -> str:
    scale, unit = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "µs"))
    return f"{seconds / scale:.3g} {unit}"
