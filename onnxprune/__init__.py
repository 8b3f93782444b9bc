"""Structured pruning of ONNX models: fewer channels, the same interface, and the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxprune.errors import PruneError

if TYPE_CHECKING:
    from onnxprune.api import Result, apply, inspect, normalize, prune, sensitivity, verify

__version__ = "0.1.0"
__all__ = [
    "PruneError",
    "Result",
    "apply",
    "inspect",
    "normalize",
    "prune",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Imported when used: `onnxprune --help` must not wait for NumPy and ONNX.
    if name not in __all__:
        raise AttributeError(f"module `onnxprune` has no attribute `{name}`")
    from onnxprune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
