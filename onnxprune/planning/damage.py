"""Measured damage: what a model loses at each width of each Dim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnxprune.identity.dims import BoolArray, Dim, Dims
from onnxprune.planning.scores import FloatArray, Scores


@dataclass(frozen=True, eq=False)
class Curve:
    """Damage of a Dim at some of its widths."""

    widths: FloatArray
    """Share of the channels that stay, falling from 1."""
    damage: FloatArray
    """Rising from 0: error on held-out samples, after repair, relative to the variance of what is
    lost from; summed over readers."""

    def at(self, shares: FloatArray) -> FloatArray:
        """Damage at other widths, in between along straight lines."""
        found: FloatArray = np.interp(-shares, -self.widths, self.damage)
        return found


class Measurement(Protocol):
    """What was measured of a Dim."""

    @property
    def curve(self) -> Curve: ...

    @property
    def order(self) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class Damage:
    """Curves of the Dims that were measured."""

    curves: Mapping[int, Curve] = field(default_factory=dict)
    """By Dim index."""
    orders: Mapping[int, FloatArray] = field(default_factory=dict)
    """By Dim index, shape (channels of the Dim,): larger is worth more."""

    @staticmethod
    def of_each(found: Mapping[int, Measurement]) -> Damage:
        """Damage from what was measured of each Dim, by Dim index."""
        curves = {index: made.curve for index, made in found.items()}
        return Damage(curves, {index: made.order for index, made in found.items()})

    def scores(self, dims: Dims, scores: Scores) -> Scores:
        """The orders where they were measured, the scores elsewhere."""
        found = scores.of.copy()
        for index, order in self.orders.items():
            found[dims.dims[index].channels] = 1 + order
        return Scores(found)

    def of(self, dim: Dim, levels: list[int]) -> FloatArray | None:
        """Damage at some levels of a Dim; None where it was not measured."""
        curve = self.curves.get(dim.index)
        if curve is None:
            return None
        counts = dim.levels[levels].sum(axis=1)
        return curve.at(counts / len(dim.channels))

    def total(self, dims: Dims, alive: BoolArray) -> float:
        """Damage of a plan's widths, whichever channels they are. Args: alive: (channels,)."""
        return float(
            sum(
                curve.at(alive[dims.dims[index].channels].mean(keepdims=True))[0]
                for index, curve in self.curves.items()
            )
        )
