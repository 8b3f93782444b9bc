"""ONNX Runtime behind one door: results, inputs, and errors that say what to do."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.backend import runtime
from onnxprune.backend.feeds import Spec, seeded_inputs
from onnxprune.backend.runtime import provider_name, providers, refuse_doubled, session
from onnxprune.errors import ModelError, UsageError
from tests.builder import Builder


def build(
    nodes: Sequence[NodeProto],
    weights: dict[str, np.ndarray],
    shape: Sequence[int | str | None] = ("batch", 4),
    kind: int = TensorProto.FLOAT,
    ir_version: int = 8,
) -> ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    if ir_version < 4:
        graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer
        )
    opset = [helper.make_opsetid("", 17 if ir_version > 3 else 9)]
    return helper.make_model(graph, opset_imports=opset, ir_version=ir_version)


def matmul(width: int = 3, ir_version: int = 8) -> ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    return build([node], {"w": weight}, ir_version=ir_version)


def test_a_session_computes_the_model_and_names_its_interface(tmp_path: Path) -> None:
    """Bytes and path give what NumPy computes; dynamic axes keep their names."""
    model = matmul()
    onnx.save(model, tmp_path / "m.onnx")
    x = np.ones((2, 4), np.float32)
    expected = x @ numpy_helper.to_array(model.graph.initializer[0])
    for source in (model, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        loaded = session(source, threads=1, optimize=False)
        np.testing.assert_allclose(loaded.run({"x": x})[0], expected, rtol=1e-6)
        assert loaded.inputs == (Spec("x", np.dtype(np.float32), ("batch", 4)),)
        assert (loaded.input_names, loaded.output_names) == (["x"], ["y"])


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_handed_over_in_memory_change_nothing(
    optimize: bool, ir_version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The skeleton with weights beside it computes what the whole model does, bit for bit."""
    model = matmul(300, ir_version)
    model.metadata_props.add(key="made", value="here")
    before = model.SerializeToString()
    x = seeded_inputs(model.graph.input[:1], {"x": (5, 4)})
    whole = session(model, optimize=optimize).run(x)[0]
    monkeypatch.setattr(runtime, "SKELETON_BYTES", 0)
    skeleton = session(model, optimize=optimize)
    assert skeleton._weights
    np.testing.assert_array_equal(skeleton.run(x)[0], whole)
    assert model.SerializeToString() == before


def test_a_skeleton_keeps_everything_but_the_weights() -> None:
    """Only the named initializers lose their bytes; all other fields are equal."""
    model = matmul(300)
    model.producer_name, model.model_version = "maker", 7
    model.graph.doc_string = "a graph"
    model.metadata_props.add(key="made", value="here")
    found = runtime._skeleton(model, {"w"})
    assert not found.graph.initializer[0].raw_data
    found.graph.initializer[0].CopyFrom(model.graph.initializer[0])
    assert found == model


def test_weights_in_another_file_are_refused_without_a_path() -> None:
    """ONNX Runtime would look for them in the working folder."""
    model = runtime._skeleton(matmul(), {"w"})
    with pytest.raises(ModelError, match="another file"):
        session(model)


def test_errors_of_onnx_runtime_are_one_short_line(tmp_path: Path) -> None:
    """Neither its codes nor its second lines reach the user."""
    broken = matmul()
    broken.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "bytes.onnx").write_bytes(b"no model")
    for load in (
        lambda: session(broken),
        lambda: session(tmp_path / "bytes.onnx"),
        lambda: session(tmp_path / "missing.onnx"),
        lambda: session(matmul()).run({"x": np.ones((2, 3), np.float32)}),
        lambda: session(matmul()).run({"q": np.ones((2, 4), np.float32)}),
    ):
        with pytest.raises(ModelError) as caught:
            load()
        assert "\n" not in caught.value.what
        assert "ONNXRuntimeError" not in caught.value.what
        assert caught.value.__cause__ is not None


def test_a_custom_library_that_does_not_load_is_named() -> None:
    """The path stands in the error."""
    with pytest.raises(UsageError, match=r"nothing\.so"):
        session(matmul(), custom_ops=["nothing.so"])


def test_providers_are_known_by_short_and_full_names() -> None:
    """`cpu` comes first; an unknown one is refused with those that are there."""
    assert providers()[0] == "cpu"
    assert provider_name("CPU") == provider_name("CPUExecutionProvider") == "CPUExecutionProvider"
    with pytest.raises(UsageError, match="`cpu`"):
        provider_name("cpux")


def fake_runtime(
    monkeypatch: pytest.MonkeyPatch, names: Sequence[str], load: Callable[..., Any] | None = None
) -> None:
    """Replace ONNX Runtime's list of providers, and how it makes a session."""
    real = runtime._onnxruntime()
    fake = SimpleNamespace(
        **{key: getattr(real, key) for key in ("SessionOptions", "OrtValue")},
        InferenceSession=load,
        get_available_providers=lambda: list(names),
    )
    monkeypatch.setattr(runtime, "_onnxruntime", lambda: fake)


def test_asking_for_cuda_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package for GPUs takes the place of the other."""
    fake_runtime(monkeypatch, ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="onnxruntime-gpu"):
        session(matmul(), provider="cuda")


class Native:
    """A session of a provider that gets some of the nodes."""

    def __init__(self, heavy_on: str) -> None:
        shape = SimpleNamespace(name="s", op_type="Shape")
        heavy = SimpleNamespace(name="mm", op_type="MatMul")
        self._parts = [("CPUExecutionProvider", shape), (heavy_on, heavy)]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda node=node: [node])
            for name, node in self._parts
        ]

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs

    def disable_fallback(self) -> None:
        """As the real one."""


def strict(native: Native) -> Callable[..., Any]:
    """A loader that refuses nodes on the CPU when told to, as ONNX Runtime does."""

    def load(source: Any, options: Any, providers: list[str], enable_fallback: int) -> Any:
        assert enable_fallback == 0
        try:
            refused = options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        except RuntimeError:
            refused = False
        if refused:
            raise RuntimeError("fallback to CPU EP has been explicitly disabled by the user.")
        return native

    return load


def test_heavy_nodes_elsewhere_are_an_error_that_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A MatMul that would quietly run on the CPU is refused."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake_runtime(monkeypatch, names, strict(Native("CPUExecutionProvider")))
    with pytest.raises(ModelError, match="`mm`"):
        session(matmul(), provider="cuda")


def test_shape_arithmetic_may_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that runs all heavy nodes is accepted."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake_runtime(monkeypatch, names, strict(Native("CUDAExecutionProvider")))
    assert session(matmul(), provider="cuda").provider == "CUDAExecutionProvider"


def test_a_provider_that_did_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself only warns."""
    native = Native("CPUExecutionProvider")
    monkeypatch.setattr(native, "get_providers", lambda: ["CPUExecutionProvider"])
    fake_runtime(monkeypatch, ["CUDAExecutionProvider"], lambda *_, **__: native)
    with pytest.raises(UsageError, match="did not start"):
        session(matmul(), provider="cuda")


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in providers(), reason="no CUDA provider")
def test_cuda_computes_what_the_cpu_does() -> None:
    """Outputs agree to float32 rounding."""
    feeds = seeded_inputs(matmul().graph.input, {"x": (3, 4)})
    gpu, cpu = (session(matmul(), provider=name).run(feeds)[0] for name in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-2, atol=1e-3)


def test_two_builds_side_by_side_are_refused() -> None:
    """They overwrite each other's files; the error names both and what to do."""
    refuse_doubled(["onnxruntime-gpu"])
    with pytest.raises(UsageError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        refuse_doubled(["onnxruntime", "onnxruntime-gpu"])


def test_a_missing_onnx_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error becomes a usage error with the command."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    runtime._onnxruntime.cache_clear()
    try:
        with pytest.raises(UsageError, match="pip install"):
            providers()
    finally:
        runtime._onnxruntime.cache_clear()


def test_seeded_inputs_follow_shape_type_and_seed() -> None:
    """Whole numbers stay below the bound, scalars are arrays; equal seeds, equal feeds."""
    specs = [
        Spec("f", np.dtype(np.float16), ("batch", None, 3)),
        Spec("i", np.dtype(np.int64), ("batch", 50)),
        Spec("b", np.dtype(np.bool_), (40,)),
        Spec("s", np.dtype(np.int32), ()),
    ]
    feeds = seeded_inputs(specs, seed=1, sizes={"batch": 2}, high=4)
    assert {n: (a.dtype.name, a.shape) for n, a in feeds.items()} == {
        "f": ("float16", (2, 1, 3)),
        "i": ("int64", (2, 50)),
        "b": ("bool", (40,)),
        "s": ("int32", ()),
    }
    assert isinstance(feeds["s"], np.ndarray)
    assert set(feeds["i"].ravel()) == {0, 1, 2, 3}
    again, other = (seeded_inputs(specs, seed=s, sizes={"batch": 2}, high=4) for s in (1, 2))
    assert all(np.array_equal(feeds[n], again[n]) for n in feeds)
    assert not np.array_equal(feeds["f"], other["f"])


def test_text_cannot_be_drawn() -> None:
    """The error names the input."""
    info = helper.make_tensor_value_info("words", TensorProto.STRING, [1])
    with pytest.raises(ModelError, match="`words`"):
        seeded_inputs([info])


def test_specs_of_a_graph_tell_unknown_rank_from_scalars() -> None:
    """-1 is a dynamic axis, as some exporters mean it."""
    make = helper.make_tensor_value_info
    assert Spec.of(make("a", TensorProto.FLOAT, None)).shape is None
    assert Spec.of(make("a", TensorProto.FLOAT, [])).shape == ()
    assert Spec.of(make("a", TensorProto.INT64, [-1, "n", 2, None])).shape == (None, "n", 2, None)


def test_a_model_that_does_not_run_is_told_with_its_sizes() -> None:
    """The user sees what was fed, and how to name other sizes."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(3, 2))
    model = b.model({"x": ["n", "k"], **{f"more{i}": [1] for i in range(9)}}, {y: ["n", 2]})
    fed = {"x": np.zeros((2, 4), np.float32)}
    fed |= {f"more{i}": np.zeros(1, np.float32) for i in range(9)}
    with pytest.raises(ModelError) as caught:
        session(model).run(fed)
    assert caught.value.where == (
        "input `x` of 2x4, input `more0` of 1, input `more1` of 1, input `more2` of 1, ..."
    )
    assert "--shape" in str(caught.value.hint)
