"""Whether planned gradients are right, and never worse: `python -m benchmarks.robustness`.

Parts, each by itself with `--only`:

  programs     random programs, each through a door in a transformation, against JAX's own gradient
  predictions  of random programs at sizes that matter: predicted bytes against XLA's, and default plans against plain
  harnesses    what JAX has to test its primitives by, each differentiable one through two doors
  remat        JAX's own tests of `jax.checkpoint`, with `tiny_backprop.checkpoint` in its place; wants `--jax-tests`
  threads      eight threads and eight shapes, a plan by budget for each

Everything but threads runs in processes of its own, some programs each: where XLA aborts, that is a row, too.
`--share 1/8` takes every eighth program or harness, `--share 3/8` each third of eight. Prints what is at fault, then
one row per figure with its target; all rows go to `build/robustness/`. Ends with an error where a figure is missed.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tiny_backprop as tb
from benchmarks import jax_tests, random_programs
from benchmarks.figures import Figure, print_figures
from tiny_backprop.plan.baseline import predict_jax_gradient
from tiny_backprop.units import format_bytes

Row = dict[str, Any]

PARTS = ("programs", "predictions", "harnesses", "remat", "threads")
N_PROGRAMS, N_PREDICTED, MOST_MINUTES = 2000, 300, 60.0
MOST_MEDIAN, MOST_P90, MOST_P98 = 0.03, 0.20, 0.50
LEAST_BYTES = 64 * 1024
N_THREADS = 8
_CHUNK, _MOST_SECONDS = 20, 900
_N_NAMED = 6
FAULTS = ("wrong", "crash", "failed")
# Values do not depend on how hard LLVM tries, and a third of the time does.
_CHEAP = "--xla_backend_optimization_level=0"


# ---- in processes ----


def in_processes(part: str, items: Sequence[int], n_processes: int, out: Path) -> Iterator[Row]:
    """Yield a row of `CHECKS[part]` for each item and keep it; where a process ends without one, the row says so."""
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    (out / f"{part}.jsonl").unlink(missing_ok=True)
    with (
        concurrent.futures.ThreadPoolExecutor(n_processes) as pool,
        tqdm(total=len(items), desc=part, unit="program", leave=False) as bar,
    ):
        for future in concurrent.futures.as_completed([pool.submit(_in_process, part, c, bar) for c in chunks]):
            with (out / f"{part}.jsonl").open("a") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in future.result())
            yield from future.result()


def _in_process(part: str, items: Sequence[int], bar: tqdm) -> list[Row]:
    rows: list[Row] = []
    flags = [os.environ.get("XLA_FLAGS", ""), *([_CHEAP] if part != "predictions" else [])]
    # XLA takes a text of blanks for the name of a file.
    environment = os.environ | {"XLA_FLAGS": " ".join(flags).strip(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    while len(rows) < len(items):
        left = items[len(rows) :]
        command = [sys.executable, "-m", "benchmarks.robustness", "--worker", part, ",".join(map(str, left))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        errors: list[str] = []
        reader = threading.Thread(target=lambda p=process, e=errors: e.append(p.stderr.read() if p.stderr else ""))
        timer = threading.Timer(_MOST_SECONDS, process.kill)
        reader.start()
        timer.start()
        n_before = len(rows)
        for line in process.stdout or ():
            if line.startswith("{"):
                rows.append(json.loads(line))
                bar.update()
        status = process.wait()
        timer.cancel()
        reader.join()
        if len(rows) - n_before < len(left):
            note = f"the process ended with {status}: {errors[0][-1500:]}"
            rows.append({"item": left[len(rows) - n_before], "kind": "crash", "note": note})
            bar.update()
    return rows


def worker(part: str, items: Sequence[int]) -> None:
    """Print a row for each item, as JSON."""
    jax.config.update("jax_numpy_rank_promotion", "raise" if part == "programs" else "allow")
    for i, item in enumerate(items):
        if i % 20 == 19:
            jax.clear_caches()
        start = time.perf_counter()
        row = {"item": item, **CHECKS[part](item)}
        print(json.dumps({**row, "seconds": round(time.perf_counter() - start, 3)}), flush=True)


# ---- random programs ----


def check_program(seed: int) -> Row:
    """Return what became of a random program."""
    outcome = random_programs.check(seed)
    return {"kind": outcome.kind, "use": outcome.use, "note": outcome.note, "warnings": outcome.warnings}


def program_figures(seeds: Sequence[int], n_processes: int, out: Path) -> list[Figure]:
    """Run random programs."""
    start = time.perf_counter()
    rows = list(in_processes("programs", seeds, n_processes, out))
    minutes = (time.perf_counter() - start) / 60
    kinds = _report("programs", rows)
    warned = collections.Counter()
    for row in rows:
        warned.update(row.get("warnings", {}))
    note = f"{len(rows)} programs: {_words(kinds)}; warnings: {_words(warned)}"
    most = MOST_MINUTES * max(1.0, len(seeds) / N_PROGRAMS)
    return [
        Figure("random programs: wrong", kinds["wrong"], 0, "", note),
        Figure("random programs: crashes", kinds["crash"], 0, "", f"seeds {seeds[0]} to {seeds[-1]}"),
        Figure("random programs: time", minutes, most, "min", f"{n_processes} processes"),
    ]


def _report(part: str, rows: Sequence[Row]) -> collections.Counter[str]:
    """Print the rows at fault, and count the kinds."""
    for row in rows:
        if row["kind"] in FAULTS:
            print(f"{part} {row['item']}: {row['kind']}: {row.get('use', '')}\n{row['note']}\n", flush=True)
    return collections.Counter(row["kind"] for row in rows)


def _words(counted: collections.Counter) -> str:
    return ", ".join(f"{n} {k}" for k, n in counted.most_common()) or "none"


# ---- predictions, and plans of default doors against plain ----


def check_prediction(seed: int) -> Row:
    """Return predicted and measured bytes of a random program's plain gradient and of the default door's."""
    program = random_programs.draw(seed, random_programs.LARGE)
    loss, options = program.loss(), {"argnums": program.argnums, "has_aux": program.has_aux}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planned = tb.height_compressed_value_and_grad(loss, **options, on_error="raise")
            plan = planned.plan(*program.args)
            plain = tb.measure(jax.value_and_grad(loss, **options), *program.args)
            ours = tb.measure(planned, *program.args)
    except tb.RefError:
        return {"kind": "unplanned"}
    except Exception as e:
        return {"kind": "crash", "note": random_programs.last_line(e)}
    return {
        "kind": "measured",
        "plain_predicted_bytes": predict_jax_gradient(plan.graph).peak_bytes,
        "plain_bytes": plain.peak_bytes,
        "predicted_bytes": plan.peak_bytes,
        "bytes": ours.peak_bytes,
        "is_jax_gradient": plan.is_jax_gradient,
    }


def prediction_figures(seeds: Sequence[int], n_processes: int, out: Path) -> list[Figure]:
    """Hold predictions against XLA, and what default doors chose against the plain gradient."""
    rows = list(in_processes("predictions", seeds, n_processes, out))
    kinds = _report("predictions", rows)
    large = [r for r in rows if r["kind"] == "measured" and r["plain_bytes"] >= LEAST_BYTES]
    if not large:
        return [Figure("predictions: programs compared", np.nan, 0, "", _words(kinds))]
    plain = np.array([abs(r["plain_predicted_bytes"] / r["plain_bytes"] - 1) for r in large])
    chosen = np.array([abs(r["predicted_bytes"] / r["bytes"] - 1) for r in large])
    ratios = np.array([r["bytes"] / r["plain_bytes"] for r in large])
    worst = ", ".join(str(large[i]["item"]) for i in np.maximum(plain, chosen).argsort()[::-1][:_N_NAMED])
    most = [i for i in ratios.argsort()[::-1][:_N_NAMED] if ratios[i] > 1]
    above = ", ".join(f"{large[i]['item']} ({ratios[i]:.3f} ×)" for i in most)
    n_planned = sum(not r["is_jax_gradient"] for r in large)
    note = f"{len(large)} of {len(rows)} programs take at least {format_bytes(LEAST_BYTES)}; {_words(kinds)}"
    notes = {0.5: note, 0.9: "", 0.98: f"the worst: programs {worst}"}
    targets = {0.5: ("median error", MOST_MEDIAN), 0.9: ("90th percentile", MOST_P90), 0.98: ("98th", MOST_P98)}
    figures = []
    for share, (words, target) in targets.items():
        each = f"plain {np.quantile(plain, share):.3f}, the door's {np.quantile(chosen, share):.3f}"
        value = float(np.quantile(np.concatenate([plain, chosen]), share))
        figures.append(
            Figure(f"predicted / measured: {words}", value, target, "×", f"{each}; {notes[share]}".strip("; "))
        )
    return [
        *figures,
        Figure("default plans above plain", int((ratios > 1).sum()), 0, "", f"{n_planned} planned; {above}"),
        Figure("predictions: crashes", kinds["crash"], 0, ""),
    ]


# ---- JAX's harnesses ----


def harness_figures(share: tuple[int, int], n_processes: int, out: Path) -> list[Figure]:
    """Run JAX's harnesses."""
    k, n = share
    all_of_them = range(len(jax_tests.harnesses()))
    rows = list(in_processes("harnesses", list(all_of_them[k - 1 :: n]), n_processes, out))
    kinds = _report("harnesses", rows)
    note = f"{len(rows)} of {len(all_of_them)}: {_words(kinds)}"
    return [
        Figure("JAX's harnesses: wrong", kinds["wrong"], 0, "", note),
        Figure("JAX's harnesses: raised", kinds["crash"], 0, "", "what jax.grad does not raise at"),
    ]


# ---- JAX's tests of jax.checkpoint ----


def remat_figures(source: Path | None, n_processes: int, out: Path) -> list[Figure]:
    """Run JAX's own tests of `jax.checkpoint`."""
    if source is None:
        print("JAX's tests of jax.checkpoint are not run: --jax-tests names no checkout of JAX's source.\n")
        return []
    os.environ["JAX_TESTS"] = str(source)
    rows = list(in_processes("remat", range(len(jax_tests.remat_names())), n_processes, out))
    kinds = _report("remat", rows)
    note = f"{len(rows)} tests: {_words(kinds)}"
    return [Figure("JAX's RematTest: failed", sum(kinds[k] for k in FAULTS), 0, "", note)]


CHECKS: dict[str, Callable[[int], Row]] = {
    "programs": check_program,
    "predictions": check_prediction,
    "harnesses": jax_tests.check_harness,
    "remat": jax_tests.check_remat,
}


# ---- threads ----


def layers(ws: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Return the loss of a deep perceptron."""
    for w in ws:
        x = jnp.tanh(x @ w) + x
    return jnp.mean(x**2)


def calls_of_shapes(gradient: Callable[..., Any], n_shapes: int) -> list[Callable[[], Any]]:
    """Return a call for each of some shapes."""
    ws = [jnp.eye(32) * 0.5] * 12
    xs = [jnp.ones((256 + 32 * k, 32)) for k in range(n_shapes)]
    return [lambda x=x: jax.block_until_ready(gradient(ws, x)) for x in xs]


def in_threads(calls: Sequence[Callable[[], Any]], n_threads: int) -> list[list[Any]]:
    """Return what each of some threads, begun together, got of all calls, each in an order of its own."""
    barrier = threading.Barrier(n_threads)

    def run(k: int) -> list[Any]:
        barrier.wait()
        found = {i % len(calls): calls[i % len(calls)]() for i in range(k, k + len(calls))}
        return [found[i] for i in range(len(calls))]

    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(run, range(n_threads)))


def thread_figures() -> list[Figure]:
    """Plan and run for eight shapes from eight threads, and from one."""
    plain = [call() for call in calls_of_shapes(jax.jit(jax.value_and_grad(layers)), N_THREADS)]
    seconds: dict[int, float] = {}
    n_wrong = 0
    for n_threads in (1, N_THREADS, 1, N_THREADS):
        calls = calls_of_shapes(tb.height_compressed_value_and_grad(layers, budget=0.6), N_THREADS)
        jax.clear_caches()
        start = time.perf_counter()
        found = in_threads(calls, n_threads)
        if n_threads == 1:
            found += [[call() for call in calls] for _ in range(N_THREADS - 1)]
        seconds[n_threads] = min(time.perf_counter() - start, seconds.get(n_threads, np.inf))
        for of_thread in found:
            pairs = zip(jax.tree.leaves(of_thread), jax.tree.leaves(plain), strict=True)
            n_wrong += any(not np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)
    note = f"{seconds[N_THREADS]:.2f} s, one after the other {seconds[1]:.2f} s; the better of two"
    return [
        Figure(f"{N_THREADS} threads × {N_THREADS} shapes by budget: wrong", n_wrong, 0, ""),
        Figure(
            f"{N_THREADS} threads × {N_THREADS} shapes by budget: time", seconds[N_THREADS] / seconds[1], 1.0, "×", note
        ),
    ]


def _share(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"a share is k/n with 1 <= k <= n, such as 1/8; found {text}")
    return int(k), int(n)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--first", type=int, default=0, help="seed of the first random program; default: %(default)s")
    parser.add_argument("--programs", type=int, default=N_PROGRAMS, help="how many; default: %(default)s")
    parser.add_argument("--share", type=_share, default=(1, 1), help="a part of the programs and harnesses, as 1/8")
    parser.add_argument("--jax-tests", type=Path, help="a checkout of JAX's source, whose tests/api_test.py is run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time; default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("build/robustness"), help="folder to write; default: %(default)s"
    )
    parser.add_argument(
        "--show", type=int, metavar="SEED", help="print the program of a seed and how it is used, and check it"
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        worker(options.worker[0], [int(i) for i in options.worker[1].split(",")])
        return 0
    if options.show is not None:
        program, use = random_programs.draw(options.show), random_programs.draw_use(options.show)
        print(f"{program.source}\nargnums={program.argnums}, has_aux={program.has_aux}\n{use}")
        print(random_programs.check(options.show))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    k, n = options.share
    seeds = list(range(options.first, options.first + options.programs)[k - 1 :: n])
    figures: list[Figure] = []
    print(f"JAX {jax.__version__}, Python {sys.version.split()[0]}\n", flush=True)
    if "programs" in options.only:
        figures += program_figures(seeds, options.processes, options.out)
    if "predictions" in options.only:
        figures += prediction_figures(seeds[:N_PREDICTED], options.processes, options.out)
    if "harnesses" in options.only:
        figures += harness_figures(options.share, options.processes, options.out)
    if "remat" in options.only:
        figures += remat_figures(options.jax_tests, options.processes, options.out)
    if "threads" in options.only:
        figures += thread_figures()
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
