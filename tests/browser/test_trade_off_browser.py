"""The trade-off in a real JupyterLab: its points and its words."""

import pytest

from .explorer_page import MODEL, open_tab, opened

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one JupyterLab


NOTHING_UNASKED = "from tiny_backprop_widgets.panels import trade_off_panel; trade_off_panel._MOST_NODES_UNASKED = 0"


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
