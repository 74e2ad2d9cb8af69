"""What several tests of the explorer explore, and how its pages are read."""

import base64
import html.parser
import json
import re
import zlib

import jax.numpy as jnp

from tests.graphs import chain

GRAPH = chain(100, n_bytes=2**20)


def loss(w, x, scale=1.0):
    for _ in range(8):
        x = jnp.tanh(x @ w) * scale
    return x.sum()


ARGS = (jnp.ones((4, 4)), jnp.ones((2, 4)))


class Page(html.parser.HTMLParser):
    """The cells of every table of a page, the tags it uses and the addresses it names."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.links, self._in_cell = [], set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def data_of(report):
    """Return what the scripts of a report have to show, without what is in it as bytes."""
    text = re.search(r'id="tb-data">([^<]*)</script>', report)[1]
    whole = zlib.decompress(base64.b64decode(text))
    return json.loads(whole[4 : 4 + int.from_bytes(whole[:4], "little")])


CHAIN = chain(40, n_bytes=2**20)
