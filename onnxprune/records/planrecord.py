"""What was cut out of a model, so that it can be cut again, or its checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from onnxprune.cutting.compact import Take
from onnxprune.cutting.cut import Cut
from onnxprune.errors import PlanError, ToolDefect
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import IntArray, Shape
from onnxprune.model.digest import digest
from onnxprune.model.graph import Model
from onnxprune.normal.origin import Origin
from onnxprune.planning.cost import Cost
from onnxprune.planning.plan import Plan, drop_rows
from onnxprune.records.untrusted import HINT

_PACKAGES = ("onnxprune", "onnx", "onnxruntime", "numpy")
MODELS = ("original", "normalised", "cut")


@dataclass(frozen=True, eq=False)
class DimEntry:
    """What a Dim keeps."""

    index: int
    name: str
    sizes: tuple[int, ...]
    """Channels of each part."""
    kept: tuple[IntArray | None, ...]
    """Positions that each part keeps, ascending; None for all."""
    level: int | None
    """The Dim's level in the plan; None where the plan does not speak of it."""

    def counts(self) -> tuple[int, ...]:
        """Channels that each part keeps."""
        pairs = zip(self.kept, self.sizes, strict=True)
        return tuple(size if kept is None else len(kept) for kept, size in pairs)


@dataclass(frozen=True, eq=False)
class WeightEntry:
    """What an initializer of the cut model keeps of one of the normalised model."""

    source: str
    shape: Shape
    """Of the source."""
    takes: tuple[Take, ...]
    """In the order in which they are applied."""
    origin: Origin | None
    """Where the source comes from; None where a clean-up made it."""


@dataclass(frozen=True, eq=False)
class PlanFile:
    """Everything that a plan file says."""

    versions: Mapping[str, str]
    sha256: Mapping[str, str]
    """Of the `original`, the `normalised` and the `cut` model."""
    recipe: tuple[str, ...]
    """Specs of the passes that ran, clean-ups included."""
    seed: int
    sizes: Mapping[str, Shape]
    """Input shapes at which cost is counted."""
    before: Cost
    after: Cost
    channels: int
    dims: tuple[DimEntry, ...]
    """Every free Dim."""
    weights: Mapping[str, WeightEntry]
    """By initializer of the cut model."""


def record(
    plan: Plan,
    dims: Dims,
    made: Cut,
    *,
    original: Model,
    normalised: Model,
    origins: Mapping[str, Origin],
    sizes: Mapping[str, Shape],
    recipe: Sequence[str],
    seed: int,
) -> PlanFile:
    """What stands in the plan file of a cut.

    Args:
        normalised: the model that was cut, after the recipe's clean-ups.
        origins: of those of its weights that are still as `normalize` made them.
    Raises: ToolDefect: the plan cannot be made again from what would be written.
    """
    models = dict(zip(MODELS, (original, normalised, made.model), strict=True))
    written = PlanFile(
        versions=versions(),
        sha256={name: digest(model) for name, model in models.items()},
        recipe=tuple(recipe),
        seed=seed,
        sizes=dict(sizes),
        before=plan.whole,
        after=plan.cost,
        channels=dims.count,
        dims=tuple(_dim_entry(dim, plan) for dim in dims.free),
        weights=dict(_weight_entries(normalised, made, origins)),
    )
    if not np.array_equal(restore(written, dims).alive, plan.alive):
        raise ToolDefect("the plan removes channels of Dims that cannot be cut")
    return written


def _dim_entry(dim: Dim, plan: Plan) -> DimEntry:
    masks = [plan.alive[part] for part in dim.parts]
    kept = tuple(None if mask.all() else np.flatnonzero(mask) for mask in masks)
    sizes = tuple(len(part) for part in dim.parts)
    return DimEntry(dim.index, dim.name, sizes, kept, plan.levels.get(dim.index))


def _weight_entries(
    normalised: Model, made: Cut, origins: Mapping[str, Origin]
) -> Iterator[tuple[str, WeightEntry]]:
    for name, (source, takes) in made.taken.items():
        if name in made.model.initializers:
            shape = normalised.dims(source)
            yield name, WeightEntry(source, shape, tuple(takes), origins.get(source))


def restore(written: PlanFile, dims: Dims) -> Plan:
    """The plan over the same Dims, found in the same normalised model.

    Raises: PlanError: they are other Dims, or the plan does not fit them.
    """
    listed = {entry.index: entry for entry in written.dims}
    if written.channels != dims.count or listed.keys() != {dim.index for dim in dims.free}:
        raise _other(f"{written.channels} channels in {len(listed)} free Dims", dims)
    alive = np.ones(dims.count, np.bool_)
    for index, entry in listed.items():
        dim = dims.dims[index]
        if entry.name != dim.name or entry.sizes != tuple(len(part) for part in dim.parts):
            raise _other(f"`{entry.name}`: {list(entry.sizes)}", dims)
        for part, kept in zip(dim.parts, entry.kept, strict=True):
            if kept is not None:
                alive[part] = False
                alive[part[kept]] = True
    levels = {entry.index: entry.level for entry in written.dims if entry.level is not None}
    _check_levels(written, dims, levels)
    if not np.array_equal(drop_rows(dims, alive), alive):
        raise PlanError("the plan keeps positions of a head that it removes", hint=HINT)
    return Plan(alive, levels, written.after, written.before)


def _other(said: str, dims: Dims) -> PlanError:
    return PlanError(
        "the plan was made for other Dims",
        where=f"the plan says {said}; the model has {dims.count} channels in "
        f"{len(dims.free)} free Dims",
        hint="give the model that the plan was made for, or prune it again",
    )


def _check_levels(written: PlanFile, dims: Dims, levels: Mapping[int, int]) -> None:
    """The kept counts of a Dim are those of its level, less the rows of what is gone."""
    for entry in written.dims:
        dim, counts = dims.dims[entry.index], entry.counts()
        level = levels.get(entry.index, len(dim.levels) - 1)
        feasible = dim.levels[level].tolist() if level < len(dim.levels) else None
        if feasible is None or any(
            count > most or (count < most and parent < 0)
            for count, most, parent in zip(counts, feasible, dim.parents, strict=True)
        ):
            raise PlanError(
                f"Dim `{entry.name}` cannot keep {sorted(set(counts))} channels",
                where=f"level {level} of {len(dim.levels)}",
                hint=HINT,
            )


def versions() -> dict[str, str]:
    """Of the packages that what is written depends on."""
    return {n: metadata.version(n) for n in _PACKAGES} | {"python": platform.python_version()}


def changes(written: Mapping[str, str]) -> list[str]:
    """Which of these packages have another version here."""
    known = {name: metadata.version(name) for name in _PACKAGES}
    return [f"{n} {v}, here {known[n]}" for n, v in written.items() if known.get(n, v) != v]


def expect(written: PlanFile, which: str, model: Model) -> None:
    """Refuse a model that the plan was not made for.

    Args:
        which: `original`, `normalised` or `cut`.
    Raises: PlanError: the hash is another one.
    """
    if written.sha256[which] == digest(model):
        return
    changed = changes(written.versions)
    raise PlanError(
        f"the {which} model is not the one that the plan was made for",
        where="; ".join(changed),
        hint="give that model" if which == "original" or not changed
        else "use the versions that the plan was written with, or prune again",
    )  # fmt: skip
