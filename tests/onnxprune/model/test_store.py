"""Large weights beside the protos."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.model.graph import Model
from onnxprune.model.storage import load, save
from onnxprune.model.store import complete, described, held, put, values
from tests.builder import Builder


def wide() -> ModelProto:
    """A weight of 4 kB and one of 16 bytes."""
    b = Builder(0)
    y = b.node("Add", b.node("MatMul", "x", b.weight(256, 4)), b.weight(4))
    return b.model({"x": ["N", 256]}, {y: ["N", 4]})


def like(name: str = "w", kind: int = TensorProto.FLOAT) -> TensorProto:
    """A description."""
    return TensorProto(name=name, data_type=kind, doc_string="said")


def test_a_large_array_stays_outside_and_a_small_one_does_not() -> None:
    """Both give their values, name, type and doc string."""
    for array in (np.arange(1000, dtype=np.float32).reshape(10, 100), np.ones(3, np.float32)):
        made, apart = put(array, like())
        assert (held(made) is not None) == (array.nbytes >= 1024)
        assert (apart is not None) == (held(made) is not None)
        assert np.array_equal(values(made), array)
        assert (made.name, made.doc_string, tuple(made.dims)) == ("w", "said", array.shape)


def test_types_that_numpy_lacks_stay_inside() -> None:
    """Their bytes are packed as ONNX packs them."""
    array = numpy_helper.to_array(onnx.helper.make_tensor("w", TensorProto.BFLOAT16, [900],
                                                          np.ones(900)))  # fmt: skip
    made, apart = put(array, like(kind=TensorProto.BFLOAT16))
    assert apart is None
    assert np.array_equal(numpy_helper.to_array(made), array)


def test_an_array_lives_as_long_as_a_model_that_reads_it() -> None:
    """A model holds what its stubs stand for; without one the stub stands for nothing."""
    made, apart = put(np.ones((30, 30), np.float32), like())
    proto = ModelProto()
    proto.graph.initializer.append(made)
    model = Model(proto)
    del apart
    gc.collect()
    assert held(made) is not None
    del model
    gc.collect()
    assert held(made) is None


def test_loading_shares_and_saving_writes_the_same(tmp_path: Path) -> None:
    """Field by field the file comes back; a copy of the proto shares its weights."""
    onnx.save(wide(), tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    assert model.complete() == wide()
    copy = ModelProto()
    copy.CopyFrom(model.proto)
    first, second = (held(m.graph.initializer[0]) for m in (model.proto, copy))
    assert first is not None
    assert first is second
    save(model, tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "b.onnx") == wide()


def test_a_file_cannot_name_an_array_in_memory(tmp_path: Path) -> None:
    """A stub's location is a secret of the process: one guessed or copied names a missing file."""
    onnx.save(wide(), tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    stub = model.proto.graph.initializer[0]
    assert len(stub.external_data[0].value) > 40
    assert not described(stub).external_data
    assert complete(wide()) == wide()
