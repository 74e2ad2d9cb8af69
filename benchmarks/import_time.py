"""How long `import tiny_backprop` takes: `python -m benchmarks.import_time`.

Each import runs in a process of its own, in turn, and the least of some times counts. Beyond `import jax`, the package
itself may take 0.3 s; what it loads when a public name is first asked for is told beside it.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.figures import Figure, print_figures

MOST_SECONDS = 0.3
_IMPORTS = {
    "import tiny_backprop": "import tiny_backprop",
    "and its capture and planners": "import tiny_backprop as tb; tb.capture_gradient, tb.plan_budget",
    "and the gradients that run": "import tiny_backprop as tb; tb.height_compressed_grad",
    "and the explorer": "import tiny_backprop as tb; tb.explore",
}


def import_seconds(statement: str, n_repeats: int) -> float:
    """Return the seconds that a statement takes after `import jax`, in a new process; the least of some times."""
    code = f"import jax, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(n_repeats)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.import_time", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="how often each; the fastest counts")
    options = parser.parse_args(argv)
    taken = {name: import_seconds(statement, options.repeats) for name, statement in _IMPORTS.items()}
    targets = [MOST_SECONDS, *[math.inf] * (len(taken) - 1)]
    return print_figures(
        [
            Figure(name, x, target, "s", "after import jax")
            for (name, x), target in zip(taken.items(), targets, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
