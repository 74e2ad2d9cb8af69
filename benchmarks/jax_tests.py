"""JAX's own tests, with planned gradients: the harnesses of its primitives, and its tests of `jax.checkpoint`.

The harnesses come with JAX (`jax._src.internal_test_util.test_harnesses`). The tests of `jax.checkpoint` are the class
`RematTest` of `tests/api_test.py` in JAX's source, of which a checkout must be at hand; none of it is kept here.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import sys
import unittest
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tiny_backprop as tb
from benchmarks import random_programs

Row = dict[str, Any]

_API_TEST = "jax_api_test"
# What a test of `jax.checkpoint` looks at where it looks at how JAX does it, not at what comes out.
_ASKS_FOR = {
    "jaxprs": r"jaxpr|\.eqns|trace\(",
    "policies, or what they save": (
        r"polic(y|ies)=(?!lambda)|checkpoint_policies|saved_residuals|checkpoint_name|'_policy|offload|logging"
    ),
    "HLO text": r"as_text|hlo|lower\(|cse",
}


# ---- harnesses ----


def harnesses() -> list[Any]:
    """Return JAX's harnesses."""
    return importlib.import_module("jax._src.internal_test_util.test_harnesses").all_harnesses


def check_harness(index: int) -> Row:
    """Return what became of one of the programs by which JAX tests its primitives."""
    harness = harnesses()[index]
    name = {"use": harness.fullname}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            args = [
                jnp.asarray(x) if isinstance(x, np.ndarray) else x
                for x in harness.dyn_args_maker(np.random.RandomState(0))
            ]
            argnums = tuple(i for i, x in enumerate(args) if jnp.issubdtype(jnp.result_type(x), jnp.inexact))
            outs = jax.eval_shape(harness.dyn_fun, *args)
            if not argnums or not any(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(outs)):
                return {**name, "kind": "nothing to differentiate"}
            plain = jax.grad(lambda *xs: _weighed(harness.dyn_fun(*xs)), argnums)
            compiled = jax.jit(plain)
            jax.block_until_ready(compiled.lower(*args))
        except Exception as e:
            return {**name, "kind": "undefined", "note": random_programs.last_line(e)}
    return {**name, **_held_against(harness, plain, args, argnums)}


def _weighed(out: Any) -> jax.Array:
    """Return a real number of all outputs that have a gradient, each element with a weight of its own."""
    total = jnp.zeros(())
    for x in jax.tree.leaves(out):
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            weights = jnp.cos(jnp.arange(jnp.size(x), dtype=jnp.float32)).reshape(jnp.shape(x))
            total += jnp.sum(jnp.real(jnp.where(weights == 0, 0, x * weights.astype(x.dtype)))).astype(total.dtype)
    return total


def _held_against(harness: Any, plain: Callable[..., Any], args: Sequence[Any], argnums: tuple[int, ...]) -> Row:
    """Run JAX's gradient and those of two doors in one program, which compiles once."""

    def loss(*xs: Any) -> jax.Array:
        return _weighed(harness.dyn_fun(*xs))

    checkpointed = tb.checkpoint(harness.dyn_fun, block_size=1)
    doors = {
        "height_compressed_grad": tb.height_compressed_grad(loss, block_size=2, argnums=argnums),
        "checkpoint": jax.grad(lambda *xs: _weighed(checkpointed(*xs)), argnums),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for door, gradient in doors.items():
            try:
                jax.make_jaxpr(gradient)(*args)
            except Exception as e:
                return {"kind": "crash", "note": f"{door}: {random_programs.last_line(e)}"}
        try:
            wanted, *found = jax.jit(lambda *xs: [g(*xs) for g in (plain, *doors.values())])(*args)
        except Exception as e:
            return {"kind": "crash", "note": f"compiled: {random_programs.last_line(e)}"}
    counted = dict(collections.Counter(w.category.__name__ for w in caught if "tiny_backprop" in w.category.__module__))
    for door, gradient in zip(doors, found, strict=True):
        if problem := random_programs.difference(gradient, wanted, plain, jax.jit(plain), tuple(args)):
            return {"kind": "wrong", "note": f"{door}: {problem}", "warnings": counted}
    return {"kind": "equal", "warnings": counted}


# ---- tests of jax.checkpoint ----


def check_remat(index: int) -> Row:
    """Run one of JAX's own tests of `jax.checkpoint`, with ours in its place."""
    name = remat_names()[index]
    test = _remat_class()(name)
    if reason := _asks_for(test):
        return {"use": name, "kind": f"asks for {reason}"}
    result = unittest.TextTestRunner(io.StringIO(), verbosity=0).run(unittest.TestSuite([test]))
    problems = [*result.failures, *result.errors]
    if problems:
        return {"use": name, "kind": "failed", "note": problems[0][1].strip().splitlines()[-1][:300]}
    return {"use": name, "kind": "skipped by JAX" if result.skipped else "passed"}


def remat_names() -> list[str]:
    """Return the names of JAX's tests of `jax.checkpoint`, those that look at JAX's own ways among them."""
    return list(unittest.TestLoader().getTestCaseNames(_remat_class()))


def _remat_class() -> Any:
    """Return JAX's class of tests, its text's `jax.checkpoint` and `jax.remat` replaced.

    Of the file's other statements all run but classes, and but imports of what this version of JAX has not.
    """
    if (module := sys.modules.get(_API_TEST)) is not None:
        return module.__dict__["RematTest"]
    path = Path(os.environ["JAX_TESTS"]) / "tests" / "api_test.py"
    module = sys.modules[_API_TEST] = type(sys)(_API_TEST)
    module.__dict__["_tiny_backprop_checkpoint"] = _in_the_place_of_jax_checkpoint
    module.__file__ = str(path)
    sys.argv = sys.argv[:1]
    source = re.sub(r"\bjax\.(remat|checkpoint)\b", "_tiny_backprop_checkpoint", path.read_text())
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name != "RematTest":
            continue
        parts = [node]
        if isinstance(node, ast.ImportFrom):
            parts = [ast.ImportFrom(node.module, [n], node.level, lineno=node.lineno, col_offset=0) for n in node.names]
        for part in parts:
            with contextlib.suppress(ImportError):
                exec(compile(ast.Module([part], []), str(path), "exec"), module.__dict__)
            if isinstance(part, ast.ClassDef):
                return module.__dict__["RematTest"]
    raise ValueError(f"{path} has no class RematTest")


def _in_the_place_of_jax_checkpoint(
    fun: Any = None, *, prevent_cse: Any = True, policy: Any = None, static_argnums: int | Sequence[int] = ()
) -> Any:
    """Return `tiny_backprop.checkpoint` of a function, one for each value of its static arguments, without policies."""
    if fun is None:
        return functools.partial(_in_the_place_of_jax_checkpoint, static_argnums=static_argnums)
    static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if not static:
        return tb.checkpoint(fun)
    made: dict[Any, Any] = {}

    def checkpointed(*args: Any) -> Any:
        fixed = {i % len(args): args[i] for i in static}

        def with_fixed(*others: Any) -> Any:
            rest = iter(others)
            return fun(*(fixed[i] if i in fixed else next(rest) for i in range(len(args))))

        others = [x for i, x in enumerate(args) if i not in fixed]
        try:
            key = hash(tuple(fixed.values())), tuple(fixed.values())
        except TypeError:
            return tb.checkpoint(with_fixed)(*others)
        return made.setdefault(key, tb.checkpoint(with_fixed))(*others)

    return checkpointed


def _asks_for(test: Any) -> str:
    """Return what a test looks at that is JAX's own, by its text, or nothing."""
    text = inspect.getsource(inspect.unwrap(getattr(type(test), test._testMethodName)))
    if "raw_test" in text or "def test" not in text:  # what absl makes of a parameterised test
        names = [n for n in _remat_texts() if test._testMethodName.startswith(n)]
        text = _remat_texts()[max(names, key=len)]
    body = text.partition("):")[2]
    return next((words for words, pattern in _ASKS_FOR.items() if re.search(pattern, body)), "")


def _remat_texts() -> dict[str, str]:
    """Return the text of each test."""
    source = Path(sys.modules[_API_TEST].__file__ or "").read_text()
    (found,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "RematTest"]
    return {n.name: ast.get_source_segment(source, n) or "" for n in found.body if isinstance(n, ast.FunctionDef)}
