"""Private front-ends and a browser for the tests; where a test fails, its page is kept as a picture in `tmp_path`."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from .lab import NOTEBOOK, VOILA, Lab, Notebook, running_browser, running_lab

_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """Remember how the test went, for `notebook` to see."""
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
    return report


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module", params=[NOTEBOOK, VOILA], ids=lambda front_end: front_end.module)
def other_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Run each front-end but JupyterLab that is installed."""
    pytest.importorskip(request.param.module)
    with running_lab(tmp_path_factory.mktemp(request.param.module), request.param) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def notebook(
    lab: Lab, browser: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Notebook]]:
    """Return a function that opens a notebook of the given cells and executes them."""
    pages = []

    def open_notebook(*cells: str) -> Notebook:
        pages.append(browser.new_page(viewport={"width": 1280, "height": 1400}))
        return Notebook(pages[-1], lab, list(cells))

    yield open_notebook
    report = request.node.stash.get(_REPORT, None)
    for i, page in enumerate(pages):
        if report is not None and report.failed:
            page.screenshot(path=str(tmp_path / f"page{i}.png"), full_page=True)
        page.close()
