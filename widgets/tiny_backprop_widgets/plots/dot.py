"""Graphviz's program `dot`, where it is installed: a DOT text as SVG, PDF or PNG."""

from __future__ import annotations

import re
import shutil
import subprocess

from tiny_backprop_widgets.errors import DisplayError

_TIMEOUT_SECONDS = 30
_HOW_TO_GET_DOT = (
    "Graphviz's program `dot`, which draws the graph, was not found. Install it with `apt-get install graphviz`, "
    "`brew install graphviz` or `conda install -c conda-forge graphviz`. The DOT text is there without it: `.source`, "
    "or `.save('dag.dot')`; any viewer of DOT files draws it."
)


def has_dot() -> bool:
    """Return whether Graphviz's program `dot` is installed."""
    return shutil.which("dot") is not None


def run_dot(source: str, suffix: str) -> bytes:
    """Return a DOT text drawn as the bytes of a file; the same text gives the same bytes.

    Raises:
      DisplayError: `dot` is missing, fails, or takes longer than 30 seconds.
    """
    program = shutil.which("dot")
    if program is None:
        raise DisplayError(_HOW_TO_GET_DOT)
    try:
        done = subprocess.run(
            [program, f"-T{suffix}"],
            input=source.encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DisplayError(
            f"dot took more than {_TIMEOUT_SECONDS} s over a graph of {source.count('->')} edges. Ask for fewer boxes: "
            "jaxpr_dag(graph, plan, max_boxes=60)."
        ) from None
    if done.returncode:
        raise DisplayError(f"dot failed: {done.stderr.decode(errors='replace').strip()[:500]}")
    # A PDF tells when it was written. What replaces that has the same length: offsets in the file stay right.
    return re.sub(rb"(/CreationDate \(D:)\d{14}", rb"\g<1>" + b"20000101000000", done.stdout)
