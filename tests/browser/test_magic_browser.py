"""The magics in a real JupyterLab."""

import pytest

from .explorer_page import FIELD, PEAK, SHOWS, opened

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


MAGIC = """
%load_ext tiny_backprop
import jax, jax.numpy as jnp
def loss(w, scale=1.0):
    return jnp.sum(jnp.tanh(jnp.tanh(w)) * scale)
"""


def test_the_magic_opens_the_explorer(notebook):
    book = opened(notebook, MAGIC, "%memplan loss(jnp.ones((8, 8)), scale=2.0)")
    assert book.page.locator(PEAK).inner_text()
    assert book.problems == []


CELL_MAGIC = """%%memplan
width = 8
twice = lambda w: loss(w, scale=2.0)
twice(jnp.ones((width, width)))
"""


def test_the_cell_magic_runs_its_cell_and_opens_the_explorer(notebook):
    book = opened(notebook, MAGIC, CELL_MAGIC)
    page = book.page
    graph = "t.capture_gradient(twice, jnp.ones((width, width)))"
    peak = book.run(
        "import tiny_backprop as t; from tiny_backprop.units import format_bytes\n"
        f"print(format_bytes(t.plan_blocks({graph}).peak_bytes))"
    )
    assert page.locator(PEAK).inner_text() == peak
    page.locator(FIELD).first.fill("1")
    page.locator(FIELD).first.press("Enter")
    wanted = int(book.run(f"print(t.plan_blocks({graph}, 1).peak_bytes)"))
    shown = book.run(f"print(format_bytes({wanted}))")
    page.wait_for_function(SHOWS, arg=[PEAK, shown, wanted], timeout=30_000)
    assert book.problems == []
