"""Views in a page of their own: no kernel, no other file, no network, and no script but ours."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Mapping
from typing import Any

import tiny_backprop_widgets.assets as assets
from tiny_backprop_widgets.views.view import View

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111;
  background: #fff }
:is(h1, h2, h3, p, summary, .wide) { overflow-wrap: anywhere }
table.tiny-backprop { border-collapse: collapse; margin: .5rem 0; font-size: 13px }
.tiny-backprop :is(th, td) { padding: .2rem .7rem; border-bottom: 1px solid #ccc; text-align: left;
  overflow-wrap: break-word; max-width: 26em }
.wide { overflow-x: auto } .wide:focus-visible { outline: 2px solid #0072b2 }
@media (max-width: 66rem) { .upright :is(table, tr) { display: contents } .upright th { padding-left: 0 }
  .upright tbody { display: grid; grid: repeat(var(--rows), auto) / auto-flow auto; justify-content: start } }
figure { margin: 1rem 0 } figure svg, figure img { max-width: 100%; height: auto }
figure pre { overflow-x: auto }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #1b1b1b }
  .tiny-backprop :is(th, td) { border-color: #444 } figure > :is(svg, img) { background: #fff } }
"""


def page(title: str, body: str, views: Mapping[str, View], link: Mapping[str, Any] | None = None) -> str:
    """Return an HTML page.

    The page's policy allows one script, by its hash, and no request at all. What a program calls its functions and
    scopes is data of that script, and never HTML.

    Args:
      title: Its title, not escaped yet.
      body: HTML; `place(name, fallback)` makes the place of a view in it.
      views: The views by name; each is drawn as it is now, and cannot be asked for anything new.
      link: What is chosen together in the memory map and the other views, as `MapLink.packed_answers` returns it.
    """
    script = assets.module("exports/page")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if views else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {allowed}"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    head += f"<style>{_STYLE}{assets.style() if views else ''}</style>"
    tail = ""
    if views:
        states = {name: (view.kind, _state(view)) for name, view in views.items()}
        data = _packed(states if link is None else {**states, "link": ("link", link)})
        tail = f'<script type="application/octet-stream" id="tb-data">{data}</script>\n'
        tail += f'<script type="module">{script}</script>\n'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{tail}</body></html>\n'


def place(name: str, fallback: str) -> str:
    """Return the place of a view in a page: where there are no scripts, `fallback` (HTML) is seen instead."""
    return f'<figure data-view="{html.escape(name)}">{fallback}</figure>'


def wide(table: str, label: str, n_columns: int = 0) -> str:
    """Return a table (HTML) that scrolls by itself where the page is narrow.

    Args:
      table: The table.
      label: What it shows.
      n_columns: If given, its rows stand beside each other there, as columns.
    """
    kind = f' class="wide upright" style="--rows: {n_columns}"' if n_columns else ' class="wide"'
    return f'<div{kind} role="region" tabindex="0" aria-label="{html.escape(label)}">{table}</div>'


def _state(view: View) -> dict[str, Any]:
    """Return what the module of a view needs of its traits."""
    own = set(view.traits(sync=True)) - set(View.class_traits()) - {"_esm", "_css", "_anywidget_id"}
    state = {name: getattr(view, name) for name in sorted(own)}
    return state | {"_is_live": False} if "_is_live" in state else state


def _packed(states: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    """Return kinds and states of views as base64 of compressed bytes, for `page.js` to read.

    These are the length of a JSON text as uint32, the text, and one after the other the bytes of which the text has
    places and lengths.
    """
    chunks: list[bytes] = []
    described = {}
    for name, (kind, state) in states.items():
        buffers = {k: v for k, v in sorted(state.items()) if isinstance(v, bytes)}
        places = {}
        for k, data in buffers.items():
            places[k] = [sum(map(len, chunks)), len(data)]
            chunks.append(data)
        plain = {k: v for k, v in state.items() if k not in buffers}
        described[name] = {"kind": kind, "state": plain, "buffers": places}
    text = json.dumps(described, sort_keys=True).encode()
    whole = b"".join([len(text).to_bytes(4, "little"), text, *chunks])
    return base64.b64encode(zlib.compress(whole, 9)).decode()
