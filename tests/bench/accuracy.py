"""What default options keep of every case's metric, by budget, against the goals in goals.json.

    python tests/bench/accuracy.py ZOO CACHE [--cases A,B] [--budgets 0.7,0.5] [--seeds 0,1,2]
        [--scores S,T] [--json FILE] [--judge PYTHON] [--again] [--table]

Every prune is a process of its own, so that seconds and memory are its own; it sees calibration
data only, and is judged by `ZOO/evaluate.py`. `--json` takes one record a line: a killed run loses
nothing, and a second one skips what is there. Drops are points (r2: its own unit), larger is worse,
and so for an error rate. Prints Markdown. See `judged.py` for what a case is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from judged import (
    DEFAULT_BUDGETS,
    Case,
    Judge,
    Records,
    apart,
    cases,
    child,
    goals,
    machine,
    markdown,
    numbers,
    stamp,
)

PRUNE = """
import json, resource, sys, time
begin = time.perf_counter()
import onnxprune
from onnxprune.errors import PruneError
model, data, out, budget, seed, score = sys.argv[1:]
more = {"score": score} if score else {}
def held(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024
try:
    made = onnxprune.prune(model, out, data=data, target={"macs": float(budget)}, seed=int(seed),
                           latency_s=0, **more).json()
except PruneError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}))
    sys.exit()
print(json.dumps({
    "seconds": time.perf_counter() - begin, "peak": held("VmHWM"),
    "peak_children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    "macs": made["cost"]["macs"]["ratio"], "params": made["cost"]["params"]["ratio"],
    "stages": made["seconds"], "warnings": made["warnings"],
}))
"""
KEYS = ("case", "budget", "seed", "score")
HEAD = ("case", "metric", "original", "score", "budget", "MACs", "drop", "spread", "se", "goal",
        "met", "seconds", "peak MB", "note")  # fmt: skip


def measure(
    case: Case, budget: float, seed: int, score: str, judge: Judge, limit: float
) -> dict[str, Any]:
    """Prune once and judge once."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        given = (case.model, case.data, out, budget, seed, score)
        made = child([sys.executable, "-c", PRUNE, *map(str, given)], limit)
        judged = {} if "error" in made else judge(out, case)
    record = dict(zip(KEYS, (case.name, budget, seed, score), strict=True)) | stamp() | made
    if "error" in judged:
        return record | {"error": f"judge: {judged['error']}"}
    if not judged:
        return record
    figures = {k: judged[k] for k in ("value", "original", "se")}
    return record | figures | {"drop": case.drop(judged)}


def _met(drop: float, goal: float, error: float) -> str:
    """A goal missed by less than the standard error of the difference cannot be told from met."""
    if drop <= goal:
        return "yes"
    return "within se" if drop - goal < error else "no"


def row(case: Case, budget: float, score: str, records: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line: the mean over the seeds."""
    failed = [r["error"] for r in records if "error" in r]
    good = [r for r in records if "error" not in r]
    goal = goals().get(case.name, {}).get(budget)
    shown_goal = "" if goal is None else f"{goal:g}"
    if not good:
        empty = ("",) * 4
        return (case.name, case.metric, "", score, f"{budget:g}", *empty, shown_goal, "", "", "",
                failed[0])  # fmt: skip
    drops = [r["drop"] for r in good]
    drop, digits = statistics.mean(drops), 4 if case.metric == "r2" else 2
    error = statistics.mean(r["se"] for r in good) * case.scale
    notes = [f"{len(good)} seeds"] + [f"{len(failed)} failed: {failed[0]}" for _ in failed[:1]]
    return (
        case.name,
        case.metric,
        f"{good[0]['original']:.4f}",
        score,
        f"{budget:g}",
        f"{statistics.mean(r['macs'] for r in good):.3f}",
        f"{drop:.{digits}f}",
        f"{min(drops):.{digits}f} to {max(drops):.{digits}f}",
        f"{error:.{digits}f}",
        shown_goal,
        "" if goal is None else _met(round(drop, digits), goal, error),
        f"{statistics.median(r['seconds'] for r in good):.0f}",
        f"{max(r['peak'] for r in good) / 1e6:.0f}",
        "; ".join(notes),
    )


def main() -> None:
    """Measure what is asked for and not yet known, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--budgets", default="", help="default: those of goals.json")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--scores", default="", help="default: the product's own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--judge", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--again", action="store_true", help="measure what is known too")
    parser.add_argument("--table", action="store_true", help="measure nothing: what is known")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one prune")
    given = parser.parse_args()
    records = Records(given.json, KEYS)
    known = records.read()
    judge = Judge(given.judge, given.zoo, given.cache)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    scores = apart(given.scores)
    rows = []
    for case in cases(given.zoo, given.cache, given.cases):
        budgets = numbers(given.budgets) or list(goals().get(case.name, {})) or DEFAULT_BUDGETS
        for budget, score in product(budgets, scores):
            for seed in seeds:
                key = (case.name, budget, seed, score)
                if not given.table and (given.again or key not in known):
                    known[key] = measure(case, budget, seed, score, judge, given.limit)
                    records.add(known[key])
            found = [known[k] for s in seeds if (k := (case.name, budget, s, score)) in known]
            if found:
                rows.append(row(case, budget, score, found))
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    commits = sorted({r["commit"] for r in known.values()})
    print(f"{machine()}; commit {', '.join(commits)}\n")
    print(*markdown(HEAD, rows), sep="\n")


if __name__ == "__main__":
    main()
