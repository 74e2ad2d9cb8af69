"""Everything can be seen and reached: on narrow pages, by the Tab key, in light and dark themes."""

import pytest

from .explorer_page import MARKS_OVERLAP, MODEL, OVERFLOWS, open_tab, opened

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


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
