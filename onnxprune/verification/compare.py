"""Outputs of two models side by side, sample by sample, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.backend.runtime import Array
from onnxprune.errors import ModelError
from onnxprune.samples.metrics import Kind, cosines, kind_of, relative_errors

FloatArray = npt.NDArray[np.float64]

# Probabilities below this are taken as this: float32 cannot tell them from zero.
LEAST_PROBABILITY = 1e-12
DISTRIBUTIONS = ("distribution", "log-distribution", "logits")


@dataclass(frozen=True)
class Comparison:
    """One output of a candidate against the reference; None where a figure has no meaning."""

    name: str
    kind: Kind
    samples: int
    error_mean: float | None = None
    """Length of a sample's difference relative to the reference's own."""
    error_p99: float | None = None
    error_worst: float | None = None
    worst_sample: int | None = None
    cosine_mean: float | None = None
    cosine_least: float | None = None
    kl_mean: float | None = None
    """Kullback-Leibler divergence from the reference, in nats, per position."""
    agreement: float | None = None
    """Share of positions with the same arg-max, or with the same whole number or text."""


def compare(
    names: Sequence[str], reference: Sequence[Any], candidate: Sequence[Any]
) -> tuple[Comparison, ...]:
    """Compare outputs over all samples at once; each has samples on its first axis.

    Raises: ModelError: an output differs in shape or kind.
    """
    comparer = Comparer(names)
    comparer.add(reference, candidate)
    return comparer.result()


@dataclass
class _Gathered:
    """Figures per sample of one output."""

    kind: Kind | None = None
    figures: dict[str, list[FloatArray]] = field(default_factory=dict)

    def add(self, figures: dict[str, FloatArray]) -> None:
        for name, values in figures.items():
            self.figures.setdefault(name, []).append(values)

    def all(self, name: str) -> FloatArray | None:
        found = self.figures.get(name)
        return np.concatenate(found) if found else None


class Comparer:
    """Compares batch by batch, so outputs need not fit in memory together.

    Args:
        names: the outputs, in the order of the values that `add` is given.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._gathered = {name: _Gathered() for name in names}

    def add(self, reference: Sequence[Any], candidate: Sequence[Any]) -> None:
        """One batch of outputs of both models.

        Raises: ModelError: an output differs in shape or kind.
        """
        pairs = zip(self._gathered.items(), reference, candidate, strict=True)
        for (name, gathered), ours, theirs in pairs:
            first, second = as_array(ours), as_array(theirs)
            if first.shape != second.shape or first.dtype.kind != second.dtype.kind:
                raise ModelError(
                    "an output has changed its shape or type",
                    where=f"`{name}`: {first.shape} {first.dtype}, now {second.shape} "
                    f"{second.dtype}",
                )
            # Decided once: a later batch of the same output may look otherwise.
            gathered.kind = gathered.kind or kind_of(first, name)
            gathered.add(_figures(gathered.kind, first, second))

    def result(self) -> tuple[Comparison, ...]:
        """What was found, per output."""
        return tuple(_summary(name, found) for name, found in self._gathered.items())


def as_array(value: Any) -> Array:
    """An output as an array with samples first; a list of maps becomes a table."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([[row[key] for key in value[0]] for row in value])
    return np.atleast_1d(np.asarray(value))


def _figures(kind: Kind, ours: Array, theirs: Array) -> dict[str, FloatArray]:
    if kind == "labels":
        return {"agreement": _per_sample(ours == theirs)}
    rows = len(ours), int(np.prod(ours.shape[1:]))
    first, second = (a.astype(np.float64).reshape(rows) for a in (ours, theirs))
    found = {
        "error": relative_errors(second, first),
        "cosine": cosines(np.nan_to_num(second), np.nan_to_num(first)),
    }
    if kind in DISTRIBUTIONS:
        found["kl"] = divergences(kind, ours, theirs)
        found["agreement"] = _per_sample(ours.argmax(axis=-1) == theirs.argmax(axis=-1))
    return found


def _per_sample(values: Array) -> FloatArray:
    means: FloatArray = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return means


def _log_probabilities(kind: Kind, outputs: Array) -> FloatArray:
    values = outputs.astype(np.float64)
    if kind == "distribution":
        values = np.log(np.maximum(values, LEAST_PROBABILITY))
    shifted = values - values.max(axis=-1, keepdims=True)
    logs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def divergences(kind: Kind, reference: Array, candidate: Array) -> FloatArray:
    """Kullback-Leibler divergence of two distributions over the last axis.

    Returns: shape (samples,), in nats from the reference, mean over the positions of a sample.
    """
    least = np.log(LEAST_PROBABILITY)
    ours, theirs = (np.maximum(_log_probabilities(kind, a), least) for a in (reference, candidate))
    return _per_sample((np.exp(ours) * (ours - theirs)).sum(axis=-1))


def _summary(name: str, found: _Gathered) -> Comparison:
    errors, cosine = found.all("error"), found.all("cosine")
    agreement, divergence = found.all("agreement"), found.all("kl")
    rows = errors if errors is not None else agreement
    made = Comparison(
        name,
        found.kind or "values",
        samples=0 if rows is None else len(rows),
        kl_mean=_mean(divergence),
        agreement=_mean(agreement),
    )
    if errors is None or cosine is None or not len(errors):
        return made
    worst = int(np.argmax(errors))
    figures: dict[str, Any] = {
        "error_mean": float(errors.mean()),
        # Of the values seen: between a finite and an infinite one there is none to interpolate.
        "error_p99": float(np.quantile(errors, 0.99, method="higher")),
        "error_worst": float(errors[worst]),
        "worst_sample": worst,
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
    }
    return replace(made, **figures)


def _mean(values: FloatArray | None) -> float | None:
    return float(values.mean()) if values is not None and len(values) else None
