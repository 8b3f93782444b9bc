"""Follow identities through the graph and join them into Dims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.identity.dims import Dims, find_dims
from onnxprune.identity.flow import Flow, walk
from onnxprune.manager import Analysis, State
from onnxprune.rules import load_rules


@dataclass(frozen=True)
class FindDims(Analysis):
    """Find what hangs together: channels, the Dims they form, and what is pinned."""

    name: ClassVar[str] = "find-dims"
    gives: ClassVar[type] = Dims

    def run(self, state: State) -> Dims:
        ties = walk(Flow(state.model, *state.subject.shapes), load_rules().flow_rule)
        return find_dims(ties)
