"""What a notebook shows where there is no kernel: saved, reopened, exported."""

import nbconvert
import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

from .explorer_page import CELL, MODEL, STAND_IN, opened, reopen
from .lab import RUN_ALL, WAIT_FOR_KERNEL

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


def test_a_saved_notebook_holds_a_picture_and_a_table(notebook):
    book = opened(notebook)
    peak = book.run("print(format_bytes(ui.plan.peak_bytes))")
    book.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    live, output = nbformat.read(book.path, 4).cells[-1].outputs
    assert live.data["text/plain"].startswith("PlanExplorer(Plan(")
    assert "application/vnd.jupyter.widget-view+json" in live.data
    assert output.data["image/png"].startswith("iVBORw0KGgo")
    assert f"<td>{peak}</td>" in output.data["text/html"]
    assert "data:image/png;base64," in output.data["text/html"]
    assert book.problems == []


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_reopened_notebook_shows_them_in_place_with_a_new_kernel(notebook, lab, is_trusted):
    book = opened(notebook)
    page = book.page
    peak = book.run("print(format_bytes(ui.plan.peak_bytes))")
    assert not page.locator(STAND_IN).is_visible()  # the live view is
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    path = book.path
    if not is_trusted:  # a copy with another content has no signature
        saved = nbformat.read(path, 4)
        saved.cells[0].source += "\n# from elsewhere"
        path = path.with_name(f"copy-{path.name}")
        nbformat.write(saved, path)
    page.goto(lab.address(path), wait_until="domcontentloaded")
    page.locator(f"{STAND_IN} img, .jp-RenderedHTML img").first.wait_for(timeout=60_000)
    assert page.locator(CELL).inner_text() == peak
    assert page.locator("img[alt^='live bytes']").evaluate("img => img.naturalWidth") > 0
    page.evaluate(WAIT_FOR_KERNEL)
    page.wait_for_timeout(3_000)  # JupyterLab looks for a model for 2 seconds before it gives up
    assert page.locator(CELL).is_visible()
    assert not page.get_by_text("model not found").is_visible()
    page.evaluate(RUN_ALL)
    page.wait_for_selector(".tb-frontier[data-paints]")
    assert not page.locator(STAND_IN).is_visible()


VIEWS = {
    "frontier": "t.FrontierView(ui.plan)",
    "tensors": "t.TableView(ui.plan)",
    "graph": "t.GraphView(ui.plan)",
    "pareto": "t.ParetoView(t.pareto(ui.graph, n_points=3))",
    "memory-map": "t.MemoryMapView(t.measure(loss, jnp.ones((64, 64)), jnp.ones((256, 64))).memory_map)",
}


def test_views_shown_alone_have_pictures_in_their_place_in_a_reopened_notebook(notebook, lab):
    cells = [MODEL + "import tiny_backprop_widgets as tw", *(v.replace("t.", "tw.", 1) for v in VIEWS.values())]
    book = notebook(*cells)
    page = book.page
    for kind in VIEWS:
        page.locator(f".tb-{kind}").wait_for(timeout=90_000)
    page.wait_for_function("n => document.querySelectorAll('.tb-view').length === n", arg=len(VIEWS))
    assert page.locator(STAND_IN).count() == len(VIEWS)
    assert not any(shown.is_visible() for shown in page.locator(STAND_IN).all())
    reopen(page, lab, book.path)
    shown = page.locator(STAND_IN)
    assert shown.count() == len(VIEWS)
    assert all(one.is_visible() for one in shown.all())
    assert shown.locator("img, svg, table").count() >= len(VIEWS)
    assert not any(words.is_visible() for words in page.get_by_text("model not found").all())
    page.evaluate(RUN_ALL)
    page.locator(".tb-memory-map").wait_for(timeout=90_000)
    assert not any(one.is_visible() for one in page.locator(STAND_IN).all())


def test_a_notebook_that_is_executed_and_exported_shows_them_without_network(browser, tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MODEL), nbformat.v4.new_code_cell("ui")])
    done, _ = ExecutePreprocessor(timeout=120).preprocess(book, {})
    assert done.metadata.widgets  # the export has the live view, too, which needs a network
    path = tmp_path / "executed.html"
    path.write_text(nbconvert.HTMLExporter().from_notebook_node(done)[0])
    page = browser.new_page()
    page.goto(f"file://{path}", wait_until="domcontentloaded")
    assert page.locator(f"{STAND_IN} table.tiny-backprop").is_visible()
    assert page.locator(f"{STAND_IN} img[alt^='live bytes']").is_visible()
    page.close()


def test_a_saved_notebook_that_is_exported_shows_them(notebook, browser, tmp_path):
    book = opened(notebook)
    peak = book.run("print(format_bytes(ui.plan.peak_bytes))")
    book.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    path = tmp_path / "saved.html"
    path.write_text(nbconvert.HTMLExporter().from_notebook_node(nbformat.read(book.path, 4))[0])
    page = browser.new_page()
    page.goto(f"file://{path}", wait_until="domcontentloaded")
    assert page.locator(CELL).inner_text() == peak
    assert page.locator("img[alt^='live bytes']").is_visible()
    page.close()
