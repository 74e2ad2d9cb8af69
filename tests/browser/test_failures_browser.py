"""What fails, in the kernel or with it, is told in place."""

import pytest

from .explorer_page import FIELD, HANDLE, MODEL, PEAK, blocks, expect, opened, verified

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


def test_errors_show_in_place_and_the_explorer_goes_on(notebook):
    book = opened(notebook)
    page = book.page
    alert = page.locator(".tiny-backprop-explorer [role=alert]:visible")
    book.run(
        "from tiny_backprop_widgets.explorer import plan_explorer as explorer\n"
        "real = explorer.plan_blocks; explorer.plan_blocks = None"
    )
    page.locator(HANDLE).first.focus()
    page.keyboard.press("ArrowRight")
    alert.wait_for()
    assert "TypeError" in alert.inner_text()
    assert book.run("print(len(ui.errors) > 0); explorer.plan_blocks = real") == "True"
    page.keyboard.press("ArrowRight")
    alert.wait_for(state="detached")
    expect(book, blocks(int(book.run("print(ui.block_size.value)"))))
    assert book.problems == []


@pytest.mark.parametrize("strategy", ["height compression", "budget"])
def test_a_replanning_that_raises_leaves_plan_and_map_as_they_were(notebook, strategy):
    """Whoever plans: what is shown stays, what is verified too, and the next slider that works takes the error away."""
    book = verified(notebook)
    page = book.page
    alert = page.locator(".tiny-backprop-explorer [role=alert]:visible")
    peak, before = page.locator(PEAK).inner_text(), book.run("plan = ui.plan; print(plan)")
    planner = {"height compression": "plan_height_compressed", "budget": "plan_budget"}[strategy]
    book.run(
        "from tiny_backprop_widgets.explorer import plan_explorer as explorer\n"
        f"real = explorer.{planner}\n"
        f"def fails(*args, **kwargs): raise RuntimeError('no plan <b>today</b>')\n"
        f"explorer.{planner} = fails"
    )
    page.get_by_role("button", name=strategy, exact=True).click()
    alert.get_by_text("RuntimeError: no plan <b>today</b>").first.wait_for(timeout=60_000)
    assert page.locator(PEAK).inner_text() == peak
    assert page.locator(".tb-memory-map canvas").is_visible()
    assert book.run("print(ui.plan is plan, [str(e) for e in ui.errors])") == "True ['no plan <b>today</b>']"
    assert book.run("print(ui.plan)") == before
    book.run(f"explorer.{planner} = real")
    page.get_by_role("button", name="block size", exact=True).click()
    page.locator(FIELD).first.fill("3")
    page.locator(FIELD).first.press("Enter")
    expect(book, blocks(3))
    alert.wait_for(state="detached")
    assert book.problems == []


def test_a_function_that_raises_when_it_is_compiled_is_told_in_place(notebook):
    cell = MODEL + "ui = t.explore(lambda x: jnp.sin(jnp.sin(x)), jnp.ones(4))"
    book = opened(notebook, cell, "ui")
    page = book.page
    page.get_by_role("button", name="Verify").click()
    alert = page.locator(".tiny-backprop-explorer [role=alert]:visible")
    alert.wait_for(timeout=60_000)
    assert "needs one real number as output" in alert.inner_text()
    page.locator(FIELD).first.fill("2")
    page.locator(FIELD).first.press("Enter")
    alert.wait_for(state="detached")
    assert book.problems == []


def test_a_kernel_that_was_restarted_is_told_in_place(notebook):
    book = opened(notebook)
    page = book.page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.get_by_text("The kernel was restarted or is gone").wait_for(timeout=60_000)
    assert page.locator(".tb-frontier canvas").is_visible()
    assert book.problems == []
