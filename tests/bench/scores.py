"""Every score on every case at one budget: the metric that is left, with repair and without.

    python tests/bench/scores.py ZOO CACHE [--cases A,B] [--budget 0.5] [--scores S,T]
        [--seed 0] [--json FILE] [--judge PYTHON] [--table]

Widths are uniform, so that channels are all that scores choose. Every prune is a process of its
own; it sees calibration data only, and is judged by `ZOO/evaluate.py`. `--json` takes one record a
line: a killed run loses nothing, and a second one skips what is there. Prints Markdown, one row a
score, best first by the mean share of the original's metric that is kept after repair. See
`judged.py` for what a case is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from judged import Case, Judge, Records, apart, cases, child, machine, markdown, stamp

from onnxprune.manager import installed

PRUNE = """
import json, sys, time
begin = time.perf_counter()
import onnxprune
from onnxprune.errors import PruneError
model, data, out, budget, seed, score, repair = sys.argv[1:]
try:
    made = onnxprune.prune(model, out, data=data, target={"macs": float(budget)}, seed=int(seed),
                           score=score, repair=repair == "True", allocate="uniform",
                           latency_s=0).json()
except PruneError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}))
    sys.exit()
scoring = made["seconds"].get("score-" + score.partition("{")[0], 0.0)
print(json.dumps({"seconds": time.perf_counter() - begin, "scoring": scoring,
                  "macs": made["cost"]["macs"]["ratio"], "warnings": made["warnings"]}))
"""
KEYS = ("case", "budget", "seed", "score", "repair")
Known = dict[tuple[Any, ...], dict[str, Any]]


def measure(
    case: Case, budget: float, seed: int, score: str, repair: bool, judge: Judge, limit: float
) -> dict[str, Any]:
    """Prune once and judge once."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        given = (case.model, case.data, out, budget, seed, score, repair)
        made = child([sys.executable, "-c", PRUNE, *map(str, given)], limit)
        judged = {} if "error" in made else judge(out, case)
    keys = dict(zip(KEYS, (case.name, budget, seed, score, repair), strict=True))
    record = keys | stamp() | made
    if "error" in judged:
        return record | {"error": f"judge: {judged['error']}"}
    return record | {key: judged[key] for key in ("value", "original", "se") if key in judged}


def kept(case: Case, record: dict[str, Any]) -> float:
    """Share of the original's metric that is left; of an error rate the share of what is right."""
    value, original = record["value"], record["original"]
    return float((1 - value) / (1 - original) if case.metric == "eer" else value / original)


def mean_kept(records: list[tuple[Case, dict[str, Any] | None]]) -> float | None:
    """Mean share over cases, where all were measured; what failed kept nothing."""
    known = [(case, r) for case, r in records if r is not None]
    if len(known) < len(records):
        return None
    return statistics.mean(0.0 if "error" in r else kept(case, r) for case, r in known)


def cell(record: dict[str, Any] | None) -> str:
    """A metric, or why there is none."""
    if record is None:
        return ""
    return "failed" if "error" in record else f"{record['value']:.4f}"


def rows(
    chosen: list[Case], scores: list[str], known: Known, budget: float, seed: int
) -> list[tuple[str, ...]]:
    """One line a score, best first."""
    found = []
    for score in scores:
        records = {
            (case.name, repair): known.get((case.name, budget, seed, score, repair))
            for case, repair in product(chosen, (True, False))
        }
        means = [mean_kept([(case, records[case.name, repair]) for case in chosen])
                 for repair in (True, False)]  # fmt: skip
        seconds = [r["scoring"] for r in records.values() if r and "scoring" in r]
        cells = [cell(records[case.name, repair])
                 for case, repair in product(chosen, (True, False))]  # fmt: skip
        time = f"{max(seconds):.1f}" if seconds else ""
        shown = ["" if mean is None else f"{mean:.3f}" for mean in means]
        order = [-1.0 if mean is None else mean for mean in means]
        found.append((order, (score, *cells, *shown, time)))
    return [line for _, line in sorted(found, key=lambda one: one[0], reverse=True)]


def original(chosen: list[Case], known: Known) -> tuple[str, ...]:
    """The line of what was pruned."""
    values = []
    for case in chosen:
        of = [r for r in known.values() if r["case"] == case.name and "original" in r]
        shown = f"{of[0]['original']:.4f}" if of else ""
        values += [shown, shown]
    return ("original", *values, "1", "1", "")


def main() -> None:
    """Measure what is asked for and not yet known, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--scores", default="", help="default: all that are installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--judge", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--table", action="store_true", help="measure nothing: what is known")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one prune")
    given = parser.parse_args()
    records = Records(given.json, KEYS)
    known = records.read()
    judge = Judge(given.judge, given.zoo, given.cache)
    every = sorted(n.removeprefix("score-") for n in installed() if n.startswith("score-"))
    scores = apart(given.scores) if given.scores else every
    chosen = cases(given.zoo, given.cache, given.cases)
    for case, score, repair in product(chosen, scores, (True, False)):
        key = (case.name, given.budget, given.seed, score, repair)
        if not given.table and key not in known:
            known[key] = measure(
                case, given.budget, given.seed, score, repair, judge, given.limit
            )
            records.add(known[key])
            print(*key, cell(known[key]), known[key].get("error", ""), file=sys.stderr, flush=True)
    head = ["score"]
    for case in chosen:
        head += [f"{case.name} ({case.metric})", "no repair"]
    commits = sorted({r["commit"] for r in known.values()})
    print(f"budget {given.budget:g} of the MACs, uniform widths, seed {given.seed}; {machine()}; "
          f"commit {', '.join(commits)}\n")  # fmt: skip
    table = rows(chosen, scores, known, given.budget, given.seed)
    head += ["kept", "kept, no repair", "seconds to score"]
    print(*markdown(tuple(head), [original(chosen, known), *table]), sep="\n")


if __name__ == "__main__":
    main()
