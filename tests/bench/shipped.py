"""The models that the repository ships, pruned and repaired on their calibration data.

    python tests/bench/shipped.py [--targets 0.7,0.5] [--latency-seconds 10] [--multiple N]

Calibration data has no labels. Metrics come from each model's eval.npz, which no decision reads;
latency is measured in pairs on one thread at batch 1. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.errors import PruneError

MODELS = Path(__file__).resolve().parents[2] / "models"


def row(folder: Path, target: float, seconds: float, multiple: int | None) -> str:
    """One line of the table."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    try:
        found = onnxprune.prune(
            folder / "model.onnx",
            data=folder / "calibration.npz",
            evaluation=folder / "eval.npz",
            target={"macs": target},
            metric=card["metric"],
            output=card["output"],
            threads=1,
            latency_s=seconds,
            multiple=multiple,
        )
    except PruneError as error:
        return f"| {folder.name} | {target:g} | refused: {error.what} | | | |"
    metric, latency = found.verify["metric"], found.verify["latency"]
    cells = (
        folder.name,
        f"{found.cost['macs']['ratio']:.3f}",
        f"{found.cost['params']['ratio']:.3f}",
        f"{metric['name']} {metric['before']:.3f}",
        f"{metric['after']:.3f}",
        _speedup(latency),
    )
    return f"| {' | '.join(cells)} |"


def _speedup(latency: dict[str, Any]) -> str:
    if "skipped" in latency:
        return "not measured"
    low, high = latency["interval"]
    is_shown = latency["speedup_claimed"] or high < 1
    claim = "" if is_shown else ", no difference shown"
    return f"{latency['speedup']:.2f} ({low:.2f} to {high:.2f}{claim})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="0.7,0.5")
    parser.add_argument("--latency-seconds", type=float, default=10.0)
    parser.add_argument("--multiple", type=int)
    given = parser.parse_args()
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("onnx", "onnxruntime", "numpy"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}\n")
    print("| model | MACs kept | parameters kept | before | after | times as fast |")
    print("|---|---|---|---|---|---|")
    for folder in sorted(path.parent for path in MODELS.glob("*/card.json")):
        for target in given.targets.split(","):
            print(row(folder, float(target), given.latency_seconds, given.multiple), flush=True)


if __name__ == "__main__":
    main()
