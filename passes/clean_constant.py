"""Remove channels that are constant wherever they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.cleanup.cleaning import add_biases, bias_changes, largest_cut
from onnxprune.cleanup.liveness import find_live
from onnxprune.identity.dims import Dims
from onnxprune.manager import Rewrite, Rewritten, State
from onnxprune.model.graph import Model
from onnxprune.passes.clean_up import adopt, knowledge
from onnxprune.passes.cut_channels import proved_cut


@dataclass(frozen=True)
class CleanConstant(Rewrite):
    """Remove channels that are constant, their share added to what reads them.

    Filters of zeros, and batch-norm scales of zero, make constant channels; so does all that is
    made of constants alone. Zeros simply go. Another number goes where no reader sees a padded
    border between it and its sum. What only led to such channels goes with them.
    """

    name: ClassVar[str] = "clean-constant"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[tuple[type, ...]] = (Dims,)

    def run(self, state: State) -> Rewritten:
        known = knowledge(state)
        live = find_live(known, uses_data=True)
        dead = ~live
        if dead.any():  # what is merely unread is another pass's
            dead &= find_live(known, uses_data=False)
        removed = largest_cut(known.dims, dead)
        if not removed.any():
            return Rewritten(state.model, (known,))

        def make() -> Model:
            made = proved_cut(state, known.dims, removed).model
            changes = bias_changes(known, removed)
            return add_biases(made, known.linear, changes) if changes else made

        return adopt(state, self.name, make)
