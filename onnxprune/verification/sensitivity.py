"""How far a model's outputs move when one feature of its inputs is shuffled among the samples.

Permutation importance (Breiman, "Random Forests", Machine Learning 45, 2001; "model reliance":
Fisher, Rudin, Dominici, JMLR 20, 2019) with the model's own outputs in the place of labels. For
independent features and outputs that are values it is twice their total Sobol index (Jansen, 1999).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.backend.feeds import Array
from onnxprune.backend.runtime import Session, session
from onnxprune.errors import DataError, ModelError
from onnxprune.manager import State
from onnxprune.samples.columns import Feature, features
from onnxprune.samples.dataset import Dataset
from onnxprune.samples.metrics import Kind, Metric, default, kind_of
from onnxprune.verification.compare import DISTRIBUTIONS, divergences
from onnxprune.verification.outputs import KEPT_BYTES, by_sample, fitting_output
from onnxprune.verification.trials import BATCH, Trial, data_trials, load_reference, run_trial

FloatArray = npt.NDArray[np.float64]

# Samples are taken while all runs together stay within so many MACs, but not fewer than these.
MOST_MACS, LEAST_SAMPLES = 3 * 10**11, 32
# A number that is fed costs about as much as so many MACs: of models without any, such as trees.
MACS_PER_NUMBER = 100
# Numbers that are fed at once, so that a table is not run in small pieces.
NUMBERS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Importance:
    """What shuffling one feature does, mean and standard error over the permutations."""

    feature: Feature
    importance: float = 0.0
    """Distance of the outputs from the model's own: KL divergence in nats of a distribution,
    squared error relative to the variance of values, share of other labels."""
    se: float = 0.0
    drop: float | None = None
    """How much worse the metric becomes, where there are labels."""
    drop_se: float | None = None
    changes: bool = False
    """Some output became another in some sample."""
    varies: bool = True
    """It has more than one value in the samples; if not, they tell nothing of it."""


@dataclass(frozen=True)
class Ranking:
    """Features of all inputs, the most important first."""

    rows: tuple[Importance, ...] = ()
    samples: int = 0
    permutations: int = 0
    metric: str | None = None
    """What `drop` is of."""
    before: float | None = None
    """Its value on the samples as they are."""

    def share(self, row: Importance) -> float:
        """A feature's part of the sum over all."""
        total = sum(one.importance for one in self.rows if np.isfinite(one.importance))
        return row.importance / total if total > 0 else 0.0


def rank_features(
    state: State, *, permutations: int, samples: int, custom_ops: Sequence[str] = ()
) -> Ranking:
    """Rank the features of the original's inputs on the data; notes go to the warnings.

    Args:
        permutations: of each feature, at least 2; the same ones for all features.
        samples: at most so many are looked at, fewer where runs are dear.

    Raises:
        DataError: there are fewer than 2 samples.
        Unmeasured: the original does not load or run.
    """
    listed, notes = features(state.start.model, state.data)
    state.warnings += notes
    if not listed:
        return Ranking()
    data = _drawn(state, min(samples, _affordable(state, len(listed) * permutations)))
    run, is_widened = load_reference(state, lambda proto: session(proto, custom_ops=custom_ops))
    probe = _Probe(run, data, is_widened)
    state.warnings += probe.notes
    generator = np.random.default_rng(state.seed)
    orders = [generator.permutation(probe.samples) for _ in range(permutations)]
    rows = [probe.measure(feature, orders) for feature in listed]
    rows.sort(key=lambda row: (not row.varies, -row.importance))  # equal ones stay in order
    metric = None if probe.metric is None else probe.metric.name
    return Ranking(tuple(rows), probe.samples, permutations, metric, probe.metric_before)


def _affordable(state: State, runs: int) -> int:
    """Samples that may run so often."""
    numbers = sum(int(np.prod(shape)) for shape in state.data.shapes().values())
    each = max(state.subject.cost.macs, MACS_PER_NUMBER * numbers) // (state.data.batch or 1)
    return max(LEAST_SAMPLES, MOST_MACS // max(each * runs, 1))


def _drawn(state: State, most: int) -> Dataset:
    """Samples in random order: what is cut off at the end would else be of one kind."""
    data: Dataset = state.data
    if data.n < 2:
        raise DataError("one sample cannot be shuffled", hint="give some hundred samples")
    unit = data.batch or 1
    order = np.random.default_rng(state.seed).permutation(data.n)
    return data.subset(order[: max(most // unit, 2) * unit])


class _Probe:
    """The model on its samples as they are; `measure` runs it on shuffled ones.

    Args:
        data: samples, of which those are taken whose inputs and outputs fit in memory.
    """

    def __init__(self, run: Session, data: Dataset, is_widened: bool) -> None:
        self._run, self._data, self._is_widened = run, data, is_widened
        self._trials: list[Trial] = []
        self.notes: list[str] = []
        before = self._first_runs()
        self.samples = sum(trial.samples for trial in self._trials)
        self._before = self._joined(before)
        self._labels = None if data.labels is None else data.labels[: self.samples]
        self._scales = _scales(self._before, self._labels)
        self.metric, self._read = self._metric()
        self.metric_before = self._value(self._before)

    def _first_runs(self) -> list[dict[str, Any]]:
        """Outputs of each batch as it is, until memory is full."""
        numbers = sum(int(np.prod(a.shape[1:])) for a in self._data.arrays.values())
        found: list[dict[str, Any]] = []
        size = 0
        for trial in data_trials(self._data, max(BATCH, NUMBERS_AT_ONCE // max(numbers, 1))):
            self._trials.append(replace(trial, feeds={n: a.copy() for n, a in trial.feeds.items()}))
            found.append(self._outputs(trial))
            size += sum(int(getattr(a, "nbytes", 0)) for a in (*trial.feeds.values(),
                                                               *found[-1].values()))  # fmt: skip
            if size > KEPT_BYTES and sum(t.samples for t in self._trials) > 1:
                break
        return found

    def _outputs(self, trial: Trial) -> dict[str, Any]:
        names = self._run.output_names
        values = run_trial(self._run, names, trial, self._is_widened, is_candidate=False)
        return dict(zip(names, values, strict=True))

    def _joined(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Outputs over all samples; those that have not one row per sample are left out.

        Raises: ModelError: there is no other.
        """
        found: dict[str, Array] = {}
        for name in self._run.output_names:
            rows = [by_sample(one[name], t.samples) for one, t in zip(runs, self._trials,
                                                                      strict=True)]  # fmt: skip
            kept = [part for part in rows if part is not None]
            is_whole = sum(map(len, kept)) == self.samples and len(kept) == len(rows)
            if not is_whole or len({part.shape[1:] for part in kept}) > 1:
                self.notes.append(f"output `{name}` has not one row per sample: it is left out")
                continue
            found[name] = np.concatenate(kept)
        if not found:
            raise ModelError("no output has one row per sample", hint="features cannot be ranked")
        return found

    def measure(self, feature: Feature, orders: Sequence[npt.NDArray[np.int64]]) -> Importance:
        """Shuffle one feature in each of these orders."""
        rows = self._data.rows[: self.samples]
        own = feature.of(self._data.arrays[feature.input])[rows]
        if (own == own[:1]).all():
            nothing = None if self.metric is None else 0.0
            return Importance(feature, drop=nothing, drop_se=nothing, varies=False)
        losses, drops, changes = [], [], False
        for order in orders:
            after = self._shuffled(feature, own[order])
            is_same = all(_equal(self._before[name], after[name]) for name in self._before)
            changes |= not is_same
            losses.append(0.0 if is_same else self._loss(after))
            drops.append(0.0 if is_same else self._drop(after))
        self._put(feature, own)
        mean, se = _mean(losses)
        drop, drop_se = _mean(drops) if self.metric is not None else (None, None)
        return Importance(feature, mean, se, drop, drop_se, changes)

    def _shuffled(self, feature: Feature, values: Array) -> dict[str, Array]:
        """Outputs with other values of one feature."""
        self._put(feature, values)
        found = [self._outputs(trial) for trial in self._trials]
        return {n: np.concatenate(list(self._rows(n, found))) for n in self._before}

    def _rows(self, name: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[Array]:
        shape = self._before[name].shape[1:]
        for one, trial in zip(runs, self._trials, strict=True):
            rows = by_sample(one[name], trial.samples)
            if rows is None or rows.shape != (trial.samples, *shape):
                raise ModelError(f"output `{name}` has another shape for other data",
                                 hint="features of such a model cannot be ranked")  # fmt: skip
            yield rows

    def _put(self, feature: Feature, values: Array) -> None:
        at, batch_axis = 0, self._data.axes[feature.input]
        for trial in self._trials:
            samples_first = np.moveaxis(trial.feeds[feature.input], batch_axis, 0)
            feature.of(samples_first)[...] = values[at : at + trial.samples]
            at += trial.samples

    def _loss(self, after: Mapping[str, Array]) -> float:
        """Mean over the outputs: over those that are real numbers, where there are any."""
        with np.errstate(all="ignore"):  # what is not finite is infinitely far
            found = [one.loss(self._before[n], after[n]) for n, one in self._scales.items()]
        return float(np.mean(found))

    def _metric(self) -> tuple[Metric | None, str]:
        """What the labels are good for, and the output that it reads."""
        if self._labels is None:
            return None, ""
        metric = default(self._labels)
        try:
            return metric, fitting_output(self._before, self.samples, metric, self._labels)
        except DataError as error:
            self.notes.append(f"the metric was not measured: {error.what}")
            return None, ""

    def _value(self, outputs: Mapping[str, Array]) -> float | None:
        """None where the metric is not defined."""
        if self.metric is None or self._labels is None:
            return None
        try:
            return self.metric(outputs[self._read], self._labels)
        except DataError:
            return None

    def _drop(self, after: Mapping[str, Array]) -> float:
        value = self._value(after)
        if self.metric is None or self.metric_before is None or value is None:
            return float("nan")
        return self.metric.drop(self.metric_before, value)


@dataclass(frozen=True)
class _Scale:
    """How the distance of one output is measured."""

    kind: Kind
    variance: float
    """Over the samples, mean over the positions; for values."""

    def loss(self, before: Array, after: Array) -> float:
        """Infinite where the difference is no number."""
        if self.kind in DISTRIBUTIONS:
            found = max(float(divergences(self.kind, before, after).mean()), 0.0)
        elif self.kind == "labels":
            found = float((before != after).mean())
        else:
            first, second = before.astype(np.float64), after.astype(np.float64)
            difference = np.where(first == second, 0.0, second - first)
            found = float((difference**2).mean()) / self.variance
        return float("inf") if np.isnan(found) else found


def _scales(outputs: Mapping[str, Array], labels: Array | None) -> dict[str, _Scale]:
    kinds = {name: kind_of(array, name) for name, array in outputs.items()}
    if labels is not None and labels.dtype.kind == "f":  # values that are no logits, whatever
        kinds = {n: "values" if kind == "logits" else kind for n, kind in kinds.items()}
    real = [n for n, kind in kinds.items() if kind != "labels"] or list(kinds)
    return {n: _Scale(kinds[n], _variance(outputs[n])) for n in real}


def _variance(values: Array) -> float:
    """The mean square, or 1, where the samples are all alike."""
    if values.dtype.kind != "f":
        return 1.0
    finite = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
    return float(finite.var(axis=0).mean()) or float((finite**2).mean()) or 1.0


def _equal(first: Array, second: Array) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    with np.errstate(invalid="ignore"):  # an infinite one has no error
        return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
