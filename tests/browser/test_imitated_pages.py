"""Views in pages made like those of VS Code and Colab, neither of which runs here: their ground, and what they hide."""

import base64
import json

import pytest

from tests.graphs import chain
from tiny_backprop import plan_blocks
from tiny_backprop_widgets import FrontierView, TableView, assets
from tiny_backprop_widgets.views import stand_in

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PLAN = plan_blocks(chain(40, n_bytes=2**20), 7)
# An output of VS Code: all of a notebook's are in one document, and a widget stands in an element of this class.
OUTPUT = '<div class="output_container"><div class="output">{}</div></div>'
LIVE = OUTPUT.format('<div class="cell-output-ipywidget-background"></div>')
WHITE = "<style>.cell-output-ipywidget-background { background: white !important }</style>"
CELL = f'<div id="container"><div class="cell_container">{LIVE}{OUTPUT.format("")}</div></div>'
VIEWS = {"table": TableView, "frontier": FrontierView}
MODEL = """([text, state]) => {
  const read = ([k, v]) => [k, v?.base64 === undefined ? v
    : new DataView(Uint8Array.from(atob(v.base64), (c) => c.charCodeAt(0)).buffer)];
  const traits = Object.fromEntries(Object.entries(JSON.parse(state)).map(read));
  const model = {get: (name) => traits[name], set() {}, save_changes() {}, on() {}, off() {}, send() {}};
  return model;
}"""
# As a widget manager does: the view is drawn, and only then put into the page.
SHOW = f"""async (given) => {{
  const model = ({MODEL})(given);
  const url = URL.createObjectURL(new Blob([given[0]], {{type: 'text/javascript'}}));
  const view = (await import(window.url ??= url)).default;
  const el = document.createElement('div');
  const stop = await view.render({{model, el}});
  (window.stops ??= []).push(stop);
  await new Promise(requestAnimationFrame);
  (document.querySelector('.cell-output-ipywidget-background') ?? document.body).append(el);
}}"""
SAVED = {"light": "rgb(0, 158, 115)", "dark": "rgb(31, 185, 140)"}  # the colour of what is saved


def as_json(state):
    """Return the state of a widget as text, its bytes in base64."""
    return json.dumps(state, default=lambda data: {"base64": base64.b64encode(data).decode()})


@pytest.fixture
def page(browser):
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize(
    ("html", "device", "expected"),
    [
        pytest.param(f'<body class="vscode-dark">{WHITE}', "dark", "light", id="VS Code, which puts widgets on white"),
        pytest.param('<body class="vscode-dark">', "light", "dark", id="VS Code without that white"),
        pytest.param('<body class="vscode-light">', "dark", "light", id="VS Code, light"),
        pytest.param('<body class="vscode-high-contrast">', "light", "dark", id="VS Code, high contrast"),
        pytest.param(
            '<body class="vscode-high-contrast vscode-high-contrast-light">',
            "dark",
            "light",
            id="VS Code, light in high contrast",
        ),
        pytest.param('<html theme="dark"><body>', "light", "dark", id="Colab"),
    ],
)
def test_a_view_is_light_or_dark_as_its_ground(page, kind, html, device, expected):
    page.emulate_media(color_scheme=device)
    page.set_content(html + CELL)
    view = VIEWS[kind](PLAN)
    page.evaluate(SHOW, [assets.module(f"views/{kind}"), as_json(view.get_state())])
    page.wait_for_selector(f".tb-view[data-theme={expected}]", timeout=5_000)
    if kind == "frontier":
        swatch = page.locator(".tb-swatch").first
        assert swatch.evaluate("el => getComputedStyle(el).backgroundColor") == SAVED[expected]


def test_a_live_view_hides_what_stands_in_for_it_and_leaves_no_gap(page, monkeypatch):
    shown = []
    monkeypatch.setattr(stand_in, "display", lambda data, raw: shown.append(data))
    view = TableView(PLAN)
    view._ipython_display_()
    _, rest = shown
    page.set_content(f'<body class="vscode-dark">{WHITE}{CELL}')
    output = page.locator(".output").last
    output.evaluate("(el, html) => { el.innerHTML = html; }", rest["text/html"])
    assert page.locator("[class^=tiny-backprop-stand-in]").is_visible()
    page.evaluate(SHOW, [assets.module("views/table"), as_json(view.get_state())])
    page.locator(".tb-tensors td").first.wait_for()
    assert not page.locator("[class^=tiny-backprop-stand-in]").is_visible()
    assert output.evaluate("el => el.offsetHeight") == 0


KEY_IS_KEPT = """() => {
  const canvas = document.querySelector('.tb-frontier canvas');
  canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
  return canvas.closest('[data-lm-suppress-shortcuts]') !== null;
}"""


def test_a_view_keeps_its_keys_when_another_one_is_closed(page):
    page.set_content("<body>")
    view = FrontierView(PLAN)
    for _ in range(2):
        page.evaluate(SHOW, [assets.module("views/frontier"), as_json(view.get_state())])
    assert page.evaluate(KEY_IS_KEPT)
    page.evaluate("() => window.stops[1]()")
    page.wait_for_function("() => !document.querySelector('[data-lm-suppress-shortcuts]')")  # the key before is over
    assert page.evaluate(KEY_IS_KEPT)
