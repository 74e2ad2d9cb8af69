"""What is seen of a live view where it cannot be: in a reopened notebook, in an export, without a network.

JupyterLab prefers the live view of an output to whatever else the output holds, also where there is no model for it any
more, and then shows "model not found"; an exported page with saved widgets asks a CDN for them. So picture and table
are an output of their own, after the live one. The live view hides it; where there is none, it hides the message.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from IPython.display import display

_LIVE = "application/vnd.jupyter.widget-view+json"


def hidden_stand_in(name: str) -> str:
    """Return a rule of CSS that hides the stand-in of a name, for the live view to hold in a style."""
    # The first selector is for any front-end, the second leaves no gap in those of Jupyter.
    return f".{_class(name)}, .jp-OutputArea-child:has(.{_class(name)}) {{ display: none }}"


def show_with_stand_in(bundle: Mapping[str, Any], name: str) -> None:
    """Display a live view, and then its stand-in of a name.

    Args:
      bundle: The MIME bundle of the live view, which holds the stand-in as HTML or as a picture.
      name: See `hidden_stand_in`.
    """
    live = {kind: bundle[kind] for kind in (_LIVE, "text/plain") if kind in bundle}
    rest = {kind: data for kind, data in bundle.items() if kind not in live}
    own = f".jp-OutputArea-child .{_class(name)}"
    message = f".jp-OutputArea-child:not(:has(.tiny-backprop-explorer, .tb-view)):has(+ {own})"
    style = f"<style>{message} {{ display: none }}</style>"
    rest["text/html"] = f'<div class="{_class(name)}">{style}{_html(bundle)}</div>'
    display(live, raw=True)
    display(rest, raw=True)


def _html(bundle: Mapping[str, Any]) -> str:
    """Return what a bundle shows as HTML."""
    if "text/html" in bundle:
        return bundle["text/html"]
    if "image/svg+xml" in bundle:
        return bundle["image/svg+xml"]
    text = html.escape(bundle["text/plain"])
    return f'<img alt="{text}" style="max-width: 100%" src="data:image/png;base64,{bundle["image/png"]}">'


def _class(name: str) -> str:
    return f"tiny-backprop-stand-in-{name}"
