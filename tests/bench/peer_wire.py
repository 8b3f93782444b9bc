"""How a peer in an environment of its own talks to peers.py: a line of JSON in, a line out.

Needs the standard library and NumPy only, as it is imported by the peers' own Python.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def batches(path: str, names: list[str], size: int) -> list[dict[str, np.ndarray]]:
    """Calibration samples as feeds of `size` samples; a shorter rest is left out."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in names if name in data.files}
    count = min(len(a) for a in arrays.values())
    starts = range(0, count - min(size, count) + 1, size)
    return [{k: a[at : at + size] for k, a in arrays.items()} for at in starts]


def serve(open_peer: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer requests until there are none; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    # What a library raises is the result here, whatever it is.
    try:
        peer = open_peer()
    except Exception as error:
        answer({"error": line(error)})
        return
    answer({"ready": True})
    for request in sys.stdin:
        try:
            answer(peer(json.loads(request)))
        except Exception as error:
            answer({"error": line(error)})


def line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
