"""Whether plans, predictions and pictures are what they were: `python -m benchmarks.digests`.

Prints a digest of everything that planning says of each model: the actions of plans and their predicted memory over
time, step times, answers about single values, the graph as it is saved, tables and pictures. A change of the code that
is meant to change none of it is held against the code before it:

    python -m benchmarks.digests --write before.json     # on the old code
    python -m benchmarks.digests --against before.json   # on the new code; ends with an error where any differs

Only public names are used, so that the script runs on either. Digests belong to one version of JAX, whose traces they
are of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import tiny_backprop as tb
from benchmarks.truth import MODELS

_BUDGETS = (0.8, 0.5, 0.3)
_N_ASKED = 3  # of the residuals of a plan, how many are asked for
_FOLDERS = (sys.prefix, str(Path(__file__).resolve().parents[1]))  # of source lines; they differ between checkouts


def digest(*parts: Any) -> str:
    """Return a short digest of arrays, texts and plain data."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part.tobytes() if hasattr(part, "tobytes") else _placeless(repr(part)).encode())
        h.update(b"|")
    return h.hexdigest()[:16]


def _placeless(text: str) -> str:
    for folder in _FOLDERS:
        text = text.replace(folder, "")
    return text


def of_plan(plan: tb.Plan) -> dict[str, str]:
    """Return digests of a plan: what it does, what it is predicted to take, and what it looks like."""
    memory = plan.materialized
    asked = [plan.why(int(v))[0].verdict for v in plan.graph.residuals[:_N_ASKED]]
    return {
        "actions": digest(plan.ops, plan.targets, [n.choice for n in plan.graph.nested], plan.meta),
        "memory": digest(memory.live_bytes, memory.kernel_nodes, memory.first, memory.last, memory.n_bytes),
        "price": digest(plan.peak_bytes, plan.liveness_peak_bytes, plan.saved_bytes, plan.recompute_flops),
        "seconds": digest(plan.step_seconds(), plan.step_seconds("a100")),
        "shown": digest(repr(plan), plan._repr_html_(), memory.to_pandas().to_csv(), asked),
        "picture": digest(_picture(plan)),
    }


def _picture(plan: tb.Plan) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frontier.svg"
        tb.export_frontier(plan, file)
        return file.read_bytes()


def plans_of(graph: tb.Graph) -> Iterator[tuple[str, Callable[[], tb.Plan]]]:
    """Yield the name of each plan and what makes it."""
    root = max(2, round(graph.n_forward**0.5))
    yield "save everything", lambda: tb.plan_save_everything(graph)
    yield "blocks", lambda: tb.plan_blocks(graph)
    yield "blocks of a root", lambda: tb.plan_blocks(graph, root)
    yield "2 levels", lambda: tb.plan_height_compressed(graph, levels=2)
    yield "policy", lambda: tb.plan_policy(graph, "dots_saveable")
    for share in _BUDGETS:
        yield f"budget {share}", lambda share=share: tb.plan_budget(graph, share)


def of_model(loss: Callable[..., jax.Array], args: Sequence[Any]) -> dict[str, str]:
    """Return digests of a model's graph and of its plans, by name; a refusal counts as an answer."""
    graph = tb.capture_gradient(loss, *args)
    report = tb.analyze_graph(graph)
    found = {
        "graph": digest(graph.fingerprint, graph.flops, graph.bytes_moved, graph.scopes),
        "report": digest(repr(report), report._repr_html_(), graph._repr_html_(), graph.to_pandas().to_csv()),
        "frontier": digest(repr(tb.summarize_frontier(graph))),
        "drawing": digest(str(tb.jaxpr_dag(graph))) if graph.n_nodes < 3000 else "",
    }
    for name, make in plans_of(graph):
        try:
            found |= {f"{name}: {k}": v for k, v in of_plan(make()).items()}
        except tb.PlanError as e:
            found[name] = digest(type(e).__name__, str(e))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.digests", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models to look at")
    parser.add_argument("--write", type=Path, help="write the digests into this file")
    parser.add_argument("--against", type=Path, help="hold the digests against this file's")
    options = parser.parse_args(argv)
    found: dict[str, dict[str, str]] = {}
    before = json.loads(options.against.read_text())["models"] if options.against else {}
    differing: list[str] = []
    for name in options.only:
        loss, args = MODELS[name]()
        found[name] = of_model(loss, args)
        print(f"{name:<16}{len(found[name]):>4} digests  {digest(sorted(found[name].items()))}", flush=True)
        if options.against:
            keys = sorted({*found[name], *before.get(name, {})})
            differing += [f"{name}: {k}" for k in keys if found[name].get(k) != before.get(name, {}).get(k)]
    if options.write:
        options.write.write_text(json.dumps({"jax": jax.__version__, "models": found}, indent=1))
    if options.against:
        print("\n".join(differing) or "none differs")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
