"""Task metrics: one table, each with its direction and a bootstrap interval.

A metric is two steps: `prepare` turns outputs and labels into arrays with one row per sample,
`score` turns rows into the number. A bootstrap draws rows and repeats only the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.backend.runtime import Array
from onnxprune.errors import DataError, UsageError, did_you_mean
from onnxprune.samples.data import named_function

FloatArray = npt.NDArray[np.float64]
Kind = Literal["labels", "distribution", "log-distribution", "logits", "embedding", "values"]
Rows = tuple[Array, ...]

TOP = 5
# Sums of float16 softmax rows are off by this much.
SUM_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Metric:
    """A number for outputs and labels; both have one row per sample."""

    name: str
    higher_is_better: bool
    prepare: Callable[[Array, Array], Rows]
    score: Callable[..., float]
    needs_labels: bool = True
    """If not, outputs of the original take the place of labels."""

    def __call__(self, outputs: Array, labels: Array) -> float:
        """The metric's value.

        Raises: DataError: outputs and labels do not fit, or the metric is not defined on them.
        """
        value = float(self.score(*self._rows(outputs, labels)))
        if np.isnan(value):
            raise DataError(
                f"the metric `{self.name}` is not defined on these samples",
                where=f"outputs {outputs.shape}, labels {labels.shape}",
                hint="check that every class occurs and that outputs are finite",
            )
        return value

    def _rows(self, outputs: Array, labels: Array) -> Rows:
        if len(outputs) != len(labels) or not len(labels):
            raise DataError(f"{len(outputs)} outputs do not fit {len(labels)} labels")
        return self.prepare(outputs, labels)

    def interval(
        self, outputs: Array, labels: Array, *, seed: int, level: float = 0.95, draws: int = 1000
    ) -> tuple[float, float]:
        """Bootstrap percentile interval over samples."""
        rows = self._rows(outputs, labels)
        return _percentiles(_draws(rows, lambda *r: self.score(*r), seed, draws), level)

    def change(
        self,
        before: Array,
        after: Array,
        labels: Array,
        *,
        seed: int,
        level: float = 0.95,
        draws: int = 1000,
    ) -> tuple[float, float]:
        """Paired bootstrap interval of `after` minus `before` on the same samples."""
        first, second = self._rows(before, labels), self._rows(after, labels)

        def difference(*rows: Array) -> float:
            return float(self.score(*rows[len(first) :])) - float(self.score(*rows[: len(first)]))

        return _percentiles(_draws(first + second, difference, seed, draws), level)

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is; negative where it is better."""
        return before - after if self.higher_is_better else after - before


def _draws(rows: Rows, score: Callable[..., float], seed: int, draws: int) -> FloatArray:
    """Scores of samples drawn with replacement; undefined ones (one class only) left out."""
    generator = np.random.default_rng(seed)
    n = len(rows[0])
    found = np.empty(draws)
    for draw in range(draws):
        picked = generator.integers(0, n, n)
        found[draw] = score(*(row[picked] for row in rows))
    return found[~np.isnan(found)]


def _percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def find(name: str, *, higher_is_better: bool | None = None) -> Metric:
    """A metric by name, or `module:function`, called with outputs and labels.

    Raises: UsageError: there is none, or the direction of a function is not given.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise UsageError(f"no metric is named `{name}`", hint=did_you_mean(name, METRICS))
    if higher_is_better is None:
        raise UsageError(
            f"which direction of `{name}` is better is not known",
            hint="say whether higher or lower values are better",
        )
    return Metric(name, higher_is_better, lambda y, t: (y, t), named_function(name))


def default(labels: Array | None) -> Metric:
    """Accuracy for whole-number labels, r2 for others, agreement without any."""
    if labels is None:
        return METRICS["agreement"]
    return METRICS["r2" if labels.dtype.kind == "f" else "accuracy"]


def kind_of(outputs: Array, name: str = "") -> Kind:
    """What an output holds, as far as its numbers and its name tell.

    Rows of two axes that are neither distributions nor of length 1 are taken for logits:
    most such outputs are class scores.
    """
    if outputs.dtype.kind != "f":
        return "labels"
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        return "values"
    rows = outputs.astype(np.float64).reshape(-1, outputs.shape[-1])
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=SUM_TOLERANCE):
        return "distribution"
    if (rows <= 0).all() and np.allclose(np.exp(rows).sum(axis=1), 1, atol=SUM_TOLERANCE):
        return "log-distribution"
    if "logit" in name.lower():
        return "logits"
    is_named = any(word in name.lower() for word in ("embed", "hidden", "feature", "pool"))
    if is_named or np.allclose(np.linalg.norm(rows, axis=1), 1, atol=SUM_TOLERANCE):
        return "embedding"
    return "logits" if outputs.ndim == 2 else "values"


def classes(outputs: Array, labels: Array) -> tuple[Array, Array]:
    """Predicted and true classes, of one shape.

    Raises: DataError: no axis of the outputs holds one score per class of the labels.
    """
    true = _squeezed(labels)
    guess = outputs
    if outputs.dtype.kind == "f":
        axis = _class_axis(outputs, true)
        if axis is None or outputs.shape[axis] == 1:
            scores = _shaped(outputs, true)
            is_probability = scores.min() >= 0 and scores.max() <= 1
            guess = (scores > (0.5 if is_probability else 0)).astype(np.int64)
        else:
            guess = outputs.argmax(axis=axis)
    return _shaped(guess, true), true


def _class_axis(outputs: Array, labels: Array) -> int | None:
    """The axis that labels lack; the last one before others. None: they have the same shape."""
    axes: list[int] = [outputs.ndim - 1, *range(1, outputs.ndim - 1)]
    for axis in axes if outputs.ndim > 1 else []:
        if outputs.shape[:axis] + outputs.shape[axis + 1 :] == labels.shape:
            return axis
    return None


def _squeezed(labels: Array) -> Array:
    """Labels without a trailing axis of length 1."""
    return labels[..., 0] if labels.ndim > 1 and labels.shape[-1] == 1 else labels


def _shaped(outputs: Array, labels: Array) -> Array:
    if outputs.size != labels.size:
        raise DataError(
            f"outputs of shape {outputs.shape} do not fit labels of shape {labels.shape}",
            hint="pick another output or metric",
        )
    return outputs.reshape(labels.shape)


def _mean(values: Array) -> float:
    return float(values.mean())


def _hits(outputs: Array, labels: Array) -> Rows:
    guess, true = classes(outputs, labels)
    return (_per_sample(guess == true),)


def _per_sample(values: Array) -> Array:
    """The mean over everything but the first axis."""
    means: Array = values.reshape(len(values), -1).mean(axis=1)
    return means


def _top_hits(outputs: Array, labels: Array) -> Rows:
    true = _squeezed(labels).astype(np.int64)
    axis = _class_axis(outputs, true)
    if axis is None:
        raise DataError(f"outputs of shape {outputs.shape} hold no score per class")
    scores = np.moveaxis(outputs, axis, -1)
    own = np.take_along_axis(scores, true[..., None], axis=-1)
    # A tie goes to the lower class, as with arg-max.
    earlier = np.arange(scores.shape[-1]) < true[..., None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=-1)
    return (_per_sample(rank < TOP),)


def _f1(guess: Array, true: Array) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN)."""
    names, codes = np.unique(np.concatenate([guess.ravel(), true.ravel()]), return_inverse=True)
    first, second = np.split(codes.ravel(), 2)
    hits = np.bincount(first[first == second], minlength=len(names))
    found = np.bincount(first, minlength=len(names)) + np.bincount(second, minlength=len(names))
    return float((2 * hits / found).mean())


def _class_scores(outputs: Array, labels: Array) -> Rows:
    """Scores of shape (samples,) for two classes, (samples, classes) for more."""
    true = _squeezed(labels)
    if true.ndim != 1 or outputs.dtype.kind != "f":
        raise DataError("the metric needs one class per sample and outputs that are scores")
    scores = outputs.reshape(len(true), -1).astype(np.float64)
    if scores.shape[1] == 2:
        # The difference ranks as the probability of class 1 does, for logits too.
        scores = scores[:, 1:] - scores[:, :1]
    return (scores[:, 0] if scores.shape[1] == 1 else scores), true


def _auc(scores: FloatArray, true: Array) -> float:
    """Area under the ROC curve; of more than two classes the mean of one against the rest."""
    if scores.ndim == 1:
        return _binary_auc(scores, true == true.max()) if len(np.unique(true)) == 2 else np.nan
    present = [int(c) for c in np.unique(true)]
    if max(present) >= scores.shape[1] or min(present) < 0:
        raise DataError(
            f"label {max(present)} has no score: there are {scores.shape[1]} classes",
            hint="number the classes from 0",
        )
    return float(np.mean([_binary_auc(scores[:, c], true == c) for c in present]))


def _binary_auc(scores: FloatArray, positive: npt.NDArray[np.bool_]) -> float:
    """Share of pairs in order, ties one half (Mann-Whitney)."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    _, places, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes - 1) / 2  # the mean rank of equal scores, from 1
    total = middle[places][positive].sum()
    return float((total - count * (count + 1) / 2) / (count * others))


def _eer(scores: FloatArray, true: Array) -> float:
    """Where the shares of false acceptances and false rejections meet (linear between steps)."""
    if scores.ndim != 1:
        raise DataError("the metric `eer` needs one score per sample")
    positive = true == true.max()
    if positive.all():
        return float("nan")
    steps, places = np.unique(scores, return_inverse=True)
    hits = np.bincount(places[positive], minlength=len(steps))
    false = np.bincount(places[~positive], minlength=len(steps))
    # Accept everything from a threshold upwards; the first accepts all, the last none.
    rejected = np.concatenate([[0], np.cumsum(hits)]) / hits.sum()
    accepted = 1 - np.concatenate([[0], np.cumsum(false)]) / false.sum()
    gap = accepted - rejected  # falls from 1 to -1
    at = int(np.argmax(gap <= 0))
    weight = gap[at - 1] / (gap[at - 1] - gap[at])
    return float(rejected[at - 1] + weight * (rejected[at] - rejected[at - 1]))


def _values(outputs: Array, labels: Array) -> Rows:
    """Both as float64 of shape (samples, values)."""
    shaped = _shaped(outputs, labels).astype(np.float64)
    return shaped.reshape(len(labels), -1), labels.astype(np.float64).reshape(len(labels), -1)


def _squared(outputs: Array, labels: Array) -> Rows:
    ours, theirs = _values(outputs, labels)
    return (((ours - theirs) ** 2).mean(axis=1),)


def _absolute(outputs: Array, labels: Array) -> Rows:
    ours, theirs = _values(outputs, labels)
    return (np.abs(ours - theirs).mean(axis=1),)


def _r2(outputs: FloatArray, labels: FloatArray) -> float:
    """1 - residual / total sum of squares, mean over values.

    A value that does not vary counts 1 where it is met and 0 elsewhere, as in scikit-learn.
    """
    residual = ((labels - outputs) ** 2).sum(axis=0)
    total = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    varies = total > 0
    share = np.where(varies, residual / np.where(varies, total, 1), residual > 0)
    return float(1 - share.mean())


def _cosines(outputs: Array, labels: Array) -> Rows:
    return (cosines(*_values(outputs, labels)),)


def cosines(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Cosine of each pair of rows; 1 for two rows of zeros, 0 for one."""
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    scale = lengths[0] * lengths[1]
    product = np.einsum("ij,ij->i", ours, theirs)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    found: FloatArray = np.where(scale > 0, product / np.where(scale > 0, scale, 1), both_zero)
    return found


def agreement(name: str = "") -> Metric:
    """Agreement with the original on an output, whose name may tell what it holds."""
    return Metric("agreement", True, partial(_agreement, name=name), _mean, needs_labels=False)


def _agreement(outputs: Array, reference: Array, name: str) -> Rows:
    """Equal classes where the reference holds class scores, else 1 - relative error."""
    if outputs.shape != reference.shape:
        raise DataError(f"outputs have shape {outputs.shape} and {reference.shape}")
    kind = kind_of(reference, name)
    if kind == "labels":
        return (_per_sample(outputs == reference),)
    if kind not in ("embedding", "values"):
        return (_per_sample(outputs.argmax(axis=-1) == reference.argmax(axis=-1)),)
    return (1 - relative_errors(*_values(outputs, reference)),)


def relative_errors(ours: FloatArray, reference: FloatArray) -> FloatArray:
    """Length of the difference of each pair of rows, relative to the reference row.

    Rows shorter than a thousandth of the mean row are measured against that length, so that
    one sample that happens to be near zero says nothing. Infinite where one row is not finite
    and the other differs.
    """
    same = (ours == reference) | (np.isnan(ours) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, ours - reference)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    lengths = np.linalg.norm(np.where(np.isfinite(reference), reference, 0.0), axis=1)
    floor = max(float(lengths.mean()) * 1e-3, float(np.finfo(np.float32).tiny))
    errors: FloatArray = np.linalg.norm(difference, axis=1) / np.maximum(lengths, floor)
    return errors


def _table(*rows: tuple[str, bool, Any, Any]) -> dict[str, Metric]:
    return {name: Metric(name, higher, *steps) for name, higher, *steps in rows}


METRICS = _table(
    ("accuracy", True, _hits, _mean),
    ("top5", True, _top_hits, _mean),
    ("f1", True, classes, _f1),
    ("auc", True, _class_scores, _auc),
    ("eer", False, _class_scores, _eer),
    ("mse", False, _squared, _mean),
    ("mae", False, _absolute, _mean),
    ("r2", True, _values, _r2),
    ("cosine", True, _cosines, _mean),
) | {"agreement": agreement()}
