"""The JavaScript of the views: plain ES modules in `js/`, put together into one that needs no other file.

`js/views`, `js/panels` and `js/exports` hold what the modules of the same names here need; `js/shared` is for all.
"""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "js"
_IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.[\w./]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
_DEFAULT = re.compile(r"^export default [^;]*;\n", re.MULTILINE)


@functools.cache
def module(name: str) -> str:
    """Return `js/<name>.js` as one module: what it imports stands before it, each file in a scope of its own.

    A name has its folder in it, as in "views/graph". anywidget loads a module from a text, so that no path leads from
    there to another file. Import cycles do not work.
    """
    order: list[str] = []
    _visit(name, order)
    scopes = [_scope(dependency) for dependency in order[:-1]]
    return "".join([*scopes, _linked(name, _read(name))])


@functools.cache
def style() -> str:
    """Return the style sheet of the views; every rule is for classes that begin with `tb-`."""
    return (_FOLDER / "views.css").read_text(encoding="utf-8")


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.js").read_text(encoding="utf-8")


def _visit(name: str, order: list[str]) -> None:
    """Append a file's imports, and then the file, to those that come before."""
    if name not in order:
        for _, path in _IMPORT.findall(_read(name)):
            _visit(_resolved(path, name), order)
        order.append(name)


def _resolved(path: str, name: str) -> str:
    """Return the name of the file that another one imports by a path."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _variable(name: str) -> str:
    """Return what holds the exports of a file."""
    return "$$" + name.replace("/", "_")


def _linked(name: str, text: str) -> str:
    return _IMPORT.sub(lambda m: f"const {{{m[1]}}} = {_variable(_resolved(m[2], name))};\n", text)


def _scope(name: str) -> str:
    text = _DEFAULT.sub("", _read(name))
    exported = ", ".join(m[1] for m in _EXPORT.finditer(text))
    body = _EXPORT.sub("", _linked(name, text))
    return f"const {_variable(name)} = (() => {{\n{body}return {{ {exported} }};\n}})();\n"
