"""Seconds and memory of a prune by weights alone; the flow alone; growth with the nodes.

    python tests/bench/speed.py MODEL.onnx [...] [--runs 5] [--peer PYTHON] [--no-growth]

Every run is a process of its own. Seconds count from the file to the saved and proved file, imports
and the latency measurement left out; memory is the peak above what the process held after its
imports, relative to the file. `--peer` names a Python that has onnxsim: its structured pruning runs
on the same file between our runs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

GROWTH = (1000, 2000, 5000, 10000)

OURS = """
import json, os, sys, time, tempfile
import onnxprune, onnxprune.api, onnxruntime, onnx, scipy.sparse.csgraph, scipy.optimize
import onnxprune.rules, onnxprune.recipe
from onnxprune.manager import make_pass, installed
onnxprune.rules.load_rules()
[entry.load() for entry in installed().values()]
def held(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024
path, target = sys.argv[1], float(sys.argv[2])
base = held("VmRSS")
with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    made = onnxprune.prune(path, os.path.join(folder, "out.onnx"), target={"macs": target},
                           approximate=True, repair=False, latency_s=0)
    spent = time.perf_counter() - begin
print(json.dumps({"seconds": spent, "peak": held("VmHWM") - base, "stages": made.json()["seconds"],
                  "ratio": made.cost["macs"]["ratio"]}))
"""

FLOW = """
import json, sys, time
import onnxprune.api, onnxruntime, scipy.sparse.csgraph, scipy.optimize
from onnxprune.identity.dims import find_dims
from onnxprune.identity.flow import Flow, walk
from onnxprune.normal.normalize import normalize
from onnxprune.rules import load_rules
from onnxprune.shape.sizes import choose
from onnxprune.model.storage import load
rules = load_rules()
model = normalize(load(sys.argv[1]))
begin = time.perf_counter()
sizes, first, second, _ = choose(model)
dims = find_dims(walk(Flow(model, first, second), rules.flow_rule))
print(json.dumps({"seconds": time.perf_counter() - begin, "nodes": len(model.nodes),
                  "free": len(dims.free)}))
"""

PEER = """
import json, sys, time
import onnx, onnxsim, tempfile, os
begin = time.perf_counter()
made = onnxsim.apply_structured_pruning_cpp(onnx.load(sys.argv[1]), sparsity=float(sys.argv[2]))
with tempfile.TemporaryDirectory() as folder:
    onnx.save(made, os.path.join(folder, "out.onnx"))
before = sum(len(t.raw_data) for t in onnx.load(sys.argv[1]).graph.initializer)
after = sum(len(t.raw_data) for t in made.graph.initializer)
print(json.dumps({"seconds": time.perf_counter() - begin, "bytes": after / max(before, 1)}))
"""


def run(python: str, code: str, *args: str) -> dict[str, Any]:
    """The JSON that a process prints last, or {"error": its last line}."""
    done = subprocess.run(
        [python, "-c", code, *args], capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:160]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def prune_table(paths: list[Path], runs: int, target: float, peer: str) -> None:
    """Seconds and memory of a whole prune, and the peer's seconds beside them."""
    print("| model | MB | seconds | peak memory / file | MACs kept | flow alone | peer's seconds |")
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        size = path.stat().st_size
        ours, flows, theirs = [], [], []
        for _ in range(runs):
            ours.append(run(sys.executable, OURS, str(path), str(target)))
            flows.append(run(sys.executable, FLOW, str(path)))
            if peer:
                theirs.append(run(peer, PEER, str(path), str(target)))
        failed = next((o["error"] for o in ours + flows if "error" in o), "")
        if failed:
            print(f"| {path.stem} | {size / 1e6:.0f} | {failed} | | | | |", flush=True)
            continue
        cells = (
            path.stem,
            f"{size / 1e6:.1f}",
            spread([o["seconds"] for o in ours]),
            spread([o["peak"] / size for o in ours]),
            f"{ours[0]['ratio']:.3f}",
            spread([f["seconds"] for f in flows]),
            _peer(theirs),
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def _peer(theirs: list[dict[str, Any]]) -> str:
    if not theirs:
        return "-"
    failed = next((t["error"] for t in theirs if "error" in t), "")
    if failed:
        return failed
    kept = f", keeps {theirs[0]['bytes']:.2f} of the bytes"
    return spread([t["seconds"] for t in theirs]) + kept


def chain(nodes: int, path: Path) -> None:
    """Residual blocks of Conv, BatchNormalization, Relu, Conv, Add: about so many nodes."""
    rng = np.random.default_rng(0)
    made, weights = [], []

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        array = rng.standard_normal(shape).astype(np.float32) * 0.2
        weights.append(numpy_helper.from_array(np.abs(array) if len(shape) == 1 else array, name))
        return name

    def node(op: str, *inputs: str, **more: Any) -> str:
        made.append(helper.make_node(op, inputs, [f"v{len(made)}"], **more))
        return f"v{len(made) - 1}"

    stream = node("Conv", "x", weight(8, 3, 1, 1))
    while len(made) < nodes - 2:
        h = node("Conv", stream, weight(12, 8, 1, 1))
        h = node("BatchNormalization", h, *(weight(12) for _ in range(4)))
        stream = node("Add", stream, node("Conv", node("Relu", h), weight(8, 12, 1, 1)))
    y = node("GlobalAveragePool", stream)
    graph = helper.make_graph(
        made, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 8, 1, 1])], weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


def growth_table() -> None:
    """Seconds by number of nodes, and the exponent of a power law through them."""
    print("\n| nodes | whole prune, seconds | flow alone, seconds |\n|---|---|---|")
    whole, flow = [], []
    with tempfile.TemporaryDirectory() as folder:
        for nodes in GROWTH:
            path = Path(folder) / f"{nodes}.onnx"
            chain(nodes, path)
            whole.append(run(sys.executable, OURS, str(path), "0.5").get("seconds", float("nan")))
            flow.append(run(sys.executable, FLOW, str(path)).get("seconds", float("nan")))
            print(f"| {nodes} | {whole[-1]:.2f} | {flow[-1]:.2f} |", flush=True)
    slopes = [np.polyfit(np.log(GROWTH), np.log(times), 1)[0] for times in (whole, flow)]
    print(f"\nexponents: whole prune {slopes[0]:.2f}, flow {slopes[1]:.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--peer", default="")
    parser.add_argument("--no-growth", action="store_true")
    given = parser.parse_args()
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("onnx", "onnxruntime", "numpy"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}\n")
    if given.models:
        prune_table(given.models, given.runs, given.target, given.peer)
    if not given.no_growth:
        growth_table()


if __name__ == "__main__":
    main()
