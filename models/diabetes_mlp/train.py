"""Standardized features and an MLP regressor on the diabetes progression data.

Packages: scikit-learn 1.9, skl2onnx 1.20, onnx 1.23, onnxruntime 1.32.
Data: scikit-learn's load_diabetes, unscaled. Exporter: skl2onnx, opset 14.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import skl2onnx
import sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_diabetes
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.common import SEED, Array, Card, Dataset, Splits, tabular_splits, write_all

DIABETES = Dataset(
    name="Diabetes progression, sklearn.datasets.load_diabetes(scaled=False)",
    source="Efron, Hastie, Johnstone, Tibshirani (2004), Least Angle Regression",
    licence="shipped with scikit-learn (BSD-3-Clause); the source states none of its own",
)


def load() -> Splits:
    """300 rows to train and calibrate, 142 to evaluate."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return tabular_splits(x.astype(np.float32), y.astype(np.float32), n_eval=142, stratify=False)


def fit(x: Array, y: Array) -> Pipeline:
    """Fit on the standardized target, then put its scale into the last layer.

    alpha is the strongest of 5, 10, 20 and 40 that stays within one standard error of the best in
    ten-fold cross-validation of the training rows.
    """
    mean, std = y.mean(), y.std()
    mlp = MLPRegressor(
        hidden_layer_sizes=(64, 32), alpha=20.0, solver="lbfgs", max_iter=5000, random_state=SEED
    )
    # One thread, because the order of sums changes with their number.
    with threadpool_limits(1):
        model = make_pipeline(StandardScaler(), mlp).fit(x, (y - mean) / std)
    mlp.coefs_[-1] *= std
    mlp.intercepts_[-1] = mlp.intercepts_[-1] * std + mean
    return model


def export(model: Pipeline, n_features: int) -> onnx.ModelProto:
    """Convert, with names of our own for input and output."""
    converted: onnx.ModelProto = skl2onnx.convert_sklearn(
        model,
        name="diabetes_mlp",
        initial_types=[("features", FloatTensorType([None, n_features]))],
        final_types=[("progression", FloatTensorType([None, 1]))],
        target_opset={"": 14, "ai.onnx.ml": 1},
    )
    return converted


def main() -> None:
    """Train, export and write the files beside this script."""
    splits = load()
    model = fit(splits.train_x, splits.train_y)
    card = Card(
        what="Regression of disease progression: StandardScaler and MLP (64, 32)",
        framework=f"scikit-learn {sklearn.__version__}",
        exporter=f"skl2onnx {skl2onnx.__version__}",
        dataset=DIABETES,
        metric="r2",
        output="progression",
    )
    reference = model.predict(splits.eval_x).reshape(-1, 1)
    write_all(__file__, export(model, splits.train_x.shape[1]), splits, card, reference)


if __name__ == "__main__":
    main()
