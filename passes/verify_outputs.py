"""Compare the candidate's outputs with the original's, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.manager import State, Verification
from onnxprune.verification.compare import Comparer, Comparison
from onnxprune.verification.outputs import Batch, by_sample, outputs_of_both
from onnxprune.verification.trials import Unmeasured, plain


@dataclass(frozen=True)
class VerifyOutputs(Verification):
    """Measure how far each output is from the original's: on the data, or on seeded inputs.

    The check fails where outputs cannot be compared, or where the candidate's are not finite
    and the original's are; how far is too far is for the gates to say.
    """

    name: ClassVar[str] = "verify-outputs"

    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> dict[str, Any]:
        samples = 0
        try:
            found = outputs_of_both(state, self.custom_ops)
            compared = [_Output(name) for name in found.names if name not in found.missing]
            for batch in found.batches:
                samples += batch.samples
                for output in compared:
                    output.add(batch)
        except Unmeasured as reason:
            return reason.finding
        if not samples:
            return {"skipped": "there are no samples"}
        failures = [f"output `{name}` is gone" for name in found.missing]
        failures += [line for output in compared for line in output.failures()]
        findings = {
            "passed": not failures,
            "failures": failures,
            "inputs": found.inputs,
            "samples": samples,
            "float32_copies": found.is_widened,
            "outputs": [asdict(one) for output in compared for one in output.result()],
        }
        return plain(findings)


class _Output:
    """What is gathered of one output, until it cannot be compared."""

    def __init__(self, name: str) -> None:
        self.name, self.refused = name, ""
        self._comparer = Comparer([name])

    def add(self, batch: Batch) -> None:
        first, second = (
            by_sample(side[self.name], batch.samples) for side in (batch.before, batch.after)
        )
        if self.refused or first is None or second is None or first.size == second.size == 0:
            return  # sequences of unlike tensors; nothing found in any sample
        try:
            with np.errstate(all="ignore"):  # what is not finite is a finding
                self._comparer.add([first], [second])
        except ModelError as error:
            self.refused = f"{error.what}: {error.where}"

    def result(self) -> list[Comparison]:
        """The figures, unless there are none."""
        with np.errstate(all="ignore"):
            return [] if self.refused else [c for c in self._comparer.result() if c.samples]

    def failures(self) -> Iterator[str]:
        """Why the output is no output of the original's."""
        if self.refused:
            yield self.refused
        for one in self.result():
            if one.error_worst == float("inf"):
                yield f"output `{one.name}` is not finite in sample {one.worst_sample}"
