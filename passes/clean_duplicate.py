"""Remove channels that are multiples of another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxprune.cleanup.cleaning import largest_cut, with_weights
from onnxprune.cleanup.duplicates import find_twins
from onnxprune.identity.dims import Dims
from onnxprune.manager import Rewrite, Rewritten, State, Subject
from onnxprune.model.graph import Model
from onnxprune.passes.clean_up import adopt, knowledge
from onnxprune.passes.cut_channels import proved_cut


@dataclass(frozen=True)
class CleanDuplicate(Rewrite):
    """Remove channels that equal another one times a positive factor.

    Filters that are multiples of each other, biases included, make such channels; operators like
    Relu and pooling keep them so. Readers' columns for a removed channel, times its factor, are
    added to those of the channel that stands for it.
    """

    name: ClassVar[str] = "clean-duplicate"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[tuple[type, ...]] = (Dims,)

    def run(self, state: State) -> Rewritten:
        known = knowledge(state)
        twins = find_twins(known)
        removed = largest_cut(known.dims, twins.may_go)
        if not removed.any():
            return Rewritten(state.model, (known,))

        def make() -> Model:
            merged = with_weights(state.model, twins.weights(removed))
            subject = Subject(merged, state.subject.given)
            return proved_cut(replace(state, subject=subject), known.dims, removed).model

        return adopt(state, self.name, make)
