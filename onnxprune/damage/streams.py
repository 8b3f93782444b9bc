"""Residual streams that linear layers write to, and that only linear layers and norms see.

A matrix may be put in between: what reads the stream is multiplied by its inverse, and what is
normalised turns with an orthogonal one. A cut then keeps the best directions of the stream where
the stored channels would each lose a share of them all. Transformers whose norms come first have
such streams, and the linear bottlenecks of mobile nets are some.
Source: SliceGPT, Ashkboos et al., ICLR 2024, arXiv:2401.15024; one matrix for a whole stream
here, so that nothing is added to the model, and the norms stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from onnxprune.identity.ties import Slot
from onnxprune.readers.stats import FloatArray, Moments
from onnxprune.readers.stream import LEAST_SCALE


class Kind(Enum):
    """What sees a stream, and so which matrices it may be multiplied by."""

    PLAIN = "plain"
    """Readers: any that has an inverse."""
    RMS = "RMS norm"
    """Also norms of its size: orthogonal ones."""
    LAYER = "layer norm"
    """Norms that take its mean away: orthogonal ones that are true to the mean."""


@dataclass(frozen=True)
class Use:
    """A stored tensor, at one of its uses, with the axis that is the stream."""

    slot: Slot
    axis: int


@dataclass(frozen=True, eq=False)
class Sight:
    """A norm that sees a stream, or the readers that see it as it is."""

    kind: Kind
    scale: FloatArray
    """What is multiplied into what was normalised, shape (channels,)."""
    shift: FloatArray
    """What is added to that, shape (channels,)."""
    scale_at: Slot | None
    shift_at: Slot | None
    reads: tuple[Use, ...]
    """Weights that sum over what it gives."""
    keys: tuple[str, ...]
    """Of their readers."""

    @property
    def fits(self) -> bool:
        """True where what it normalised can be told from what it gives."""
        size = np.abs(self.scale)
        is_told = bool((size >= LEAST_SCALE * size.max()).all() and size.max() > 0)
        return is_told and (self.scale_at is not None or self.shift_at is None)

    def plain(self, seen: Moments) -> Moments:
        """Moments of what it normalised, from those of what it gives."""
        taps = len(seen.a) // len(self.scale)
        mean, scale, n = np.repeat(self.shift, taps), np.repeat(self.scale, taps), seen.n
        a = (seen.a - n * mean) / scale
        across = np.outer(mean, seen.a)
        aa = (seen.aa - across - across.T + n * np.outer(mean, mean)) / np.outer(scale, scale)
        return Moments(n, a, seen.t, aa, seen.at[:, :0], seen.tt)


@dataclass(frozen=True, eq=False)
class Turnable:
    """A stream that can be turned."""

    dim: int
    kind: Kind
    writes: tuple[Use, ...]
    """Weights, biases and tables that make it."""
    sights: tuple[Sight, ...]

    @property
    def keys(self) -> list[str]:
        """Readers that it needs moments of."""
        return [key for sight in self.sights for key in sight.keys]

    @property
    def spare(self) -> int:
        """How many of the channels hold no direction: one, for a mean that norms take away."""
        return int(self.kind is Kind.LAYER)
