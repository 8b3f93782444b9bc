"""ONNX Runtime behind one door: sessions that are quiet, checked, and refuse to fall back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxprune.backend.feeds import Array, Spec, seeded_inputs
from onnxprune.errors import ModelError, PruneError, UsageError, did_you_mean
from onnxprune.model.graph import needed_bytes, read_names
from onnxprune.model.storage import copy_fields
from onnxprune.model.store import completed, described, held, values

__all__ = [
    "Array",
    "Session",
    "Spec",
    "provider_name",
    "providers",
    "seeded_inputs",
    "session",
]

# Each of these packages installs the same files: two of them overwrite each other.
BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")

# From here on weights are handed over in memory: serialising 100 MB costs more than the session,
# and from 2 GB on it is impossible.
SKELETON_BYTES = 16 * 2**20
# Smaller initializers may be shapes, which ONNX Runtime needs to read while it loads.
WEIGHT_ELEMENTS = 256
# Inputs that a message names.
MOST_LISTED = 4

# Nodes that must run where the user asked; shape arithmetic may stay on the CPU.
HEAVY = frozenset(
    """Attention BiasGelu Conv ConvInteger ConvTranspose DynamicQuantizeLSTM Einsum FusedConv
    FusedGemm FusedMatMul GRU Gemm GroupQueryAttention LSTM MatMul MatMulInteger MatMulNBits
    MultiHeadAttention QAttention QLinearConv QLinearMatMul RNN""".split()
)

_HANDED_OVER = frozenset(
    helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in "float16 float32 float64 int8 uint8 int32 int64".split()
)
_DTYPES = {"float": "float32", "double": "float64"} | {
    name: name for name in "float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
}


class Session:
    """A model loaded into ONNX Runtime.

    Args:
        native: the InferenceSession.
        provider: full name of the execution provider that was asked for.
        weights: values the session reads without owning them.
    """

    def __init__(self, native: Any, provider: str, weights: Sequence[Any] = ()) -> None:
        self._native, self._weights = native, weights
        self.provider = provider
        self.inputs = tuple(_spec(arg) for arg in native.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in native.get_outputs())

    @property
    def input_names(self) -> list[str]:
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Values of the named outputs (default: all, in order).

        Raises: ModelError: ONNX Runtime could not run the model on these feeds.
        """
        try:
            return list(self._native.run(outputs, dict(feeds)))
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime could not run the model: {_short(error)}",
                where=_listed(feeds),
                hint="if it takes other sizes, name them: --shape INPUT=1x3x224x224",
            ) from error


def _listed(feeds: Mapping[str, Array]) -> str:
    """What a model was fed, in words."""
    sizes = {name: "x".join(map(str, np.shape(a))) or "one number" for name, a in feeds.items()}
    words = [f"input `{name}` of {size}" for name, size in sizes.items()]
    return ", ".join(words[:MOST_LISTED]) + (", ..." if len(words) > MOST_LISTED else "")


def session(
    model: ModelProto | str | Path,
    *,
    threads: int = 0,
    optimize: bool = True,
    provider: str = "cpu",
    custom_ops: Sequence[str] = (),
) -> Session:
    """Load a model.

    Args:
        model: a path, or a model with its weights inside; it may be larger than 2 GB.
        threads: threads within an operator; 0 leaves the number to ONNX Runtime.
        optimize: let ONNX Runtime rewrite the graph (fusions, folding).
        provider: `cpu`, `cuda` or another name from `providers()`.
        custom_ops: shared libraries with custom operators.

    Raises:
        ModelError: it does not load, or heavy nodes would not run on the provider.
        UsageError: ONNX Runtime or the provider is not there, or a library does not load.
    """
    ort = _onnxruntime()
    wanted = provider_name(provider)
    source, names, values = _source(ort, model)

    def load(**entries: str) -> Any:
        options = _options(ort, threads, optimize, custom_ops, entries)
        if names:
            options.add_external_initializers(names, values)
        return ort.InferenceSession(source, options, providers=[wanted], enable_fallback=0)

    try:
        native = load() if wanted == "CPUExecutionProvider" else _load_placed(load, wanted)
    except PruneError:
        raise
    except Exception as error:
        what = f"ONNX Runtime could not load the model: {_short(error)}"
        unknown = "is not a registered function/op" in str(error)
        hint = "give the library of its custom operators with --custom-ops" if unknown else ""
        raise ModelError(what, hint=hint) from error
    native.disable_fallback()
    return Session(native, wanted, values)


def _options(
    ort: Any, threads: int, optimize: bool, custom_ops: Sequence[str], entries: Mapping[str, str]
) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimize:
        # For a few runs: neither weights in a second layout nor memory kept for the next run.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Several sessions live side by side; idle threads that spin would slow the others down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    for library in custom_ops:
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:
            raise UsageError(
                f"the custom operator library does not load: {_short(error)}",
                where=str(library),
                hint="give the path of a shared library built for this ONNX Runtime",
            ) from error
    return options


def _load_placed(load: Any, wanted: str) -> Any:
    """A session whose heavy nodes all run on the provider that was asked for."""
    try:
        native = load(disable_cpu_ep_fallback="1")
    except Exception as error:
        if "explicitly disabled" not in str(error):
            raise
        # The strict option refuses shape arithmetic on the CPU too: look which nodes they are.
        native = load(record_ep_graph_assignment_info="1")
        stray = _stray(native, wanted)
        if stray:
            raise ModelError(
                f"{len(stray)} heavy nodes would run elsewhere than on `{wanted}`",
                where=", ".join(stray[:5]) + (", ..." if len(stray) > 5 else ""),
                hint="use `--provider cpu`, or an ONNX Runtime whose provider has these operators",
            ) from error
    if wanted not in native.get_providers():
        raise UsageError(
            f"ONNX Runtime did not start `{wanted}`",
            hint="check the driver and libraries that this provider needs",
        )
    return native


def _stray(native: Any, wanted: str) -> list[str]:
    """Heavy nodes that another provider got: `name (operator, provider)`."""
    return [
        f"`{node.name}` ({node.op_type}, {part.ep_name})"
        for part in native.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
        if node.op_type in HEAVY
    ]


def providers() -> list[str]:
    """Short names of the execution providers that are installed, `cpu` first."""
    names = [name.removesuffix("ExecutionProvider").lower() for name in _available()]
    return sorted(names, key=lambda name: (name != "cpu", name))


def provider_name(provider: str) -> str:
    """The full name of a provider given as `cuda` or `CUDAExecutionProvider`.

    Raises: UsageError: it is not installed.
    """
    short = provider.lower().removesuffix("executionprovider")
    for name in _available():
        if name.lower() == f"{short}executionprovider":
            return name
    hint = did_you_mean(short, providers())
    if short == "cuda":
        hint = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    raise UsageError(f"the provider `{provider}` is not installed", hint=hint)


def _available() -> list[str]:
    return list(_onnxruntime().get_available_providers())


@cache
def _onnxruntime() -> Any:
    """The package, imported when first needed.

    Raises: UsageError: it is missing, broken, or installed twice.
    """
    refuse_doubled(name for name in BUILDS if _is_installed(name))
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018  a half-removed package has no such name
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"ONNX Runtime cannot be imported: {_short(error)}",
            hint="pip install --force-reinstall onnxruntime (or onnxruntime-gpu, not both)",
        ) from error
    return onnxruntime


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def refuse_doubled(builds: Iterable[str]) -> None:
    """Refuse two builds of ONNX Runtime in one environment.

    Raises: UsageError: more than one build is installed.
    """
    found = list(builds)
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(f'`{name}`' for name in found)} are installed side by side",
            hint=f"pip uninstall {' '.join(found)}, then install one of them",
        )


def _source(ort: Any, model: ModelProto | str | Path) -> tuple[str | bytes, list[str], list[Any]]:
    """What a session loads: a path or bytes, and the weights handed over beside them."""
    if not isinstance(model, ModelProto):
        return str(model), [], []
    initializers = model.graph.initializer
    outside = [t.name for t in initializers if t.data_location == TensorProto.EXTERNAL
               and held(t) is None]  # fmt: skip
    if outside:
        raise ModelError(
            "the model's weights lie in another file",
            where=", ".join(f"`{name}`" for name in outside[:3]),
            hint="give the path of the model, or load its weights first",
        )
    # ONNX Runtime drops what nobody reads, and then does not know the name that is handed over.
    read = read_names(model.graph)
    apart = {t.name: values(t) for t in initializers if t.name in read and held(t) is not None}
    inside = read - apart.keys()
    inline = [t for t in initializers if t.name in inside and _is_handed_over(t)]
    if sum(needed_bytes(t.name, t) for t in inline) >= SKELETON_BYTES:
        apart |= {t.name: values(t) for t in inline}
    handed = [ort.OrtValue.ortvalue_from_numpy(array) for array in apart.values()]
    try:
        return _skeleton(model, apart.keys()).SerializeToString(), list(apart), handed
    except Exception as error:  # protobuf's own EncodeError, by implementation
        raise ModelError(
            f"the model cannot be handed to ONNX Runtime: {_short(error)}",
            hint="save it with external data and give its path",
        ) from error


def _is_handed_over(tensor: TensorProto) -> bool:
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    return tensor.data_type in _HANDED_OVER and elements >= WEIGHT_ELEMENTS


def _skeleton(model: ModelProto, names: Collection[str]) -> ModelProto:
    """The model with the named initializers said to lie elsewhere; the model if there are none."""
    if not names and not any(t.data_location for t in model.graph.initializer):
        return model
    made, graph = ModelProto(), GraphProto()
    copy_fields(model, made, {"graph"})
    copy_fields(model.graph, graph, {"initializer"})
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            graph.initializer.append(completed(tensor))
            continue
        stub = described(tensor)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="in-memory")
        graph.initializer.append(stub)
    made.graph.CopyFrom(graph)
    return made


def _spec(arg: Any) -> Spec:
    kind = str(arg.type)
    name = _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")"))
    dtype = np.dtype(name) if name and kind.startswith("tensor(") else None
    return Spec(arg.name, dtype, tuple(arg.shape))


def _short(error: BaseException) -> str:
    """The first line of an error, without ONNX Runtime's codes in front."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if first.startswith("[ONNXRuntimeError]"):
        first = first.split(" : ", 3)[-1]
    return first.strip().rstrip(".")[:300]
