"""`report.html` in headless Chromium, opened as a file: no kernel, no network, all views linked."""

import re

import jax
import jax.numpy as jnp
import pytest

from tiny_backprop import capture_gradient, compare, explore, height_compressed_value_and_grad, measure, plan_blocks
from tiny_backprop_widgets import TableView, write_report

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


def test_the_measured_curve_lies_over_the_frontier_of_a_report(report):
    assert report.page.locator(".tb-frontier").get_by_text("measured by XLA").is_visible()


PAINTED = """async (name) => {
  const asked = Object.getOwnPropertyDescriptor(Element.prototype, 'clientWidth');
  const canvas = document.querySelector(`${name} canvas`), frame = () => new Promise(requestAnimationFrame);
  const paints = () => Number(document.querySelector(name).dataset.paints), before = paints();
  canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
  let n = 0;
  Object.defineProperty(Element.prototype, 'clientWidth', {...asked, get() { n += 1; return asked.get.call(this); }});
  while (paints() === before) await frame();
  Object.defineProperty(Element.prototype, 'clientWidth', asked);
  return n;
}"""


@pytest.mark.parametrize("name", [".tb-frontier", ".tb-memory-map"])
def test_a_picture_asks_the_page_for_its_width_once(report, name):
    assert report.page.evaluate(PAINTED, name) == 1


BROKEN = """() => [...document.querySelectorAll('.upright :is(th, td), .tb-table th')].filter((cell) => {
  const range = document.createRange(), text = cell.firstChild, words = text.data.split(' ');
  let at = 0;
  return words.some((word) => {
    range.setStart(text, at);
    range.setEnd(text, at + word.length);
    at += word.length + 1;
    return range.getClientRects().length > 1;
  });
}).map((cell) => cell.textContent)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_as_wide_as_the_page_and_as_light(browser, verified, tmp_path, scheme):
    verified.export(tmp_path)
    for width in (480, 900, 1600):
        report = Report(
            browser, tmp_path / "report.html", viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        assert report.page.evaluate("document.documentElement.scrollWidth") <= width
        assert report.page.evaluate(BROKEN) == []  # no word of the prices, nor over the tables
        themes = report.page.locator(".tb-view").evaluate_all("views => views.map((v) => v.dataset.theme)")
        assert themes == [scheme] * 4
        report.close()


def test_a_report_without_scripts_shows_pictures_and_tables(browser, verified, tmp_path):
    verified.export(tmp_path)
    page = browser.new_page(java_script_enabled=False)
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("figure > svg").count() == 2
    assert page.locator("figure > img").evaluate("img => img.naturalWidth") > 600
    assert page.locator("figure table.tiny-backprop tr").count() > 3
    assert not page.get_by_text("Point at a picture").is_visible()
    page.close()


def test_copies_of_arguments_are_named_and_chosen_as_the_explorer_does(browser, tmp_path):
    def donating(w, x):
        y = x
        for _ in range(4):
            y = jnp.tanh(y @ w)
        return jnp.sum(y * w.sum())

    ui = explore(donating, shape(64, 64), shape(256, 64), argnums=(0, 1), donate_argnums=(0, 1))
    ui.block_size.value = 3
    ui.verify()
    ui.export(tmp_path)
    report = Report(browser, tmp_path / "report.html", viewport={"width": 1200, "height": 1000})
    chosen, is_named = set(), "v => document.querySelector('.tb-frontier').dataset.chosen !== v"
    report.page.locator(".tb-frontier canvas").focus()
    for _ in range(ui.graph.n_values):
        before = report.page.locator(".tb-frontier").get_attribute("data-chosen")
        report.page.keyboard.press("n")
        report.page.wait_for_function(is_named, arg=before)
        tip = report.page.locator(".tb-frontier .tb-tip:visible").inner_text()
        ui.frontier.value = value = report.chosen()["value"]
        report.shows(ui)
        assert ("copy of an argument" in tip) == (value < ui.graph.n_inputs)
        assert "undefined" not in tip
        if value in chosen:
            break
        chosen.add(value)
    assert min(chosen) < ui.graph.n_inputs  # a copy of an argument was among them
    report.close()


TEXT = "<img src=x onerror=window.hacked=1>\"'`${window.hacked=1}</script><script>window.hacked=1</script>"
EVIL = TEXT + "\u202eRTL \u05e9\u05dc\u05d5\u05dd \U0001f600 " + "x" * 10_000
SOURCE = """
def loss(params, x):
    for i in range(4):
        with jax.named_scope(EVIL):
            x = jnp.tanh(x @ params[EVIL])
    x, _ = jax.lax.scan(lambda c, _: (jnp.sin(c @ params[EVIL]), None), x, None, length=8)
    return jnp.sum(x ** 2)
loss.__name__ = EVIL
"""


def test_hostile_strings_are_data_wherever_they_stand(browser, tmp_path):
    names = {"EVIL": EVIL, "jax": jax, "jnp": jnp}
    exec(compile(SOURCE, f"/tmp/{TEXT}\u202e\u05e9\U0001f600.py", "exec"), names)
    args = {EVIL: shape(32, 32)}, shape(64, 32)
    graph = capture_gradient(names["loss"], *args)
    assert any("<img" in source for source in graph.sources)
    plan = plan_blocks(graph, 3)
    memory_map = measure(height_compressed_value_and_grad(names["loss"], plan=plan), *args).memory_map
    assert not memory_map.missing
    table = compare(names["loss"], *args, plans={EVIL: plan})
    plans = {EVIL: plan, TEXT: plan_blocks(graph, 1)}
    path = write_report(tmp_path / "a.html", graph, plans, measured=table, memory_map=memory_map)
    assert path.stat().st_size < 2e6
    report = Report(browser, path, viewport={"width": 1000, "height": 1000})
    page = report.page
    assert page.locator("img, iframe, object, script:not([type])").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    assert "<img src=x" in page.locator("h1").inner_text()
    assert "<img src=x" in page.locator(".tb-memory-map .tb-title").inner_text()
    told = set()
    for name in (".tb-frontier", ".tb-graph", ".tb-memory-map"):
        page.locator(f"{name} canvas").first.focus()
        for _ in range(6):
            page.keyboard.press("n")
            tip = page.locator(f"{name} .tb-tip:visible")
            tip.wait_for()
            told |= {(name, "<img" in tip.inner_text()), ("note", len(report.chosen()["notes"][1]) > 40)}
    assert {(".tb-frontier", True), (".tb-graph", True), (".tb-memory-map", True), ("note", True)} <= told
    page.locator(".tb-memory-map").get_by_label("colour by").select_option("scope")
    page.get_by_text("one step").first.click()  # of the loop
    report.close()
