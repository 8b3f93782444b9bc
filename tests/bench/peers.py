"""Other structured pruners beside this one, at the same MACs, on every case with data.

    python tests/bench/peers.py ZOO CACHE --peer PYTHON [--cases A,B] [--budgets 0.7,0.5,0.3]
        [--variants l2,wanda] [--ours FILE] [--json FILE] [--judge PYTHON] [--again] [--table]

PYTHON has onnxsim, onnxruntime, onnx2torch, torch-pruning and torch. A peer's own knob is searched
by bisection for the largest model within each budget, which is judged before and after the peer's
own calibration (`+ft`, `+bn`). MACs are counted by `onnxprune.inspect` at the original's shapes, so
that all are on one scale (by `run_macs` where operators are fused). Nothing is trained. `--ours`
takes records of accuracy.py (seed 0, default options). Every peer is a process, with a time limit;
what fails is recorded with its reason. Prints Markdown. See `judged.py` for what a case is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import accuracy
import numpy as np
import onnx
import onnxruntime
from judged import Case, Judge, Records, cases, machine, markdown, numbers, stamp

import onnxprune

SCRIPTS = {"peer_onnxsim.py": ("l2", "global", "wanda", "wanda-global"),
           "peer_torch.py": ("tp-l2", "tp-global")}  # fmt: skip
# onnxsim's fine-tuning; for Torch-Pruning BatchNormalization's statistics, taken again.
TUNED = {"peer_onnxsim.py": "+ft", "peer_torch.py": "+bn"}
KEYS = ("case", "variant", "budget")
# Large shares first: near 1 a peer may leave a layer whole that it would have to cut to nothing.
FIRST = (0.98, 0.93, 0.85, 0.7, 0.5)
STEPS, CLOSE = 9, 0.005
LATE = "took more than"
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "Conv", "FusedConv")
VERSIONS = """
from importlib import metadata
names = ("onnxsim", "onnx2torch", "torch-pruning", "torch", "onnxruntime", "onnx")
print(", ".join(f"{n} {metadata.version(n)}" for n in names))
"""


@dataclass
class Peer:
    """A peer's process: requests by a knob, each within a time limit."""

    command: list[str]
    limit: float

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._late = threading.Event()
        self._stack = contextlib.ExitStack()
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=self._log, text=True
        )
        self.opened = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stack.close()

    def _stop(self) -> None:
        self._late.set()
        self._process.kill()

    def ask(
        self, ratio: float, out: Path, *, probe: bool = False, finetune: bool = False
    ) -> dict[str, Any]:
        """The peer's answer: {} or {"changed": ...}, or {"error": one line}.

        A probe is for the size only: the peer may look at a part of the data.
        """
        assert self._process.stdin is not None
        request = {"ratio": ratio, "out": str(out), "probe": probe, "finetune": finetune}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        return self._read()

    @property
    def is_late(self) -> bool:
        """An answer took too long, and there will be no other."""
        return self._late.is_set()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self.limit, self._stop)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        return self._ended()

    def _ended(self) -> dict[str, Any]:
        if self.is_late:
            return {"error": f"{LATE} {self.limit:g} s"}
        self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return {"error": (lines or [f"ended with {self._process.returncode}"])[-1][:200]}


def run_macs(model: onnx.ModelProto, data: Path) -> float:
    """MACs of products and convolutions, by the shapes of a run on one sample.

    `inspect` infers shapes, which ends where ONNX Runtime has fused operators that the model's
    opset lacks (LayerNormalization before 17).
    """
    nodes = [n for n in model.graph.node if n.op_type in PRODUCTS]
    names = dict.fromkeys(name for n in nodes for name in (*n.input[:2], *n.output[:1]))
    known = {t.name: tuple(t.dims) for t in model.graph.initializer}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    wanted = [name for name in names if name not in known]
    present = {value.name for value in model.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in present)
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    with np.load(data) as samples:
        feed = {i.name: samples[i.name][:1] for i in session.get_inputs()}
    found = session.run(wanted, feed)
    shapes = known | {n: v.shape for n, v in zip(wanted, found, strict=True)}
    return float(sum(_macs(node, shapes) for node in nodes))


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    flags = {a.name: a.i for a in node.attribute}
    made = math.prod(shapes[node.output[0]])
    if node.op_type.endswith("Conv"):
        return made * math.prod(shapes[node.input[1]][1:])
    return made * shapes[node.input[0]][-2 if flags.get("transA") else -1]


@dataclass
class Search:
    """Shares of the original's MACs that a peer's model has, by its knob."""

    case: Case
    peer: Peer
    out: Path
    known: dict[float, float] = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        found = onnxprune.inspect(self.case.model, data=self.case.data, limit=1).json()
        self.shapes, self.macs = found["shapes"], found["cost"]["macs"]

    def share(self, ratio: float) -> float:
        """Share of the MACs at this knob; infinite where there is no model."""
        if ratio not in self.known:
            self.known[ratio] = self._share(ratio)
        return self.known[ratio]

    def _share(self, ratio: float) -> float:
        return self.made(ratio, probe=True)

    def made(self, ratio: float, probe: bool = False) -> float:
        """Share of the MACs of the model that the peer makes now."""
        answer = self.peer.ask(ratio, self.out, probe=probe)
        if "error" not in answer:
            # A peer's model may be invalid in any way: the reason is the result.
            try:
                return self._count() / self.macs
            except Exception as error:
                answer = {"error": f"its model: {' '.join(str(error).split())[:160]}"}
        self.error = answer["error"]
        return float("inf")

    def _count(self) -> float:
        """MACs of the peer's model."""
        model = onnx.load(str(self.out))
        if any(node.domain == "com.microsoft" for node in model.graph.node):
            return run_macs(model, self.case.data)
        shapes = {i.name: self.shapes[i.name] for i in model.graph.input if i.name in self.shapes}
        return float(onnxprune.inspect(self.out, shape=shapes).json()["cost"]["macs"])

    def best(self, budget: float) -> float | None:
        """The knob of the largest model within the budget; None where there is none."""
        tries = sorted({*FIRST, *self.known}, reverse=True)
        high = next((r for r in tries if self.share(r) <= budget), None)
        if high is None:
            return None
        low = max((r for r, s in self.known.items() if r < high and s > budget), default=0.0)
        for _ in range(STEPS):
            if budget - self.share(high) < CLOSE:
                break
            middle = round((low + high) / 2, 5)
            low, high = (low, middle) if self.share(middle) <= budget else (middle, high)
        return high

    def refusal(self) -> str:
        """Why no model is within the budget."""
        least = min(self.known.values())
        if least == float("inf") or self.error.startswith(LATE):
            return self.error
        return "cuts nothing" if least > 0.9995 else f"keeps at least {least:.2f} of the MACs"


def measure(
    case: Case, variant: str, budgets: list[float], python: str, judge: Judge, limit: float
) -> Iterator[dict[str, Any]]:
    """Records of one peer on one case; fine-tuning, where it changes anything, is a variant."""
    script = next(s for s, variants in SCRIPTS.items() if variant in variants)
    command = [python, str(Path(__file__).with_name(script)), str(case.model), str(case.data)]
    with tempfile.TemporaryDirectory() as folder, Peer([*command, variant], limit) as peer:
        out = Path(folder) / "out.onnx"
        search = Search(case, peer, out)
        for at, budget in enumerate(budgets):
            if peer.is_late and "error" not in peer.opened:
                yield from measure(case, variant, budgets[at:], python, judge, limit)
                return
            failed = peer.opened.get("error") or ("" if search.macs else "has no MACs to cut")
            begin = time.perf_counter()
            ratio = None if failed else search.best(budget)
            base = dict(zip(KEYS, (case.name, variant, budget), strict=True)) | stamp()
            if ratio is None:
                yield base | {"error": failed or search.refusal()}
                continue
            # All the data may rank a little unlike a probe's part of it.
            while budget < (share := search.made(ratio)) < float("inf") and ratio < FIRST[0]:
                ratio = round(min(ratio + CLOSE, FIRST[0]), 5)
            if share > budget:
                yield base | {"error": search.refusal()}
                continue
            base |= {"knob": ratio, "macs": share, "seconds": time.perf_counter() - begin}
            yield base | _judged({}, out, case, judge)
            answer = peer.ask(ratio, out, finetune=True)
            if answer.get("changed", True):
                name = {"variant": variant + TUNED[script]}
                yield base | name | _judged(answer, out, case, judge)


def _judged(answer: dict[str, Any], out: Path, case: Case, judge: Judge) -> dict[str, Any]:
    if "error" in answer:
        return {"error": answer["error"]}
    judged = judge(out, case)
    if "error" in judged:
        return {"error": f"does not run: {judged['error']}"}
    return {k: judged[k] for k in ("value", "original", "se")} | {"drop": case.drop(judged)}


def ours(
    case: Case, budgets: list[float], judge: Judge | None, records: Records
) -> list[dict[str, Any]]:
    """Records of this product; with a judge, measured where they are not known yet."""
    known, found = records.read(), []
    for budget in budgets:
        key = (case.name, budget, 0, "")
        if key not in known and judge is not None:
            known[key] = accuracy.measure(case, budget, 0, "", judge, 3600)
            records.add(known[key])
        found += [{"variant": "onnxprune"} | known[key]] if key in known else []
    return found


def shown(record: dict[str, Any], case: Case) -> str:
    """Drop, and the share of MACs in brackets; or why there is none."""
    if "error" in record:
        return str(record["error"])
    return f"{record['drop']:.{4 if case.metric == 'r2' else 2}f} ({record['macs']:.3f})"


def rows(case: Case, budgets: list[float], records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of one case: a variant each; equal cells of one variant are shown once."""
    made = []
    for variant in dict.fromkeys(r["variant"] for r in records):
        mine = {r["budget"]: r for r in records if r["variant"] == variant}
        cells = tuple(shown(mine[b], case) if b in mine else "" for b in budgets)
        if len(mine) == len(budgets) and all("error" in r for r in mine.values()):
            cells = tuple(c if i == cells.index(c) else "same" for i, c in enumerate(cells))
        made.append((case.name, case.metric, variant, *cells))
    return made


def family(variant: str) -> str:
    """Whose variant it is."""
    plain = variant.partition("+")[0]
    return {"l2": "onnxsim", "tp-l2": "Torch-Pruning"}.get(
        next((vs[0] for vs in SCRIPTS.values() if plain in vs), ""), variant
    )


def best(case: Case, budgets: list[float], records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of one case: a product each, with the variant that lost least at each budget."""
    made = []
    for name in dict.fromkeys(family(r["variant"]) for r in records):
        cells = []
        for budget in budgets:
            mine = [r for r in records if family(r["variant"]) == name and r["budget"] == budget]
            good = [r for r in mine if "error" not in r]
            least = min(good, key=lambda r: float(r["drop"]), default=None)
            which = "" if least is None or least["variant"] == name else f" {least['variant']}"
            reasons = dict.fromkeys(shown(r, case) for r in mine)
            cell = f"{shown(least, case)}{which}" if least else "; ".join(reasons)
            cells.append("same" if cell and least is None and cell in cells else cell)
        made.append((case.name, case.metric, name, *cells))
    return made


def main() -> None:
    """Measure what is not yet known, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--cases", default="")
    parser.add_argument("--budgets", default="0.7,0.5,0.3")
    parser.add_argument("--variants", default=",".join(v for vs in SCRIPTS.values() for v in vs))
    parser.add_argument("--ours", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--judge", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one answer of a peer")
    parser.add_argument("--again", action="store_true", help="measure what is known too")
    parser.add_argument("--table", action="store_true", help="measure nothing: what is known")
    given = parser.parse_args()
    judge, budgets = Judge(given.judge, given.zoo, given.cache), numbers(given.budgets)
    records, our_records = Records(given.json, KEYS), Records(given.ours, accuracy.KEYS)
    known, lines, summary = records.read(), [], []
    for case in cases(given.zoo, given.cache, given.cases):
        for variant in given.variants.split(","):
            missing = [b for b in budgets if given.again or (case.name, variant, b) not in known]
            if missing and not given.table:
                for r in measure(case, variant, missing, given.peer, judge, given.limit):
                    records.add(r)
                    known[tuple(r[k] for k in KEYS)] = r
                    print(r, file=sys.stderr, flush=True)
        mine = ours(case, budgets, None if given.table else judge, our_records)
        theirs = [r for r in known.values() if r["case"] == case.name and r["budget"] in budgets]
        lines += rows(case, budgets, mine + theirs)
        summary += best(case, budgets, mine + theirs)
    versions = subprocess.run(
        [given.peer, "-c", VERSIONS], capture_output=True, text=True, check=True
    )
    print(f"{machine()}; peers: {versions.stdout.strip()}\n")
    head = ("case", "metric", "what", *(f"drop at {b:g} (MACs)" for b in budgets))
    print(*markdown(head, summary), sep="\n", end="\n\n")
    print(*markdown(head, lines), sep="\n")


if __name__ == "__main__":
    main()
