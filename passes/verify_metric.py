"""Measure the task metric of both models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.backend.feeds import Array
from onnxprune.errors import DataError, UsageError, did_you_mean
from onnxprune.manager import State, Verification
from onnxprune.samples.metrics import Metric, agreement, default, find
from onnxprune.verification.outputs import Outputs, fitting_output, outputs_of_both, rows_of
from onnxprune.verification.trials import Unmeasured, plain

BETTER = {"": None, "higher": True, "lower": False}


@dataclass(frozen=True, eq=False)
class _Measured:
    """One output of both models over all samples."""

    name: str
    before: Array
    after: Array


@dataclass(frozen=True)
class VerifyMetric(Verification):
    """Measure the metric before and after, with bootstrap intervals; agreement without labels."""

    name: ClassVar[str] = "verify-metric"

    metric: str = ""
    """A metric's name or module:function; empty: accuracy or r2, agreement without labels."""
    output: str = ""
    """The output it reads; empty: the first that fits the labels."""
    better: str = ""
    """Which values of a module:function are better: higher or lower."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> dict[str, Any]:
        if self.better not in BETTER:
            raise UsageError(f"`{self.better}` is no direction", hint="one of `higher`, `lower`")
        if state.data is None:
            return {"skipped": "there is no data"}
        labels = state.data.labels
        named = self.metric and find(self.metric, higher_is_better=BETTER[self.better])
        metric = named or default(labels)
        if metric.needs_labels and labels is None:
            return {"skipped": f"the metric `{metric.name}` needs labels, and the data has none"}
        try:
            found = self._measure(state, metric)
            return plain(_findings(metric, found, labels, state.seed))
        except Unmeasured as error:
            return {"skipped": error.reason}
        except DataError as error:
            reason = f"{error.what}{f' ({error.where})' if error.where else ''}"
            if self.metric:  # the user asked for this one
                state.warnings.append(f"the metric was not measured: {reason}")
            return {"skipped": reason}

    def _measure(self, state: State, metric: Metric) -> _Measured:
        """Run both models on every sample; only the output that the metric reads is kept."""
        found = outputs_of_both(state, self.custom_ops)
        self._check_output(found)
        name, at = self.output, 0
        before: list[Array] = []
        after: list[Array] = []
        for batch in found.batches:
            labels = state.data.labels
            part = None if labels is None else labels[at : at + batch.samples]
            name = name or fitting_output(batch.before, batch.samples, metric, part)
            before.append(rows_of(name, batch.before[name], batch.samples))
            after.append(rows_of(name, batch.after[name], batch.samples))
            at += batch.samples
        if not before:
            raise DataError("there are no samples")
        if before[0].shape[1:] != after[0].shape[1:]:
            raise DataError(f"the output `{name}` has changed its shape")
        return _Measured(name, np.concatenate(before), np.concatenate(after))

    def _check_output(self, found: Outputs) -> None:
        if self.output and self.output not in found.names:
            raise UsageError(
                f"no output is named `{self.output}`", hint=did_you_mean(self.output, found.names)
            )
        if self.output in found.missing:
            raise Unmeasured(f"output `{self.output}` is gone", is_candidate=True)


def _findings(metric: Metric, found: _Measured, labels: Array | None, seed: int) -> dict[str, Any]:
    """Both values, how much worse the second is, and how sure that is."""
    alike = agreement(found.name)
    if not metric.needs_labels:
        metric = alike
    truth = labels if metric.needs_labels and labels is not None else found.before
    before, after = metric(found.before, truth), metric(found.after, truth)
    return {
        "name": metric.name,
        "output": found.name,
        "samples": len(truth),
        "higher_is_better": metric.higher_is_better,
        "before": before,
        "after": after,
        "drop": metric.drop(before, after),
        "interval": metric.interval(found.after, truth, seed=seed),
        "change": metric.change(found.before, found.after, truth, seed=seed),
        "agreement": alike(found.after, found.before),
    }
