"""What operators do to channels, one file per family."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points

from onnxprune.rules.registry import Rules, rules

FAMILIES = (
    "elementwise", "move", "pick", "rewire", "conv", "linear", "norm", "reduce", "recurrent",
    "quant", "attention", "fused", "scatter",
)  # fmt: skip


@lru_cache(maxsize=1)
def load_rules() -> Rules:
    """Every rule: the shipped families, then other packages' (entry point `onnxprune.rules`)."""
    for family in FAMILIES:
        import_module(f"onnxprune.rules.{family}")
    for entry in entry_points(group="onnxprune.rules"):
        entry.load()
    return rules
