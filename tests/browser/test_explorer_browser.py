"""The explorer in a real JupyterLab: every control by mouse and keys, held against the plan in the kernel."""

import json

import pytest

from .explorer_page import (
    FIELD,
    HANDLE,
    MARKS_OVERLAP,
    MODEL,
    at_peak,
    blocks,
    expect,
    open_tab,
    opened,
    position,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


TRACK = ".widget-slider .noUi-target:visible"


def test_mouse_keys_and_typing_replan_live(notebook):
    book = opened(notebook)
    page = book.page
    stops = json.loads(book.run("print(ui.block_size._stops.tolist())"))
    handle, bar = page.locator(HANDLE).first, page.locator(TRACK).first
    first = expect(book, blocks(1))

    start, track = handle.bounding_box(), bar.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.5 * track["width"], track["y"] + track["height"] / 2, steps=8)
    middle = position(handle)
    dragged = expect(book, blocks(stops[middle]))  # while the button is still down
    page.mouse.up()
    assert abs(middle - len(stops) // 2) <= 1
    assert dragged != first

    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    keyed = expect(book, blocks(stops[middle + 3]))
    assert keyed != dragged

    page.locator(FIELD).first.fill("2")
    page.locator(FIELD).first.press("Enter")
    typed = expect(book, blocks(2))
    assert typed != keyed

    page.get_by_role("button", name="height compression").click()
    expect(book, "plan_height_compressed(ui.graph, levels=1, block_size=2)")
    page.locator(HANDLE).nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert expect(book, "plan_height_compressed(ui.graph, levels=2, block_size=2)") != typed
    assert book.run("print(ui.plan.meta['levels'], ui.errors)") == "2 []"
    assert book.problems == []


def test_budgets_are_dragged_typed_and_refused(notebook):
    book = opened(notebook)
    page = book.page
    page.get_by_role("button", name="budget", exact=True).click()
    page.get_by_text("100% of save everything").wait_for(timeout=90_000)
    bar = page.locator(TRACK)
    assert bar.count() == 1  # those of block size and levels are hidden

    track = bar.bounding_box()
    page.mouse.click(track["x"] + 0.4 * track["width"], track["y"] + track["height"] / 2)
    handle = page.locator(HANDLE)
    page.wait_for_function("handle => handle.ariaValueNow < 60", arg=handle.element_handle())
    wanted = int(book.run(f"print(ui.budget._stops[{position(handle)}])"))
    clicked = expect(book, f"plan_budget(ui.graph, {wanted})")

    handle.focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    wanted = int(book.run(f"print(ui.budget._stops[{position(handle)}])"))
    assert expect(book, f"plan_budget(ui.graph, {wanted})") != clicked

    field = page.locator(".tiny-backprop-explorer input[type=text]:visible").first
    field.fill("50%")
    field.press("Enter")
    expect(book, "plan_budget(ui.graph, 0.5)")

    field.fill("1 KiB")
    field.press("Enter")
    alert = page.locator(".tiny-backprop-explorer [role=alert]:visible")
    alert.wait_for()
    assert "that XLA is predicted to fit into 1 KiB" in alert.inner_text()
    assert book.run("print(ui.errors, ui.plan == t.plan_budget(ui.graph, 0.5))") == "[] True"

    field.fill("50%")
    field.press("Enter")
    alert.wait_for(state="detached")
    assert book.problems == []


def test_a_tensor_that_is_clicked_is_chosen_in_table_graph_and_source(notebook):
    book = opened(notebook)
    page = book.page
    x, y = at_peak(book)
    page.mouse.move(x, y)
    page.locator(".tb-frontier .tb-tip:visible").wait_for()
    assert "float32[" in page.locator(".tb-frontier .tb-tip").inner_text()
    page.mouse.click(x, y)
    row = page.locator(".tb-tensors tr[aria-selected=true]")
    row.wait_for()
    value = int(row.get_attribute("data-value"))
    assert value == int(book.run("print(ui.frontier.value)")) == int(book.run("print(ui.tensors.value)"))
    shape = book.run(f"v = ui.graph.value({value}); print(f'{{v.dtype}}[{{v.shape[0]}},{{v.shape[1]}}]')")
    assert shape in row.inner_text()
    page.locator(".tiny-backprop-source mark").wait_for()
    assert "x = jnp.tanh(x @ w)" in page.locator(".tiny-backprop-source mark").inner_text()
    assert int(book.run("print(ui.graph.value_node[ui.frontier.value] == ui.dag.value)") == "True")

    page.locator(".tb-tensors tbody tr").nth(1).click()
    other = page.locator(".tb-tensors tbody tr").nth(1).get_attribute("data-value")
    page.wait_for_function("v => document.querySelector('.tb-frontier').dataset.chosen === v", arg=other)
    open_tab(page, "Graph")
    node = book.run(f"print(ui.graph.value_node[{other}])")
    page.wait_for_function("n => document.querySelector('.tb-graph').dataset.chosen === n", arg=node)
    assert book.problems == []


def test_zoom_and_pan_by_buttons_keys_wheel_and_drag(notebook):
    book = opened(notebook)
    page = book.page
    root = page.locator(".tb-frontier")

    def paints():
        return int(root.get_attribute("data-paints"))

    def repaints_on(act):
        before = paints()
        act()
        page.wait_for_function("n => Number(document.querySelector('.tb-frontier').dataset.paints) > n", arg=before)

    canvas = root.locator("canvas")
    for name in ("zoom in", "zoom to the peak", "zoom out", "show the whole plan"):
        repaints_on(root.get_by_role("button", name=name).click)
    canvas.focus()
    for key in ("+", "ArrowRight", "ArrowLeft", "-", "n", "Escape", "y", "0"):
        repaints_on(lambda key=key: page.keyboard.press(key))
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 100)
    repaints_on(lambda: page.mouse.wheel(0, -200))
    page.mouse.down()
    repaints_on(lambda: page.mouse.move(box["x"] + 200, box["y"] + 100, steps=3))
    page.mouse.up()
    assert book.run("print(ui.frontier.value)") == "None"  # a drag chooses nothing
    assert book.problems == []


def test_a_group_is_opened_searched_and_stays_in_place(notebook):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Graph")
    root = page.locator(".tb-graph")
    page.wait_for_selector(".tb-graph[data-paints]")
    assert int(root.get_attribute("data-boxes")) == int(book.run("print(ui.dag.n_boxes)"))
    n_boxes = int(root.get_attribute("data-boxes"))

    canvas = root.locator("canvas")
    canvas.focus()
    page.keyboard.press("n")
    page.keyboard.press("n")  # walks to a group, which is then in the middle
    page.wait_for_function("() => document.querySelector('.tb-graph').dataset.chosen !== ''")
    canvas.dblclick()
    page.wait_for_function("n => Number(document.querySelector('.tb-graph').dataset.boxes) > n", arg=n_boxes)
    more = int(root.get_attribute("data-boxes"))
    assert more == int(book.run("print(ui.dag.n_boxes)"))
    assert book.run("print(len(ui.dag.expanded))") == "1"

    places = book.run("print(hash(ui.dag._places))")
    book.run("ui.block_size.value = 12")
    expect(book, blocks(12))
    assert book.run("print(hash(ui.dag._places))") == places

    search = root.get_by_role("searchbox")
    search.fill("tanh")
    n_found = book.run("print(ui.graph.primitives.count('tanh'))")
    root.get_by_text(f"{n_found} found", exact=True).wait_for()
    search.fill("")
    root.get_by_label("collapse by").select_option("block")
    page.wait_for_function("n => Number(document.querySelector('.tb-graph').dataset.boxes) !== n", arg=more)
    assert book.run("print(ui.dag.group_by, ui.errors)") == "block []"
    assert book.problems == []


def test_a_symbolic_dimension_is_dragged_and_boxes_stay_in_place(notebook):
    book = opened(notebook, MODEL.replace("(256, 64)", "jax.export.symbolic_shape('batch, 64')"), "ui")
    page = book.page

    def of_batch(n):
        w, x = (f"jax.ShapeDtypeStruct(({rows}, 64), 'float32')" for rows in (64, n))
        return f"plan_blocks(t.capture_gradient(loss, {w}, {x}), 1)"

    stops = json.loads(book.run("print(ui.dimensions['batch']._stops.tolist())"))
    open_tab(page, "Graph")
    page.wait_for_selector(".tb-graph[data-paints]")
    places = book.run("print(hash(ui.dag._places))")
    first = expect(book, of_batch(32))

    handle, bar = page.locator(HANDLE).first, page.locator(TRACK).first
    start, track = handle.bounding_box(), bar.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.8 * track["width"], track["y"] + track["height"] / 2, steps=8)
    at = position(handle)
    dragged = expect(book, of_batch(stops[at]))  # while the button is still down
    page.mouse.up()
    assert dragged > first

    handle.focus()
    page.keyboard.press("ArrowLeft")
    assert expect(book, of_batch(stops[at - 1])) < dragged
    page.locator(FIELD).first.fill("3")
    page.locator(FIELD).first.press("Enter")
    assert expect(book, of_batch(3)) < dragged
    assert book.run("print(hash(ui.dag._places))") == places
    assert book.run("print(ui.dimensions['batch'].value, ui.errors)") == "3 []"
    assert book.problems == []


def test_marks_under_the_budget_slider_set_the_budget(notebook):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Trade-off")
    page.wait_for_selector(".tb-pareto svg .tb-knee", timeout=90_000)  # nobody asked for it, and no budget was chosen
    page.get_by_role("button", name="budget", exact=True).click()
    marks = page.locator(".tb-marks button")
    page.locator(".tb-marks button", has_text="knee").wait_for()
    assert [text.split()[0] for text in marks.all_inner_texts()] == ["smallest", "knee", "save"]
    bar = page.locator(TRACK).bounding_box()
    for word in ("knee", "smallest", "save"):
        page.locator(".tb-marks button", has_text=word).click()
        wanted = book.run(f"print(next(m.bytes for m in ui.budget._marks.marks if m.name.startswith({word!r})))")
        expect(book, f"plan_budget(ui.graph, {wanted})")
        tick = page.locator(".tb-marks i").nth({"smallest": 0, "knee": 1, "save": 2}[word]).bounding_box()
        handle = page.locator(HANDLE).bounding_box()
        assert abs(tick["x"] - handle["x"] - handle["width"] / 2) < 0.01 * bar["width"] + 2  # the nearest stop is there
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_marks_stand_in_one_row_wherever_there_is_room(notebook):
    book = opened(notebook)
    page = book.page
    page.get_by_role("button", name="budget", exact=True).click()
    page.locator(".tb-marks button").first.wait_for(timeout=90_000)
    rows = "() => [...document.querySelectorAll('.tb-marks button')].map((e) => e.getBoundingClientRect().top)"
    is_level = f"() => new Set(({rows})()).size === 1"
    page.wait_for_function(is_level)
    for theme, expected in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
        large = page.add_style_tag(content=".tb-marks button { font-size: 26px !important }")  # as a theme may have it
        page.wait_for_function(f"() => !({is_level})()")
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_selector(f".tb-marks[data-theme={expected}]", timeout=20_000)
        assert not page.evaluate(MARKS_OVERLAP)
        large.evaluate("e => e.remove()")
        page.wait_for_function(is_level)
        assert not page.evaluate(MARKS_OVERLAP)
    assert book.problems == []
