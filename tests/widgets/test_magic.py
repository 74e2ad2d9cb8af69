"""`%memplan` in IPython, without a notebook."""

import jax.numpy as jnp
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import tiny_backprop as tb
from tiny_backprop_widgets import PlanExplorer


def loss(w, x, scale=1.0):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ w)) * scale)


W, X = jnp.ones((4, 4)), jnp.ones((2, 4))


@pytest.fixture(scope="module")
def shell():
    config = Config(HistoryManager={"enabled": False})
    shell = InteractiveShell(config=config)
    shell.run_line_magic("load_ext", "tiny_backprop")
    return shell


@pytest.fixture(autouse=True)
def names(shell):
    shell.user_ns.update(loss=loss, w=W, x=X, args=(W, X), options={"scale": 2.0})


@pytest.mark.parametrize(
    ("line", "kwargs"),
    [
        ("loss(w, x)", {}),
        ("loss(*args, scale=2.0)", {"scale": 2.0}),
        ("loss(w, x, **options)", {"scale": 2.0}),
        ("(lambda a, b: loss(a, b))(w, 2 * x)", {}),
    ],
)
def test_a_call_is_explored_and_not_run(shell, line, kwargs):
    ui = shell.run_line_magic("memplan", line)
    assert isinstance(ui, PlanExplorer)
    assert ui.graph.fingerprint == tb.capture_gradient(loss, W, X, **kwargs).fingerprint


def test_the_cell_magic_runs_the_cell_and_explores_its_last_line(shell):
    ui = shell.run_cell_magic("memplan", "", "y = 3 * x\ncalls = [0]\nloss(\n    w, y\n)\n")
    assert ui.graph.n_forward == tb.capture_gradient(loss, W, X).n_forward
    assert shell.user_ns["y"].shape == (2, 4)


def test_the_cell_magic_explores_the_call_on_its_line(shell):
    body = "import jax.numpy as jnp\n\ndef double(w):\n    return jnp.sum(jnp.sin(jnp.sin(w)))\n"
    ui = shell.run_cell_magic("memplan", "double(w)", body)
    assert ui.graph.fingerprint == tb.capture_gradient(shell.user_ns["double"], W).fingerprint


@pytest.mark.parametrize(
    ("line", "words"),
    [("", "no expression"), ("loss", "is no call"), ("loss(w,", "no expression"), ("3 + 4", "is no call")],
)
def test_what_is_no_call_is_refused(shell, line, words):
    with pytest.raises(UsageError, match=words):
        shell.magics_manager.magics["line"]["memplan"](line)


def test_an_error_in_the_cell_is_the_cells_own(shell):
    with pytest.raises(ZeroDivisionError):
        shell.magics_manager.magics["cell"]["memplan"]("", "1 / 0\nloss(w, x)")
    with pytest.raises(UsageError, match="does not end with a call"):
        shell.magics_manager.magics["cell"]["memplan"]("", "y = 3")
