"""Runs every notebook by nbmake, and looks where nbmake does not: it passes where a widget swallows an exception."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import nbformat
import pytest
from nbmake.nb_run import NotebookRun

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# The JAX guide as it was given; tools that sort imports or format code must leave it alone.
GUIDE = (
    """
    from tiny_backprop.integration.jax import capture_graph_jaxpr
    def f(x):
        hidden = jnp.sin(x)
        return jnp.tanh(hidden @ jnp.ones((x.shape[-1], 3)))
    x = jnp.ones((2, 4))
    graph = capture_graph_jaxpr(f, example_inputs=(x,))
    print(len(graph.nodes), "nodes captured")
    """,
    """
    from tiny_backprop.integration.jax import height_compressed_grad
    def loss_fn(params):
        w, b = params
        hidden = jnp.tanh(jnp.dot(w, b))
        return jnp.sum(hidden**2)
    hc_grad = height_compressed_grad(loss_fn, block_size=16)
    params = (jnp.ones((8, 8)), jnp.ones((8,)))
    grads = hc_grad(params)
    executor = hc_grad.last_executor          # the planned schedule, or None after a fall-back
    report = executor.checkpoint_plan.meta
    print("Block size:", report["block_size"])
    print("Peak frontier (bytes):", report["peak_frontier"])
    """,
)


def swallowed_errors(notebook: Any) -> list[str]:
    """Return the exceptions that ended up in Output widgets of an executed notebook instead of failing its cell."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    outputs = [output for widget in state.values() for output in widget["state"].get("outputs", ())]
    return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]


def run(path: Path) -> Any:
    """Run a notebook in a fresh kernel and return it, executed."""
    result = NotebookRun(path, default_timeout=600, kernel="python3").execute()
    assert result.error is None, result.error.trace
    return result.nb


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_runs(path: Path) -> None:
    assert swallowed_errors(run(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "widgets" not in notebook.metadata
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_that_explores_ends_with_a_check_of_the_explorer(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    if any("PlanExplorer(" in source or "explore(" in source for source in sources):
        assert sources[-1] == "assert not ui.errors"


def test_guide_is_verbatim() -> None:
    (path,) = (p for p in NOTEBOOKS if p.name.startswith("2-"))
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for block in GUIDE:
        assert dedent(block).strip() in sources


@pytest.mark.slow
def test_swallowed_error_is_found(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    1 / 0\nout")
    path = tmp_path / "swallows.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert swallowed_errors(run(path)) == ["ZeroDivisionError: division by zero"]
