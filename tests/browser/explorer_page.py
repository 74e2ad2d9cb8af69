"""How tests open the explorer in a front-end, and find what is on its page."""

from .lab import WAIT_FOR_KERNEL

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


def verified(notebook, *cells):
    """Open the explorer, verify its plan, open the tab of the memory map."""
    book = opened(notebook, *cells)
    book.page.get_by_role("button", name="Verify").click()
    book.page.get_by_text("measured by XLA on").wait_for(timeout=90_000)
    open_tab(book.page, "Memory map")
    book.page.wait_for_selector(".tb-memory-map[data-paints]")
    return book


STAND_IN = "[class^=tiny-backprop-stand-in]"


def reopen(page, lab, path):
    """Save a notebook, end its kernel and open it again, as the next day does."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.goto(lab.address(path), wait_until="domcontentloaded")
    page.locator(STAND_IN).last.wait_for(timeout=60_000)
    page.evaluate(WAIT_FOR_KERNEL)
    page.wait_for_timeout(3_000)  # JupyterLab looks for a model for 2 seconds before it gives up


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
