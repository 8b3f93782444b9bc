"""A folder of images as arrays: sub-folders are classes. Needs Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.backend.runtime import Array, Spec
from onnxprune.errors import DataError, UsageError

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes an array: resized, divided by 255, minus mean, by std."""

    size: tuple[int, int] | None = None
    """Height and width; read from the graph where it names them."""
    mean: tuple[float, ...] | None = None
    """Per channel, after the division by 255."""
    std: tuple[float, ...] | None = None
    layout: str | None = None
    """`nchw` or `nhwc`; read from the graph where its channel axis is 1 or 3 long."""


def find(folder: Path) -> list[tuple[Path, str]]:
    """Images in a folder and one level below, sorted, each with its sub-folder's name."""
    entries = sorted(folder.iterdir())
    found = [(path, "") for path in entries if _is_image(path)]
    for sub in (path for path in entries if path.is_dir()):
        found += [(path, sub.name) for path in sorted(sub.iterdir()) if _is_image(path)]
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def class_numbers(classes: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Labels: the position of each class among the sorted ones; None for a flat folder.

    Raises: DataError: some images lie in sub-folders, some do not.
    """
    names = sorted(set(classes))
    if names == [""]:
        return None
    if "" in names:
        raise DataError(
            "some images lie in sub-folders and some beside them",
            hint="put every image into the sub-folder of its class, or none",
        )
    return np.array([names.index(name) for name in classes], dtype=np.int64)


def read(paths: Sequence[Path], inputs: Sequence[Spec], options: ImageOptions) -> dict[str, Array]:
    """The images as the one input of a model.

    Returns: the input's name and its array, shape (images, ...).
    Raises: DataError: the model takes no images, a file is broken, or the size is not known.
    """
    spec = _image_input(inputs)
    layout, channels, size = _geometry(spec, options)
    stacked = np.stack(list(_arrays(paths, channels, size)))  # (images, height, width, channels)
    made = _scaled(stacked, spec, options)
    return {spec.name: np.moveaxis(made, 3, 1).copy() if layout == "nchw" else made}


def _image_input(inputs: Sequence[Spec]) -> Spec:
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        shapes = ", ".join(f"`{s.name}` {s.shape}" for s in inputs)
        raise DataError(
            "a folder of images fits a model with one input of 4 axes",
            where=shapes,
            hint="store the inputs as arrays in an .npz file",
        )
    return inputs[0]


def _geometry(spec: Spec, options: ImageOptions) -> tuple[str, int, tuple[int, int]]:
    """Layout, channels, and (height, width)."""
    shape = spec.shape or ()
    layout = options.layout
    if layout is None:
        layout = next(
            (name for name, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] in (1, 3)), None
        )
    if layout not in LAYOUTS:
        raise UsageError(
            "the channel axis of the images is not known"
            if layout is None
            else f"`{layout}` is no layout",
            where=f"input `{spec.name}` {shape}",
            hint="give the layout as `nchw` or `nhwc`",
        )
    channels = shape[1 if layout == "nchw" else 3]
    axes = shape[2:4] if layout == "nchw" else shape[1:3]
    size = options.size or tuple(axis for axis in axes if isinstance(axis, int))
    if len(size) != 2:
        raise UsageError(
            "the size of the images is not known",
            where=f"input `{spec.name}` {shape}",
            hint="give the height and width of the images",
        )
    return layout, 1 if channels == 1 else 3, (size[0], size[1])


def _arrays(
    paths: Sequence[Path], channels: int, size: tuple[int, int]
) -> Iterator[npt.NDArray[np.uint8]]:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("reading images needs Pillow", hint="pip install pillow") from error
    for path in paths:
        try:
            with Image.open(path) as image:
                picture = image.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"an image cannot be read: {error}", where=str(path)) from error
        resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        yield np.asarray(resized, dtype=np.uint8).reshape(*size, channels)


def _scaled(pixels: npt.NDArray[np.uint8], spec: Spec, options: ImageOptions) -> Array:
    """Pixels as the model's type; integers stay 0 .. 255."""
    kind: np.dtype[Any] = spec.dtype or np.dtype(np.float32)
    if kind.kind in "iu":
        if options.mean or options.std:
            raise UsageError(
                "mean and std do not fit a model that takes whole numbers",
                where=f"input `{spec.name}`, {kind}",
                hint="leave both out",
            )
        return pixels.astype(kind)
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values and len(values) not in (1, pixels.shape[3]):
            raise UsageError(
                f"{name} has {len(values)} values for {pixels.shape[3]} channels",
                hint="give one value, or one per channel",
            )
    scaled = pixels.astype(np.float32) / 255
    scaled -= np.asarray(options.mean or 0.0, np.float32)
    scaled /= np.asarray(options.std or 1.0, np.float32)
    return scaled.astype(kind)
