"""Pictures of the explorer in JupyterLab, light and dark: `python -m benchmarks.screenshots`, or `make screenshots`.

They are written into `build/screenshots/`, to be looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.browser.lab import Notebook, running_browser, running_lab

_ROOT = Path(__file__).parents[1]
_MODEL = f"""
import sys
sys.path[:0] = [{str(_ROOT)!r}, {str(_ROOT / "widgets")!r}]
import jax
import tiny_backprop as tb
from benchmarks.models import gpt

config = gpt.GPTConfig(n_layers=6, width=256, n_tokens=128, n_vocabulary=2000)
loss = gpt.make_loss(config)
params = jax.eval_shape(lambda: gpt.init_params(config, jax.random.key(0)))
tokens = jax.ShapeDtypeStruct((config.n_batch, config.n_tokens + 1), "int32")
"""
_OPEN = "ui = tb.explore(loss, params, tokens)\nui.budget.value = 0.3\nui"
_EXPLORER = ".tiny-backprop-explorer"
_AROUND = 400  # what JupyterLab and the cells need above and below, in pixels


def take(lab: Any, browser: Any, folder: Path, theme: str, width: int) -> list[Path]:
    """Open the explorer, walk through its tabs and keep a picture of each."""
    page = browser.new_page(viewport={"width": width, "height": 1500})
    book = Notebook(page, lab, [_MODEL, _OPEN])
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    page.evaluate(change, f"JupyterLab {theme}")
    page.wait_for_selector(f".tb-frontier[data-theme={theme.lower()}]")
    name = f"{theme.lower()}{'' if width > 1000 else '-narrow'}"
    paths = []

    def shoot(part: str, of: str = _EXPLORER) -> None:
        paths.append(folder / f"{name}-{part}.png")
        _shoot(page, paths[-1], of)

    canvas = page.locator(".tb-frontier canvas").first
    canvas.focus()
    page.keyboard.press("n")
    page.locator(".tb-tensors tr[aria-selected=true]").wait_for()
    page.locator(".tb-tensors tbody tr").nth(5).click()
    page.locator(".tiny-backprop-source").wait_for()
    shoot("tensors")
    page.locator(".tb-frontier").get_by_role("button", name="scale to this plan").click()
    page.get_by_role("tab", name="Graph", exact=True).click()
    page.wait_for_selector(".tb-graph[data-paints]")
    book.run("ui.dag.expand(130)")
    page.wait_for_function("() => Number(document.querySelector('.tb-graph').dataset.boxes) > 17")
    page.get_by_role("button", name="show the whole graph").click()
    shoot("graph")
    page.get_by_role("tab", name="Trade-off", exact=True).click()
    page.wait_for_selector(".tb-pareto svg [data-point]", timeout=180_000)  # it works itself out
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("measured by XLA", exact=False).nth(1).wait_for(timeout=180_000)  # in the legend, too
    shoot("trade-off")
    page.get_by_role("tab", name="Memory map", exact=True).click()
    page.wait_for_selector(".tb-memory-map[data-paints]")
    page.locator(".tb-memory-map tr[aria-selected=true]").wait_for()
    shoot("memory-map")
    shoot("memory-map-view", ".tb-memory-map")
    page.get_by_label("colour by").select_option("scope")
    page.locator(".tb-memory-map").get_by_role("button", name="zoom to the peak").click()
    shoot("memory-map-zoomed")
    page.get_by_role("tab", name="Code and export", exact=True).click()
    shoot("code")
    assert book.problems == [], book.problems
    page.close()
    return paths


def _shoot(page: Any, path: Path, of: str = _EXPLORER) -> None:
    """Keep a picture of the explorer, or a part of it, in a page so high that no bar at its foot covers any of it."""
    width = page.viewport_size["width"]
    height = page.locator(_EXPLORER).bounding_box()["height"]
    page.set_viewport_size({"width": width, "height": round(height) + _AROUND})
    page.locator(of).scroll_into_view_if_needed()
    page.locator(of).screenshot(path=str(path), animations="disabled")


def take_loops(lab: Any, browser: Any, folder: Path) -> Path:
    """Open the explorer on the same layers in a scan and keep a picture of what is inside."""
    page = browser.new_page(viewport={"width": 1280, "height": 1500})
    book = Notebook(page, lab, [_MODEL.replace("n_layers=6", "n_layers=24, is_scanned=True"), _OPEN])
    page.get_by_role("tab", name="Loops", exact=True).click()
    page.get_by_text("one step").first.click()
    path = folder / "light-loops.png"
    _shoot(page, path)
    assert book.problems == [], book.problems
    page.close()
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Take the pictures and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/screenshots"), help="folder to write into")
    folder = parser.parse_args(argv).output
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, running_lab(Path(temporary)) as lab, running_browser() as browser:
        for theme, width in (("Light", 1280), ("Dark", 1280), ("Light", 640)):
            for path in take(lab, browser, folder, theme, width):
                print(path)
        print(take_loops(lab, browser, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
