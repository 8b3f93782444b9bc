"""Outputs of original and candidate, run by run, on the data or on seeded inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from onnxprune.compare import as_array
from onnxprune.feeds import Array
from onnxprune.manager import State
from onnxprune.trials import (
    Pair,
    Trial,
    chosen_shapes,
    data_trials,
    load_pair,
    running_trial,
    seeded_trial,
    sized,
)

# Runs on seeded inputs, where there is no data.
SEEDED_RUNS = 8
# Outputs up to this size are remembered from one pass to the next.
KEPT_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Batch:
    """Outputs of both models in one run, by name."""

    samples: int
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """What they take in memory, as far as they are arrays."""
        values = (*self.before.values(), *self.after.values())
        return sum(int(getattr(value, "nbytes", 0)) for value in values)


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of both models, run by run; a fact about the candidate once all runs are done."""

    inputs: str
    """What they were run on: `data` or `seeded inputs`."""
    names: list[str]
    """Outputs of the original."""
    missing: list[str]
    """Those that the candidate lacks."""
    is_widened: bool
    batches: Iterable[Batch]
    """Raises Unmeasured where a model does not run."""


def outputs_of_both(state: State, custom_ops: Sequence[str]) -> Outputs:
    """Run both on the data or, without any, on seeded inputs.

    Small outputs are remembered: a run of all samples takes longer than anything else here,
    and more than one pass reads them.

    Raises: Unmeasured: a model does not load, or the original runs on nothing that can be drawn.
    """
    known = state.get(Outputs)
    if known is not None:
        return known
    pair = load_pair(state, custom_ops=custom_ops)
    if state.data is not None:
        source, runs = "data", data_trials(state.data)
    else:
        source, runs = "seeded inputs", _seeded_trials(state, pair)
    names = pair.reference.output_names
    found = Outputs(source, names, pair.missing, pair.is_widened, ())
    return replace(found, batches=_remembered(state, found, _batches(pair, runs)))


def _seeded_trials(state: State, pair: Pair) -> Iterator[Trial]:
    subject = sized(state)
    first = running_trial(state, pair, chosen_shapes(subject))
    shapes = {name: array.shape for name, array in first.feeds.items()}
    seeds = range(state.seed + 1, state.seed + SEEDED_RUNS)
    return chain([first], (seeded_trial(subject.model, shapes, seed) for seed in seeds))


def _batches(pair: Pair, runs: Iterable[Trial]) -> Iterator[Batch]:
    for trial in runs:
        before, after = (dict(zip(pair.names, o, strict=True)) for o in pair.run(trial))
        yield Batch(trial.samples, before, after)


def _remembered(state: State, found: Outputs, batches: Iterator[Batch]) -> Iterator[Batch]:
    kept: list[Batch] = []
    size = 0
    for batch in batches:
        size += batch.size_bytes
        if size <= KEPT_BYTES:
            kept.append(batch)
        else:
            kept.clear()
        yield batch
    if size <= KEPT_BYTES:
        state.facts[Outputs] = replace(found, batches=kept)


def by_sample(value: Any, samples: int) -> Array | None:
    """An output with samples on its first axis; as one sample where it has no such axis.

    None for what is no array (a sequence of tensors of unlike shapes).
    """
    try:
        array = as_array(value)
    except (ValueError, KeyError):
        return None
    return array if len(array) == samples else array[None]
