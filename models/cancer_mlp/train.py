"""Standardized features and an MLP classifier on the breast cancer data.

Packages: scikit-learn 1.9, skl2onnx 1.20, onnx 1.23, onnxruntime 1.32.
Data: scikit-learn's load_breast_cancer. Exporter: skl2onnx, opset 14.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import skl2onnx
import sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.common import SEED, Array, Card, Dataset, Splits, tabular_splits, write_all

CANCER = Dataset(
    name="Breast Cancer Wisconsin (Diagnostic), sklearn.datasets.load_breast_cancer",
    source="Wolberg, Mangasarian, Street, Street (1993), UCI Machine Learning Repository, "
    "doi:10.24432/C5DW2B",
    licence="CC BY 4.0",
)


def load() -> Splits:
    """400 rows to train (300 of them to calibrate), 169 to evaluate."""
    x, y = load_breast_cancer(return_X_y=True)
    return tabular_splits(x.astype(np.float32), y.astype(np.int64), n_eval=169, stratify=True)


def fit(x: Array, y: Array) -> Pipeline:
    """Fit; alpha did best in five-fold cross-validation of the training rows."""
    mlp = MLPClassifier(
        hidden_layer_sizes=(64, 32), alpha=0.3, solver="lbfgs", max_iter=5000, random_state=SEED
    )
    # One thread, because the order of sums changes with their number.
    with threadpool_limits(1):
        return make_pipeline(StandardScaler(), mlp).fit(x, y)


def export(model: Pipeline, n_features: int) -> onnx.ModelProto:
    """Convert with plain tensors for outputs instead of a list of maps."""
    converted: onnx.ModelProto = skl2onnx.convert_sklearn(
        model,
        name="cancer_mlp",
        initial_types=[("features", FloatTensorType([None, n_features]))],
        options={"zipmap": False},
        target_opset={"": 14, "ai.onnx.ml": 1},
    )
    return converted


def main() -> None:
    """Train, export and write the files beside this script."""
    splits = load()
    model = fit(splits.train_x, splits.train_y)
    card = Card(
        what="Malignant or benign: StandardScaler and MLP (64, 32)",
        framework=f"scikit-learn {sklearn.__version__}",
        exporter=f"skl2onnx {skl2onnx.__version__} (zipmap off)",
        dataset=CANCER,
        metric="accuracy",
        output="probabilities",
    )
    reference = model.predict_proba(splits.eval_x)
    write_all(__file__, export(model, splits.train_x.shape[1]), splits, card, reference)


if __name__ == "__main__":
    main()
