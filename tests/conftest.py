"""Settings every test shares: strict JAX, steady hypothesis, and what a `browser` or `gpu` test needs to run."""

import importlib.util
import os
import shutil
from collections.abc import Generator
from typing import Any

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles, so times say nothing; the same examples on every run.
hypothesis.settings.register_profile("tiny_backprop", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tiny_backprop")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `browser` and `gpu` tests where what they need is missing."""
    if item.get_closest_marker("browser"):
        if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
            pytest.skip("no chromium: apt-get install --no-install-recommends chromium fonts-dejavu-core")
        if importlib.util.find_spec("playwright") is None:
            pytest.skip("no playwright: pip install 'tiny-backprop[test]'")
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip(f"needs a GPU, and JAX runs on {jax.default_backend()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """With TINY_BACKPROP_REQUIRE_BROWSER=1, as in CI, turn a skipped `browser` test into a failed one."""
    report: pytest.TestReport = yield
    required = os.environ.get("TINY_BACKPROP_REQUIRE_BROWSER") == "1"
    if required and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("browser"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and TINY_BACKPROP_REQUIRE_BROWSER=1: {report.longreprtext}"
    return report
