"""Plans by byte budget on published planning graphs: `python -m benchmarks.planning_graphs FOLDER`.

The graphs are training graphs of the Checkmate paper (Jain et al. 2020, arXiv:1910.02653), published beside MOCCASIN
(Bartan et al. 2023, arXiv:2304.14463). A budget is a fraction of the peak when every node runs once in order; a cost
ratio is the cost of all runs in proportion to every node once. Prints the ratios beside what is proven or published;
ends with an error where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

import tiny_backprop as tb
from tiny_backprop.units import format_bytes

# Of each graph and budget: a lower bound by linear programming, and the cost ratio to reach.
OPTIMA = {  # proven for this order of nodes and at most two runs of each
    "unet_train": {
        0.90: (1.0062, 1.0113),
        0.80: (1.0153, 1.0198),
        0.60: (1.0412, 1.0445),
        0.50: (1.0592, 1.0697),
        0.45: (1.0773, 1.0932),
    },
    "fcn8_train": {0.90: (1.0000, 1.0003), 0.80: (1.0007, 1.0014)},
}
PUBLISHED = {"resnet50_train": {0.90: (None, 1.002), 0.80: (None, 1.004), 0.70: (None, 1.008)}}
# After a short search a cost ratio may be this far above what is to be reached after a long one.
SHORT_SECONDS, MOST_ABOVE = 2.0, 0.005
LONG_SECONDS = {"unet_train": 20.0, "fcn8_train": 20.0, "resnet50_train": 30.0}
_ROUNDING = 0.5e-4  # the ratios are known to four digits
_INFEASIBLE = 0.05
_FORMAT_HELP = (
    "folder of unet_train.json, fcn8_train.json and resnet50_train.json: networkx node-link JSON; a node has id (its "
    "place in the order), name, backward, cost_cpu (its cost) and cost_ram (bytes of its output), a link runs from "
    "producer to consumer"
)


def read_graph(path: Path) -> tb.Graph:
    """Read a planning graph from node-link JSON."""
    data = json.loads(path.read_text())
    reads: dict[int, list[str]] = {}
    for link in data["links"]:
        reads.setdefault(link["target"], []).append(str(link["source"]))
    nodes = [
        {
            "name": str(n["id"]),
            "primitive": n["name"],
            "bytes": n["cost_ram"],
            "flops": n["cost_cpu"],
            "reads": reads.get(n["id"], []),
            "is_backward": n["backward"],
        }
        for n in sorted(data["nodes"], key=lambda n: n["id"])
    ]
    return tb.Graph.from_nodes(nodes, name=path.stem)


def planned(graph: tb.Graph, budget: float, seconds: float, bound: float | None, reference: float) -> dict[str, Any]:
    """Plan a graph within a budget and return a row of the table; the first plan of a graph is not made twice."""
    fresh = tb.Graph.from_json(graph.to_json())
    start = time.perf_counter()
    plan = tb.plan_budget(fresh, budget, cost="flops", search_seconds=seconds)
    taken = time.perf_counter() - start
    ratio, most = 1 + plan.recompute_fraction, reference + (MOST_ABOVE if seconds == SHORT_SECONDS else 0.0)
    budget_bytes = int(budget * tb.plan_save_everything(fresh).peak_bytes)
    return {
        "graph": graph.name,
        "budget": f"{budget:.2f}",
        "search": f"{seconds:.0f} s",
        "cost ratio": f"{ratio:.4f}",
        "target": f"{most:.4f}",
        "proven optimum": f"{reference:.4f}" if graph.name in OPTIMA else "–",
        "published": f"{reference:.4f}" if graph.name in PUBLISHED else "–",
        "LP bound": f"{bound:.4f}" if bound else "–",
        "of budget": f"{plan.peak_bytes / budget_bytes:.3f}",
        "took": f"{taken:.1f} s",
        "": "met" if ratio <= most + _ROUNDING and plan.peak_bytes <= budget_bytes else "MISSED",
    }


def infeasible(graph: tb.Graph) -> dict[str, Any]:
    """Ask for what no plan can do; the smallest peak that the error names must be one that a plan can reach."""
    row = {"graph": graph.name, "budget": f"{_INFEASIBLE:.2f}", "search": "–", "target": "BudgetError"}
    start = time.perf_counter()
    try:
        tb.plan_budget(graph, _INFEASIBLE, cost="flops")
    except tb.BudgetError as error:
        row |= {"took": f"{time.perf_counter() - start:.1f} s"}
        peak = tb.plan_budget(graph, error.smallest_peak_bytes, cost="flops").peak_bytes
        row["cost ratio"] = f"smallest peak {format_bytes(error.smallest_peak_bytes)}"
        return row | {"": "met" if peak <= error.smallest_peak_bytes else "MISSED"}
    return row | {"": "MISSED"}


def rows(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    for name in names:
        graph = read_graph(folder / f"{name}.json")
        for budget, (bound, reference) in (OPTIMA | PUBLISHED)[name].items():
            for seconds in (SHORT_SECONDS, LONG_SECONDS[name]):
                yield planned(graph, budget, seconds, bound, reference)
        yield infeasible(graph)


def main(argv: Sequence[str] | None = None) -> int:
    """Plan from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning_graphs", description=__doc__)
    parser.add_argument("folder", type=Path, help=_FORMAT_HELP)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(LONG_SECONDS),
        default=tuple(LONG_SECONDS),
        metavar="GRAPH",
        help=f"of {', '.join(LONG_SECONDS)}",
    )
    options = parser.parse_args(argv)
    table = pd.DataFrame(tqdm(rows(options.folder, options.only), unit="plan", leave=False)).fillna("–")
    print(table.to_string(index=False, line_width=10_000))
    return 0 if (table[""] == "met").all() else 1


if __name__ == "__main__":
    sys.exit(main())
