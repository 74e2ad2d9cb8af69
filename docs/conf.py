"""Sphinx configuration: Markdown pages, Google docstrings, no request to any other host while building or reading."""

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "tiny_backprop"
author = "The tiny_backprop authors"
copyright = f"2026, {author}"
version = release = _project["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"tiny_backprop {version}"
html_show_sourcelink = False

myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code, as in Markdown

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an Attributes: section and an annotated field are the same thing, told once

# A reference to something of ours must resolve. Other projects' names are not looked up: that needs the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!tiny_backprop).*"),
    (r"py:.*", r".*\._.*"),
    (r"py:.*", r"tiny_backprop\.integration\.jax\.run\.planned\..*"),  # in signatures of what functions make
]
