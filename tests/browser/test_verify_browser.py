"""XLA's figures in a real JupyterLab."""

import pytest

from .explorer_page import HANDLE, MODEL, blocks, expect, opened

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


SLOW = """
def slow(w, x):
    for i in range(400):
        x = jnp.tanh(x @ w) + jnp.sort(x, axis=0)
    return jnp.sum(x ** 2)

ui = t.explore(slow, jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((256, 64), "float32"))
ui.block_size.value = 20
"""


def test_verify_in_the_background_and_cancel(notebook):
    book = opened(notebook, MODEL + SLOW, "ui")
    page = book.page
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("compiling in a process of its own").wait_for()
    page.locator(HANDLE).first.focus()
    page.keyboard.press("ArrowRight")  # the notebook stays usable
    expect(book, blocks(int(book.run("print(ui.block_size.value)"))))
    process = book.run("c = ui._verify_panel.compilation; print(c._process.poll())")
    assert process == "None"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).wait_for()
    assert book.run("c.join(30); print(c._process.returncode, ui.measurement)") == "-9 None"

    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_verify_shows_xlas_figures_beside_the_predicted_ones(notebook):
    book = opened(notebook)
    page = book.page
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("measured by XLA on").wait_for(timeout=90_000)
    measured = book.run(
        "import warnings; warnings.simplefilter('ignore', t.NoGainWarning)\n"
        "print(format_bytes(t.measure(t.height_compressed_value_and_grad(loss, plan=ui.plan), "
        "jax.ShapeDtypeStruct((64, 64), 'float32'), "
        "jax.ShapeDtypeStruct((256, 64), 'float32')).peak_bytes))"
    )
    assert f"cpu: {measured} (temp" in page.get_by_text("measured by XLA on").inner_text()
    assert book.run("print(ui.measurement is not None, ui.errors)") == "True []"
    assert book.problems == []
