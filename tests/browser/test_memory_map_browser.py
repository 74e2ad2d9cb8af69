"""The memory map in a real JupyterLab, alone and linked with the views of the plan."""

import json

import pytest

from .explorer_page import (
    LEFT,
    RIGHT,
    open_tab,
    verified,
)
from .lab import RUN_ALL, WAIT_FOR_KERNEL

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


MAP = "document.querySelector('.tb-memory-map').dataset"


# Edges of the plot inside the memory map's canvas, in pixels, and its height without the bars of loops.
MAP_TOP, MAP_BOTTOM, MAP_HEIGHT = 26, 22, 380


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
            "import json, numpy as np; bs = ui.memory_map_view.memory_map.buffers; pairs = ui._linked.link.pairs\n"
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
