"""A checkpoint is cut as its model was: exported again, it is the cut model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.cutting.compact import Take
from onnxprune.errors import FileError, UsageError
from onnxprune.model.storage import load
from onnxprune.model.store import Array, values
from onnxprune.normal.normalize import stored_weights
from onnxprune.normal.origin import Origin
from onnxprune.planning.cost import Cost
from onnxprune.records.checkpoint import apply_to_file, cut_checkpoint
from onnxprune.records.planfile import PlanFile
from onnxprune.records.planrecord import WeightEntry
from onnxprune.records.tensorfile import TensorFile, read_tensors, write_tensors
from tests.builder import Builder
from tests.planned import Planned, heads, planned

MODELS = sorted((Path(__file__).parents[3] / "models").glob("*/model.onnx"))
W = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@cache
def case() -> Planned:
    """Attention heads, and a dense layer whose weight is stored turned."""
    return planned(heads())


def weights_of(found: Planned) -> dict[str, Array]:
    """What the file stores: the checkpoint the model was exported from."""
    stored = stored_weights(found.original)
    return {name: values(tensor) for name, tensor in stored.items()}


def rebuilt(found: Planned, cut: dict[str, Array]) -> dict[str, Array]:
    """Weights of the cut model, made from a cut checkpoint as the export made them."""
    made = {}
    for name, entry in found.written.weights.items():
        origin = entry.origin or Origin((entry.source,))
        if all(step["op"] == "Transpose" for step in origin.steps):
            made[name] = origin.replay(cut.__getitem__)
    return made


def assert_cut(found: Planned, cut: Any) -> None:
    """Exporting the cut checkpoint gives the cut model's weights."""
    weights = rebuilt(found, dict(cut))
    assert any(found.written.weights[name].takes for name in weights)
    for name, array in weights.items():
        assert np.array_equal(array, found.cut.model.array(name)), name


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_checkpoints_of_real_models(path: Path) -> None:
    """By name; everything that is cut is found."""
    found = planned(path)
    made = cut_checkpoint(found.written, weights_of(found))
    assert_cut(found, made.arrays)
    assert not made.missing


def test_a_turned_weight_is_cut_as_it_is_stored() -> None:
    """[out, in] in the checkpoint, [in, out] in the model."""
    found = case()
    made = cut_checkpoint(found.written, weights_of(found))
    assert_cut(found, made.arrays)
    (turned,) = (e for e in found.written.weights.values() if e.origin and e.origin.steps)
    assert turned.origin is not None
    name = turned.origin.sources[0]
    assert name in made.cut
    whole = weights_of(found)[name]
    assert np.isin(made.arrays[name], whole).all()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_of_both_kinds(suffix: str, tmp_path: Path) -> None:
    """The output is of the same kind, and holds the tensors that were not cut too."""
    found = case()
    arrays = {k: v for k, v in weights_of(found).items() if v.dtype == np.float32}
    arrays |= {"steps": np.zeros(3, np.float32)}
    kinds = dict.fromkeys(arrays, "F32")
    write_tensors(TensorFile(arrays, f".{suffix}", kinds, {}), tmp_path / f"a.{suffix}")
    made = apply_to_file(found.written, tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    written = read_tensors(tmp_path / f"b.{suffix}").arrays
    assert written.keys() == arrays.keys()
    assert all(np.array_equal(written[name], array) for name, array in made.arrays.items())
    assert_cut(found, made.arrays)


def test_the_output_is_neither_an_input_nor_of_another_kind(tmp_path: Path) -> None:
    """Both before anything is read."""
    arrays = weights_of(case())
    write_tensors(TensorFile(arrays, ".npz", {}, {}), tmp_path / "a.npz")
    with pytest.raises(FileError, match="also an input"):
        apply_to_file(case().written, tmp_path / "a.npz", tmp_path / "a.npz", overwrite=True)
    with pytest.raises(UsageError, match=r"a `\.npz` file"):
        apply_to_file(case().written, tmp_path / "a.npz", tmp_path / "b.safetensors")


def test_other_names_are_found_by_value() -> None:
    """Where the model is given: tensors named and turned as another framework does."""
    found = case()
    own = weights_of(found)
    other = {f"layer/{n}": a.T if a.ndim == 2 else a for n, a in own.items() if a.dtype.kind == "f"}
    with pytest.raises(UsageError, match="not in the checkpoint") as error:
        cut_checkpoint(found.written, other)
    assert "give the original model" in error.value.hint
    made = cut_checkpoint(found.written, other, found.original)
    back = {name.removeprefix("layer/"): array.T for name, array in made.arrays.items()}
    assert_cut(found, own | back)


def test_values_that_changed_are_not_found() -> None:
    """An export that fused something has other values: an error, never half a cut."""
    found = case()
    other = {f"layer/{n}": a + 1 for n, a in weights_of(found).items()}
    with pytest.raises(UsageError, match="not in the checkpoint") as error:
        cut_checkpoint(found.written, other, found.original)
    assert "fused" in error.value.hint


def test_a_name_with_a_turned_matrix() -> None:
    """The same name and the axes swapped: told by the shape."""
    found = case()
    own = weights_of(found)
    plain = next(
        e.source for e in found.written.weights.values()
        if e.takes and not (e.origin and e.origin.steps) and len(set(e.shape)) == 2
    )  # fmt: skip
    made = cut_checkpoint(found.written, own | {plain: own[plain].T})
    assert_cut(found, {**made.arrays, plain: made.arrays[plain].T})


def plan_of(**weights: WeightEntry) -> PlanFile:
    """A plan that says no more than what to take."""
    cost = Cost(0, 0, 0)
    return PlanFile({}, {}, (), 0, {}, cost, cost, 0, (), weights)


def entry(*kept: int, origin: Origin | None = None, source: str = "w") -> WeightEntry:
    """One take from a weight of shape [4, 6]; none where nothing is said."""
    takes = (Take(0, np.array(kept)),) if kept else ()
    return WeightEntry(source, (4, 6), takes, origin)


def gates(b: Builder) -> tuple[ModelProto, str]:
    """A recurrent layer whose stored gates are reordered on the way, and its weight's name."""
    w, r, bias = b.weight(16, 3), b.weight(16, 4), b.weight(32)

    def ordered(value: str, start: int = 0) -> str:
        order = [(start + 4 * i, start + 4 * i + 4) for i in (0, 3, 1, 2)]
        cuts = [b.node("Slice", value, b.ints(i), b.ints(j), b.ints(0)) for i, j in order]
        return b.node("Concat", *cuts, axis=0)

    both = b.node("Concat", ordered(bias), ordered(bias, 16), axis=0)
    wide = [b.node("Unsqueeze", v, b.ints(0)) for v in (ordered(w), ordered(r), both)]
    y = b.node("LSTM", "x", *wide, hidden_size=4)
    flat = b.node("Squeeze", y, b.ints(1))
    out = b.node("MatMul", flat, b.weight(4, 2))
    return b.model({"x": ["t", "n", 3]}, {out: ["t", "n", 2]}), w


def test_reordered_gates_are_cut_in_the_stored_order() -> None:
    """The gates of a recurrent cell: the cut checkpoint, exported again, is the cut model."""
    model, w = gates(Builder(0))
    found = planned(model, 0.6)
    made = cut_checkpoint(found.written, weights_of(found))
    width = made.arrays[w].shape[0] // 4
    assert w in made.cut
    parts = np.split(made.arrays[w], 4)
    name = next(n for n, e in found.written.weights.items() if e.origin and w in e.origin.sources)
    assert np.array_equal(
        np.concatenate([parts[i] for i in (0, 3, 1, 2)])[None], found.cut.model.array(name)
    )
    assert width < 4


def test_slices_of_one_tensor_are_cut_together() -> None:
    """A packed weight: what its parts keep, side by side."""
    def part(i: int, j: int) -> Origin:
        return Origin(("w",), ({"op": "Slice", "axes": [0], "starts": [i], "ends": [j],
                                "steps": [1]},))  # fmt: skip

    uses = {
        name: WeightEntry(name, (2, 6), (Take(0, np.array([kept])),), part(i, i + 2))
        for name, i, kept in (("q", 0, 1), ("k", 2, 0))
    }
    made = cut_checkpoint(plan_of(**uses), {"w": W})
    assert np.array_equal(made.arrays["w"], W[[1, 2]])


def test_what_no_layer_reads_stays() -> None:
    """Rows of a tensor that the export left out are not the plan's to cut."""
    first = {"op": "Slice", "axes": [0], "starts": [0], "ends": [2], "steps": [1]}
    use = WeightEntry("q", (2, 6), (Take(0, np.array([1])),), Origin(("w",), (first,)))
    made = cut_checkpoint(plan_of(q=use), {"w": W})
    assert np.array_equal(made.arrays["w"], W[1:])


def test_axes_go_back_where_they_were() -> None:
    """A filter whose channels are last in the checkpoint, and second in the stored model."""
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    turned = Origin(("w",), ({"op": "Transpose", "perm": [1, 2, 0]},))
    use = WeightEntry("t", (4, 5, 3), (Take(0, np.array([0, 2])), Take(1, np.array([1]))), turned)
    made = cut_checkpoint(plan_of(t=use), {"w": whole})
    assert np.array_equal(made.arrays["w"], whole[:, [0, 2]][:, :, [1]])


def test_a_new_order_is_kept() -> None:
    """A take may also put channels into another order."""
    made = cut_checkpoint(plan_of(w=entry(3, 0)), {"w": W})
    assert np.array_equal(made.arrays["w"], W[[3, 0]])


def test_rows_of_their_own() -> None:
    """Each row of a grouped weight keeps other columns."""
    kept = np.array([[0, 1], [2, 3], [4, 5], [0, 5]])
    use = WeightEntry("w", (4, 6), (Take(1, kept, (0,)),), None)
    made = cut_checkpoint(plan_of(w=use), {"w": W})
    assert np.array_equal(made.arrays["w"], np.take_along_axis(W, kept, 1))


RESHAPED = Origin(("w",), ({"op": "Reshape", "shape": [4, 6]},))
REFUSED = {
    "cut in different ways": plan_of(a=entry(0), b=entry(1)),
    "another order": plan_of(a=entry(1, 0, origin=RESHAPED)),
    "no array": plan_of(a=WeightEntry("a", (4, 6), (Take(1, np.array([[0], [1], [2], [3]]), (0,)),),
                                      RESHAPED)),
    "computed": plan_of(a=entry(0, origin=Origin(("w",), ({"op": "fold"},)))),
    "the shape": plan_of(a=WeightEntry("w", (5, 6), (Take(0, np.array([0])),), None)),
    "the steps": plan_of(a=entry(0, origin=Origin(("w",), ({"op": "Transpose", "perm": [9]},)))),
}  # fmt: skip


@pytest.mark.parametrize(("what", "written"), REFUSED.items(), ids=REFUSED.keys())
def test_what_a_checkpoint_cannot_follow_is_refused(what: str, written: PlanFile) -> None:
    """Uses that disagree, and weights whose values are no longer where they were."""
    with pytest.raises(UsageError, match=what):
        cut_checkpoint(written, {"w": W})


def test_one_use_left_whole_is_another_way() -> None:
    """A weight that one layer keeps whole and another cuts cannot be both."""
    with pytest.raises(UsageError, match="different ways"):
        cut_checkpoint(plan_of(a=entry(), b=entry(1)), {"w": W})


def test_equal_tensors_are_not_guessed_apart() -> None:
    """Two tensors with the values of one weight: neither is taken."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.add(np.ones((4, 6))))
    model = load(b.model({"x": ["n", 4]}, {y: ["n", 6]}))
    same = np.ones((4, 6), np.float32)
    written = plan_of(w0=entry(1, source="w0"))
    assert cut_checkpoint(written, {"p": same}, model).cut == ("p",)
    with pytest.raises(UsageError, match="not in the checkpoint"):
        cut_checkpoint(written, {"p": same, "q": same}, model)


def test_vectors_that_are_missing_are_told() -> None:
    """A constant that the export made is not in the checkpoint; nothing is wrong with that."""
    scale = WeightEntry("scale", (1, 6, 1), (Take(1, np.array([0])),), None)
    made = cut_checkpoint(plan_of(w=entry(0), scale=scale), {"w": W})
    assert (made.cut, made.missing) == (("w",), ("scale",))
