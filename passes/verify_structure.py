"""Check that the candidate is a valid model with the original's interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from onnx import TypeProto, ValueInfoProto, helper

from onnxprune.errors import ModelError
from onnxprune.manager import State, Verification
from onnxprune.model.checks import check as check_model
from onnxprune.model.graph import Model, plain_domain
from onnxprune.shape.valid import CHECKS, TOO_LARGE, refusal


@dataclass(frozen=True)
class VerifyStructure(Verification):
    """Check the candidate's graph, its shapes and its interface.

    What onnx's checker or shape inference refuses counts only where the original passes: an
    exporter's fault is not the candidate's.
    """

    name: ClassVar[str] = "verify-structure"

    def run(self, state: State) -> dict[str, Any]:
        original, candidate = state.original.model, state.model
        failures, notes = list(interface_changes(original, candidate)), []
        try:
            check_model(candidate.proto)
        except ModelError as error:
            failures.append(f"{error.what}{f' ({error.where})' if error.where else ''}")
        for name, check in CHECKS.items():
            refused = refusal(check, candidate)
            if refused is None:
                continue
            if refused == TOO_LARGE:
                notes.append(f"{name} skipped: {TOO_LARGE}")
            elif refusal(check, original) is None:
                failures.append(f"{name}: {refused}")
            else:
                notes.append(f"{name} refuses the original too: {refused}")
        return {"passed": not failures, "failures": failures, "notes": notes}


# --- interface ---------------------------------------------------------------------------------


def interface_changes(original: Model, candidate: Model) -> Iterator[str]:
    """What a caller would notice without running the model."""
    yield from _infos_changed("input", _inputs(original), _inputs(candidate))
    yield from _infos_changed("output", original.outputs, candidate.outputs)
    yield from _opsets_changed(original, candidate)
    before, after = (
        {p.key: p.value for p in model.proto.metadata_props} for model in (original, candidate)
    )
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key):
            yield f"metadata `{key}` was {before.get(key)!r}, is now {after.get(key)!r}"


def _inputs(model: Model) -> tuple[ValueInfoProto, ...]:
    """Inputs of the graph in order; up to IR 3 a listed initializer is a weight."""
    given = {*model.input_names, *model.overridable}
    return tuple(info for info in model.proto.graph.input if info.name in given)


def _infos_changed(
    kind: str, before: tuple[ValueInfoProto, ...], after: tuple[ValueInfoProto, ...]
) -> Iterator[str]:
    ours, theirs = ({info.name: type_text(info.type) for info in i} for i in (before, after))
    yield from (f"{kind} `{name}` is gone" for name in ours if name not in theirs)
    yield from (f"{kind} `{name}` is new" for name in theirs if name not in ours)
    if ours.keys() == theirs.keys() and list(ours) != list(theirs):
        yield f"the {kind}s stand in another order: {', '.join(f'`{n}`' for n in theirs)}"
    for name, text in ours.items():
        if theirs.get(name, text) != text:
            yield f"{kind} `{name}` was {text}, is now {theirs[name]}"


def type_text(kind: TypeProto) -> str:
    """A type in words, dynamic axes by their names."""
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, which)
        text = _element_text(tensor.elem_type)
        if tensor.HasField("shape"):
            text += f" [{', '.join(_dim_text(d) for d in tensor.shape.dim)}]"
        return text if which == "tensor_type" else f"sparse {text}"
    if which in ("sequence_type", "optional_type"):
        return f"{which.removesuffix('_type')} of {type_text(getattr(kind, which).elem_type)}"
    if which == "map_type":
        values = type_text(kind.map_type.value_type)
        return f"map of {_element_text(kind.map_type.key_type)} to {values}"
    return "untyped"


def _element_text(number: int) -> str:
    return helper.tensor_dtype_to_string(number).removeprefix("TensorProto.").lower()


def _dim_text(dim: Any) -> str:
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


def _opsets_changed(original: Model, candidate: Model) -> Iterator[str]:
    """Versions that differ; inlined functions may bring their own domains and versions."""
    functions = original.proto.functions
    inlined = {plain_domain(function.domain) for function in functions}
    brought = {plain_domain(o.domain) for f in functions for o in f.opset_import}
    for domain in dict.fromkeys((*original.opsets, *candidate.opsets)):
        before, after = original.opsets.get(domain), candidate.opsets.get(domain)
        is_moved = domain in brought or (after is None and domain in inlined)
        if before != after and not is_moved:
            yield f"opset of `{domain or 'ai.onnx'}` was {before}, is now {after}"
