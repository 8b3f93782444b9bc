"""Run the original before it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.errors import ModelError
from onnxprune.manager import Analysis, State
from onnxprune.verification.outputs import ReferenceRuns, reference_runs
from onnxprune.verification.trials import Unmeasured


@dataclass(frozen=True)
class RunOriginal(Analysis):
    """Run the original on seeded inputs, for verification to compare with later.

    A model that does not load is found out before any work is done for it, and the original's
    session and the cut model need not be in memory together.
    """

    name: ClassVar[str] = "run-original"
    gives: ClassVar[type] = ReferenceRuns

    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> ReferenceRuns:
        try:
            return reference_runs(state, self.custom_ops)
        except Unmeasured as error:
            raise ModelError(error.reason) from error
