"""The explorer in a real JupyterLab: dragged by mouse and keys, held against the plan in the kernel."""

import json

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab

MODEL = """
import jax, jax.numpy as jnp
from tiny_backprop import PlanExplorer
from tiny_backprop.units import format_bytes

def loss(w, x):
    for _ in range(24):
        x = jnp.tanh(x @ w)
    return jnp.sum(x ** 2)

ui = PlanExplorer(loss, jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((256, 64), "float32"))
ui.block_size.value = 1
"""
PEAK = "table.tiny-backprop tr:nth-child(2) td:nth-child(2)"
FIELD = "input[type=number]"
HANDLE = ".widget-slider .noUi-handle"
PICTURE_TEXT = "() => fetch(document.querySelector('.widget-image').src).then(r => r.text())"
SHOWS = """([peak, field, wanted, size]) =>
  document.querySelector(peak).innerText === wanted && document.querySelector(field).value === String(size)"""


def expect(book, size, levels=1):
    """Wait until the page shows a plan that the kernel makes afresh, then check that the picture shows it as well."""
    call = f"t.plan_height_compressed(ui.graph, levels={levels}, block_size={size})"
    peak = book.run(f"import tiny_backprop as t; print(format_bytes({call}.peak_bytes))")
    book.page.wait_for_function(SHOWS, arg=[PEAK, FIELD, peak, size], timeout=30_000)
    book.page.wait_for_function(
        f"() => ({PICTURE_TEXT})().then(text => text.includes('>peak {peak}<'))", timeout=30_000
    )
    return peak


def expect_budget(book, budget):
    """Wait until the page shows a plan for a budget that the kernel makes afresh."""
    peak = book.run(f"import tiny_backprop as t; print(format_bytes(t.plan_budget(ui.graph, {budget}).peak_bytes))")
    wanted = book.run(f"print(format_bytes(t.plan_budget(ui.graph, {budget}).meta['budget_bytes']))")
    shows = """([peak, cell, budget]) => document.querySelector(cell).innerText === peak
      && document.body.innerText.includes(`budget ${budget} (`)"""
    book.page.wait_for_function(shows, arg=[peak, PEAK, wanted], timeout=30_000)
    return peak


def position(handle):
    """Return which of its stops a slider stands at, as the browser has it."""
    return round(float(handle.get_attribute("aria-valuenow")))


def test_mouse_keys_and_typing_replan_live(notebook):
    book = notebook(MODEL, "ui")
    page = book.page
    page.wait_for_selector(PEAK)
    stops = json.loads(book.run("print(ui.block_size._stops.tolist())"))
    handle, bar = page.locator(HANDLE).first, page.locator(".widget-slider .noUi-target").first
    first = expect(book, 1)

    start, track = handle.bounding_box(), bar.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.5 * track["width"], track["y"] + track["height"] / 2, steps=8)
    middle = position(handle)
    dragged = expect(book, stops[middle])  # while the button is still down
    page.mouse.up()
    assert abs(middle - len(stops) // 2) <= 1
    assert dragged != first

    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    keyed = expect(book, stops[middle + 3])
    assert keyed != dragged

    page.locator(FIELD).first.fill("2")
    page.locator(FIELD).first.press("Enter")
    typed = expect(book, 2)
    assert typed != keyed

    page.locator(HANDLE).nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert expect(book, 2, levels=2) != typed
    assert book.run("print(ui.plan.meta['levels'], ui.errors)") == "2 []"
    assert book.problems == []


def test_budgets_are_dragged_typed_refused_and_verified(notebook):
    book = notebook(MODEL, "ui")
    page = book.page
    page.get_by_role("button", name="byte budget").click()
    page.get_by_text("100% of save everything").wait_for()
    bar = page.locator(".widget-slider .noUi-target:visible")
    assert bar.count() == 1  # those of block size and levels are hidden

    track = bar.bounding_box()
    page.mouse.click(track["x"] + 0.4 * track["width"], track["y"] + track["height"] / 2)
    handle = page.locator(HANDLE + ":visible")
    page.wait_for_function("handle => handle.ariaValueNow < 60", arg=handle.element_handle())
    wanted = int(book.run(f"print(ui.budget._stops[{position(handle)}])"))
    clicked = expect_budget(book, wanted)

    handle.focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    keyed = expect_budget(book, int(book.run(f"print(ui.budget._stops[{position(handle)}])")))
    assert keyed != clicked

    field = page.locator(".tiny-backprop-explorer input[type=text]:visible").first
    field.fill("50%")
    field.press("Enter")
    half = expect_budget(book, 0.5)

    field.fill("1 KiB")
    field.press("Enter")
    page.get_by_role("alert").wait_for()
    assert "the smallest peak that the planner can reach is" in page.get_by_role("alert").inner_text()
    assert page.locator(PEAK).inner_text() == half
    assert book.run("print(ui.errors, ui.plan == t.plan_budget(ui.graph, 0.5))") == "[] True"

    field.fill("50%")
    field.press("Enter")
    page.get_by_role("alert").wait_for(state="detached")
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("measured by XLA on").wait_for()
    measured = book.run("print(format_bytes(ui.verify().peak_bytes))")
    assert f"cpu: {measured} (temp" in page.get_by_text("measured by XLA on").inner_text()
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_dag_export_and_errors_show_in_place(notebook):
    book = notebook(MODEL + "ui.block_size.value = 12", "ui")
    page = book.page
    page.get_by_role("button", name="Draw the DAG").click()
    page.wait_for_selector(".tiny-backprop-dag svg .node, .tiny-backprop-dag p")
    n_boxes = page.locator(".tiny-backprop-dag svg .node").count()
    assert n_boxes == int(book.run("import tiny_backprop as t; print(t.jaxpr_dag(ui.graph, ui.plan).n_boxes)"))
    assert "backward" in page.locator(".tiny-backprop-dag").inner_text()

    page.get_by_role("button", name="Export").click()
    page.get_by_text("Written to").wait_for()
    folder = book.path.parent / "plan-export"
    assert (folder / "report.html").stat().st_size > 10_000

    book.run("from tiny_backprop_widgets import explorer; explorer.plot_frontier = None")
    page.locator(HANDLE).first.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("alert").wait_for()
    assert "TypeError" in page.get_by_role("alert").inner_text()
    assert book.run("print(len(ui.errors) > 0)") == "True"
    assert book.problems == []


def test_report_opens_without_network_or_script(notebook, browser, tmp_path):
    book = notebook(MODEL, f"paths = ui.export({str(tmp_path)!r})", "ui")
    requests, problems = [], []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(f"file://{tmp_path}/report.html")
    assert requests == [f"file://{tmp_path}/report.html"]
    assert problems == []
    assert page.get_by_text(f"Alive at the predicted peak of {book.page.locator(PEAK).inner_text()}").is_visible()
    assert page.evaluate("document.querySelector('figure svg').getBoundingClientRect().width") > 300
    page.close()

    book.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    outputs = nbformat.read(book.path, 4).cells[-1].outputs
    assert outputs[0].data["image/png"].startswith("iVBORw0KGgo")
    assert outputs[0].data["text/plain"].startswith("PlanExplorer(Plan(")
