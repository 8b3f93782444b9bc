"""Remove what nothing reads: idle branches, unused nodes, channels with weights of zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxprune.cleanup.branches import without_idle_branches
from onnxprune.cleanup.cleaning import largest_cut
from onnxprune.cleanup.liveness import find_live
from onnxprune.identity.dims import Dims
from onnxprune.manager import Rewrite, Rewritten, State, Subject
from onnxprune.model.graph import Model
from onnxprune.passes.clean_up import adopt, knowledge
from onnxprune.passes.cut_channels import proved_cut


@dataclass(frozen=True)
class CleanUnread(Rewrite):
    """Remove nodes whose outputs nobody uses, and channels that every reader multiplies by zero.

    A branch that is the same number for all data, such as one multiplied by zero, is replaced by
    that number where it joins the rest.
    """

    name: ClassVar[str] = "clean-unread"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[tuple[type, ...]] = (Dims,)

    def run(self, state: State) -> Rewritten:
        known = knowledge(state)
        model = without_idle_branches(known)
        if model is not state.model:
            first = adopt(state, self.name, lambda: model)
            return self._continued(state, first) if first.model is not state.model else first
        removed = largest_cut(known.dims, ~find_live(known, uses_data=False))
        if not removed.any():
            return Rewritten(state.model, (known,))

        def make() -> Model:
            return proved_cut(state, known.dims, removed).model

        return adopt(state, self.name, make)

    def _continued(self, state: State, first: Rewritten) -> Rewritten:
        """The pass again over what it made: fewer nodes read fewer channels."""
        subject = Subject(first.model, state.subject.given)
        facts = {type(fact): fact for fact in first.facts}
        again = self.run(replace(state, subject=subject, facts=facts))
        return again if again.model is not first.model else first
