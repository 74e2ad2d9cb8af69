"""`report.html` in headless Chromium, opened as a file: no kernel, no network, all views linked."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from tiny_backprop import explore
from tiny_backprop_widgets import TableView

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

MAP = "document.querySelector('.tb-memory-map').dataset"
CHOSEN = "([name, v]) => document.querySelector(name).dataset.chosen === String(v ?? '')"


def loss(w, x):
    for i in range(6):
        with jax.named_scope(f"layer{i // 2}"):
            x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


@pytest.fixture(scope="module")
def verified():
    """Return an explorer whose plan is verified; what is chosen in it is what the report has to choose."""
    ui = explore(loss, shape(64, 64), shape(256, 64))
    ui.block_size.value = 3
    ui.verify()
    return ui


class Report:
    """A report in a browser, and whatever went wrong there."""

    def __init__(self, browser, path, **options):
        self.page, self.problems = browser.new_page(**options), []
        url = path.as_uri()
        self.page.on("request", lambda r: self.problems.append(f"request: {r.url}") if r.url != url else None)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(url)
        for view in self.page.locator("[data-view]").all():
            view.locator(".tb-view[data-theme]").wait_for()

    def chosen(self):
        """Return what is chosen in frontier, table, graph and map, what is outlined there, and what is told."""
        return self.page.evaluate(
            """() => {
              const data = (name) => document.querySelector(name).dataset;
              const number = (text) => (text === '' ? null : Number(text));
              const rows = [...document.querySelectorAll('.tb-tensors tr[aria-selected=true]')];
              const map = document.querySelector('.tb-memory-map');
              return {
                value: number(data('.tb-frontier').chosen), node: number(data('.tb-graph').chosen),
                rows: [...new Set(rows.map((tr) => Number(tr.dataset.value)))],
                buffer: number(map.dataset.chosen), marked: map.dataset.marked.split(' ').filter(Boolean).map(Number),
                listed: map.querySelector('.tb-bar + .tb-scroll').previousSibling.textContent,
                notes: [...document.querySelectorAll('.tb-note')].map((e) => e.textContent),
              };
            }"""
        )

    def shows(self, ui):
        """Check that what is chosen here is what is chosen in an explorer, word for word."""
        self.page.wait_for_function(CHOSEN, arg=[".tb-frontier", ui.frontier.value])
        self.page.wait_for_function(CHOSEN, arg=[".tb-graph", ui.dag.value])
        self.page.wait_for_function(CHOSEN, arg=[".tb-memory-map", ui.memory_map_view.value])
        view, found = ui.memory_map_view, self.chosen()
        position = view.memory_map.peak_position if view.position is None else view.position
        assert found["value"] == ui.frontier.value
        assert found["node"] == ui.dag.value
        assert found["rows"] == ([] if ui.tensors.value is None else [ui.tensors.value])
        assert found["buffer"] == view.value
        assert sorted(found["marked"]) == sorted(view.marked)
        assert f" alive at position {position:,}" in found["listed"]
        beside_tensors, below_map = found["notes"]
        assert below_map == view.note
        assert beside_tensors == ("" if ui.frontier.value is None else view.note)

    def close(self):
        """Close the page; nothing may have gone wrong."""
        assert self.page.evaluate("window.hacked") is None
        self.page.close()
        assert self.problems == []


@pytest.fixture
def report(browser, verified, tmp_path):
    verified.frontier.value = None
    (path,) = (p for p in verified.export(tmp_path) if p.name == "report.html")
    page = Report(browser, path, viewport={"width": 1200, "height": 1000})
    yield page
    page.close()


def test_a_tensor_that_is_chosen_in_a_report_is_chosen_in_its_memory_map(report, verified):
    page, ui = report.page, verified
    told = set()
    for row in range(page.locator(".tb-tensors tbody tr").count()):
        before = page.locator(".tb-tensors tbody tr:not([aria-selected=true])")
        value = int(before.nth(row % before.count()).get_attribute("data-value"))
        page.locator(f".tb-tensors tr[data-value='{value}']").first.click()
        ui.tensors.value = value
        report.shows(ui)
        told.add(re.sub(r"\d+", "", ui.memory_map_view.note))
    assert len(told) > 2

    canvas = page.locator(".tb-frontier canvas")
    for _ in range(4):
        canvas.focus()
        page.keyboard.press("n")
        page.wait_for_function("v => document.querySelector('.tb-frontier').dataset.chosen !== v", arg=str(value))
        value = report.chosen()["value"]
        ui.frontier.value = value
        report.shows(ui)
    page.locator(".tb-graph canvas").focus()
    for _ in range(3):
        node = str(report.chosen()["node"])
        page.keyboard.press("n")
        page.wait_for_function("n => document.querySelector('.tb-graph').dataset.chosen !== n", arg=node)
        ui.dag.value = report.chosen()["node"]
        report.shows(ui)
    page.keyboard.press("Escape")
    ui.dag.value = None
    report.shows(ui)
    assert report.chosen()["notes"] == ["", ""]


def test_a_buffer_that_is_chosen_in_a_report_chooses_its_tensor(report, verified):
    page, ui = report.page, verified
    buffers = ui.memory_map_view.memory_map.buffers
    seen = set()
    for value in page.locator(".tb-memory-map tbody tr").evaluate_all("rows => rows.map((r) => r.dataset.value)"):
        page.locator(f".tb-memory-map tr[data-value='{value}']").click()
        ui.memory_map_view.value, ui.memory_map_view.position = int(value), None
        report.shows(ui)
        seen.add(ui.frontier.value is None)
        assert buffers[int(value)].instruction in page.locator(".tb-memory-map tr[aria-selected=true]").inner_text()
    assert seen == {True, False}  # one that holds no tensor of the plan, too
    page.locator(".tb-memory-map canvas").focus()
    page.keyboard.press("Escape")
    ui.memory_map_view.value = None
    report.shows(ui)


def test_a_tensor_gets_the_row_and_the_words_that_python_gives_it(report, verified):
    page, table = report.page, TableView(verified.plan)
    known = {row[0] for row in table._rows["rows"]}
    canvas = page.locator(".tb-frontier canvas")
    canvas.focus()
    page.keyboard.press("0")
    others = set()
    for _ in range(30):
        before = report.chosen()["value"]
        page.keyboard.press("n")
        page.wait_for_function("v => document.querySelector('.tb-frontier').dataset.chosen !== v", arg=str(before))
        value = report.chosen()["value"]
        if value in others:
            break
        if value in known:
            continue
        others.add(value)
        table.value = value
        page.locator(f".tb-tensors tr[aria-selected=true][data-value='{value}']").wait_for()
        assert page.locator(".tb-tensors > .tb-bar").inner_text() == table._rows["caption"]
        titles = (
            page.locator(".tb-tensors tbody tr").first.locator("td").evaluate_all("cells => cells.map((e) => e.title)")
        )
        assert titles[1:] == table._rows["rows"][0][2:]
    assert others


def test_the_measured_curve_lies_over_the_frontier_of_a_report(report, verified):
    assert report.page.locator(".tb-frontier").get_by_text("measured by XLA").is_visible()
    data = json.loads(report.page.locator("#tb-data").text_content())
    assert data["frontier0"]["buffers"]["_measured"]
    assert verified.measurement is not None
