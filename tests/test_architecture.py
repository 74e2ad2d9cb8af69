"""The house is as `docs/architecture.md` draws it, and the roof shows what is in it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_backprop as tb

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "tiny_backprop", ROOT / "widgets" / "tiny_backprop_widgets"]
FACES = ("tiny_backprop", "tiny_backprop.analysis", "tiny_backprop.integration.jax", "tiny_backprop_widgets")


def modules() -> list[Path]:
    return sorted(f for package in PACKAGES for f in package.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT / "widgets" if "widgets" in file.parts else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rooms() -> list[str]:
    return sorted(module_name(f).replace(".", "/") for f in modules() if f.name == "__init__.py")


def test_the_page_lists_the_rooms_of_the_tree():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert sorted(re.findall(r"^### `([^`]+)`$", page, re.MULTILINE)) == rooms()


def test_each_room_says_what_lives_there():
    for file in modules():
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), f"{file} says nothing"


@pytest.mark.parametrize("file", [f for f in modules() if module_name(f) not in FACES], ids=module_name)
def test_nothing_inside_imports_from_a_face_or_where_no_contract_sees_it(file):
    for n in ast.walk(ast.parse(file.read_text())):
        if isinstance(n, ast.ImportFrom):
            assert n.module not in FACES, f"line {n.lineno}: import from the module where it is defined"
        elif isinstance(n, ast.Import):
            assert not {a.name for a in n.names} & set(FACES), f"line {n.lineno}: imports a face"
        elif isinstance(n, ast.Call):
            assert not re.search(r"\b(import_module|__import__)$", ast.unparse(n.func)), f"line {n.lineno}"


def test_every_public_name_can_be_had_and_completed():
    assert set(tb.__all__) <= set(dir(tb))
    assert {"explore", "Plan", "capture_gradient", "__version__"} <= set(dir(tb))
    assert not {"Any", "import_module", "ast"} & set(dir(tb))
    for name in tb.__all__:
        assert getattr(tb, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'explorer'"):
        tb.explorer  # noqa: B018


def test_the_faces_of_rooms_export_what_the_guide_names():
    from tiny_backprop.analysis import analyze_graph, summarize_frontier
    from tiny_backprop.integration.jax import capture_graph_jaxpr, height_compressed_grad

    assert (analyze_graph, summarize_frontier) == (tb.analyze_graph, tb.summarize_frontier)
    assert (capture_graph_jaxpr, height_compressed_grad) == (tb.capture_graph_jaxpr, tb.height_compressed_grad)


def test_to_import_the_package_loads_nothing_heavy():
    code = "import sys, tiny_backprop; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"jax", "numpy", "pandas", "scipy", "matplotlib", "ipywidgets", "tiny_backprop_widgets"}
