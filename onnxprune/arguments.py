"""Values of options as the command line writes them."""

from __future__ import annotations

from typing import Any

from onnxprune.errors import UsageError


def pairs(values: tuple[str, ...], option: str) -> dict[str, float]:
    """`name=number` items as a mapping.

    Raises: UsageError: an item is not of that form.
    """
    found: dict[str, float] = {}
    seen: set[str] = set()
    for item in values:
        name, equals, number = item.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(
                f"`{option} {item}` is not of the form NAME=NUMBER",
                hint=f"for example {option} {'macs=0.5' if option == '--target' else 'PATTERN=48'}",
            )
        if name in seen:
            raise UsageError(f"`{option}` names `{name}` twice")
        seen.add(name)
    return found


def input_shapes(values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`INPUT=1x3x224x224` items as shapes.

    Raises: UsageError: an item is not of that form.
    """
    found = {}
    for item in values:
        name, _, dims = item.rpartition("=")
        sizes = dims.split("x")
        if not name or not all(n.isdigit() and int(n) > 0 for n in sizes):
            raise UsageError(
                f"`--shape {item}` is not of the form INPUT=DIMS",
                hint="for example --shape image=1x3x224x224",
            )
        found[name] = tuple(int(n) for n in sizes)
    return found


def width_multiple(text: str) -> int:
    """`auto` as 0, else a number.

    Raises: UsageError: it is neither.
    """
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"`--multiple {text}` is neither `auto` nor a number of at least 1")
    return int(text)


def join_image_options(given: dict[str, Any]) -> None:
    """Options for images, as the one argument that `api` takes.

    Raises: UsageError: one is not of its form.
    """
    if "image_size" not in given:
        return
    size, layout = given.pop("image_size"), given.pop("layout")
    mean, std = given.pop("mean"), given.pop("std")
    if not any((size, layout, mean, std)):
        return
    from onnxprune.samples.images import ImageOptions

    found: dict[str, Any] = {"layout": layout}
    if size:
        sides = size.split("x")
        if len(sides) > 2 or not all(n.isdigit() and int(n) > 0 for n in sides):
            raise UsageError(f"`--image-size {size}` is not of the form HxW")
        found["size"] = (int(sides[0]), int(sides[-1]))
    for name, text in (("mean", mean), ("std", std)):
        try:
            found[name] = tuple(float(n) for n in text.split(",")) if text else None
        except ValueError as error:
            raise UsageError(f"`--{name} {text}` is not of the form A,B,C") from error
    given["images"] = ImageOptions(**{k: v for k, v in found.items() if v})
