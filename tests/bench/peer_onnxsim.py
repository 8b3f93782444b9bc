"""onnxsim's structured pruning, run by peers.py in a Python that has onnxsim and onnxruntime.

    PYTHON peer_onnxsim.py MODEL DATA VARIANT

Variants: l2, global, wanda, wanda-global. Its chains need folded BatchNormalization, inlined
functions and activations as one operator, so it is given the model simplified, fused by ONNX
Runtime, and as it is; the form of which it cuts most is used. Channels and attention heads are cut
by one share.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxsim
from peer_wire import batches, serve

CHANNELS = {"l2": {}, "global": {"global_sparsity": True}}


def forms(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The model simplified, fused, and as it is: whichever can be had."""
    found = []
    for make in (simplified, fused):
        try:
            found.append(make(model))
        except Exception as error:
            print(f"{make.__name__}: {error}", file=sys.stderr)
    return [*found, model]


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """BatchNormalization folded, functions inlined, constants as initializers."""
    made, _ = onnxsim.simplify(model, inline_functions=True)
    return made


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Attention and the like as single operators."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "fused.onnx")
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level, options.optimized_model_filepath = level, path
        # Not the simplified one: its MatMul with a bias are Gemm between Reshapes, which neither
        # these fusions nor the chains reach through.
        raw = model.SerializeToString()
        onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def cut(
    model: onnx.ModelProto, share: float, variant: str, data: list[dict[str, Any]]
) -> onnx.ModelProto:
    """Channels, then heads, by one share."""
    norm, _, rest = variant.partition("-")
    if norm != "wanda":
        made = onnxsim.apply_structured_pruning(model, sparsity=share, **CHANNELS[variant])
        return onnxsim.apply_attention_head_pruning(made, sparsity=share)
    more: dict[str, Any] = {"calibration_data": data, "sparsity": share}
    made = onnxsim.apply_structured_wanda_pruning(model, global_sparsity=bool(rest), **more)
    return onnxsim.apply_attention_head_wanda_pruning(made, **more)


def size(model: onnx.ModelProto) -> int:
    """Bytes of the file."""
    return int(model.ByteSize())


def open_peer() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load, choose the form, and return what answers requests."""
    path, data_path, variant = sys.argv[1:]
    raw = onnx.load(path)
    weights = {t.name for t in raw.graph.initializer}
    inputs = [i for i in raw.graph.input if i.name not in weights]
    fixed = inputs[0].type.tensor_type.shape.dim[0].dim_value
    data = batches(data_path, [i.name for i in inputs], fixed or 32)
    # `min` takes the first of equals: the simplified one.
    model = min(forms(raw), key=lambda m: size(cut(m, 0.5, "l2", [])) - size(m))

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        made = cut(model, request["ratio"], variant, data[:1] if request["probe"] else data)
        if not request["finetune"]:
            onnx.save(made, request["out"])
            return {}
        tuned = onnxsim.apply_pruning_finetune(model, made, calibration_data=data)
        onnx.save(tuned, request["out"])
        return {"changed": tuned.SerializeToString() != made.SerializeToString()}

    return answer


if __name__ == "__main__":
    serve(open_peer)
