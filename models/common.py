"""What every train.py here shares: the data splits, and writing and checking the four files.

Needs numpy, onnx, onnxruntime and scikit-learn; no torch, so that the scikit-learn models can be
made without it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split

SEED = 0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Splits:
    """Rows for training, unlabelled rows for calibration, labelled rows held out for evaluation."""

    train_x: Array
    train_y: Array
    calibration_x: Array
    eval_x: Array
    eval_y: Array
    # How the calibration rows relate to the other two parts, in words, for the card.
    calibration_from: str


@dataclass(frozen=True)
class Dataset:
    """Where the data came from, as the card tells it."""

    name: str
    source: str
    licence: str


DIGITS = Dataset(
    name="Optical Recognition of Handwritten Digits (test part), sklearn.datasets.load_digits",
    source="E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49",
    licence="CC BY 4.0",
)


@dataclass(frozen=True)
class Card:
    """The part of card.json that a train.py has to state; the rest is measured."""

    what: str
    framework: str
    exporter: str
    dataset: Dataset
    metric: str
    output: str


def digits_splits(as_images: bool) -> Splits:
    """Digits in [0, 1]: 997 to train, 300 to calibrate, 500 to test.

    They are (n, 8, 8), eight rows of eight pixels, or as images (n, 1, 16, 16): each pixel is
    doubled both ways to give a CNN some room to pool.
    """
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    if as_images:
        x = x[:, np.newaxis].repeat(2, axis=2).repeat(2, axis=3)
    y = labels.astype(np.int64)
    rest_x, eval_x, rest_y, eval_y = train_test_split(
        x, y, test_size=500, random_state=SEED, stratify=y
    )
    train_x, calibration_x, train_y, _ = train_test_split(
        rest_x, rest_y, test_size=300, random_state=SEED, stratify=rest_y
    )
    return Splits(
        train_x, train_y, calibration_x, eval_x, eval_y, "rows in neither training nor evaluation"
    )


def tabular_splits(x: Array, y: Array, n_eval: int, stratify: bool) -> Splits:
    """Split a small table; 300 training rows serve for calibration, as there are none to spare."""
    train_x, eval_x, train_y, eval_y = train_test_split(
        x, y, test_size=n_eval, random_state=SEED, stratify=y if stratify else None
    )
    return Splits(train_x, train_y, train_x[:300], eval_x, eval_y, "training rows")


def strip_metadata(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces, with paths of the machine that exported."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.initializer, *graph.value_info):
        owner.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")


def count_params(model: onnx.ModelProto) -> int:
    """Elements in all floating-point initializers (BatchNormalization statistics included)."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type in floats
    )


def predict(session: ort.InferenceSession, output: str, x: Array) -> Array:
    """One output of a model with a single input."""
    (entry,) = session.get_inputs()
    return np.asarray(session.run([output], {entry.name: x})[0])


def score(metric: str, labels: Array, outputs: Array) -> float:
    """Accuracy of the arg max, or r2 of the raw output."""
    if metric == "accuracy":
        return float(accuracy_score(labels, outputs.argmax(axis=1)))
    if metric == "r2":
        return float(r2_score(labels, outputs.reshape(-1)))
    raise ValueError(f"unknown metric {metric!r}")


def check(model: onnx.ModelProto, splits: Splits, output: str, reference: Array) -> Array:
    """Check the model, compare it with the framework's own outputs, and return the outputs.

    reference holds what the framework computes for splits.eval_x.
    """
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = predict(session, output, splits.eval_x)
    np.testing.assert_allclose(outputs, reference, rtol=1e-3, atol=1e-4)
    for batch in (1, 3):
        part = predict(session, output, splits.eval_x[:batch])
        np.testing.assert_allclose(part, outputs[:batch], rtol=1e-3, atol=1e-4)
    return outputs


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Version per operator domain."""
    return {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write a compressed .npz file."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def write_all(
    script: str, model: onnx.ModelProto, splits: Splits, card: Card, reference: Array
) -> None:
    """Check the model and write model.onnx, eval.npz, calibration.npz and card.json by script."""
    folder = Path(script).resolve().parent
    strip_metadata(model)
    outputs = check(model, splits, card.output, reference)
    onnx.save(model, folder / "model.onnx")
    name = model.graph.input[0].name
    save_arrays(folder / "eval.npz", {name: splits.eval_x, "labels": splits.eval_y})
    save_arrays(folder / "calibration.npz", {name: splits.calibration_x})
    facts = {
        "name": folder.name,
        "what": card.what,
        "framework": card.framework,
        "exporter": card.exporter,
        "opset": opsets(model),
        "data": {
            **asdict(card.dataset),
            "train_rows": len(splits.train_x),
            "calibration_rows": len(splits.calibration_x),
            "calibration_from": splits.calibration_from,
        },
        "metric": card.metric,
        "output": card.output,
        "value": round(score(card.metric, splits.eval_y, outputs), 4),
        "n": len(splits.eval_y),
        "params": count_params(model),
        "licence": "that of this repository",
        "command": f"python models/{folder.name}/train.py",
    }
    (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"{folder.name}: {card.metric} {facts['value']} on {facts['n']} samples")
