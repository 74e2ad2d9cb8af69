"""The explorer in a real JupyterLab: every control by mouse and keys, held against the plan in the kernel."""

import json

import nbconvert
import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

from .lab import RUN_ALL, WAIT_FOR_KERNEL

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab

MODEL = """
import jax, jax.numpy as jnp
import tiny_backprop as t
from tiny_backprop.units import format_bytes

def loss(w, x):
    for i in range(24):
        with jax.named_scope(f"layer{i // 6}"):
            x = jnp.tanh(x @ w)
    return jnp.sum(x ** 2)

ui = t.explore(loss, jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((256, 64), "float32"))
ui.block_size.value = 1
"""
CELL = "table.tiny-backprop tr:nth-child(2) td:nth-child(2)"
PEAK = f".tiny-backprop-price {CELL}"
FIELD = "input[type=number]:visible"
HANDLE = ".widget-slider .noUi-handle:visible"
TRACK = ".widget-slider .noUi-target:visible"
SHOWS = """([cell, wanted, bytes]) => document.querySelector(cell).innerText === wanted
  && document.querySelector('.tb-frontier').dataset.peakBytes === String(bytes)"""
# Edges of the plot inside the frontier's canvas, in pixels.
LEFT, RIGHT, BOTTOM = 64, 12, 32


def expect(book, call):
    """Wait until the page, its price and its painted frontier, shows a plan that the kernel makes afresh."""
    n_bytes = int(book.run(f"print(t.{call}.peak_bytes)"))
    peak = book.run(f"print(format_bytes({n_bytes}))")
    book.page.wait_for_function(SHOWS, arg=[PEAK, peak, n_bytes], timeout=30_000)
    assert book.run(f"print(ui.plan == t.{call})") == "True"
    return n_bytes


def blocks(size):
    return f"plan_blocks(ui.graph, {size})"


def position(handle):
    """Return which of its stops a slider stands at, as the browser has it."""
    return round(float(handle.get_attribute("aria-valuenow")))


def opened(notebook, *cells):
    book = notebook(*(cells or (MODEL, "ui")))
    book.page.wait_for_selector(".tb-frontier[data-paints]")
    return book


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def at_peak(book):
    """Return where, in the page, the lowest band at the plan's peak is painted."""
    canvas = book.page.locator(".tb-frontier canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    share = float(book.run("m = ui.plan.materialized; print((m.peak_kernel + 0.5) / len(m.live_bytes))"))
    x = box["x"] + LEFT + share * (box["width"] - LEFT - RIGHT)
    return x, box["y"] + box["height"] - BOTTOM - 4


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


NOTHING_UNASKED = "from tiny_backprop_widgets import trade_off_panel; trade_off_panel._MOST_NODES_UNASKED = 0"


def test_a_point_of_the_trade_off_is_clicked(notebook):
    book = opened(notebook, NOTHING_UNASKED, MODEL, "ui")
    page = book.page
    open_tab(page, "Trade-off")
    page.get_by_role("button", name="Work out the trade-off").click()
    page.wait_for_selector(".tb-pareto svg [data-point]", timeout=60_000)
    n_points = page.locator(".tb-pareto [data-point]").count()
    assert n_points == int(book.run("print(len(ui.trade_off_view.pareto))"))
    for i in (n_points // 2, n_points - 1):
        page.locator(f".tb-pareto [data-point='{i}']").click()
        wanted = book.run(f"print(ui.trade_off_view.pareto.plans[{i}].peak_bytes)")
        page.wait_for_function("n => document.querySelector('.tb-frontier').dataset.peakBytes === n", arg=wanted)
        page.locator(f".tb-pareto [data-point='{i}'][aria-pressed=true]").wait_for()
    assert book.run("print(ui.strategy.value, ui.errors)") == "budget []"
    assert book.problems == []


WORDS_OVERLAP = """() => {
  const boxes = [...document.querySelectorAll('.tb-pareto svg text')].map((e) => [e, e.getBoundingClientRect()]);
  return boxes.flatMap(([e, a], i) => boxes.slice(i + 1).filter(
    ([, b]) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
    .map(([f]) => `${e.textContent} on ${f.textContent}`));
}"""
NEAR = """
import itertools
def near(i):
    curve = dict(view._curve, serial=i)
    knee = curve["points"][curve["knee"]]
    left, up = list(itertools.product((-0.05, -0.02, 0, 0.02, 0.05), (-0.12, -0.05, 0, 0.05, 0.12)))[i]
    widest, highest = (max(p[k] for p in curve["points"]) for k in ("peak_bytes", "percent"))
    at = dict(knee, peak_bytes=knee["peak_bytes"] + left * widest, percent=max(0, knee["percent"] + up * highest))
    view._curve = dict(curve, current=at)
"""


def test_words_in_the_trade_off_do_not_touch_however_close_their_points_are(notebook):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Trade-off")
    book.run("view = None; ui.trade_off(n_points=6); view = ui.trade_off_view" + NEAR)
    page.wait_for_selector(".tb-pareto svg .tb-knee")
    for i in range(25):
        before = page.locator(".tb-pareto .tb-current").element_handle()
        book.run(f"near({i})")
        page.wait_for_function("before => !before.isConnected", arg=before)
        assert page.evaluate(WORDS_OVERLAP) == []
        assert page.locator(".tb-pareto .tb-this").count() == 1
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


# What the words of the knee and of this plan cover of the curve, whose pieces are horizontal and vertical.
ON_CURVE = """() => {
  const svg = document.querySelector('.tb-pareto svg'), frame = svg.getBoundingClientRect();
  const path = document.querySelector('.tb-curve').getAttribute('d').slice(1);
  const d = path.split('L').map((pair) => pair.split(',').map(Number));
  const touches = (box) => d.slice(1).some(([x, y], i) =>
    Math.min(x, d[i][0]) < box.right - frame.left && Math.max(x, d[i][0]) > box.left - frame.left
    && Math.min(y, d[i][1]) < box.bottom - frame.top - 2 && Math.max(y, d[i][1]) > box.top - frame.top + 2);
  return [...document.querySelectorAll('.tb-knee, .tb-this')].filter((e) => touches(e.getBoundingClientRect())).map(
    (e) => e.textContent);
}"""
# MiB and percent of the plans for a 6-layer GPT, largest first, and of the policies.
GPT_POINTS = [(266, 0), (245, 1.5), (203, 2.8), (189, 4.1), (168, 5.4), (154, 6.4), (141, 7.3), (133, 8), (118, 10)]
GPT_POINTS += [(113, 10.8), (104, 12.4), (92, 14.3), (84, 15.9), (76, 17.5), (71, 18.9), (63, 21.8), (59, 22.6)]
GPT_POINTS += [(55, 23.6), (48, 40.5), (45, 51)]
GPT_POLICIES = [
    ("nothing_saveable", 244, 37.5),
    ("dots_with_no_batch_dims_saveable", 242, 22),
    ("dots_saveable", 239, 21),
]


def test_words_in_the_trade_off_leave_its_curve_free_on_narrow_pages(notebook):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Trade-off")
    book.run("ui.trade_off(n_points=4)")
    page.evaluate("() => { const shell = window.jupyterapp.shell; shell.collapseLeft(); shell.collapseRight(); }")
    book.run(
        f"curve = ui.trade_off_view._curve; knee = 13\n"
        f"point = lambda mib, percent: dict(curve['points'][0], peak_bytes=mib * 2**20, percent=percent)\n"
        f"points = [point(*p) for p in {GPT_POINTS}]\n"
        f"policies = [dict(point(mib, percent), name=name) for name, mib, percent in {GPT_POLICIES}]\n"
        "ui.trade_off_view._curve = dict(curve, points=points, references=policies, knee=knee, current=points[knee])"
    )
    page.locator(f".tb-pareto [data-point='{len(GPT_POINTS) - 1}']").wait_for()
    for width in (*range(520, 760, 20), 1280):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_function(
            "w => innerWidth === w && document.querySelector('.tb-pareto svg').getAttribute('width')"
            " === String(document.querySelector('.tb-pareto .tb-frame').clientWidth)",
            arg=width,
        )
        assert page.evaluate(ON_CURVE) == []
        assert page.evaluate(WORDS_OVERLAP) == []
    assert book.problems == []


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
        "print(format_bytes(t.measure(t.height_compressed_value_and_grad(loss, plan=ui.plan), "
        "jax.ShapeDtypeStruct((64, 64), 'float32'), "
        "jax.ShapeDtypeStruct((256, 64), 'float32')).peak_bytes))"
    )
    assert f"cpu: {measured} (temp" in page.get_by_text("measured by XLA on").inner_text()
    assert book.run("print(ui.measurement is not None, ui.errors)") == "True []"
    assert book.problems == []


MAP = "document.querySelector('.tb-memory-map').dataset"
# Edges of the plot inside the memory map's canvas, in pixels, and its height without the bars of loops.
MAP_TOP, MAP_BOTTOM, MAP_HEIGHT = 26, 22, 380


def verified(notebook, *cells):
    """Open the explorer, verify its plan, open the tab of the memory map."""
    book = opened(notebook, *cells)
    book.page.get_by_role("button", name="Verify").click()
    book.page.get_by_text("measured by XLA on").wait_for(timeout=90_000)
    open_tab(book.page, "Memory map")
    book.page.wait_for_selector(".tb-memory-map[data-paints]")
    return book


def place_of(book, value):
    """Return where, in the page, the middle of a tensor of the memory map is, while all of the map is shown."""
    canvas = book.page.locator(".tb-memory-map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = json.loads(
        book.run(
            f"m = ui.memory_map_view.memory_map; b = m.buffers[{value}]; import json\n"
            "assert b.memory == 'temp' and len({c.allocation for c in m.buffers if c.memory == 'temp'}) == 1\n"
            "print(json.dumps([(b.first_use + b.freed_at) / 2 / len(m.schedule), "
            "(b.offset_bytes + b.bytes / 2) / (m.temp_bytes + m.output_bytes)]))"
        )
    )
    plot_height = MAP_HEIGHT - MAP_TOP - MAP_BOTTOM
    return box["x"] + LEFT + x * (box["width"] - LEFT - RIGHT), box["y"] + MAP_TOP + (1 - y) * plot_height


def test_the_memory_map_is_hovered_clicked_and_walked_through(notebook):
    book = verified(notebook)
    page, root = book.page, book.page.locator(".tb-memory-map")
    assert root.get_by_text("loss: temporaries ").inner_text().endswith("measured by XLA")
    ranked = json.loads(
        book.run(
            "import json; bs = ui.memory_map_view.memory_map.buffers\n"
            "own = [i for i, b in enumerate(bs) if b.memory == 'temp' and b.kind == 'saved']\n"
            "print(json.dumps(sorted(own, key=lambda i: -bs[i].bytes * (bs[i].freed_at - bs[i].first_use))[:2]))"
        )
    )
    for value in ranked:
        x, y = place_of(book, value)
        page.mouse.move(x, y)
        page.wait_for_function(f"v => {MAP}.hovered === v", arg=str(value))
        tip = root.locator(".tb-tip").inner_text()
        instruction, n_bytes = book.run(f"b = bs[{value}]; print(b.instruction, format_bytes(b.bytes))").split(" ", 1)
        assert f"made by {instruction}\n" in tip
        assert tip.startswith(n_bytes)
        page.mouse.click(x, y)
        page.wait_for_function(f"v => {MAP}.chosen === v", arg=str(value))
        assert book.run("print(ui.memory_map_view.value)") == str(value)
        assert root.locator("tr[aria-selected=true]").get_attribute("data-value") == str(value)
        position = int(book.run("print(ui.memory_map_view.position)"))
        alive = book.run(
            f"m = ui.memory_map_view.memory_map; print(sum(len(m.alive_at({position}, k)) for k in ('temp', 'output')))"
        )
        root.get_by_text(f"{alive} tensors alive at position {position:,}").wait_for()

    other = root.locator("tbody tr[aria-selected=false]").first
    value = other.get_attribute("data-value")
    other.click()
    page.wait_for_function(f"v => {MAP}.chosen === v", arg=value)
    assert book.run("print(ui.memory_map_view.value)") == value
    root.locator("canvas").focus()
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => {MAP}.chosen === ''")
    page.keyboard.press("n")
    largest = book.run(
        "k = [b.bytes if b.memory in ('temp', 'output') else -1 for b in bs]; print(k.index(max(k)), max(k))"
    ).split()
    page.wait_for_function(f"() => {MAP}.chosen !== ''")
    chosen = book.run("print(ui.memory_map_view.value)")
    assert book.run(f"print(bs[{chosen}].bytes)") == largest[1]
    book.run(f"ui.memory_map_view.value = {ranked[1]}")  # from Python
    page.wait_for_function(f"v => {MAP}.chosen === v", arg=str(ranked[1]))
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_a_buffer_of_xlas_and_a_tensor_of_the_plan_choose_each_other(notebook):
    book = verified(notebook)
    page, root = book.page, book.page.locator(".tb-memory-map")
    buffer, value, node = json.loads(
        book.run(
            "import json, numpy as np; bs = ui.memory_map_view.memory_map.buffers; pairs = ui._link.pairs\n"
            "peak = ui.plan.materialized; alive = peak.values[peak.alive_at(peak.peak_kernel)]\n"
            "own = [i for i, b in enumerate(bs) if b.memory == 'temp' and pairs.value_of(i) in alive]\n"
            "b = max(own, key=lambda i: bs[i].bytes * (bs[i].freed_at - bs[i].first_use)); v = pairs.value_of(b)\n"
            "print(json.dumps([b, v, int(ui.graph.value_node[v])]))"
        )
    )
    page.mouse.click(*place_of(book, buffer))
    page.wait_for_function(f"v => {MAP}.chosen === v", arg=str(buffer))
    note = root.locator(".tb-note")
    note.get_by_text(f"In the plan: tensor {value}, float32[256,64], made by ").wait_for()
    assert book.run(f"print(bs[{buffer}].instruction)") in note.inner_text()
    assert book.run("print(ui.frontier.value, ui.dag.value)") == f"{value} {node}"
    open_tab(page, "Tensors")
    chosen = page.locator(".tb-tensors tr[aria-selected=true]")
    chosen.wait_for()
    assert chosen.get_attribute("data-value") == str(value)
    page.locator(".tiny-backprop-explorer td", has_text="buffers of XLA").first.wait_for()

    other = page.locator(".tb-tensors tr[aria-selected=false]")
    found = [
        row
        for row in other.all()
        if book.run(f"print(len(pairs.buffers_of({row.get_attribute('data-value')})))") != "0"
    ]
    row = found[-1]
    wanted = row.get_attribute("data-value")
    row.click()
    both = f"sorted([ui.memory_map_view.value, *ui.memory_map_view.marked]) == sorted(pairs.buffers_of({wanted}))"
    page.locator(f".tb-tensors tr[aria-selected=true][data-value='{wanted}']").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.tb-note').length")
    open_tab(page, "Memory map")
    root.locator(".tb-note").get_by_text(f"In the plan: tensor {wanted}, ").wait_for()
    assert book.run(f"print({both})") == "True"
    page.wait_for_function(f"v => {MAP}.chosen === v", arg=book.run("print(ui.memory_map_view.value)"))
    assert root.get_attribute("data-marked") == book.run("print(*ui.memory_map_view.marked)")
    assert root.locator("tr[aria-selected=true]").get_attribute("data-value") == root.get_attribute("data-chosen")

    stranger = book.run("print(next(i for i, b in enumerate(bs) if b.memory == 'temp' and pairs.value_of(i) is None))")
    book.run(f"ui.memory_map_view.value = {stranger}")
    root.locator(".tb-note").get_by_text("In the plan: none; ").wait_for()
    open_tab(page, "Tensors")
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for(state="detached")
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_the_memory_map_is_zoomed_panned_coloured_and_follows_the_plan(notebook):
    book = verified(notebook)
    page, root = book.page, book.page.locator(".tb-memory-map")
    n_positions = int(book.run("print(len(ui.memory_map_view.memory_map.schedule))"))
    assert float(root.get_attribute("data-span")) == n_positions
    n_seen = int(root.get_attribute("data-visible"))

    def repaints_on(act):
        before = root.get_attribute("data-paints")
        act()
        page.wait_for_function(f"n => {MAP}.paints !== n", arg=before)
        return float(root.get_attribute("data-span"))

    press = page.keyboard.press
    assert repaints_on(root.get_by_role("button", name="zoom in").click) < n_positions
    assert int(root.get_attribute("data-visible")) < n_seen
    assert repaints_on(root.get_by_role("button", name="show the whole memory").click) == n_positions
    peak = repaints_on(root.get_by_role("button", name="zoom to the peak").click)
    assert peak < n_positions
    canvas = root.locator("canvas")
    canvas.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        assert repaints_on(lambda key=key: press(key)) == pytest.approx(peak)
    assert repaints_on(lambda: press("+")) < peak
    assert repaints_on(lambda: press("-")) == pytest.approx(peak)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    zoomed = repaints_on(lambda: page.mouse.wheel(0, -200))
    assert zoomed < peak
    page.mouse.down()
    assert repaints_on(lambda: page.mouse.move(box["x"] + 200, box["y"] + 150, steps=3)) == pytest.approx(zoomed)
    page.mouse.up()
    assert book.run("print(ui.memory_map_view.value)") == "None"  # a drag chooses nothing
    assert repaints_on(lambda: page.mouse.dblclick(box["x"] + 300, box["y"] + 200)) == n_positions

    root.get_by_label("colour by").select_option("scope")
    root.get_by_text("layer3", exact=True).first.wait_for()
    assert book.run("print(ui.memory_map_view.color_by)") == "scope"
    before = book.run("print(ui.memory_map_view.memory_map.temp_bytes)")
    book.run("ui.block_size.value = 12")
    page.get_by_text("Verify asks XLA where").wait_for()
    assert root.count() == 0
    book.run("ui.verify()")
    page.wait_for_selector(".tb-memory-map[data-paints]")
    assert book.run("print(ui.memory_map_view.memory_map.temp_bytes)") != before
    for theme, expected in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_selector(f".tb-memory-map[data-theme={expected}]", timeout=20_000)
    assert book.run("print(ui.errors)") == "[]"
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


def test_errors_show_in_place_and_the_explorer_goes_on(notebook):
    book = opened(notebook)
    page = book.page
    alert = page.locator(".tiny-backprop-explorer [role=alert]:visible")
    book.run("from tiny_backprop_widgets import explorer; real = explorer.plan_blocks; explorer.plan_blocks = None")
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
        "from tiny_backprop_widgets import explorer\n"
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


def test_a_memory_map_stays_when_the_kernel_is_restarted(notebook):
    book = verified(notebook)
    page = book.page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.get_by_text("The kernel was restarted or is gone").first.wait_for(timeout=60_000)
    page.evaluate(WAIT_FOR_KERNEL)
    root = page.locator(".tb-memory-map")
    root.locator("canvas").focus()
    before = root.get_attribute("data-paints")
    page.keyboard.press("+")  # what is drawn goes on without a kernel
    page.wait_for_function(f"n => {MAP}.paints !== n", arg=before)
    page.keyboard.press("n")
    root.locator("tr[aria-selected=true]").wait_for()
    assert root.locator(".tb-tip").is_visible()
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => !document.querySelector('.tb-notice:not([hidden])')", timeout=60_000)
    page.wait_for_selector(".tb-frontier[data-paints]")
    assert book.problems == []


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
    expect(book, "plan_blocks(ui._symbolic.at(**{LONG: 32, RTL: 5}), ui.block_size.value)")
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


STAND_IN = "[class^=tiny-backprop-stand-in]"


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


def reopen(page, lab, path):
    """Save a notebook, end its kernel and open it again, as the next day does."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.goto(lab.address(path), wait_until="domcontentloaded")
    page.locator(STAND_IN).last.wait_for(timeout=60_000)
    page.evaluate(WAIT_FOR_KERNEL)
    page.wait_for_timeout(3_000)  # JupyterLab looks for a model for 2 seconds before it gives up


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


# What sticks out of the explorer, or is cut off inside; what scrolls by itself, and cells that end in dots, may.
OVERFLOWS = """() => {
  const root = document.querySelector('.tiny-backprop-explorer');
  const edge = root.getBoundingClientRect().right + 1;
  const isScrolled = (e) => e !== root && (e.matches('.tb-scroll, pre') || isScrolled(e.parentElement));
  const words = (e) => `${e.tagName}.${e.getAttribute('class')}: ${(e.textContent || '').slice(0, 40)}`;
  return [...root.querySelectorAll('*')].filter((e) => {
    const box = e.getBoundingClientRect();
    if (!box.width || isScrolled(e)) return false;
    const isCut = getComputedStyle(e).overflowX !== 'visible' && e.scrollWidth > e.clientWidth + 1;
    return box.right > edge || isCut;
  }).map(words);
}"""
MARKS_OVERLAP = """() => {
  const boxes = [...document.querySelectorAll('.tb-marks button')].map((e) => e.getBoundingClientRect());
  return boxes.some((a, i) => boxes.slice(i + 1).some(
    (b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1));
}"""
TABS = ("Tensors", "Graph", "Loops", "Trade-off", "Memory map", "Code and export")


def test_nothing_overflows_in_narrow_pages(notebook):
    book = opened(notebook)
    page = book.page
    book.run("ui.trade_off(n_points=4); ui.budget.value = 0.5; ui.verify(); None")
    page.locator(".tb-marks button", has_text="knee").wait_for()
    page.evaluate("() => { const shell = window.jupyterapp.shell; shell.collapseLeft(); shell.collapseRight(); }")
    for width in (420, 600, 1280):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_function(
            "w => document.querySelector('.tiny-backprop-explorer').clientWidth <= w", arg=width, timeout=10_000
        )
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_function(f"() => ({OVERFLOWS})().length === 0", timeout=5_000)
        assert not page.evaluate(MARKS_OVERLAP)
    assert book.problems == []


# Two buttons, before and after the explorer; what can be acted on inside; how it looks before it has the focus. Of rows
# of a table, and of tabs, one is a stop of the Tab key: arrow keys go to the others.
AROUND = """() => {
  const root = document.querySelector('.tiny-backprop-explorer');
  for (const [id, place] of [['tb-before', 'beforebegin'], ['tb-after', 'afterend']]) {
    const button = document.createElement('button');
    button.id = id;
    root.insertAdjacentElement(place, button);
  }
}"""
CAN_ACT = """
  const root = document.querySelector('.tiny-backprop-explorer');
  const look = (e) => { const s = getComputedStyle(e); return [s.outlineStyle, s.boxShadow, s.border].join(); };
  const words = (e) => `${e.tagName}.${e.getAttribute('class')} ${e.title || e.textContent.slice(0, 40)}`;
  const can = () => [...root.querySelectorAll(
    'button, input, select, textarea, summary, canvas, a[href], [contenteditable=true], [tabindex], [role=tab]')]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().width && !e.disabled);
"""
AT_REST = f"() => {{ {CAN_ACT} window.atRest = new Map(can().map((e) => [e, look(e)])); window.reached = new Set(); }}"
STOP = f"""() => {{ {CAN_ACT}
  const e = document.activeElement;
  if (!root.contains(e)) return {{left: e.id || words(e)}};
  window.reached.add(e);
  return {{words: words(e), isSeen: window.atRest.has(e) && window.atRest.get(e) !== look(e)}};
}}"""
MISSED = f"""() => {{ {CAN_ACT}
  const group = (e) => e.closest('[role=tablist], [role=grid]');
  const groups = [...window.reached].map(group);
  return can().filter((e) => !window.reached.has(e) && !(group(e) && groups.includes(group(e)))).map(words);
}}"""
MOST_STOPS = 60
LOOP = """
def looped(w, x):
    x, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=8)
    return loss(w, x)

ui = t.explore(looped, jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((256, 64), "float32"))
"""


def name_of_focused(browser_tools):
    """Return the name that the browser tells a screen reader for what has the focus."""
    found = browser_tools.send("Runtime.evaluate", {"expression": "document.activeElement"})["result"]["objectId"]
    nodes = browser_tools.send("Accessibility.getPartialAXTree", {"objectId": found, "fetchRelatives": False})["nodes"]
    return nodes[0].get("name", {}).get("value", "").strip()


def walk(page, key, start, end):
    """Press Tab from one button around the explorer to the other, and return the stops between, with their names."""
    browser_tools, stops = page.context.new_cdp_session(page), []
    page.locator(f"#{start}").focus()
    for _ in range(MOST_STOPS):
        page.keyboard.press(key)
        stop = page.evaluate(STOP)
        if "left" in stop:
            assert stop["left"] == end
            return stops
        stops.append(stop | {"name": name_of_focused(browser_tools)})
    raise AssertionError(f"no way out by {key}: {stops[-3:]}")


@pytest.mark.parametrize("strategy", ["budget", "height compression"])
def test_tab_walks_through_everything_and_out_again(notebook, strategy):
    book = opened(notebook, MODEL + LOOP, "ui")
    page = book.page
    book.run(f"ui.trade_off(n_points=4); ui.strategy.value = {strategy!r}; ui.verify(); None")
    page.evaluate(AROUND)
    for tab in TABS:
        open_tab(page, tab)
        page.locator("#tb-before").focus()
        page.wait_for_timeout(500)  # what is drawn when its tab is shown, and looks that fade in
        page.evaluate(AT_REST)
        forward = walk(page, "Tab", "tb-before", "tb-after")
        assert [s["words"] for s in forward if not s["isSeen"]] == []
        assert [s["words"] for s in forward if not s["name"]] == []
        assert page.evaluate(MISSED) == []
        backward = walk(page, "Shift+Tab", "tb-after", "tb-before")
        assert [s["words"] for s in backward] == [s["words"] for s in reversed(forward)]
    assert book.run("print(ui.errors)") == "[]"
    assert book.problems == []


def test_the_whole_graph_is_in_sight_at_any_width_until_it_is_moved(notebook):
    book = opened(notebook)
    page = book.page
    open_tab(page, "Graph")
    graph = page.locator(".tb-graph[data-visible]")
    graph.wait_for()
    everything = graph.get_attribute("data-visible")
    for width in (420, 1280):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_function(
            "w => Math.abs(document.querySelector('.tb-graph canvas').width / devicePixelRatio"
            " - document.querySelector('.tb-graph canvas').clientWidth) < 2 && innerWidth === w",
            arg=width,
        )
        page.wait_for_selector(f".tb-graph[data-visible='{everything}']", timeout=5_000)
    assert book.problems == []


def test_light_and_dark_follow_the_page(notebook):
    book = opened(notebook)
    page = book.page
    for theme, expected in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_selector(f".tb-frontier[data-theme={expected}]", timeout=20_000)
        page.wait_for_selector(f".tb-tensors[data-theme={expected}]", timeout=20_000)
    assert book.problems == []


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
