"""Names of a program that would be HTML or scripts, in the explorer and in its report."""

import pytest

from .explorer_page import FIELD, OVERFLOWS, at_peak, expect, open_tab, opened

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


HOSTILE = r"""
import jax, jax.numpy as jnp
import tiny_backprop as t
from tiny_backprop.units import format_bytes

EVIL = "<img src=x onerror=window.hacked=1>\"'`${window.hacked=1}</script><script>window.hacked=1</script>"
EVIL += "\u202eRTL \u05e9\u05dc\u05d5\u05dd \U0001f600 " + "x" * 10_000

def loss(params, x):
    for i in range(12):
        with jax.named_scope(EVIL):
            x = jnp.tanh(x @ params[EVIL])
    return jnp.sum(x ** 2)

loss.__name__ = EVIL
params = {EVIL: jax.ShapeDtypeStruct((64, 64), "float32")}
ui = t.explore(loss, params, jax.ShapeDtypeStruct((256, 64), "float32"))
ui.block_size.value = 4
"""


def test_hostile_strings_neither_break_nor_inject(notebook, browser, tmp_path):
    book = opened(notebook, HOSTILE, "ui")
    page = book.page
    x, y = at_peak(book)
    page.mouse.move(x, y)
    page.locator(".tb-frontier .tb-tip:visible").wait_for()
    assert "<img src=x" in page.locator(".tb-frontier .tb-tip").inner_text()
    page.mouse.click(x, y)
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for()
    open_tab(page, "Graph")
    page.wait_for_selector(".tb-graph[data-paints]")
    page.locator(".tb-graph canvas").focus()
    page.keyboard.press("n")
    page.locator(".tb-graph .tb-tip:visible").wait_for()
    page.locator(".tb-graph input").fill("<img")
    page.get_by_text(" found").first.wait_for()
    open_tab(page, "Trade-off")
    page.wait_for_selector(".tb-pareto svg [data-point]", timeout=60_000)
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("measured by XLA on").wait_for(timeout=90_000)
    open_tab(page, "Memory map")
    page.wait_for_selector(".tb-memory-map[data-paints]")
    assert "<img src=x" in page.locator(".tb-memory-map .tb-title").inner_text()
    page.locator(".tb-memory-map").get_by_label("colour by").select_option("scope")
    page.locator(".tb-memory-map canvas").focus()
    page.keyboard.press("n")
    page.locator(".tb-memory-map .tb-tip:visible").wait_for()
    page.locator(".tb-memory-map tr[aria-selected=true]").wait_for()
    open_tab(page, "Code and export")
    book.run(f"ui.export({str(tmp_path)!r})")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []
    assert 'data-view="memory_map"' in (tmp_path / "report.html").read_text()
    problems = check_report(browser, tmp_path)
    assert problems == []


# What JAX lets dimensions be named is one word; the slider alone trusts no name.
HOSTILE_DIMENSIONS = r"""
LONG, RTL = "n" * 10_000, "\u05e9\u05dc\u05d5\u05dd"
sizes = jax.export.symbolic_shape(f"{LONG}, {RTL}, 64")
ui = t.explore(loss, params, jax.ShapeDtypeStruct(sizes, "float32"))
from tiny_backprop_widgets.panels.sliders import DimensionSlider
alone = DimensionSlider(EVIL, 32, int, print)
"""


def test_hostile_names_of_dimensions_neither_break_nor_inject(notebook):
    book = opened(notebook, HOSTILE + HOSTILE_DIMENSIONS, "display(alone)\nui")
    page = book.page
    labels = page.locator(".widget-slider .widget-label:visible")
    assert labels.nth(0).inner_text().startswith("<img src=x")
    assert [text[:4] for text in labels.all_inner_texts()[1:3]] == ["nnnn", "\u05e9\u05dc\u05d5\u05dd"]
    page.locator(".tiny-backprop-explorer").locator(FIELD).nth(1).fill("5")
    page.locator(".tiny-backprop-explorer").locator(FIELD).nth(1).press("Enter")
    expect(book, "plan_blocks(ui._gradient.graph_at({LONG: 32, RTL: 5}), ui.block_size.value)")
    (cut,) = page.evaluate(OVERFLOWS)
    assert cut.startswith("LABEL.widget-label: nnnn")
    assert labels.nth(1).evaluate("e => getComputedStyle(e).textOverflow") == "ellipsis"
    assert len(labels.nth(1).get_attribute("title")) > 10_000
    open_tab(page, "Code and export")
    page.locator(".tiny-backprop-explorer pre", has_text="\u05e9\u05dc\u05d5\u05dd=5").wait_for()
    assert page.evaluate(OVERFLOWS) == [cut]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def check_report(browser, folder):
    """Open a report, hover over and click a tensor in it, and return what went wrong."""
    page, problems = browser.new_page(viewport={"width": 1200, "height": 1000}), []
    url = f"file://{folder}/report.html"
    page.on("request", lambda request: problems.append(request.url) if request.url != url else None)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    page.wait_for_selector(".tb-frontier[data-paints]")
    page.wait_for_selector(".tb-graph[data-paints]")
    canvas = page.locator(".tb-frontier canvas").first
    canvas.focus()
    page.keyboard.press("n")
    page.locator(".tb-frontier .tb-tip:visible").wait_for()
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for()
    before = int(page.locator(".tb-frontier").get_attribute("data-paints"))
    page.keyboard.press("+")
    page.wait_for_function("n => Number(document.querySelector('.tb-frontier').dataset.paints) > n", arg=before)
    if page.locator(".tb-memory-map").count():  # the explorer had been asked to verify
        page.locator(".tb-memory-map canvas").focus()
        page.keyboard.press("n")
        page.locator(".tb-memory-map .tb-tip:visible").wait_for()
        page.locator(".tb-memory-map tr[aria-selected=true]").wait_for()
        page.locator(".tb-memory-map").get_by_label("colour by").select_option("kind")
    if page.evaluate("window.hacked") is not None:
        problems.append("injected")
    page.close()
    return problems


def test_report_is_live_without_network_or_kernel(notebook, browser):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Code and export")
    page.get_by_role("button", name="Export").click()
    page.get_by_text("Written to").wait_for(timeout=60_000)
    assert check_report(browser, book.path.parent / "plan-export") == []
    assert book.run("print(ui.errors)") == "[]"
