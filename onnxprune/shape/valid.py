"""What onnx's own checker and shape inference say of a model."""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, checker, helper, shape_inference

from onnxprune.model.graph import Model, needed_bytes, tensors
from onnxprune.model.storage import LIMIT_BYTES, copy_fields
from onnxprune.model.store import INLINE_BYTES
from onnxprune.shape.shapes import first_line

TOO_LARGE = "without its weights the model is still over 2 GB"


def _check(proto: ModelProto) -> None:
    checker.check_model(proto, full_check=True)


def _infer(proto: ModelProto) -> None:
    shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


CHECKS: dict[str, Callable[[ModelProto], None]] = {"checker": _check, "shape inference": _infer}


def refusal(check: Callable[[ModelProto], None], model: Model) -> str | None:
    """Why a check refuses a model; None where it does not."""
    light = declared_weights(model.proto)
    if sum(needed_bytes(name, tensor) for name, tensor in tensors(light)) > LIMIT_BYTES:
        return TOO_LARGE
    try:
        check(light)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        return first_line(error)
    except (ValueError, RuntimeError, TypeError) as error:  # what protobuf and C++ throw
        return first_line(error)
    return None


def declared_weights(proto: ModelProto) -> ModelProto:
    """The model with its larger weights declared as inputs.

    The checker and shape inference serialise a model, which takes the memory of another copy
    and ends at 2 GB; of a weight that is no shape they read type and dims only.
    """
    made = ModelProto()
    copy_fields(proto, made, {"graph"})
    copy_fields(proto.graph, made.graph, {"initializer"})
    listed = {info.name for info in proto.graph.input}
    for tensor in proto.graph.initializer:
        if needed_bytes(tensor.name, tensor) < INLINE_BYTES:
            made.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            made.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return made
