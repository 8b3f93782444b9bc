"""Time both models in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.backend.feeds import Spec
from onnxprune.errors import ModelError, UsageError
from onnxprune.manager import State, Verification
from onnxprune.model.graph import Model
from onnxprune.samples.dataset import batch_axes
from onnxprune.shape.shapes import Shape
from onnxprune.verification.latency import as_json, environment, measure_sessions
from onnxprune.verification.trials import (
    Pair,
    Trial,
    Unmeasured,
    chosen_shapes,
    data_trials,
    load_pair,
    plain,
    running_trial,
    sized,
)


@dataclass(frozen=True)
class VerifyLatency(Verification):
    """Time original and candidate in interleaved pairs, with equal settings and inputs."""

    name: ClassVar[str] = "verify-latency"

    provider: str = "cpu"
    """Execution provider."""
    threads: int = 0
    """Threads within an operator; 0: as ONNX Runtime chooses."""
    batch: int = 1
    """Samples per run; a batch that the graph fixes takes its place."""
    precision: float = 0.02
    """Width of the speed-up's interval, relative to it, at which timing ends."""
    seconds: float = 5.0
    """Time limit; 0 leaves the measurement out."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> dict[str, Any]:
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} holds no sample")
        if self.seconds <= 0:
            return {"skipped": "its time limit is 0"}
        try:
            pair = self._load(state)
            trial = self._trial(state, pair)
            pair.run(trial)
        except Unmeasured as error:
            return {"skipped": error.reason}
        try:
            found = measure_sessions(
                pair.reference,
                pair.candidate,
                trial.feeds,
                seed=state.seed,
                batch=trial.samples,
                precision=self.precision,
                time_limit_s=self.seconds,
            )
        except ModelError as error:  # an input that only one of them has
            return {"skipped": error.what}
        where = environment(pair.reference.provider, self.threads, trial.samples)
        shapes = {name: list(array.shape) for name, array in trial.feeds.items()}
        return plain(as_json(found, where) | {"shapes": shapes})

    def _load(self, state: State) -> Pair:
        pair = load_pair(
            state, threads=self.threads, provider=self.provider, custom_ops=self.custom_ops
        )
        if pair.is_widened:
            raise Unmeasured("ONNX Runtime does not run the model in its own type, bfloat16")
        return pair

    def _trial(self, state: State, pair: Pair) -> Trial:
        data = state.data
        if data is None:
            return self._drawn(state, pair)
        size = data.batch or self.batch
        return next(data_trials(data.subset(np.resize(np.arange(data.n), size)), size))

    def _drawn(self, state: State, pair: Pair) -> Trial:
        """Seeded inputs at the sizes of cost, or others where the original does not run there."""
        subject = sized(state)
        tried = chosen_shapes(subject)
        wanted = with_batch(subject.model, subject.sizes.cost, self.batch)
        return running_trial(state, pair, [wanted, *tried])


def with_batch(model: Model, shapes: Mapping[str, Shape], batch: int) -> dict[str, Shape]:
    """The shapes with another batch, unless the graph fixes it."""
    axes, fixed = batch_axes([Spec.of(info) for info in model.inputs])
    if fixed is not None:
        return dict(shapes)
    return {
        name: shape if (axis := axes[name]) is None else (*shape[:axis], batch, *shape[axis + 1 :])
        for name, shape in shapes.items()
    }
