"""Every model of a folder through the product's own commands: one table.

    python tests/bench/zoo.py FOLDER [FOLDER ...] [--target 0.5] [--plans 3] [--only PATTERN]

A model is `FOLDER/NAME/model.onnx` or `FOLDER/NAME.onnx`. Each goes through `inspect`, through
`prune --target macs=T` without data, and through `verify`; then random plans over exact Dims are
cut and compared with the silenced original (the mask oracle). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

import onnxprune
from onnxprune.cutting.oracle import expected
from onnxprune.errors import PruneError
from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, State, Subject
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize
from onnxprune.passes.cut_channels import proved_cut
from onnxprune.passes.find_dims import FindDims
from tests.oracle import random_removed


@dataclass
class Row:
    """What became of one model."""

    name: str
    nodes: int = 0
    dims: str = ""
    prunable: str = ""
    ratio: str = ""
    checked: str = ""
    oracle: str = ""
    seconds: str = ""
    note: str = ""

    def markdown(self) -> str:
        """One line of the table."""
        cells = (self.name, self.nodes, self.dims, self.prunable, self.ratio, self.checked,
                 self.oracle, self.seconds, self.note)  # fmt: skip
        return "| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |"


HEAD = """| model | nodes | free/all Dims | prunable | MACs | checks | oracle | seconds | note |
|---|---|---|---|---|---|---|---|---|"""


def models(folders: list[Path]) -> dict[str, Path]:
    """Models by name, sorted."""
    found = {}
    for folder in folders:
        found |= {path.parent.name: path for path in folder.glob("*/model.onnx")}
        found |= {path.stem: path for path in folder.glob("*.onnx")}
    return dict(sorted(found.items()))


def measure(name: str, path: Path, target: float, plans: int) -> Row:
    """Everything about one model."""
    row = Row(name, len(onnx.load(str(path), load_external_data=False).graph.node))
    try:
        inspected = onnxprune.inspect(path).json()
        free = sum(d["pinned"] is None for d in inspected["dims"])
        row.dims = f"{free}/{len(inspected['dims'])}"
        row.prunable = f"{inspected['prunable_params']:.3f}"
        _prune(row, path, target)
        worst = [_oracle(path, seed) for seed in range(plans)] if free else []
        row.oracle = f"{max(worst):.1e}" if worst else "-"
    except PruneError as error:
        row.note = f"{type(error).__name__}: {' '.join(str(error).split())[:220]}"
    return row


def _prune(row: Row, path: Path, target: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        begin = time.perf_counter()
        try:
            made = onnxprune.prune(path, out, target={"macs": target}, latency_s=0).json()
        except PruneError as error:
            if error.exit_code == 1:
                raise
            row.note = f"refused: {' '.join(str(error).split())[:220]}"
            return
        row.seconds = f"{time.perf_counter() - begin:.2f}"
        row.ratio = f"{made['cost']['macs']['ratio']:.4f}"
        row.checked = _checks(path, out, made)
        row.note = "; ".join(made["warnings"])[:160]


def _checks(path: Path, out: Path, made: dict[str, Any]) -> str:
    """full_check where the original passes it, interface, and a run at two sizes."""
    done = []
    if _is_valid(path):
        onnx.checker.check_model(str(out), full_check=True)
        done.append("full_check")
    for level in ("structure", "run"):
        assert made["verify"][level]["passed"], made["verify"][level]
        done.append(level)
    return ", ".join(done)


def _is_valid(path: Path) -> bool:
    with contextlib.suppress(Exception):
        onnx.checker.check_model(str(path), full_check=True)
        return True
    return False


def _oracle(path: Path, seed: int) -> float:
    """Largest relative difference of a random exact plan from the silenced original."""
    model = normalize(load(path))
    state = State(Subject(model), Subject(model), progress=lambda _: None)
    PassManager([FindDims()]).run(state)
    dims = state[Dims]
    removed = random_removed(dims, seed)
    goal = expected(model, dims, removed, state.subject.sizes.first, (seed,))
    found = goal.disagreement(proved_cut(state, dims, removed).model)
    return float("nan") if found is None else found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--plans", type=int, default=3)
    parser.add_argument("--only", default="*")
    given = parser.parse_args()
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("onnx", "onnxruntime", "numpy"))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"{versions}; random plans of seeds 0 to {given.plans - 1}\n")  # fmt: skip
    print(HEAD)
    for name, path in models(given.folders).items():
        if fnmatch.fnmatch(name, given.only):
            print(measure(name, path, given.target, given.plans).markdown(), flush=True)


if __name__ == "__main__":
    main()
