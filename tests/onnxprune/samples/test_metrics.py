"""Each metric equals its definition written out; intervals hold what they should."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.samples.metrics import (
    METRICS,
    Metric,
    cosines,
    default,
    find,
    kind_of,
    relative_errors,
)


def value(name: str, outputs: Any, labels: Any) -> float:
    return METRICS[name](np.asarray(outputs), np.asarray(labels))


seeds = st.integers(0, 10_000)


def draw(seed: int, n: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Coarse scores, so that ties occur, and labels of every class."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, n - classes)])
    return generator.integers(0, 6, (n, classes)).astype(np.float32), labels


@given(seed=seeds)
def test_accuracy_and_top5_count_hits(seed: int) -> None:
    """The first of equal scores wins, as arg-max has it."""
    outputs, labels = draw(seed, classes=8)
    order = [sorted(range(8), key=lambda c, row=row: (-row[c], c)) for row in outputs]
    assert value("accuracy", outputs, labels) == pytest.approx(
        np.mean([o[0] == t for o, t in zip(order, labels, strict=True)])
    )
    assert value("top5", outputs, labels) == pytest.approx(
        np.mean([t in o[:5] for o, t in zip(order, labels, strict=True)])
    )


@given(seed=seeds)
def test_f1_is_the_mean_over_classes(seed: int) -> None:
    """Of precision and recall's harmonic mean, for every class that is predicted or true."""
    outputs, labels = draw(seed, classes=4)
    guess = outputs.argmax(1)
    each = []
    for c in set(guess) | set(labels):
        hit = np.sum((guess == c) & (labels == c))
        precision = hit / max(1, np.sum(guess == c))
        recall = hit / max(1, np.sum(labels == c))
        each.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    assert value("f1", outputs, labels) == pytest.approx(np.mean(each))


def pairs_in_order(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = product(scores[positive], scores[~positive])
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))


@given(seed=seeds)
def test_auc_is_the_share_of_pairs_in_order(seed: int) -> None:
    """For two classes, and the mean of one against the rest for more."""
    outputs, labels = draw(seed, classes=2)
    expected = pairs_in_order(outputs[:, 1] - outputs[:, 0], labels == 1)
    assert value("auc", outputs, labels) == pytest.approx(expected)
    assert value("auc", (outputs[:, 1] - outputs[:, 0])[:, None], labels) == pytest.approx(expected)
    outputs, labels = draw(seed, classes=3)
    expected = np.mean([pairs_in_order(outputs[:, c], labels == c) for c in range(3)])
    assert value("auc", outputs, labels) == pytest.approx(expected)


@given(seed=seeds)
def test_eer_lies_between_the_shares_at_its_threshold(seed: int) -> None:
    """Some threshold has both error shares around it, and swapped scores mirror it."""
    outputs, labels = draw(seed, classes=2)
    scores = outputs[:, 0]
    found = value("eer", scores, labels)
    false = [np.mean(scores[labels == 0] >= t) for t in (*np.unique(scores), np.inf)]
    missed = [np.mean(scores[labels == 1] < t) for t in (*np.unique(scores), np.inf)]
    steps = range(len(false) - 1)
    assert any(
        min(missed[i], false[i + 1]) - 1e-9 <= found <= max(missed[i + 1], false[i]) + 1e-9
        for i in steps
        if missed[i] <= false[i] and missed[i + 1] >= false[i + 1]
    )
    assert value("eer", -scores, labels) == pytest.approx(1 - found)


def test_eer_of_separated_and_of_mixed_scores() -> None:
    """0 where a threshold parts them, one half where scores say nothing."""
    assert value("eer", [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 0
    assert value("eer", [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert value("eer", [0.1, 0.7, 0.3, 0.9], [0, 0, 1, 1]) == pytest.approx(0.5)


@given(seed=seeds)
def test_regression_metrics_follow_their_formulas(seed: int) -> None:
    """Also for outputs that carry an extra axis of length 1."""
    generator = np.random.default_rng(seed)
    outputs, labels = generator.standard_normal((2, 30))
    shaped = outputs[:, None].astype(np.float32)
    assert value("mse", shaped, labels) == pytest.approx(np.mean((outputs - labels) ** 2), rel=1e-5)
    assert value("mae", shaped, labels) == pytest.approx(np.mean(abs(outputs - labels)), rel=1e-5)
    r2 = 1 - np.sum((labels - outputs) ** 2) / np.sum((labels - labels.mean()) ** 2)
    assert value("r2", shaped, labels) == pytest.approx(r2, rel=1e-5)
    two = np.stack([labels, labels], axis=1), np.stack([outputs, labels], axis=1)
    assert value("r2", two[1], two[0]) == pytest.approx((r2 + 1) / 2)


def test_r2_of_labels_that_do_not_vary() -> None:
    """Met exactly counts 1, missed counts 0."""
    assert value("r2", [2.0, 2.0], [2.0, 2.0]) == 1
    assert value("r2", [2.0, 1.0], [2.0, 2.0]) == 0


def test_cosines_of_rows_with_zeros() -> None:
    """Two rows of zeros agree, one alone does not."""
    a, b = (
        np.array([[1.0, 0], [0, 0], [0, 0], [1, 1]]),
        np.array([[-2.0, 0], [0, 0], [1, 0], [2, 2]]),
    )
    np.testing.assert_allclose(cosines(a, b), [-1, 1, 0, 1])
    assert value("cosine", a, b) == pytest.approx(0.25)


def test_relative_errors_of_small_and_broken_rows() -> None:
    """A reference of zeros is measured against the others; NaN against a number is infinite."""
    reference = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [np.nan, 1.0]])
    ours = np.array([[3.0, 4.5], [0.0, 1e-9], [np.nan, 0.0], [np.nan, 1.0]])
    errors = relative_errors(ours, reference)
    assert errors[0] == pytest.approx(0.1)
    assert errors[1] < 1e-5
    assert errors[2] == np.inf
    assert errors[3] == 0


def test_classes_are_found_whatever_the_shape() -> None:
    """Scores, label outputs, probabilities and logits of one class, sequences, pixels."""
    labels = np.array([1, 0, 1])
    assert value("accuracy", [[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]], labels) == pytest.approx(2 / 3)
    assert value("accuracy", np.array([[1], [0], [0]]), labels[:, None]) == pytest.approx(2 / 3)
    assert value("accuracy", [[0.7], [0.2], [0.9]], labels) == 1
    assert value("accuracy", [3.0, -1.0, 0.4], labels) == 1
    words = np.random.default_rng(0).standard_normal((2, 5, 7))
    assert value("accuracy", words, words.argmax(-1)) == 1
    pixels = np.random.default_rng(0).standard_normal((2, 7, 4, 5))
    assert value("accuracy", pixels, pixels.argmax(1)) == 1
    assert value("top5", pixels, pixels.argmax(1)) == 1
    with pytest.raises(DataError, match="do not fit"):
        value("accuracy", np.zeros((3, 4, 5)), labels)
    with pytest.raises(DataError, match="no score per class"):
        value("top5", np.zeros(3), labels)


def test_agreement_compares_what_outputs_mean() -> None:
    """Classes by arg-max, labels by equality, values by relative error."""
    logits = np.random.default_rng(0).standard_normal((10, 5)).astype(np.float32)
    assert value("agreement", 2 * logits, logits) == 1
    assert value("agreement", np.arange(10) // 5, np.zeros(10, int)) == 0.5
    assert value("agreement", [[1.1], [2.2]], [[1.0], [2.0]]) == pytest.approx(0.9)
    with pytest.raises(DataError, match="shape"):
        value("agreement", logits[:, :3], logits)


def test_kinds_are_told_by_numbers_and_names() -> None:
    """Rows that sum to 1, their logarithms, unit rows, whole numbers; a name settles the rest."""
    logits = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(np.float32)
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    unit = logits[:, 0] / np.linalg.norm(logits[:, 0], axis=1, keepdims=True)
    assert kind_of(soft.astype(np.float16)) == "distribution"
    assert kind_of(np.log(soft)) == "log-distribution"
    assert kind_of(logits[:, 0]) == kind_of(logits, "lm_logits") == "logits"
    assert kind_of(unit) == kind_of(logits[:, 0], "sentence_embedding") == "embedding"
    assert kind_of(logits) == kind_of(logits[:, 0, :1]) == "values"
    assert kind_of(np.arange(3)) == "labels"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_knows_its_direction(name: str) -> None:
    """A drop is positive where the candidate is worse."""
    metric = METRICS[name]
    labels = np.array([5, 6, 5, 6, 5, 6])
    good = labels.astype(float) if name in ("mse", "mae", "r2", "eer") else np.eye(7)[labels]
    target = good if name in ("agreement", "cosine") else labels
    before, after = metric(good, target), metric(good[::-1].copy(), target)
    assert metric.drop(before, after) > 0
    assert metric.drop(before, before) == 0


def test_undefined_metrics_are_errors() -> None:
    """One class has no ROC curve; labels beyond the scores have no class."""
    for name in ("auc", "eer"):
        with pytest.raises(DataError, match="not defined"):
            value(name, [0.1, 0.2], [1, 1])
    with pytest.raises(DataError, match="has no score"):
        value("auc", np.eye(3), [0, 1, 3])
    with pytest.raises(DataError, match="one score per sample"):
        value("eer", np.eye(3), [0, 1, 2])
    with pytest.raises(DataError, match="scores"):
        value("auc", np.arange(3), [0, 1, 1])
    with pytest.raises(DataError, match="do not fit"):
        value("mse", [1.0, 2.0], [1.0])


def test_an_interval_holds_the_value_and_repeats_by_seed() -> None:
    """The 95% interval of a mean is near 1.96 standard errors."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    outputs = np.where(generator.random(400) < 0.8, labels, 1 - labels)
    metric = METRICS["accuracy"]
    low, high = metric.interval(outputs, labels, seed=1)
    exact = metric(outputs, labels)
    error = 1.96 * np.sqrt(exact * (1 - exact) / 400)
    assert (low, high) == pytest.approx((exact - error, exact + error), abs=0.01)
    assert metric.interval(outputs, labels, seed=1) == (low, high)
    assert metric.interval(outputs, labels, seed=2) != (low, high)


def test_a_paired_change_is_narrower_than_two_intervals() -> None:
    """Both models miss the same hard samples, which says nothing about the change."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    before = np.where(generator.random(400) < 0.7, labels, 1 - labels)
    after = before.copy()
    after[:8] = 1 - labels[:8]
    metric = METRICS["accuracy"]
    low, high = metric.change(before, after, labels, seed=0)
    alone = metric.interval(before, labels, seed=0)
    assert high - low < (alone[1] - alone[0]) / 2
    assert low <= metric(after, labels) - metric(before, labels) <= high <= 0


def test_draws_without_a_value_are_left_out() -> None:
    """Few samples of one class: some draws miss it, the interval stays."""
    scores, labels = np.arange(6) / 6, np.array([0, 0, 0, 0, 0, 1])
    low, high = METRICS["auc"].interval(scores, labels, seed=0)
    assert low <= high == 1
    low, _ = METRICS["auc"].interval(scores[:2], labels[:2], seed=0)
    assert np.isnan(low)


def count_equal(outputs: np.ndarray, labels: np.ndarray) -> float:
    """A user's metric."""
    return float((outputs == labels).sum())


def test_metrics_are_found_by_name_or_function() -> None:
    """A misspelt name gets close ones; a function needs its direction."""
    assert find("r2") is METRICS["r2"]
    with pytest.raises(UsageError, match="did you mean `accuracy`"):
        find("acuracy")
    spec = f"{__name__}:count_equal"
    with pytest.raises(UsageError, match="direction"):
        find(spec)
    own = find(spec, higher_is_better=False)
    assert isinstance(own, Metric)
    assert own(np.arange(3), np.arange(3)) == 3
    assert own.drop(1, 3) == 2


def test_the_default_follows_the_labels() -> None:
    """Whole numbers: accuracy; floats: r2; none: agreement with the original."""
    assert default(np.arange(3)).name == "accuracy"
    assert default(np.arange(3.0)).name == "r2"
    assert default(None).name == "agreement"
    assert not default(None).needs_labels
