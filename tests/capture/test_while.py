"""While loops: named where no gradient can pass them, planned where none has to, and the documented ways around."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.programs import assert_close
from tiny_backprop import CaptureError, capture_gradient, checkpoint, height_compressed_grad

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "while-loops.md"
W = 0.5 * jax.random.orthogonal(jax.random.key(0), 8)
X = jax.random.normal(jax.random.key(1), (3, 8))


def double(x):
    return lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x)  # line of double


def innocent(x):
    """A loop through which no gradient goes."""
    return lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, lax.stop_gradient(x))  # line of innocent


@jax.custom_jvp
def with_rule(x):
    return innocent(x)


@with_rule.defjvp
def rule(primals, tangents):
    tangent = lax.while_loop(lambda t: t[1] < 3, lambda t: (t[0] * 2, t[1] + 1), (tangents[0], 0))  # line of rule
    return with_rule(*primals), tangent[0]


@jax.custom_vjp
def with_gradient_of_its_own(x):
    return double(x)


with_gradient_of_its_own.defvjp(lambda x: (double(x), x), lambda x, ct: (ct * innocent(x),))


def in_scans(x):
    def outer(h, _):
        return lax.scan(lambda h, _: (h, double(jnp.sin(h))), h, None, length=2)

    return lax.scan(outer, x, None, length=3)[1].sum((0, 1))


def in_a_carry(x):
    """The gradient comes to the loop by way of the carry of a later step."""

    def step(carry, _):
        a, b = carry
        return (jnp.sin(b), double(a)), None

    return lax.scan(step, (jnp.ones_like(x), x), None, length=3)[0][1]


def fori(x):
    n = jnp.argmax(x) + 3
    return lax.fori_loop(0, n, lambda i, c: jnp.sin(c), x)  # line of fori


UNDIFFERENTIABLE = {
    "alone": (double, "double"),
    "jit": (jax.jit(double), "double"),
    "checkpoint": (jax.checkpoint(lambda x: double(jnp.sin(x))), "double"),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, double, jnp.sin, x), "double"),
    "scans": (in_scans, "double"),
    "carry": (in_a_carry, "double"),
    "vmap": (jax.vmap(double), "double"),
    "rule": (with_rule, "rule"),
    "rule in a scan": (lambda x: lax.scan(lambda h, _: (with_rule(h), None), x, None, length=2)[0], "rule"),
    "fori_loop with a traced bound": (fori, "fori"),
    "cond in checkpointed scan": (
        lambda x: lax.scan(
            jax.checkpoint(lambda h, _: (lax.cond(h[0, 0] > 0, jnp.cos, jax.jit(double), h), None)), x, None, length=3
        )[0],
        "double",
    ),
}


def place(name):
    """Return `file:line` of the line of this file that is marked so."""
    lines = pathlib.Path(__file__).read_text().splitlines()
    (number,) = (i for i, text in enumerate(lines, 1) if text.endswith(f"# line of {name}"))
    return f"{__file__}:{number}"


@pytest.mark.parametrize(("f", "name"), UNDIFFERENTIABLE.values(), ids=UNDIFFERENTIABLE)
def test_the_line_is_named(f, name):
    def loss(x):
        return jnp.sum(f(jnp.cos(x)) * innocent(x))

    doors = (
        capture_gradient,
        height_compressed_grad(loss, levels=2, on_error="raise"),
        jax.grad(checkpoint(loss, levels=2)),
    )
    for door in doors:
        with pytest.raises(CaptureError, match=r"gradient of loss was asked for.*cannot differentiate it") as e:
            door(loss, X) if door is capture_gradient else door(X)
        named = [line.strip() for line in str(e.value).splitlines() if line.startswith("  ")]
        assert len(named) == 1
        assert place(name) in re.split(r"[ ,]", named[0])
        assert "lax.scan" in str(e.value)
        assert "equinox.internal.while_loop(kind='checkpointed')" in str(e.value)


def test_a_loop_in_a_rule_is_named_by_the_call_and_by_its_body():
    with pytest.raises(CaptureError) as e:
        capture_gradient(lambda x: with_rule(x).sum(), X)
    named = [line for line in str(e.value).splitlines() if line.startswith("  ")]
    assert len(named) == 1
    assert "(test_a_loop_in_a_rule_is_named_by_the_call_and_by_its_body.<locals>.<lambda>), its body" in named[0]
    assert named[0].endswith(place("rule"))


def test_every_line_is_named_once_and_the_page_has_the_recipe():
    with pytest.raises(CaptureError) as e:
        capture_gradient(lambda x: (double(x) + fori(x) + double(jnp.sin(x))).sum(), X)
    assert str(e.value).count("test_while.py") == 2
    assert f"{place('double')} (double)" in str(e.value)
    assert f"{place('fori')} (fori)" in str(e.value)
    recipe, page = re.search(r"see (\w+) in docs/([\w-]+\.md)", str(e.value)).groups()
    assert page == PAGE.name
    assert f"\n({recipe})=\n" in PAGE.read_text()


def test_other_operations_without_a_derivative_blame_no_loop():
    def loss(x):
        called = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jnp.sum(called * innocent(x))

    with pytest.raises(CaptureError, match="Operations without a derivative need") as e:
        capture_gradient(loss, X)
    assert "while_loop" not in str(e.value)


WITHOUT_GRADIENT = {
    "stopped": innocent,
    "of integers": lambda x: x * lax.while_loop(lambda i: i < 5, lambda i: i + 2, jnp.argmax(x) % 2).astype(x.dtype),
    "in a scan": lambda x: lax.scan(lambda h, _: (jnp.sin(h) * innocent(h), None), x, None, length=7)[0],
    "a gradient of its own": with_gradient_of_its_own,
    "result unread": lambda x: (double(x), jnp.sin(x))[1],
}


@pytest.mark.parametrize("f", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_loops_that_carry_no_gradient(f):
    def loss(w, x):
        for _ in range(3):
            x = jnp.tanh(x @ w) * f(x)
        return jnp.sum(x)

    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, X)
    for how in ({"block_size": 5}, {"levels": 2}, {"budget": 0.96}):
        planned = height_compressed_grad(loss, argnums=(0, 1), on_error="raise", **how)
        assert_close(planned(W, X), expected, n_ulps=256)


@pytest.mark.parametrize(("block_size", "n_runs"), [(1000, 1), (6, 2)])
def test_a_plan_saves_what_a_loop_returns_or_runs_it_again(block_size, n_runs):
    def loss(w, x):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        x = jnp.sin(jnp.sin(x) * innocent(x))
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    planned = height_compressed_grad(loss, block_size=block_size, on_error="raise")
    assert len(re.findall(r"= while\[", str(jax.make_jaxpr(planned)(W, X)))) == n_runs
    assert_close(planned(W, X), jax.jit(jax.grad(loss))(W, X))


# ---- the page ----


@pytest.fixture(scope="module")
def page():
    """What the code of the page defines; its lines keep their numbers."""
    text = PAGE.read_text()
    names: dict = {}
    for block in re.finditer(r"```python\n(.*?)```", text, re.S):
        padding = "\n" * text[: block.start(1)].count("\n")
        exec(compile(padding + block[1], str(PAGE), "exec"), names)
    return names


def test_the_page_shows_a_loss_without_a_gradient(page):
    line = next(i for i, text in enumerate(PAGE.read_text().splitlines(), 1) if "lax.while_loop(unsettled" in text)
    with pytest.raises(CaptureError, match=re.escape(f"{PAGE}:{line} (loss)")):
        height_compressed_grad(page["loss"])(W, X)


@pytest.mark.parametrize(
    ("loss", "gradient"), [("checkpointed_loss", "gradient"), ("bounded_loss", "bounded_gradient")]
)
def test_the_recipes_of_the_page_have_the_gradient_of_the_steps_taken(page, loss, gradient):
    assert page[loss](W, X) == pytest.approx(float(page["loss"](W, X)), rel=1e-6)
    assert_close(page[gradient](W, X), unrolled_gradient(page), n_ulps=256)
    assert_close(checkpoint(page[loss], levels=1)(W, X), page["loss"](W, X))


def unrolled_gradient(page):
    """Differentiate as many steps as are taken, unrolled."""
    state, n = (jnp.zeros_like(X), jnp.inf, 0), 0
    while page["unsettled"](state):
        state, n = page["step"](W, X)(state), n + 1
    assert 5 < n < 200

    def loss(w, x):
        h = jnp.zeros_like(x)
        for _ in range(n):
            h = jnp.tanh(h @ w + x)
        return jnp.mean(h**2)

    return jax.grad(loss)(W, X)


def test_the_scan_of_the_page_is_planned_and_the_loop_of_equinox_is_one_node(page):
    graph = page["bounded_gradient"].plan(W, X).graph
    assert [n.kind for n in graph.nested] == ["scan"]
    graph = page["gradient"].plan(W, X).graph
    assert graph.primitives[: graph.n_forward].count("while") == 1
