"""Prune every ONNX file of a folder and write down, as a table, how far and how fast that went.

Each file is taken to half its multiply-accumulates, proved, asked by the mask oracle and run at two
batch sizes; then it is cut by random plans, each head and group keeping channels of its own, which
must agree with the silenced original too.  Every file has a process and a time limit of its own, so
that one that fails does not stop the rest.

    python tests/bench/structures.py FOLDER... [--out TABLE.md] [--only PATTERN] [--seeds N]

`tests/bench/export_structures.py` makes folders of such files.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

BATCHES = (1, 3)
ORACLE_LIMIT = 1e-4
PACKAGES = ("onnxprune", "onnx", "onnxruntime", "numpy")
COLUMNS = (
    "file", "nodes", "params M", "Dims", "free", "MACs", "params", "prunable", "oracle",
    "random plans", "runs at", "load", "flow", "plan", "cut+proof", "oracle s", "save", "prune s",
)  # fmt: skip


# --- One file: in a process of its own ------------------------------------------------------------


def measure(path: Path, target: float, seeds: int) -> dict[str, Any]:
    """Prune one file; what was measured, stage by stage."""
    from onnxprune.backend import runtime
    from onnxprune.rules import load_rules

    load_rules()
    assert runtime, "imports are not part of the times"
    row: dict[str, Any] = {"seconds": {}}
    try:
        prune(path, target, seeds, row)
    except Exception as error:  # whatever goes wrong is a result here
        row["error"] = f"{type(error).__name__}: {error}"
        row["traceback"] = traceback.format_exc()
    return row


def prune(path: Path, target: float, seeds: int, row: dict[str, Any]) -> None:
    """Load, follow, plan, cut, prove and save; then ask the oracle and run."""
    from onnxprune.manager import State, Subject
    from onnxprune.model.storage import load
    from onnxprune.normal.normalize import normalize
    from onnxprune.passes.find_dims import FindDims
    from onnxprune.passes.make_plan import MakePlan
    from onnxprune.passes.score_l2 import ScoreL2
    from onnxprune.planning.plan import Plan
    from onnxprune.planning.scores import Scores

    with clock(row, "load"):
        model = normalize(load(path))
    state = State(Subject(model), Subject(model), progress=lambda _: None)
    with clock(row, "flow"):
        state.facts[FindDims.gives] = FindDims().run(state)
    describe(state, row)
    with clock(row, "plan"):
        state.facts[Scores] = ScoreL2().run(state)
        plan = MakePlan(targets=(("macs", target),), approximate=True).run(state)
        state.facts[Plan] = plan
    row |= {"macs": plan.ratios["macs"], "params": plan.ratios["params"]}
    made = cut(state, plan.alive, row)
    row["ran"] = [batch for batch in BATCHES if runs(state, made, batch)]
    row["random"] = [random_plan(state, seed) for seed in range(seeds)]


class clock:  # noqa: N801  # reads as a word of the language
    """Add the time of a block to a row."""

    def __init__(self, row: dict[str, Any], stage: str) -> None:
        self.row, self.stage = row, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.start
        self.row["seconds"][self.stage] = round(spent, 2)


def describe(state: Any, row: dict[str, Any]) -> None:
    """Counts, and the weights that no plan can reach, with the reasons."""
    from onnxprune.identity.dims import Dims
    from onnxprune.identity.occurrences import tensors_of
    from onnxprune.planning.cost import is_weight

    dims, model = state[Dims], state.model
    weights = {
        name: prod(tensor.dims)
        for name, tensor in model.initializers.items()
        if is_weight(tensor) and name in model.consumers
    }
    reached: set[str] = set()
    reasons: dict[str, str] = {}
    by_dim = tensors_of(dims)
    for dim in dims.dims:
        for name in by_dim.get(dim.index, ()):
            if dim.is_free:
                reached.add(name)
            else:
                reasons.setdefault(name, dim.pinned or "one channel")
    total = max(sum(weights.values()), 1)
    missed = sorted((n for n in weights if n not in reached), key=lambda n: -weights[n])
    row |= {"nodes": len(model.nodes), "elements": total}
    row |= {"dims": len(dims.dims), "free": len(dims.free), "unknown": dims.ties.unknown}
    row["prunable"] = sum(weights[n] for n in weights if n in reached) / total
    row["missed"] = [
        {"name": n, "share": weights[n] / total, "why": reasons.get(n, "no identities")}
        for n in missed
    ]


def cut(state: Any, alive: Any, row: dict[str, Any]) -> Any:
    """The proven cut, saved; the oracle's word on its exact part."""
    from onnxprune.cutting.oracle import disagreement
    from onnxprune.identity.dims import Dims
    from onnxprune.model.storage import save
    from onnxprune.passes.cut_channels import exact_part, proved_cut

    dims = state[Dims]
    with clock(row, "cut+proof"):
        made = proved_cut(state, dims, ~alive)
    with clock(row, "oracle"):
        exact = exact_part(dims, alive)
        if not exact.all():
            tested = made if (exact == alive).all() else proved_cut(state, dims, ~exact)
            sizes = state.subject.sizes.first
            row["off"] = disagreement(state.model, dims, ~exact, tested.model, sizes)
    with clock(row, "save"), tempfile.TemporaryDirectory() as folder:
        save(made.model, Path(folder) / "pruned.onnx")
    return made


def shapes_at(state: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """Input shapes at a batch size; the other dynamic axes as the flow chose them."""
    sizes = state.subject.sizes
    return {
        name: (batch, *shape[1:]) if 0 in sizes.dynamic[name] else shape
        for name, shape in sizes.first.items()
    }


def runs(state: Any, made: Any, batch: int) -> bool:
    """The cut model runs at a batch size, and its outputs are shaped as the original's."""
    import numpy as np

    from onnxprune.backend.feeds import model_inputs
    from onnxprune.backend.runtime import session
    from onnxprune.errors import ModelError

    original = session(state.model.proto, optimize=False)
    feeds = model_inputs(state.model, shapes_at(state, batch))
    try:
        ours = original.run(feeds)
    except ModelError:  # integers that are a mask, whose sums index a table
        feeds = model_inputs(state.model, shapes_at(state, batch), high=2)
        ours = original.run(feeds)
    theirs = session(made.model.proto).run(feeds)
    for a, b in zip(ours, theirs, strict=True):
        if np.shape(a) != np.shape(b):
            raise ValueError(f"batch {batch}: shape {np.shape(b)}, not {np.shape(a)}")
        if np.isfinite(a).all() and not np.isfinite(b).all():
            raise ValueError(f"batch {batch}: infinite outputs")
    return True


def random_plan(state: Any, seed: int) -> dict[str, Any]:
    """Cut exact Dims to random widths with channels at random; how far outputs are off."""
    from onnxprune.cutting.oracle import disagreement
    from onnxprune.identity.dims import Dims
    from onnxprune.passes.cut_channels import proved_cut

    dims = state[Dims]
    found: dict[str, Any] = {"seed": seed}
    try:
        alive = random_alive(dims, seed)
        found["removed"] = int((~alive).sum())
        made = proved_cut(state, dims, ~alive)
        shapes = state.subject.sizes.first
        found["off"] = disagreement(state.model, dims, ~alive, made.model, shapes, seeds=(seed,))
        runs(state, made, BATCHES[seed % len(BATCHES)])
    except Exception as error:  # whatever goes wrong is a result here
        found["error"] = f"{type(error).__name__}: {error}"
        found["traceback"] = traceback.format_exc()
    return found


def random_alive(dims: Any, seed: int) -> Any:
    """Channels of a random plan: each exact Dim at a random level, each part at random."""
    import numpy as np

    from onnxprune.planning.plan import select

    rng = np.random.default_rng(seed)
    levels = {d.index: int(rng.integers(len(d.levels))) for d in dims.free if d.is_exact}
    return select(dims, rng.uniform(0.5, 1.5, dims.count), levels)


# --- The table ------------------------------------------------------------------------------------


def child(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a file in a process of its own."""
    command = [sys.executable, __file__, "--one", str(path), "--seeds", str(options.seeds)]
    command += ["--target", str(options.target)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {options.limit} s", "seconds": {}}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"process ended with {done.returncode}: {last}", "seconds": {}}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    spent = row["seconds"]
    off = [r.get("off") for r in row.get("random", ())]
    good = [x for x in off if x is not None and x <= ORACLE_LIMIT]
    if not any(r.get("removed", 1) for r in row.get("random", ())):
        off = good = []  # no Dim is exact
    worst = f" ({max(good):.0e})" if good else ""
    stages = ("load", "flow", "plan", "cut+proof", "oracle", "save")
    whole = sum(spent[s] for s in stages) if all(s in spent for s in stages) else None
    return [
        name,
        str(row.get("nodes", "")),
        _number(row.get("elements"), 1e-6, "{:.2f}"),
        str(row.get("dims", "")),
        str(row.get("free", "")),
        _number(row.get("macs"), 1, "{:.3f}"),
        _number(row.get("params"), 1, "{:.3f}"),
        _number(row.get("prunable"), 1, "{:.4f}"),
        _number(row.get("off"), 1, "{:.0e}"),
        f"{len(good)}/{len(off)}{worst}" if off else "",
        ", ".join(map(str, row.get("ran", ()))),
        *(_number(spent.get(s), 1, "{:.2f}") for s in stages),
        _number(whole, 1, "{:.2f}"),
    ]


def _number(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else form.format(value * scale)


def problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a file, one sentence each."""
    found = [row["error"]] if "error" in row else []
    for plan in row.get("random", ()):
        if "error" in plan:
            found.append(f"random plan {plan['seed']}: {plan['error']}")
        elif plan["off"] is not None and plan["off"] > ORACLE_LIMIT:
            found.append(f"random plan {plan['seed']}: off by {plan['off']:.1e}")
    if row.get("prunable", 1.0) < 0.99:
        largest = row["missed"][:4]
        missed = (f"`{m['name']}` {m['share']:.1%} ({m['why']})" for m in largest)
        found.append(f"prunable {row['prunable']:.3f}: " + "; ".join(missed))
    return [" ".join(text.split()) for text in found]


def table(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The rows as markdown, with what they were made by and what is wrong."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    lines = [
        f"`python tests/bench/structures.py {' '.join(options.shown)}`",
        "",
        f"{versions}; Python {platform.python_version()}; {processor()}, {os.cpu_count()} cores. "
        f"Target: {options.target:g} of the MACs. Stages in seconds, imports not counted.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(cells(name, row)) + " |" for name, row in rows.items()]
    wrong = [f"- {name}: {text}" for name, row in rows.items() for text in problems(row)]
    lines += ["", f"{len(rows)} files, {len({w.split(':')[0] for w in wrong})} with notes."]
    return "\n".join([*lines, *wrong]) + "\n"


def processor() -> str:
    """The machine's processor in its own words, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [x.partition(":")[2].strip() for x in text.splitlines() if x.startswith("model name")]
    return names[0] if names else platform.machine()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of .onnx files, or files")
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--only", default="*", help="file names to take, with * and ?")
    parser.add_argument("--seeds", type=int, default=3, help="random plans a file (default: 3)")
    parser.add_argument("--target", type=float, default=0.5, help="share of MACs (default: 0.5)")
    parser.add_argument("--limit", type=float, default=600, help="seconds a file (default: 600)")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.shown = list(arguments)
    return options


def main() -> None:
    """Measure every file; the table goes to standard output, progress to standard error."""
    options = parse(sys.argv[1:])
    if options.one:
        print(json.dumps(measure(options.one, options.target, options.seeds)))
        return
    paths = [p for f in options.folders for p in (sorted(f.glob("*.onnx")) if f.is_dir() else [f])]
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not fnmatch.fnmatch(path.name, options.only):
            continue
        rows[path.stem] = child(path, options)
        print(" | ".join(cells(path.stem, rows[path.stem])), file=sys.stderr)
        for text in problems(rows[path.stem]):
            print(f"    {text[:300]}", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = table(rows, options)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
