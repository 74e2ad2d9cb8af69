"""The explorer in Notebook 7 and in Voila: it opens, and its slider plans anew; in Notebook 7 also reopened."""

import pytest

from tiny_backprop.units import format_bytes

from .explorer_page import CELL, HANDLE, MODEL, PEAK, SHOWS, STAND_IN, position, reopen
from .lab import NOTEBOOK, RUN_ALL, Notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


def first_lines(problems):
    return {problem.partition("\n")[0] for problem in problems}


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    yield page
    page.close()


def own_problems(lab, browser):
    """Return what goes wrong in a front-end where a notebook does nothing: what it is to blame for itself."""
    page = browser.new_page()
    book = Notebook(page, lab, ["print('done')"])
    page.get_by_text("done", exact=True).wait_for(timeout=60_000)
    page.wait_for_function("() => window.jupyterapp")
    page.close()
    return first_lines(book.problems)


def test_a_slider_plans_anew(other_lab, browser, page):
    blamed = own_problems(other_lab, browser)
    book = Notebook(page, other_lab, [MODEL, "ui"])
    page.wait_for_selector(".tb-frontier[data-paints]", timeout=90_000)
    exec(MODEL, here := {})  # the same explorer, of which the page knows nothing
    ui = here["ui"]
    assert page.locator(PEAK).inner_text() == format_bytes(ui.plan.peak_bytes)

    assert not page.locator("[class^=tiny-backprop-stand-in]").is_visible()
    handle, before = page.locator(HANDLE).first, ui.plan.peak_bytes
    bar = page.locator(".widget-slider .noUi-target:visible").first.bounding_box()
    page.mouse.click(bar["x"] + 0.5 * bar["width"], bar["y"] + bar["height"] / 2)
    page.wait_for_function("handle => Number(handle.ariaValueNow) > 4", arg=handle.element_handle())
    for key in (None, "ArrowLeft"):
        if key is not None:
            handle.focus()
            page.keyboard.press(key)
        ui.block_size.value = int(ui.block_size._stops[position(handle)])
        assert ui.plan.peak_bytes != before
        shown = [PEAK, format_bytes(ui.plan.peak_bytes), ui.plan.peak_bytes]
        page.wait_for_function(SHOWS, arg=shown, timeout=30_000)
        before = ui.plan.peak_bytes

    canvas = page.locator(".tb-frontier canvas").first
    canvas.focus()
    page.keyboard.press("n")
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for()
    page.keyboard.press("Escape")
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for(state="detached")
    assert first_lines(book.problems) - blamed == set()


@pytest.mark.parametrize("other_lab", [NOTEBOOK], indirect=True, ids=["notebook"])
def test_a_reopened_notebook_shows_pictures_in_place(other_lab, page):
    alone = "import tiny_backprop_widgets as tw\ntw.TableView(ui.plan)"
    book = Notebook(page, other_lab, [MODEL, "ui", alone])
    page.wait_for_selector(".tb-frontier[data-paints]", timeout=90_000)
    page.locator(".tb-view").nth(3).wait_for()
    peak = page.locator(PEAK).inner_text()
    reopen(page, other_lab, book.path)
    shown = page.locator(STAND_IN)
    assert shown.count() == 2
    assert all(one.is_visible() for one in shown.all())
    assert page.locator(CELL).first.inner_text() == peak
    assert not any(words.is_visible() for words in page.get_by_text("model not found").all())
    page.evaluate(RUN_ALL)
    page.wait_for_selector(".tb-frontier[data-paints]", timeout=90_000)
    assert not any(one.is_visible() for one in page.locator(STAND_IN).all())
