"""How fluid the explorer is, in JupyterLab and headless Chromium on this machine: `python -m benchmarks.explorer`.

Prints one row per figure with its target and whether it was met; ends with an error where one was missed. Times are
taken in the page: from the key that moves a slider to the frame in which the frontier is painted and the price shown.
The first row is the floor: the same keys on a slider of ipywidgets alone, whose callback sets a text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tiny_backprop as tb
from benchmarks.figures import Figure, print_figures
from benchmarks.memory_maps import abstract_perceptron
from tests.browser.lab import Notebook, running_browser, running_lab

_ROOT = Path(__file__).parents[1]
_N_KEYS, _N_PANS = 40, 60
# The graph is captured, and everything is imported, before the clock starts.
_CAPTURE = """
import sys, time
sys.path[:0] = [{root!r}, {root!r} + "/widgets"]
import json
import tiny_backprop as tb
from benchmarks.figures import mlp
from ipywidgets.widgets.widget import _remove_buffers
graph = mlp({n_nodes})
tb.PlanExplorer(mlp(100))

def payload(*views):
    n = 0
    for view in views:
        state, _, buffers = _remove_buffers(view.get_state())
        n += len(json.dumps(state, default=str)) + sum(len(b) for b in buffers)
    return n
"""
_OPEN = "start = time.time(); ui = tb.PlanExplorer(graph); ui"
_BARE = """
import ipywidgets as widgets
options = [(str(n), n) for n in range(40)]
bare = widgets.SelectionSlider(options=options, index=20, readout=False, continuous_update=True)
said = widgets.HTML("<i class='bare'>20</i>")
bare.observe(lambda change: setattr(said, "value", f"<i class='bare'>{change['new']}</i>"), "value")
widgets.VBox([bare, said])
"""
_GRAPH = "start = time.time(); view = tb.GraphView(tb.plan_blocks(graph)); view"
_MAP_CAPTURE = """
from benchmarks.memory_maps import perceptron
memory_map = perceptron({n_instructions}).memory_map
"""
_MAP = "start = time.time(); view = memory_map.view(); view"
_WATCH = """() => {
  new MutationObserver(() => {
    for (const name of ['tb-frontier', 'tb-graph', 'tb-memory-map']) {
      if (document.querySelector(`.${name}[data-paints]`)) (window.firstPaint ??= {})[name] ??= Date.now();
    }
  }).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-paints']});
}"""
_TIME_KEYS = """texts => {
  window.pressed = 0; window.times = [];
  const note = () => { window.times.splice(-1, 1, performance.now() - window.pressed); };
  document.addEventListener('keydown', () => { window.pressed = performance.now(); window.times.push(0); }, true);
  const frontier = document.querySelector('.tb-frontier');
  if (frontier) new MutationObserver(note).observe(frontier, {attributeFilter: ['data-serial']});
  const text = document.querySelector(texts).closest('.widget-html');
  new MutationObserver(note).observe(text, {childList: true, subtree: true});
}"""
# What tells that a key has been answered; what else it changes comes in the same reply.
_PAINTED, _SAID = "document.querySelector('.tb-frontier').dataset.serial", "document.querySelector('.bare').textContent"
_PAN = """async ([name, n]) => {
  const root = document.querySelector('.' + name), canvas = root.querySelector('canvas');
  const before = Number(root.dataset.paints), start = performance.now();
  for (let i = 0; i < n; i++) {
    canvas.dispatchEvent(new KeyboardEvent('keydown', {key: i % 2 ? 'ArrowLeft' : 'ArrowRight'}));
    await new Promise(requestAnimationFrame);
  }
  return (performance.now() - start) / (Number(root.dataset.paints) - before);
}"""


def explorer_figures(lab: Any, browser: Any, n_nodes: int, most_ms: float, most_seconds: float) -> list[Figure]:
    """Open the explorer on a perceptron's gradient graph of about `n_nodes` equations and time what it does."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.add_init_script(f"({_WATCH})()")
    capture = _CAPTURE.format(root=str(_ROOT), n_nodes=n_nodes)
    book = Notebook(page, lab, [capture, _OPEN])
    page.wait_for_selector(".tb-frontier[data-paints]", timeout=60_000)
    opened = page.evaluate("window.firstPaint['tb-frontier']") / 1e3 - float(book.run("print(start)"))
    name = f"explorer, {n_nodes:,} equations"
    n_bytes = int(book.run("print(payload(ui.frontier, ui.dag, ui.tensors))"))
    figures = [
        Figure(f"{name}: open", opened, most_seconds, "s", "captured graph to painted frontier"),
        Figure(f"{name}: payload", n_bytes / 1e6, 2.0, "MB", "state of the three views, modules included"),
        *_slider_figures(book, name, most_ms),
    ]
    page.evaluate("() => document.querySelector('.tb-frontier canvas').focus()")
    book.run("ui.frontier.detail = 1000")
    for _ in range(2):
        page.get_by_role("button", name="zoom in").first.click()
    ms = page.evaluate(_PAN, ["tb-frontier", _N_PANS])
    bands = page.locator(".tb-frontier").get_attribute("data-bands")
    figures.append(Figure(f"{name}: panning the frontier", ms, 50, "ms", f"a frame; {bands} tensors in sight"))
    assert book.problems == [], book.problems
    page.close()
    return figures


def _slider_figures(book: Notebook, name: str, most_ms: float) -> list[Figure]:
    figures = []
    book.page.evaluate(_TIME_KEYS, "table.tiny-backprop")
    # What plans, which of the visible sliders is moved, and how many stops one way before it goes back.
    for strategy, place, n_stops in (("block size", 0, 10), ("height compression", 1, 7), ("budget", 0, 10)):
        if strategy == "budget":
            figures.append(_ready_figure(book, name))
        book.run(f"ui.strategy.value = {strategy!r}")
        handle = book.page.locator(".widget-slider .noUi-handle:visible").nth(place)
        times = _time_keys(book, handle, n_stops, _PAINTED, is_right_first=strategy == "height compression")
        figures.append(_keys_figure(f"{name}: {strategy} to repaint", times, most_ms))
    return figures


def _ready_figure(book: Notebook, name: str) -> Figure:
    """Wait until what budgets are chosen from has been worked out, which nobody asks for."""
    start = time.monotonic()
    book.page.get_by_role("tab", name="Trade-off", exact=True).click()
    book.page.wait_for_selector(".tb-pareto svg", timeout=300_000)
    book.page.get_by_role("tab", name="Tensors", exact=True).click()
    seconds = time.monotonic() - start
    return Figure(f"{name}: ready for budgets", seconds, math.inf, "s", "in idle time, from the last key on")


def _time_keys(book: Notebook, handle: Any, n_stops: int, state: str, is_right_first: bool) -> np.ndarray:
    """Move a slider by keys, some stops one way and back, and return the milliseconds that each took."""
    page = book.page
    handle.wait_for()
    handle.focus()
    for i in range(_N_KEYS):
        before = page.evaluate(state)
        page.keyboard.press("ArrowRight" if bool(i // n_stops % 2) != is_right_first else "ArrowLeft")
        page.wait_for_function(f"before => {state} !== before", arg=before, timeout=30_000, polling=20)
        book.run("pass")  # the price follows in the same reply
    return np.array(json.loads(page.evaluate("JSON.stringify(window.times)")))[-_N_KEYS:]


def _keys_figure(name: str, times: np.ndarray, most_ms: float) -> Figure:
    note = f"95th percentile of {len(times)} keys; median {np.median(times):.0f} ms"
    return Figure(name, float(np.percentile(times, 95)), most_ms, "ms", note)


def bare_figures(lab: Any, browser: Any) -> list[Figure]:
    """Time the keys of a slider that does next to nothing."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    book = Notebook(page, lab, [_BARE])
    page.wait_for_selector(".bare")
    page.evaluate(_TIME_KEYS, ".bare")
    times = _time_keys(book, page.locator(".widget-slider .noUi-handle").first, 10, _SAID, is_right_first=False)
    assert book.problems == [], book.problems
    page.close()
    return [_keys_figure("a slider of ipywidgets and a text", times, math.inf)]


def graph_figures(lab: Any, browser: Any, n_nodes: int, most_seconds: float) -> list[Figure]:
    """Time the first sight of a graph, and panning with about 1,000 boxes in sight."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.add_init_script(f"({_WATCH})()")
    book = Notebook(page, lab, [_CAPTURE.format(root=str(_ROOT), n_nodes=n_nodes), _GRAPH])
    page.wait_for_selector(".tb-graph[data-paints]", timeout=60_000)
    shown = page.evaluate("window.firstPaint['tb-graph']") / 1e3 - float(book.run("print(start)"))
    boxes = page.locator(".tb-graph").get_attribute("data-boxes")
    name = f"graph, {n_nodes:,} equations"
    figures = [Figure(f"{name}: first shown", shown, most_seconds, "s", f"{boxes} boxes")]
    book.run("view.expand_all()")
    page.wait_for_function("() => Number(document.querySelector('.tb-graph').dataset.boxes) > 800", timeout=30_000)
    page.get_by_role("button", name="show the whole graph").click()
    ms = page.evaluate(_PAN, ["tb-graph", _N_PANS])
    seen = page.locator(".tb-graph").get_attribute("data-visible")
    figures.append(Figure(f"{name}: panning", ms, 50, "ms", f"a frame; {seen} boxes in sight"))
    assert book.problems == [], book.problems
    page.close()
    return figures


def memory_map_figures(lab: Any, browser: Any, n_instructions: int, most_seconds: float) -> list[Figure]:
    """Time the first sight of a memory map, and panning with most of its tensors in sight."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.add_init_script(f"({_WATCH})()")
    capture = _CAPTURE.format(root=str(_ROOT), n_nodes=100) + _MAP_CAPTURE.format(n_instructions=n_instructions)
    book = Notebook(page, lab, [capture, _MAP])
    page.wait_for_selector(".tb-memory-map[data-paints]", timeout=120_000)
    shown = page.evaluate("window.firstPaint['tb-memory-map']") / 1e3 - float(book.run("print(start)"))
    name = f"memory map, {n_instructions:,} instructions"
    n_bytes = int(book.run("print(payload(view))"))
    page.get_by_role("button", name="zoom in").click()
    ms = page.evaluate(_PAN, ["tb-memory-map", _N_PANS])
    seen = page.locator(".tb-memory-map").get_attribute("data-visible")
    assert book.problems == [], book.problems
    page.close()
    return [
        Figure(f"{name}: first shown", shown, most_seconds, "s", "decoded map to painted view"),
        Figure(f"{name}: payload", n_bytes / 1e6, 2.0, "MB", "state of the view, module included"),
        Figure(f"{name}: panning", ms, 50, "ms", f"a frame; {seen} tensors in sight"),
    ]


def report_figures(n_layers: int, most_mb: float) -> list[Figure]:
    """Write the report on a plan of a perceptron, and again with the memory map of its compiled gradient."""
    loss, *args = abstract_perceptron(n_layers)
    graph = tb.capture_gradient(loss, *args)
    plan = tb.plan_blocks(graph)
    measured = tb.measure(tb.height_compressed_value_and_grad(loss, plan=plan), *args)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for what, memory_map in (("not verified", None), ("verified", measured.memory_map)):
            start = time.perf_counter()
            n_bytes = tb.write_report(f"{folder}/report.html", graph, plan, memory_map=memory_map).stat().st_size
            note = f"written in {time.perf_counter() - start:.1f} s"
            if memory_map is not None:
                note += f"; {len(memory_map.buffers):,} buffers of XLA"
            name = f"report, {graph.n_nodes:,} equations, {what}: size"
            figures.append(Figure(name, n_bytes / 1e6, most_mb, "MB", note))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__).parse_args(argv)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, running_browser() as browser:
        figures += bare_figures(lab, browser)
        for n_nodes, most_ms, most_open, most_graph in ((1_000, 100, 1.5, 1.0), (10_000, 250, math.inf, 2.0)):
            figures += explorer_figures(lab, browser, n_nodes, most_ms, most_open)
            figures += graph_figures(lab, browser, n_nodes, most_graph)
        figures += memory_map_figures(lab, browser, 2_000, 1.0)
    figures += report_figures(1_111, 2.0)
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
