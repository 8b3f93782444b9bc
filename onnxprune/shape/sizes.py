"""Concrete sizes for the dynamic axes of a model's inputs.

Two sets of sizes are chosen, pairwise different: what differs between them is dynamic and must
never become a constant. A third, for cost, has a batch of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxprune.errors import ModelError, UsageError, did_you_mean
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import Shape, Shapes, evaluate

# Dynamic image sides are often halved five times and must stay different after it, and sequences
# may be short: try large multiples first, then small ones, then very large.
SCALES = (32, 8, 1, 64, 128, 16, 4, 2, 256, 1600)


@dataclass(frozen=True)
class Sizes:
    """Input shapes at two sets of sizes, and the shapes cost is counted at."""

    first: dict[str, Shape]
    second: dict[str, Shape]
    cost: dict[str, Shape]
    dynamic: dict[str, tuple[int, ...]]
    """Dynamic axes of each input."""


def declared(model: Model) -> dict[str, tuple[int | str, ...]]:
    """The shape of each graph input as written; a dynamic axis is its name.

    Raises: ModelError: an input has no shape at all.
    """
    found: dict[str, tuple[int | str, ...]] = {}
    for info in model.inputs:
        if not info.type.HasField("tensor_type"):
            continue
        if not info.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"input `{info.name}` has no shape", hint="export the model with input shapes"
            )
        found[info.name] = tuple(
            d.dim_value if d.dim_value > 0 else d.dim_param or f"{info.name}:{axis}"
            for axis, d in enumerate(info.type.tensor_type.shape.dim)
        )
    return found


def choose(
    model: Model, given: Mapping[str, Shape] | None = None
) -> tuple[Sizes, Shapes, Shapes, Shapes]:
    """Sizes that fit the model, with what is known of every tensor at each.

    Args:
        given: shapes the user or the data names, by input; they are used for cost as they are
            and guide the scale of the others.
    Raises: ModelError: no sizes were found that fit.
    """
    wanted = declared(model)
    given = dict(given or {})
    _check_given(wanted, given)
    failure: ModelError | None = None
    for first, second in _candidates(wanted, given):
        try:
            shapes = evaluate(model, first), evaluate(model, second)
            cost = {n: given.get(n) or _batch_of_one(wanted[n], first[n]) for n in wanted}
            dynamic = {
                n: tuple(i for i, d in enumerate(s) if isinstance(d, str))
                for n, s in wanted.items()
            }
            return Sizes(first, second, cost, dynamic), *shapes, evaluate(model, cost)
        except ModelError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _check_given(wanted: Mapping[str, tuple[int | str, ...]], given: Mapping[str, Shape]) -> None:
    for name, shape in given.items():
        if name not in wanted:
            raise UsageError(f"no input is named `{name}`", hint=did_you_mean(name, wanted))
        fits = len(shape) == len(wanted[name]) and all(
            isinstance(w, str) or w == n for w, n in zip(wanted[name], shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"shape {'x'.join(map(str, shape))} does not fit input `{name}`",
                where=f"the model says {list(wanted[name])}",
            )


def _batch_of_one(wanted: tuple[int | str, ...], shape: Shape) -> Shape:
    if wanted and isinstance(wanted[0], str):
        return (1, *shape[1:])
    return shape


def _candidates(
    wanted: Mapping[str, tuple[int | str, ...]], given: Mapping[str, Shape]
) -> Iterator[tuple[dict[str, Shape], dict[str, Shape]]]:
    """Pairs of input shapes to try; a symbol has one size wherever it occurs."""
    batch = {s[0] for s in wanted.values() if s and isinstance(s[0], str)}
    inner = list(dict.fromkeys(d for s in wanted.values() for d in s if isinstance(d, str)))
    rest = [d for d in inner if d not in batch]
    first = {d: 2 + 2 * i for i, d in enumerate(d for d in inner if d in batch)}
    second = {d: n + 1 for d, n in first.items()}
    named = _named_sizes(wanted, given)
    if named and rest:
        a = {d: named.get(d, 8) for d in rest}
        yield _shapes(wanted, first | a), _shapes(wanted, second | {d: 2 * n for d, n in a.items()})
    for scale in SCALES if rest else (1,):
        a = {d: scale * (2 + 2 * i) + 3 * (scale == 1) for i, d in enumerate(rest)}
        b = {d: n + scale for d, n in a.items()}
        yield _shapes(wanted, first | a), _shapes(wanted, second | b)
    if batch and rest:  # symbols that must agree although they are named apart
        yield _shapes(wanted, dict.fromkeys(inner, 2)), _shapes(wanted, dict.fromkeys(inner, 3))
    if len(batch) > 1:
        for scale in SCALES:
            a = {d: scale * (2 + 2 * i) for i, d in enumerate(rest)}
            b = {d: n + scale for d, n in a.items()}
            yield (
                _shapes(wanted, dict.fromkeys(batch, 2) | a),
                _shapes(wanted, dict.fromkeys(batch, 3) | b),
            )


def _named_sizes(
    wanted: Mapping[str, tuple[int | str, ...]], given: Mapping[str, Shape]
) -> dict[str, int]:
    return {
        d: n
        for name, shape in given.items()
        for d, n in zip(wanted[name], shape, strict=True)
        if isinstance(d, str)
    }


def _shapes(
    wanted: Mapping[str, tuple[int | str, ...]], sizes: Mapping[str, int]
) -> dict[str, Shape]:
    return {
        name: tuple(sizes[d] if isinstance(d, str) else d for d in shape)
        for name, shape in wanted.items()
    }
