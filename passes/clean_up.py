"""What the exact clean-ups share: what they know, and the check of what they made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxprune.cleanup.cleaning import LIMIT, difference
from onnxprune.cleanup.deduce import deduce
from onnxprune.cleanup.knowledge import Knowledge
from onnxprune.errors import PruneError
from onnxprune.identity.dims import Dims
from onnxprune.manager import Rewritten, State, Subject
from onnxprune.model.graph import Model
from onnxprune.passes.find_dims import FindDims


def knowledge(state: State) -> Knowledge:
    """What weights say of values, found once for a model that no clean-up changes."""
    dims, found = state[Dims], state.get(Knowledge)
    if found is None or found.dims is not dims or found.model is not state.model:
        found = deduce(state.model, dims, state.subject.shapes)
    return found


def adopt(state: State, name: str, make: Callable[[], Model]) -> Rewritten:
    """The cleaned model with Dims of its own, if it gives the outputs of the one before.

    A clean-up that cannot be made or shown to be exact is left out, with a warning.
    """
    try:
        made = make()
        off = difference(state.model, made, state.subject.sizes.first)
        reason = f"outputs would differ by {off:.1e}" if off is not None else "it cannot be run"
        if off is not None and off <= LIMIT:
            after = replace(state, subject=Subject(made, state.subject.given))
            return Rewritten(made, (FindDims().run(after),))
    except PruneError as error:
        reason = error.what
    state.warnings.append(f"`{name}` left out: {reason}")
    return Rewritten(state.model)
