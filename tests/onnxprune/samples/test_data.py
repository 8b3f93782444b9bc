"""Data is read from every source alike, refused where it does not fit, and split by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxprune.backend.feeds import Spec
from onnxprune.errors import DataError, FileError, PruneError, UsageError
from onnxprune.samples.data import Dataset, ImageOptions, load, named_function

FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)
INT = np.dtype(np.int64)
X = Spec("x", FLOAT, ("batch", 3))


def rows(n: int, width: int = 3) -> np.ndarray:
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def joined(data: Dataset, size: int = 2) -> np.ndarray:
    return np.concatenate([feeds["x"] for feeds in data.batches(size)])


def npz_file(folder: Path) -> Any:
    np.savez(folder / "d.npz", x=rows(5), labels=np.arange(5))
    return folder / "d.npz"


def npz_folder(folder: Path) -> Any:
    np.savez(folder / "1.npz", x=rows(5)[:2], labels=np.arange(2))
    np.savez(folder / "2.npz", x=rows(5)[2:], labels=np.arange(2, 5))
    return folder


def npy_folder(folder: Path) -> Any:
    np.save(folder / "x.npy", rows(5))
    np.save(folder / "labels.npy", np.arange(5))
    return folder


def arrays(_: Path) -> Any:
    return {"x": rows(5), "y": np.arange(5)}


def dicts(_: Path) -> Any:
    return [{"x": rows(5)[:4], "label": np.arange(4)}, {"x": rows(5)[4:], "label": [4]}]


def pairs_of_single_samples(_: Path) -> Any:
    return (({"x": row}, label) for label, row in enumerate(rows(5)))


SOURCES = [npz_file, npz_folder, npy_folder, arrays, dicts, pairs_of_single_samples]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_dataset(source: Callable[[Path], Any], tmp_path: Path) -> None:
    """Files, folders, arrays and iterables hold the same samples and labels."""
    data = load(source(tmp_path), [X])
    assert data.n == 5
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(joined(data), rows(5))
    assert [len(feeds["x"]) for feeds in data.batches(2)] == [2, 2, 1]
    assert data.shapes(7) == {"x": (7, 3)}


def test_a_function_in_the_working_folder_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`module:function` is called; with a limit no more is drawn than needed."""
    (tmp_path / "endless.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    while True:\n"
        "        yield {'x': np.ones((4, 3), np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load("endless:samples", [X], limit=10).n == 10
    with pytest.raises(UsageError, match="did you mean `samples`"):
        named_function("endless:sample")
    with pytest.raises(UsageError, match="no_such_module"):
        named_function("no_such_module:f")


def test_a_limit_draws_by_seed() -> None:
    """Sorted files would otherwise give one class only."""
    picks = [joined(load({"x": rows(50)}, [X], limit=5, seed=seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(picks[0], picks[1])
    assert not np.array_equal(picks[0], picks[2])
    assert len(np.unique(picks[0][:, 0])) == 5


BAD: dict[str, tuple[dict[str, Any], list[Spec], str]] = {
    "wrong name": ({"image": rows(4)}, [X], r"no array for `x`[\s\S]*`image`"),
    "extra name": ({"x": rows(4), "xs": rows(4)}, [X], r"no input `xs`[\s\S]*did you mean `x`"),
    "wrong dtype": ({"x": rows(4).astype(np.float64)}, [X], r"float64[\s\S]*astype\(\"float32\""),
    "ints for floats": ({"x": rows(4).astype(np.int64)}, [X], "int64, the graph takes float32"),
    "floats for ints": ({"x": rows(4)}, [Spec("x", INT, ("n", 3))], "the graph takes int64"),
    "wrong width": ({"x": rows(4, 5)}, [X], r"shape \(4, 5\), the graph takes \(samples, 3\)"),
    "wrong rank": ({"x": rows(4)[0]}, [X], r"shape \(3,\)"),
    "empty": ({"x": rows(0)}, [X], "empty"),
    "labels of other length": ({"x": rows(4), "y": np.arange(3)}, [X], "`x` 4, `labels` 3"),
    "labels of text": ({"x": rows(4), "y": np.array(list("abcd"))}, [X], "labels are <U1"),
    "labels not finite": ({"x": rows(4), "y": np.full(4, np.nan)}, [X], "`labels` holds"),
    "unequal counts": (
        {"x": rows(4), "z": rows(3)},
        [X, Spec("z", FLOAT, ("batch", 3))],
        "`x` 4, `z` 3",
    ),
    "text input": ({"x": rows(4)}, [Spec("x", None, None)], "takes text"),
    "too few for the batch": ({"x": rows(3)}, [Spec("x", FLOAT, (4, 3))], "batch of 4"),
    "a constant of wrong shape": (
        {"x": rows(4), "s": rows(2)},
        [X, Spec("s", FLOAT, ())],
        "no batch axis",
    ),
    "too large for half": (
        {"x": np.full((4, 3), 1e6, np.float32)},
        [Spec("x", HALF, ("n", 3))],
        "not finite in float16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_does_not_fit_is_refused(case: str) -> None:
    """One error that names the array and what the graph takes."""
    given_arrays, specs, message = BAD[case]
    with pytest.raises(DataError, match=message):
        load(given_arrays, specs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_bad_sample_is_named(bad: float) -> None:
    """Also far behind, where rows are looked at part by part."""
    x = rows(1000)
    x[700, 1] = bad
    with pytest.raises(DataError, match="sample 700"):
        load({"x": x}, [X])


def test_large_numbers_are_finite() -> None:
    """What float64 can hold is not judged in a smaller type."""
    wide = Spec("x", np.dtype(np.float64), ("n", 1))
    assert load({"x": np.full((2, 1), 1e300)}, [wide]).n == 2


def test_float_data_is_cast_for_a_half_model() -> None:
    """The one conversion that is made."""
    for kind in (np.float32, np.float64):
        data = load({"x": rows(4).astype(kind)}, [Spec("x", HALF, ("n", 3))])
        assert next(data.batches(4))["x"].dtype == HALF


def test_an_input_named_y_is_no_label() -> None:
    """Names of labels that are inputs of the graph stay inputs."""
    data = load({"y": rows(4), "label": np.arange(4)}, [Spec("y", FLOAT, ("n", 3))])
    assert set(data.arrays) == {"y"}
    assert data.labels is not None


def test_a_fixed_batch_is_honoured() -> None:
    """Every batch has the graph's size; what is left over is dropped, and said."""
    labels = np.arange(10)
    data = load({"x": rows(10), "labels": labels}, [Spec("x", FLOAT, (4, 3))])
    assert [len(feeds["x"]) for feeds in data.batches(32)] == [4, 4]
    assert data.n == 8
    assert "2 of 10 samples" in data.warnings[0]
    assert data.labels is not None
    assert data.labels.tolist() == list(range(8))
    with pytest.raises(DataError, match="less than the graph's batch"):
        load({"x": rows(10)}, [Spec("x", FLOAT, (4, 3))], limit=3)


@pytest.mark.parametrize("rate", [np.array(16000), np.array([16000])])
def test_what_has_no_batch_axis_is_a_constant(rate: np.ndarray) -> None:
    """A scalar and a table of fixed size are fed whole with every batch."""
    specs = [X, Spec("sr", INT, ()), Spec("table", FLOAT, (2, 3))]
    data = load({"x": rows(5), "sr": rate, "table": rows(2)[None]}, specs)
    for feeds in data.batches(2):
        assert feeds["sr"].shape == ()
        np.testing.assert_array_equal(feeds["table"], rows(2))


def test_one_row_beside_many_is_a_constant_of_a_batch_of_one() -> None:
    """An export of batch 1 with a second input that never changes."""
    specs = [Spec("x", FLOAT, (1, 3)), Spec("scale", FLOAT, (1, 2))]
    data = load({"x": rows(5), "scale": rows(1, 2)}, specs)
    assert data.n == 5
    assert {feeds["scale"].shape for feeds in data.batches(1)} == {(1, 2)}


def test_a_batch_axis_behind_others_is_fed_there() -> None:
    """Recurrent states: samples come first in the data and second in the graph."""
    state = np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    specs = [X, Spec("h", FLOAT, (1, "batch", 2))]
    first = next(load({"x": rows(5), "h": state}, specs).batches(3))
    assert first["h"].shape == (1, 3, 2)
    np.testing.assert_array_equal(first["h"][0], state[:3, 0])


@given(n=st.integers(3, 300), batch=st.sampled_from([None, 1, 4]), seed=st.integers(0, 99))
def test_a_split_is_disjoint_and_by_seed(n: int, batch: int | None, seed: int) -> None:
    """No sample lies in two parts; parts are near 60, 20 and 20%; equal seeds, equal parts."""
    spec = Spec("x", FLOAT, (batch or "n", 3))
    n = max(n, 3 * (batch or 1))
    data = load({"x": rows(n)}, [spec])
    parts = data.split(seed)
    found = [set(part.rows.tolist()) for part in parts]
    assert sum(len(f) for f in found) == len(set.union(*found)) == data.n
    shares = [len(f) / data.n for f in found]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=1.5 * (batch or 1) / data.n)
    assert all(part.n % (batch or 1) == 0 and part.n for part in parts)
    assert [part.rows.tolist() for part in data.split(seed)] == [p.rows.tolist() for p in parts]


def test_too_few_samples_cannot_be_split() -> None:
    """The report must not come from what decisions read."""
    with pytest.raises(DataError, match="at least 3 samples"):
        load({"x": rows(2)}, [X]).split(0)


def test_a_broken_npz_member_is_a_file_error(tmp_path: Path) -> None:
    """The directory of a zip file may be whole while a member is not."""
    path = npz_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[150] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"d\.npz"):
        load(path, [X])


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    """The first axis counts samples all the same."""
    assert load({"x": rows(4)}, [Spec("x", FLOAT, None)]).shapes(2) == {"x": (2, 3)}


def test_subsets_of_subsets_name_the_right_samples() -> None:
    """Positions count within the subset."""
    data = load({"x": rows(10), "labels": np.arange(10)}, [X]).subset([9, 5, 1, 0])
    assert data.labels is not None
    assert data.labels.tolist() == [9, 5, 1, 0]
    np.testing.assert_array_equal(
        [feeds["x"][0, 0] for feeds in data.batches(1, indices=[2, 0])], [3.0, 27.0]
    )


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Missing, broken and pickled files end in one error, and nothing is unpickled."""
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and nothing")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "one.npy", rows(3))
    for name in ("broken.npz", "pickled.npz", "missing.npz", "one.npy"):
        with pytest.raises((FileError, DataError), match=name.partition(".")[0]):
            load(tmp_path / name, [X])


def test_folders_of_nothing_or_of_both_are_refused(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(DataError, match=r"no \.npz"):
        load(tmp_path, [X])
    npy_folder(tmp_path)
    npz_file(tmp_path)
    with pytest.raises(DataError, match=r"\.npy and \.npz"):
        load(tmp_path, [X])


def changing() -> Iterator[dict[str, np.ndarray]]:
    yield {"x": rows(2)}
    yield {"z": rows(2)}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "empty"),
        ([rows(2)], "yields ndarray"),
        (changing(), "other arrays"),
        ([{"x": rows(2)}, {"x": rows(2, 4)}], "differ in shape"),
    ],
)
def test_iterables_that_make_no_data_are_refused(items: Any, message: str) -> None:
    """Each with what it yields and what it should."""
    with pytest.raises(DataError, match=message):
        load(items, [X])


def test_constants_of_parts_must_be_equal() -> None:
    """One constant of all parts is kept once."""
    specs = [X, Spec("table", FLOAT, (2, 3))]
    data = load([{"x": rows(2), "table": rows(2)}] * 3, specs)
    assert data.n == 6
    np.testing.assert_array_equal(data.constants["table"], rows(2))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    """It would leave nothing."""
    with pytest.raises(UsageError, match="at least 1"):
        load({"x": rows(2)}, [X], limit=limit)


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def test_images_become_arrays_with_labels_from_folders(tmp_path: Path) -> None:
    """Scaled to 0 .. 1, minus mean, by std; classes are the sorted sub-folders."""
    paint(tmp_path / "cat" / "a.png", (255, 0, 0))
    paint(tmp_path / "ant" / "b.png", (0, 0, 255))
    options = ImageOptions(mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 1.0))
    spec = Spec("x", FLOAT, ("n", 3, 2, 3))
    data = load(tmp_path, [spec], image_options=options)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    x = next(data.batches(2))["x"]
    assert x.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(x[:, :, 0, 0], [[-1, 0, 1], [1, 0, 0]], atol=1e-6)
    assert load(tmp_path, [spec], image_options=options, limit=1).n == 1


def test_images_follow_the_graphs_layout_and_type(tmp_path: Path) -> None:
    """Channels last, grey, whole numbers; sizes given where the graph has none."""
    paint(tmp_path / "a.png", (255, 255, 255))
    last = load(tmp_path, [Spec("x", FLOAT, ("n", 8, 8, 3))])
    assert last.shapes() == {"x": (1, 8, 8, 3)}
    assert last.labels is None
    options = ImageOptions(size=(2, 5))
    grey = load(
        tmp_path, [Spec("x", np.dtype(np.uint8), ("n", 1, "h", "w"))], image_options=options
    )
    x = next(grey.batches(1))["x"]
    assert (x.shape, x.max(), x.dtype.name) == ((1, 1, 2, 5), 255, "uint8")


IMAGE_ERRORS: list[tuple[Spec, ImageOptions, str]] = [
    (Spec("x", FLOAT, ("n", 3)), ImageOptions(), "one input of 4 axes"),
    (Spec("x", FLOAT, ("n", 3, "h", "w")), ImageOptions(), "size of the images"),
    (Spec("x", FLOAT, ("n", 7, 7, 7)), ImageOptions(), "channel axis"),
    (Spec("x", FLOAT, ("n", 3, 7, 7)), ImageOptions(layout="chw"), "`chw` is no layout"),
    (Spec("x", FLOAT, ("n", 3, 7, 7)), ImageOptions(mean=(1.0, 2.0)), "2 values for 3"),
    (Spec("x", np.dtype(np.uint8), ("n", 3, 7, 7)), ImageOptions(std=(1.0,)), "whole numbers"),
]


@pytest.mark.parametrize(("spec", "options", "message"), IMAGE_ERRORS)
def test_images_that_do_not_fit_are_refused(
    spec: Spec, options: ImageOptions, message: str, tmp_path: Path
) -> None:
    """Nothing about layout, size or scale is guessed."""
    paint(tmp_path / "a.png", (1, 2, 3))
    with pytest.raises(PruneError, match=message):
        load(tmp_path, [spec], image_options=options)


def test_broken_and_mixed_images_are_refused(tmp_path: Path) -> None:
    """A file that is no image is named; some labelled and some not is an error."""
    spec = Spec("x", FLOAT, ("n", 3, 2, 2))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        load(tmp_path, [spec])
    paint(tmp_path / "cat" / "b.png", (1, 2, 3))
    with pytest.raises(DataError, match="sub-folders"):
        load(tmp_path, [spec])
