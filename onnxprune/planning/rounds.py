"""Rounds of a plan: what each leaves for the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.identity.dims import BoolArray
from onnxprune.planning.plan import Levels
from onnxprune.planning.scores import FloatArray


@dataclass(frozen=True, eq=False)
class Round:
    """What stays after a round, and what it was chosen by."""

    number: int
    """From 1 on."""
    alive: BoolArray
    """Shape (channels,)."""
    levels: Levels
    scores: FloatArray
    """Shape (channels,)."""


@dataclass(frozen=True, eq=False)
class RoundLog:
    """As a fact: where rounds begin, and who is told when one is done."""

    known: Round | None = None
    """The last round of an interrupted run."""
    after_each: Callable[[Round], None] = lambda _: None
