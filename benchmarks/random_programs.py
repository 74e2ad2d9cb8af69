"""Random JAX programs, as text, with a random way to plan each: drawn from a seed, shared by tests and `robustness`.

A program is the text of a loss and arrays to call it on. It is drawn from what JAX's users write: loops in loops,
branches, custom rules, `jax.checkpoint`, keys, integers, 16-bit floats, complex numbers, refs, values that are returned
as well as read. A `Use` is a door of tiny_backprop with options, in a transformation of JAX. `check` runs both, holding
what comes out against JAX's own gradient of the very function in the same transformation. How far two right answers
may be apart is asked of JAX, see `_spread`.

The text of program 17 and its use: `python -m benchmarks.robustness --show 17`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import linecache
import random
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import tiny_backprop as tb

SHAPES = {"scalar": "()", "vector": "(N,)", "batch": "(B, N)", "matrix": "(N, N)"}
SMALL, LARGE = {"B": 3, "N": 4}, {"B": 96, "N": 192}
FLOATS = ("float32", "bfloat16", "float16")


# ---- what a program is drawn from ----

_UNARY = (
    "jnp.sin({0})",
    "jnp.tanh({0})",
    "jax.nn.sigmoid({0})",
    "jnp.exp(-{0} * {0})",
    "jnp.log1p({0} * {0})",
    "{0} / (1 + {0} * {0})",
    "jnp.maximum({0}, 0)",
    "jnp.where({0} > 0, {0}, 0.1 * {0})",
    "jnp.abs({0})",
    "jnp.sqrt(1 + {0} * {0})",
    "jax.nn.gelu({0})",
    "jax.nn.silu({0})",
    "jnp.clip({0}, -0.7, 0.7)",
    "0.1 * {0} ** 3",
    "jnp.cos({0}) * 2",
    "lax.rsqrt(1 + {0} ** 2)",
    "lax.stop_gradient({0}) * {0}",
    "jnp.round({0}) + {0}",
    "lax.erf({0})",
    "{0} + jnp.sin({0}) ** 2",
    "lax.optimization_barrier({0})",
)
_ALONG_ROWS = (
    "jax.nn.softmax({0})",
    "jax.nn.log_softmax({0}) / N",
    "jnp.cumsum({0}, -1) / N",
    "jnp.sort({0}, -1)",
    "{0}[..., ::-1]",
    "jnp.roll({0}, 1, -1)",
    "{0} - jnp.mean({0}, -1, keepdims=True)",
    "{0} / (1e-2 + jnp.std({0}, -1, keepdims=True))",
    "jnp.concatenate([{0}[..., 1:], {0}[..., :1]], -1)",
    "jnp.pad({0}[..., 1:-1], [(0, 0)] * ({0}.ndim - 1) + [(1, 1)])",
    "lax.associative_scan(jnp.add, {0}, axis=-1) / N",
    "lax.reduce_window({0}, -jnp.inf, lax.max, (1,) * ({0}.ndim - 1) + (3,), (1,) * {0}.ndim, 'SAME')",
    "lax.cummax({0}, axis={0}.ndim - 1)",
)
_BINARY = (
    "{0} + {1}",
    "{0} * {1}",
    "{0} - 0.5 * {1}",
    "jnp.maximum({0}, {1})",
    "jnp.where({0} > {1}, {0}, jnp.sin({1}))",
    "jnp.arctan2({0}, 1 + {1} * {1})",
    "(0.5 + {0} * {0}) ** jnp.tanh({1})",
    "jnp.logaddexp({0}, {1})",
    "{0} / (1 + {1} * {1})",
    "jnp.exp(-jnp.abs({0})) * {1}",
)
_COMPLEX = (
    "jnp.sin({0})",
    "{0} * jnp.conj({0}) + {0}",
    "{0} / (1 + jnp.abs({0}) ** 2)",
    "jnp.exp(1j * jnp.real({0})) * {0}",
    "{0} * {0} * 0.5j",
    "jnp.fft.fft(jnp.atleast_1d({0})).reshape({0}.shape) / N",
)
_SHAPE_CHANGES = {
    ("scalar", "vector"): ("jnp.full((N,), {0})", "{0} * jnp.linspace(0, 1, N).astype({0}.dtype)"),
    ("vector", "scalar"): ("jnp.sum({0}) / N", "jnp.max({0})", "{0}[1]", "{0} @ {0} / N", "jax.nn.logsumexp({0})"),
    ("vector", "batch"): ("jnp.broadcast_to({0}, (B, N))", "jnp.tile({0}[None], (B, 1))", "jnp.stack([{0}] * B)"),
    ("batch", "vector"): ("jnp.mean({0}, 0)", "jnp.max({0}, 0)", "{0}[0]", "jnp.sum({0} * {0}, 0) / B"),
    ("vector", "matrix"): ("jnp.outer({0}, {0})", "jnp.diag({0})"),
    ("matrix", "vector"): ("jnp.diag({0})", "{0}[:, 2]", "jnp.mean({0}, 1)", "jnp.einsum('ii->i', {0})"),
    ("batch", "matrix"): ("{0}.T @ {0} / B", "jnp.einsum('bi,bj->ij', {0}, jnp.sin({0})) / B"),
    ("batch", "scalar"): ("jnp.mean({0})", "jnp.sum({0} ** 2) / (B * N)", "jnp.vdot({0}, {0}) / (B * N)"),
    ("matrix", "scalar"): ("jnp.trace({0}) / N", "jnp.mean(jnp.abs({0}))"),
    ("scalar", "matrix"): ("{0} * jnp.eye(N, dtype={0}.dtype)",),
}
_CONVOLUTIONS = {
    "vector": ("jnp.convolve({0}, jnp.asarray([0.25, 0.5, 0.25], {0}.dtype), 'same')",),
    "batch": (
        "jax.vmap(lambda r: jnp.convolve(r, r[:3] / 2, 'same'))({0})",
        "lax.conv_general_dilated({0}[None, :, :, None], jnp.ones((3, 3, 1, 2), {0}.dtype) / 9, (1, 1), 'SAME', "
        "dimension_numbers=('NHWC', 'HWIO', 'NHWC'))[0, ..., 1]",
    ),
    "matrix": (
        "lax.conv_general_dilated({0}[None], jnp.sin({0})[:, :, None] / N, (1,), 'SAME')[0]",
        "lax.conv_general_dilated({0}[None], {0}[:, None, :3] / 3, (1,), 'SAME', feature_group_count=N)[0]",
    ),
}
_DECOMPOSITIONS = (
    "jnp.linalg.inv(3 * jnp.eye(N) + jnp.tanh({0}))",
    "jnp.linalg.cholesky(3 * jnp.eye(N) + {0} @ {0}.T)",
    "jnp.linalg.qr(3 * jnp.eye(N) + jnp.tanh({0}))[1]",
)
_PRODUCTS = {
    ("batch", "matrix"): ("batch", ("{0} @ {1} / 2", "jnp.einsum('bi,ji->bj', {0}, {1}) / 2")),
    ("matrix", "vector"): ("vector", ("{0} @ {1} / 2", "jnp.tensordot({0}, {1}, 1) / 2")),
    ("matrix", "matrix"): ("matrix", ("{0} @ {1} / 2", "{0} @ {1}.T / 2", "{0} @ {0}.T + {1}")),
    ("scalar", "vector"): ("vector", ("{0} * {1}", "jnp.where({0} > 0, {1}, -{1})")),
    ("scalar", "batch"): ("batch", ("{0} * {1}", "{1} / (1 + {0} ** 2)")),
    ("vector", "batch"): ("batch", ("{0}[None] * {1}", "{1} + {0}[None, :]", "jnp.exp(-{0} ** 2)[None] - {1}")),
}
_POLICIES = (
    "jax.checkpoint_policies.dots_saveable",
    "jax.checkpoint_policies.nothing_saveable",
    "jax.checkpoint_policies.everything_saveable",
    "jax.checkpoint_policies.save_only_these_names('kept')",
    "jax.checkpoint_policies.dots_with_no_batch_dims_saveable",
)


@dataclasses.dataclass(frozen=True)
class _Value:
    """A name in a program."""

    name: str
    shape: str
    dtype: str


class _Writer:
    """Writes one program, statement by statement; `values` are the names in scope."""

    def __init__(self, rng: random.Random):
        self.rng, self.lines, self.values = rng, [], []
        self.depth, self.n_names, self.n_left = 0, 0, rng.choice((0, 2, 4, 6, 8, 10, 12))

    def line(self, text: str) -> None:
        self.lines.append("    " * (self.depth + 1) + text)

    def name(self, letter: str = "a") -> str:
        self.n_names += 1
        return f"{letter}{self.n_names}"

    def define(self, text: str, shape: str, dtype: str) -> _Value:
        """Write an assignment, and return the new name."""
        value = _Value(self.name(), shape, dtype)
        self.line(f"{value.name} = {text}")
        self.values.append(value)
        return value

    def pick(self, shapes: Sequence[str] = tuple(SHAPES), dtypes: Sequence[str] = FLOATS) -> _Value | None:
        """Return a value in scope of some shape and dtype, rather a new one than an old one."""
        found = [v for v in self.values if v.shape in shapes and v.dtype in dtypes]
        return found[max(self.rng.randrange(len(found)), self.rng.randrange(len(found)))] if found else None

    # ---- statements ----

    def statements(self, n: int) -> None:
        for _ in range(n):
            if self.n_left <= 0:
                return
            self.n_left -= 1
            self.statement()

    def statement(self) -> None:
        simple = (
            (6, self.unary),
            (4, self.binary),
            (5, self.product),
            (3, self.shape_change),
            (1, self.cast),
            (1, self.complex_number),
            (1, self.integer),
            (1, self.gather),
            (1, self.random_bits),
            (1, self.constant),
            (0.7, self.convolution),
            (0.3, self.callback),
        )
        nested = (
            (3, self.scan),
            (1, self.fori_loop),
            (1, self.while_loop),
            (2, self.branches),
            (1, self.custom_jvp),
            (1, self.custom_vjp),
            (2, self.called),
            (1, self.mapped),
            (1, self.inner_gradient),
            (0.4, self.ref),
            (0.3, self.solve),
            (0.5, self.named_axis),
        )
        kinds = simple if self.depth >= 3 or self.rng.random() < 0.55 else nested
        self.rng.choices([k for _, k in kinds], [w for w, _ in kinds])[0]()

    def unary(self) -> None:
        if v := self.pick():
            along_rows = v.shape != "scalar" and self.rng.random() < 0.3
            self.define(self.rng.choice(_ALONG_ROWS if along_rows else _UNARY).format(v.name), v.shape, v.dtype)

    def binary(self) -> None:
        if (v := self.pick()) and (w := self.pick((v.shape,), (v.dtype,))):
            self.define(self.rng.choice(_BINARY).format(v.name, w.name), v.shape, v.dtype)

    def product(self) -> None:
        (first, second), (shape, texts) = self.rng.choice(tuple(_PRODUCTS.items()))
        if (v := self.pick((first,))) and (w := self.pick((second,), (v.dtype,))):
            self.define(self.rng.choice(texts).format(v.name, w.name), shape, v.dtype)

    def shape_change(self) -> None:
        (before, after), texts = self.rng.choice(tuple(_SHAPE_CHANGES.items()))
        if v := self.pick((before,)):
            self.define(self.rng.choice(texts).format(v.name), after, v.dtype)

    def convolution(self) -> None:
        if v := self.pick(tuple(_CONVOLUTIONS)):
            self.define(self.rng.choice(_CONVOLUTIONS[v.shape]).format(v.name), v.shape, v.dtype)

    def callback(self) -> None:
        if v := self.pick():
            self.line(f"jax.debug.callback(lambda _: None, {v.name})")

    def cast(self) -> None:
        if v := self.pick():
            dtype = self.rng.choice([d for d in FLOATS if d != v.dtype])
            self.define(f"{v.name}.astype(jnp.{dtype})", v.shape, dtype)

    def complex_number(self) -> None:
        if v := self.pick(dtypes=("complex64",)):
            if self.rng.random() < 0.5:
                self.define(self.rng.choice(_COMPLEX).format(v.name), v.shape, v.dtype)
            else:
                self.define(self.rng.choice(("jnp.real({0})", "jnp.imag({0})", "jnp.abs({0}) ** 2")).format(v.name),
                            v.shape, "float32")  # fmt: skip
        elif v := self.pick(dtypes=("float32",)):
            self.define(f"lax.complex({v.name}, jnp.cos({v.name}))", v.shape, "complex64")

    def integer(self) -> None:
        if v := self.pick(("vector",)):
            text, shape = self.rng.choice((
                ("jnp.argmax({0})", "scalar"), ("jnp.argsort({0})", "vector"), ("jnp.sum({0} > 0)", "scalar"),
                ("(jnp.abs({0}) * 9).astype(int) % N", "vector"),
            ))  # fmt: skip
            self.define(text.format(v.name), shape, "int32")

    def gather(self) -> None:
        i, v = self.pick(dtypes=("int32",), shapes=("scalar", "vector")), self.pick(("vector", "batch", "matrix"))
        if not i or not v:
            return
        if i.shape == "vector":
            texts = ["{0}[..., {1}]", "{0}.at[..., {1}].add(0.5 * {0})", "{0}.at[..., {1}].set(1.0)"]
            texts += ["{0} * jax.nn.one_hot({1}, N, dtype={0}.dtype).sum(0)"] * (v.shape == "vector")
        else:
            texts = ["lax.dynamic_slice_in_dim(jnp.concatenate([{0}, {0}], -1), {1} % N, N, -1)",
                     "lax.dynamic_update_index_in_dim({0}, {0}[..., 0], {1} % N, {0}.ndim - 1)",
                     "{0} * {1}", "{0} + {0}[..., {1} % N][..., None]"]  # fmt: skip
        self.define(self.rng.choice(texts).format(v.name, i.name), v.shape, v.dtype)

    def random_bits(self) -> None:
        if (k := self.pick(("scalar",), ("key",))) and (v := self.pick()):
            if self.rng.random() < 0.3:
                return void(self.define(f"jax.random.fold_in({k.name}, {self.rng.randrange(9)})", "scalar", "key"))
            text = self.rng.choice((
                "jnp.where(jax.random.bernoulli({1}, 0.7, {0}.shape), {0} / 0.7, 0)",
                "{0} + 0.1 * jax.random.normal({1}, {0}.shape, {0}.dtype)",
                "{0} * jax.random.uniform({1}, {0}.shape, {0}.dtype)",
            ))  # fmt: skip
            self.define(text.format(v.name, k.name), v.shape, v.dtype)

    def constant(self) -> None:
        text, shape = self.rng.choice((
            ("jnp.linspace(-1, 1, N)", "vector"), ("jnp.eye(N)", "matrix"), ("jnp.asarray(CONSTANT)", "batch"),
            ("jnp.ones((B, N))", "batch"), ("jnp.float32(0.3)", "scalar"),
        ))  # fmt: skip
        self.define(text, shape, "float32")

    def ref(self) -> None:
        if v := self.pick():
            ref = self.name("r")
            self.line(f"{ref} = jax.new_ref({v.name})")
            self.line(f"{ref}[...] = jnp.sin({ref}[...]) + {v.name}")
            self.define(f"{ref}[...]", v.shape, v.dtype)

    def solve(self) -> None:
        if not (m := self.pick(("matrix",), ("float32",))):
            return
        if v := self.pick(("vector",), ("float32",)):
            matrix = f"3 * jnp.eye(N) + jnp.tanh({m.name})"
            texts = "jnp.linalg.solve({0}, {1})", "jax.scipy.linalg.solve_triangular({0}, {1}, lower=True)"
            self.define(self.rng.choice(texts).format(matrix, v.name), "vector", "float32")
        self.define(self.rng.choice(_DECOMPOSITIONS).format(m.name), "matrix", "float32")

    # ---- functions inside ----

    def function(
        self,
        params: Sequence[_Value],
        results: Sequence[_Value],
        n: int,
        is_closed: bool = False,
        is_tuple: bool = True,
    ) -> str:
        """Write a function and return its name.

        Args:
          params: Its parameters: shapes and dtypes; the names are new ones.
          results: What it returns: values of the same shapes and dtypes, parameters themselves where it has no others.
          n: Statements in it, at most.
          is_closed: Whether it reads nothing from outside.
          is_tuple: Whether it takes and returns its values as one tuple.
        """
        name, outside, n_lines = self.name("f"), self.values, len(self.lines)
        inner = [dataclasses.replace(p, name=self.name("p")) for p in params]
        names = ", ".join(p.name for p in inner)
        self.line(f"def {name}({names}):")
        closure = [] if is_closed else [v for v in outside if self.rng.random() < 0.4]
        self.values, self.depth = [*closure, *inner], self.depth + 1
        self.statements(n)
        returned = [self.result(r, inner) for r in results]
        self.line(f"return {', '.join(returned)}" if returned else "return None")
        self.values, self.depth = outside, self.depth - 1
        assert len(self.lines) > n_lines
        return name

    def result(self, like: _Value, params: Sequence[_Value]) -> str:
        """Return an expression of a shape and dtype, bounded where it is of a value that is new."""
        found = [v for v in self.values if (v.shape, v.dtype) == (like.shape, like.dtype)]
        own, last = [p for p in params if p in found], found[-1] if found else None
        if like.dtype == "key":
            return last.name if last else f"jax.random.key({self.rng.randrange(9)})"
        if last is None:
            return f"jnp.ones({SHAPES[like.shape]}, '{like.dtype}')"
        if like.dtype == "int32":
            return f"{last.name} + {self.rng.randrange(2)}"
        if self.rng.random() < 0.2:
            return last.name
        if last not in own:
            return f"jnp.tanh({last.name})" + (f" + 0.5 * {own[0].name}" if own else "")
        other = self.values[-1]
        if like.dtype == "complex64" or other.dtype not in FLOATS:
            return f"jnp.sin({last.name})"
        return f"jnp.tanh({last.name} + jnp.mean({other.name}).astype('{like.dtype}'))"

    def carried(self) -> list[_Value]:
        """Return what a loop carries."""
        found = [self.pick(dtypes=(*FLOATS, *FLOATS, "complex64"))]
        if self.rng.random() < 0.4:
            found.append(self.pick(dtypes=(*FLOATS, "int32", "key")))
        return [v for v in found if v]

    def scan(self) -> None:
        carry, length = self.carried(), self.rng.choice((1, 2, 3, 4, 5, 6))
        if not carry:
            return
        element = self.pick(("scalar", "vector", "batch")) if self.rng.random() < 0.6 else None
        xs, params = "None", list(carry)
        if element:
            xs = f"jnp.stack([{element.name} * (0.5 + k) for k in range({length})])"
            if self.rng.random() < 0.2:
                xs, element = f"jnp.arange({length})", _Value("", "scalar", "int32")
            params.append(element)
        stacked = self.rng.choice((None, None, *self.carried()))
        results = [*carry, *([stacked] if stacked else [])]
        body = self.function(params, results, self.rng.randint(0, 4))
        names, wrapped = [self.name() for _ in results], self.name("g")
        head = f"{body}(*c{', v' if element else ''})"
        n = len(carry)
        self.line(f"def {wrapped}(c, v):")
        self.line(f"    out = {head}" if len(results) > 1 else f"    out = ({head},)")
        self.line(f"    return out[:{n}], " + (f"out[{n}]" if stacked else "None"))
        transformed = wrapped
        if (chance := self.rng.random()) < 0.15:
            transformed = f"jax.checkpoint({wrapped})"
        elif chance < 0.3:
            transformed = f"remat({wrapped})"
        options = self.rng.choice(("", "", "", ", reverse=True", ", unroll=2"))
        given = ", ".join(c.name for c in carry)
        self.line(
            f"({', '.join(names[:n])},), ys = lax.scan({transformed}, ({given},), {xs}, length={length}{options})"
        )
        self.values += [_Value(name, c.shape, c.dtype) for name, c in zip(names, carry, strict=False)]
        if stacked and stacked.dtype not in ("key", "int32"):
            self.define(
                self.rng.choice(("jnp.mean(ys, 0)", "ys[-1]", "jnp.sum(ys * ys, 0) / 6")), stacked.shape, stacked.dtype
            )
        elif stacked:
            self.define("ys[-1]", stacked.shape, stacked.dtype)

    def fori_loop(self) -> None:
        if v := self.pick():
            body = self.function([_Value("", "scalar", "int32"), v], [v], self.rng.randint(0, 3))
            self.define(f"lax.fori_loop(0, {self.rng.randint(1, 5)}, {body}, {v.name})", v.shape, v.dtype)

    def while_loop(self) -> None:
        if v := self.pick():
            body = self.function([v], [v], self.rng.randint(0, 2), is_closed=True)
            i = self.pick(("scalar",), ("int32",))
            steps = f"{i.name} % 4" if i else str(self.rng.randint(0, 4))
            self.define(
                f"lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] - 1, {body}(c[1])), "
                f"({steps}, lax.stop_gradient({v.name})))[1]",
                v.shape, v.dtype,
            )  # fmt: skip

    def branches(self) -> None:
        v, condition = (
            self.pick(dtypes=(*FLOATS, "complex64")),
            self.pick(("scalar",), ("float32", "int32", "bfloat16")),
        )
        if not v or not condition:
            return
        n = self.rng.randint(2, 3)
        texts = [
            self.function([v], [v], self.rng.randint(0, 3)) if self.rng.random() < 0.8 else
            self.rng.choice(("lambda z: z", "jnp.zeros_like", "lambda z: -z"))
            for _ in range(n)
        ]  # fmt: skip
        if n == 2:
            self.define(f"lax.cond({condition.name} > 0, {texts[0]}, {texts[1]}, {v.name})", v.shape, v.dtype)
        else:
            which = f"jnp.abs({condition.name} * 7).astype(int) % 3"
            self.define(f"lax.switch({which}, [{', '.join(texts)}], {v.name})", v.shape, v.dtype)

    def custom_jvp(self) -> None:
        if v := self.pick():
            f = self.function([v], [v], self.rng.randint(0, 2), is_closed=True)
            g = self.name("h")
            self.line(f"{g} = jax.custom_jvp({f})")
            slope = self.rng.choice(("jnp.cos(x[0])", "1 / (1 + x[0] * x[0])", "2.0"))
            self.line(f"{g}.defjvp(lambda x, t: ({g}(x[0]), t[0] * {slope}))")
            self.define(f"{g}({v.name})", v.shape, v.dtype)

    def custom_vjp(self) -> None:
        if v := self.pick():
            f = self.function([v], [v], self.rng.randint(0, 2), is_closed=True)
            g = self.name("h")
            back = self.rng.choice((
                "ct * jnp.cos(x)", "jnp.clip(ct, -1, 1)", "2 * ct + 0 * x", "jnp.zeros_like(ct)",
                "lax.scan(lambda c, _: (jnp.sin(c) * x, None), ct, None, length=3)[0]",
            ))  # fmt: skip
            i = self.pick(dtypes=("int32",)) if self.rng.random() < 0.5 else None
            if i:  # an integer beside it, which has no gradient
                self.line(f"{g} = jax.custom_vjp(lambda x, i: {f}(x))")
                self.line(f"{g}.defvjp(lambda x, i: ({f}(x), x), lambda x, ct: ({back}, None))")
                self.define(f"{g}({v.name}, {i.name})", v.shape, v.dtype)
            else:
                self.line(f"{g} = jax.custom_vjp({f})")
                self.line(f"{g}.defvjp(lambda x: ({f}(x), x), lambda x, ct: ({back},))")
                self.define(f"{g}({v.name})", v.shape, v.dtype)

    def called(self) -> None:
        if v := self.pick(dtypes=(*FLOATS, "complex64")):
            f = self.function([v], [v], self.rng.randint(0, 4))
            if self.rng.random() < 0.3:
                self.line(f"{f} = (lambda f: lambda z: checkpoint_name(f(z), 'kept'))({f})")
            policy = self.rng.choice(_POLICIES)
            call = self.rng.choice(("jax.jit({0})", "remat({0})", "remat({0})", "jax.checkpoint({0})",
                                    "jax.checkpoint({0}, policy={1})", "jax.checkpoint({0}, policy={1})"))  # fmt: skip
            self.define(f"{call.format(f, policy)}({v.name})", v.shape, v.dtype)

    def mapped(self) -> None:
        if v := self.pick(("batch", "matrix")):
            row = _Value("", "vector", v.dtype)
            f = self.function([row], [row], self.rng.randint(0, 3))
            texts = "jax.vmap({0})({1})", "lax.map({0}, {1})", "lax.map({0}, {1}, batch_size=2)"
            self.define(self.rng.choice(texts).format(f, v.name), v.shape, v.dtype)

    def named_axis(self) -> None:
        if v := self.pick(("batch", "matrix")):
            row = _Value("", "vector", v.dtype)
            f = self.function([row], [row], self.rng.randint(0, 2))
            mapped = f"lambda z: {f}(z) - lax.pmean({f}(jnp.sin(z)), 'rows')"
            self.define(f"jax.vmap({mapped}, axis_name='rows')({v.name})", v.shape, v.dtype)

    def inner_gradient(self) -> None:
        if v := self.pick(dtypes=("float32",)):
            f = self.function([v], [v], self.rng.randint(1, 3))
            self.define(f"jax.grad(lambda z: jnp.sum({f}(z) ** 2) / N)({v.name})", v.shape, v.dtype)


def void(_: Any) -> None:
    """Return nothing."""


# ---- a program ----


@dataclasses.dataclass(frozen=True)
class RandomProgram:
    """A loss as text, and what to call it on.

    Attributes:
      seed: What it was drawn from.
      source: Text of `def loss(...)`.
      sizes: `B` and `N`.
      args: Positional arguments.
      others: Arguments of the same shapes and other values.
      argnums: What to differentiate by.
      has_aux: Whether it returns a pair.
    """

    seed: int
    source: str
    sizes: dict[str, int]
    args: tuple[Any, ...]
    others: tuple[Any, ...]
    argnums: int | tuple[int, ...]
    has_aux: bool

    def loss(self, remat: Callable[..., Any] = jax.checkpoint) -> Callable[..., Any]:
        """Return the function; what its text calls `remat` is `jax.checkpoint` or what is given."""
        file = f"<random program {self.seed}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        names = {
            "jax": jax,
            "jnp": jnp,
            "lax": lax,
            "checkpoint_name": checkpoint_name,
            **self.sizes,
        }
        names["CONSTANT"] = np.sin(np.arange(self.sizes["B"] * self.sizes["N"], dtype=np.float32)).reshape(
            self.sizes["B"], self.sizes["N"]
        )
        found: dict[str, Any] = {}
        exec(compile(self.source, file, "exec"), names | {"remat": remat}, found)
        return found["loss"]


def draw(seed: int, sizes: dict[str, int] = SMALL) -> RandomProgram:
    """Return the program of a seed; its text does not depend on sizes."""
    rng = random.Random(seed)
    writer = _Writer(rng)
    parameters = [_Value("p['w']", "matrix", "float32"), _Value("p['v']", "vector", rng.choice(("float32", *FLOATS)))]
    if rng.random() < 0.2:
        parameters.append(_Value("p['z']", "vector", "complex64"))
    x = _Value("x", rng.choice(("batch", "batch", "batch", "vector", "scalar")), rng.choice(("float32",) * 4 + FLOATS))
    rest = [
        _Value(*v)
        for v in (("y", x.shape, x.dtype), ("s", "scalar", "float"), ("i", "scalar", "int32"), ("key", "scalar", "key"),
                  ("ids", "vector", "int32"), ("unused", "batch", "float32"), ("k", "scalar", "int"))
        if rng.random() < 0.3
    ]  # fmt: skip
    values = [*parameters, x, *rest]
    first = rng.random() < 0.15  # the parameters stand second
    names = (["x", "p"] if first else ["p", "x"]) + [v.name for v in rest]
    python = {"float": "float32", "int": "int32"}
    for v in values:
        if v.name == "unused":
            continue
        writer.line(f"{(alias := writer.name())} = {_text(v)}")
        writer.values.append(_Value(alias, v.shape, python.get(v.dtype, v.dtype)))
    writer.statements(writer.n_left)
    has_aux = rng.random() < 0.35
    loss = _loss_text(writer)
    aux = {f"m{i}": v.name for i, v in enumerate(rng.sample(writer.values, min(2, len(writer.values))))}
    aux_text = ", ".join(f"'{k}': {v}" for k, v in aux.items())
    writer.line(f"return {loss}" + (f", {{{aux_text}, 'same': {next(iter(aux.values()))}}}" if has_aux else ""))
    source = "\n".join([f"def loss({', '.join(names)}):", *writer.lines, ""])

    by_name = {v.name: v for v in values}
    float_places = [i for i, n in enumerate(names) if n == "p" or by_name[n].dtype in (*FLOATS, "float")]
    argnums: int | tuple[int, ...] = names.index("p")
    if (chance := rng.random()) < 0.4:
        argnums = tuple(rng.sample(float_places, rng.randint(1, len(float_places))))
    elif chance < 0.5:
        argnums = rng.choice(float_places)
    is_same = "y" in by_name and rng.random() < 0.3

    def arguments(salt: int) -> tuple[Any, ...]:
        values = np.random.default_rng([seed, salt])
        found = {v.name: _array(v, values, sizes) for v in by_name.values()}
        if is_same:
            found["y"] = found["x"]
        found["p"] = {n[3:-2]: found[n] for n in by_name if n.startswith("p[")}
        return tuple(found[n] for n in names)

    return RandomProgram(seed, source, sizes, arguments(0), arguments(1), argnums, has_aux)


def _text(v: _Value) -> str:
    return f"jnp.float32({v.name})" if v.dtype == "float" else v.name


def _loss_text(writer: _Writer) -> str:
    found = [v for v in writer.values if v.dtype in (*FLOATS, "complex64")]
    chance = writer.rng.random()
    scalars = [v for v in found if v.shape == "scalar" and v.dtype in FLOATS]
    if chance < 0.03:
        return "3.0"
    if chance < 0.15 and scalars:
        return scalars[-1].name
    chosen = found[-3:] + writer.rng.sample(found, min(2, len(found)))
    terms = [
        f"jnp.mean(jnp.abs({v.name}) ** 2)" if v.dtype == "complex64" else f"jnp.mean({v.name} ** 2)" for v in chosen
    ]
    total = " + ".join(f"{t}.astype(float)" for t in dict.fromkeys(terms))
    return f"({total}).astype(jnp.bfloat16)" if chance > 0.97 else total


def _array(v: _Value, rng: np.random.Generator, sizes: dict[str, int]) -> Any:
    shape = eval(SHAPES[v.shape], dict(sizes))
    if v.dtype == "key":
        return jax.random.key(int(rng.integers(1 << 30)))
    if v.dtype == "int":
        return int(rng.integers(1, 4))
    if v.dtype == "int32":
        return jnp.asarray(rng.integers(0, sizes["N"], shape), jnp.int32)
    values = rng.normal(size=shape)
    if v.dtype == "float":
        return float(values)
    if v.dtype == "complex64":
        return jnp.asarray(values + 1j * rng.normal(size=shape), jnp.complex64)
    return jnp.asarray(values, v.dtype)


# ---- a use of it ----


@dataclasses.dataclass(frozen=True)
class Use:
    """How the gradient of a program is asked for.

    Attributes:
      door: Which door of tiny_backprop.
      options: What it is asked for.
      transformation: What JAX makes of it.
    """

    door: str
    options: dict[str, Any]
    transformation: str


_DOORS = {
    "value_and_grad": 8,
    "grad": 2,
    "checkpoint": 4,
    "remat inside": 3,
    "tb.jit": 1,
    "saved plan": 1,
    "verify": 0.3,
}
_TRANSFORMATIONS = {
    "none": 6, "jit": 3, "twice": 1, "vmap": 2, "scan": 2, "grad": 2, "jvp": 1, "cond": 1, "checkpoint": 1, "donated": 1
}  # fmt: skip


def draw_use(seed: int) -> Use:
    """Return how the program of a seed is used."""
    rng = random.Random(f"use {seed}")
    door = rng.choices(list(_DOORS), list(_DOORS.values()))[0]
    ways: list[dict[str, Any]] = [
        {}, {}, {"block_size": rng.randint(1, 6)}, {"block_size": 25}, {"levels": rng.randint(1, 3)},
        {"budget": round(rng.uniform(0.3, 1.0), 2)}, {"budget": rng.choice((400, 1000, "2KiB", "1MiB"))},
        {"levels": 2, "block_size": rng.randint(1, 4)},
        {"loops": rng.choice((tb.LoopChoice(saved_carries=2), tb.LoopChoice(block_size=2), tb.LoopChoice(levels=2)))},
    ]  # fmt: skip
    options = rng.choice(ways)
    if door == "verify":
        options = {"budget": rng.choice((0.5, 0.8, 1.0)), "verify": True}
    transformation = rng.choices(list(_TRANSFORMATIONS), list(_TRANSFORMATIONS.values()))[0]
    if door == "verify" or (transformation == "donated" and door not in ("value_and_grad", "grad")):
        transformation = "none"
    return Use(door, options, transformation)


def _gradients(program: RandomProgram, use: Use) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return JAX's gradient function and that of tiny_backprop."""
    options: dict[str, Any] = {"argnums": program.argnums, "has_aux": program.has_aux}
    loss = program.loss()
    plain = (jax.grad if use.door == "grad" else jax.value_and_grad)(loss, **options)
    if use.transformation == "donated":
        options["donate_argnums"] = program.argnums
    match use.door:
        case "grad":
            return plain, tb.height_compressed_grad(loss, **use.options, **options)
        case "checkpoint":
            return plain, jax.value_and_grad(tb.checkpoint(loss, **use.options), **options)
        case "remat inside":
            return plain, jax.value_and_grad(program.loss(tb.checkpoint(**use.options)), **options)
        case "tb.jit":
            return plain, tb.jit(tb.height_compressed_value_and_grad(loss, **use.options, **options))
        case "saved plan":
            made = tb.height_compressed_value_and_grad(loss, **use.options, **options)

            def saved(*args: Any) -> Any:
                try:
                    plan = made.plan(*args)
                except tb.RefError:
                    return made(*args)
                again = tb.Plan.from_json(plan.to_json(), plan.graph)
                return tb.height_compressed_value_and_grad(loss, plan=again, **options)(*args)

            return plain, saved
    return plain, tb.height_compressed_value_and_grad(loss, **use.options, **options)


def _transformed(gradient: Callable[..., Any], program: RandomProgram, use: Use) -> Callable[..., Any]:
    """Return a function of the program's arguments: the gradient in a transformation, a tree of arrays."""
    first = program.argnums if isinstance(program.argnums, int) else program.argnums[0]

    def with_first(args: Sequence[Any], x: Any) -> list[Any]:
        return [x if i == first else a for i, a in enumerate(args)]

    def stepped(args: Sequence[Any]) -> Any:
        def step(x: Any, _: Any) -> Any:
            out = gradient(*with_first(args, x))
            slope = out if use.door == "grad" else out[1]
            slope = slope[0] if use.door == "grad" and program.has_aux else slope
            slope = slope if isinstance(program.argnums, int) else slope[0]
            return jax.tree.map(lambda a, g: (a - 0.1 * g).astype(a.dtype), x, slope), None

        return lax.scan(step, jax.tree.map(jnp.asarray, args[first]), None, length=2)

    def size(x: Any, args: Sequence[Any]) -> Any:
        return sum(jnp.sum(jnp.abs(leaf) ** 2).astype(float) for leaf in _inexact(gradient(*with_first(args, x))))

    match use.transformation:
        case "vmap":
            axes = [0 if i == first else None for i in range(len(program.args))]
            return lambda *args: jax.vmap(gradient, axes)(*with_first(args, jax.tree.map(_doubled, args[first])))
        case "scan":
            return lambda *args: stepped(args)
        case "grad":
            return lambda *args: jax.grad(size)(jax.tree.map(jnp.asarray, args[first]), args)
        case "jvp":
            return lambda *args: jax.jvp(
                lambda x: _inexact(gradient(*with_first(args, x))),
                [jax.tree.map(jnp.asarray, args[first])],
                [jax.tree.map(jnp.ones_like, args[first])],
            )
        case "cond":
            return lambda *args: lax.cond(
                jnp.sum(jax.tree.leaves(args[first])[0]) > 0, lambda: gradient(*args), lambda: gradient(*args)
            )
        case "checkpoint":
            return lambda *args: jax.checkpoint(lambda x: gradient(*with_first(args, x)))(args[first])
    return gradient


def _inexact(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]


def _doubled(x: Any) -> Any:
    return jnp.stack([jnp.asarray(x), jnp.asarray(x) * 1.5]).astype(jnp.asarray(x).dtype)


# ---- the comparison ----


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
      seed: Its seed.
      use: Its use, in words.
      kind: "right", "wrong" or "crash"; "refused" where a budget was too small; "undefined" where JAX itself fails.
      note: What was wrong.
      warnings: How often each category was warned of.
    """

    seed: int
    use: str
    kind: str
    note: str = ""
    warnings: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_fault(self) -> bool:
        """Whether something is to be mended."""
        return self.kind in ("wrong", "crash")


def check(seed: int, sizes: dict[str, int] = SMALL) -> Outcome:
    """Run the program of a seed as its use says and hold it against JAX."""
    program, use = draw(seed, sizes), draw_use(seed)
    plain, planned = _gradients(program, use)
    reference = _transformed(plain, program, use)
    compiled = jax.jit(reference)
    words = f"{use.door} {use.options or ''}, {use.transformation}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = jax.block_until_ready(compiled(*program.args))
    except Exception as e:
        return Outcome(seed, words, "undefined", last_line(e))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            problem = _compared(_transformed(planned, program, use), reference, compiled, expected, program, use)
        except tb.BudgetError as e:
            problem = Outcome(seed, words, "refused", last_line(e))
        except Exception as e:
            problem = Outcome(seed, words, "crash", traceback.format_exc(limit=-4) + last_line(e))
    counted = dict(collections.Counter(w.category.__name__ for w in caught))
    if isinstance(problem, Outcome):
        return dataclasses.replace(problem, warnings=counted)
    return Outcome(seed, words, "wrong" if problem else "right", problem, counted)


def last_line(e: BaseException) -> str:
    """Return what an exception says, in a line."""
    return f"{type(e).__name__}: {str(e)[:300]}"


def _compared(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    compiled: Callable[..., Any],
    expected: Any,
    program: RandomProgram,
    use: Use,
) -> str:
    """Return what is wrong, or nothing."""
    if use.transformation in ("jit", "vmap", "scan", "cond", "checkpoint"):
        ours = jax.jit(ours)
    given = program.args
    if use.transformation == "donated":
        given = jax.tree.map(lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x, given)
    found = jax.block_until_ready(ours(*given))
    if problem := difference(found, expected, reference, compiled, program.args):
        return problem
    if use.transformation == "twice":
        expected = compiled(*program.others)
        return difference(ours(*program.others), expected, reference, compiled, program.others)
    return ""


def difference(
    found: Any, expected: Any, reference: Callable[..., Any], compiled: Callable[..., Any], args: tuple[Any, ...]
) -> str:
    """Return how a tree of arrays differs from what is expected by more than right answers do, or nothing.

    Args:
      found: What is held against it.
      expected: What `compiled` returned.
      reference: The function that makes it.
      compiled: The same, compiled.
      args: Its arguments.
    """
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return f"structure {jax.tree.structure(found)} in the place of {jax.tree.structure(expected)}"
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    for x, y in pairs:
        if (jnp.shape(x), jnp.result_type(x)) != (jnp.shape(y), jnp.result_type(y)):
            return f"{jnp.result_type(x)}{jnp.shape(x)} in the place of {jnp.result_type(y)}{jnp.shape(y)}"
    apart = [_apart(x, y) for x, y in pairs]
    scales = [_scale(y) for _, y in pairs]
    tight = [_tolerance(y) * (s + 1e-3 * max(scales)) for (_, y), s in zip(pairs, scales, strict=True)]
    if all(a <= t for a, t in zip(apart, tight, strict=True)):
        return ""
    spread = _spread(expected, reference, compiled, args)
    worst = max(range(len(apart)), key=lambda k: apart[k] / (tight[k] + 20 * spread[k] + 1e-30))
    if apart[worst] <= tight[worst] + 20 * spread[worst]:
        return ""
    return (
        f"leaf {worst} is off by {apart[worst]:.3g} of {scales[worst]:.3g}; right answers are {spread[worst]:.3g} apart"
    )


def _host(x: Any) -> np.ndarray:
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    dtype = jnp.result_type(x)
    return np.asarray(x).astype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def _apart(x: Any, y: Any) -> float:
    """Return the largest difference; where both are not finite in the same way there is none."""
    x, y = _host(x), _host(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0, np.abs(x - y))
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0))


def _scale(y: Any) -> float:
    y = np.abs(_host(y))
    return float(np.max(np.where(np.isfinite(y), y, 0), initial=0))


def _tolerance(y: Any) -> float:
    dtype = jnp.result_type(y)
    return 50 * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def _spread(
    expected: Any, reference: Callable[..., Any], compiled: Callable[..., Any], args: tuple[Any, ...]
) -> list[float]:
    """Return how far answers that are right are apart, leaf by leaf.

    They are JAX's own: without `jit`, where nothing is fused and 16-bit floats are rounded after every operation, and
    compiled, on arguments that are off by two units in their last places.
    """
    answers = []
    with contextlib.suppress(Exception):
        answers.append(reference(*args))
    for rng in map(np.random.default_rng, range(6)):
        answers.append(compiled(*jax.tree.map(lambda x, rng=rng: _nudged(x, rng), args)))
    leaves = [jax.tree.leaves(a) for a in answers]
    return [max(_apart(other[k], y) for other in leaves) for k, y in enumerate(jax.tree.leaves(expected))]


def _nudged(x: Any, rng: np.random.Generator) -> Any:
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return x
    factor = 1 + 2 * float(jnp.finfo(jnp.result_type(x)).eps) * rng.uniform(-1, 1, jnp.shape(x))
    return (
        (jnp.asarray(x) * factor.astype(np.float32)).astype(jnp.asarray(x).dtype)
        if isinstance(x, jax.Array)
        else float(x * factor)
    )
