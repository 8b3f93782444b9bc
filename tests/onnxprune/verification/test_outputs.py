"""Outputs of both models: which runs, and what they look like as samples."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.verification.outputs import SEEDED_RUNS, Outputs, by_sample, outputs_of_both
from onnxprune.verification.trials import BATCH, Unmeasured
from tests.pairs import broken_at_run, compared, dataset, mlp, reweighted


def test_without_data_inputs_are_drawn_anew_each_time() -> None:
    """Every run has inputs of its own; both models have the same."""
    found = outputs_of_both(compared(mlp(), reweighted(mlp(), lambda w: w * 2)), ())
    assert (found.inputs, found.names, found.missing) == ("seeded inputs", ["logits"], [])
    batches = list(found.batches)
    seen = [batch.before["logits"] for batch in batches]
    assert len(seen) == 2 + SEEDED_RUNS  # two sizes, then more seeds
    assert len({array.tobytes() for array in seen}) == len(seen)
    for batch in batches:
        np.testing.assert_allclose(batch.after["logits"], 2 * batch.before["logits"], rtol=1e-5)
        assert batch.size_bytes == 2 * batch.samples * 3 * 4


def test_data_is_run_in_order() -> None:
    """All of it, the last batch smaller."""
    x = np.random.default_rng(0).standard_normal((BATCH + 3, 5)).astype(np.float32)
    found = outputs_of_both(compared(mlp(), mlp(), dataset(mlp(), {"x": x})), ())
    assert found.inputs == "data"
    assert [batch.samples for batch in found.batches] == [BATCH, 3]


def test_only_finished_runs_are_remembered() -> None:
    """A candidate that fails on the way, or a reader that stops, leaves nothing behind."""
    x = np.ones((2 * BATCH, 5), np.float32)
    state = compared(mlp(), mlp(), dataset(mlp(), {"x": x}))
    next(iter(outputs_of_both(state, ()).batches))
    assert state.get(Outputs) is None
    assert len(list(outputs_of_both(state, ()).batches)) == 2
    assert outputs_of_both(state, ()) is state.get(Outputs)
    failing = compared(mlp(), broken_at_run(mlp()), dataset(mlp(), {"x": x}))
    with pytest.raises(Unmeasured, match="the candidate does not run"):
        list(outputs_of_both(failing, ()).batches)
    assert failing.get(Outputs) is None


def test_outputs_become_rows() -> None:
    """As they are, as one sample, from a list of maps; what is no array is none."""
    array = np.zeros((4, 3))
    samples, whole = by_sample(array, 4), by_sample(array, 2)
    assert samples is not None
    assert whole is not None
    assert (samples.shape, whole.shape) == ((4, 3), (1, 4, 3))
    table = by_sample([{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}], 2)
    np.testing.assert_array_equal(table, [[0.25, 0.75], [0.5, 0.5]])
    assert by_sample([np.zeros(2), np.zeros(3)], 2) is None
