"""Two-layer bidirectional LSTM over the pixel rows of a digit, batch and time both dynamic.

Packages: torch 2.13, onnx 1.23, onnxruntime 1.32, scikit-learn 1.9.
Data: scikit-learn's load_digits. Exporter: torch.onnx.export(dynamo=False), opset 17.
"""

import sys
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.common import DIGITS, Card, digits_splits, write_all
from models.torch_training import export_torchscript, run, set_up, train_classifier

PIXELS, HIDDEN = 8, 48


class BiLSTM(nn.Module):
    """Two bidirectional LSTM layers, the mean over time, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(PIXELS, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * HIDDEN, 10)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.lstm(rows)
        logits: Tensor = self.classifier(states.mean(dim=1))
        return logits


def name_lstm_weights(model: onnx.ModelProto) -> None:
    """Name the weights that the exporter packed for LSTM, which it leaves as onnx::LSTM_123."""
    names: dict[str, str] = {}
    lstms = [node for node in model.graph.node if node.op_type == "LSTM"]
    for layer, node in enumerate(lstms):
        for position, weight in ((1, "W"), (2, "R"), (3, "B")):
            names[node.input[position]] = f"lstm.layer{layer}.{weight}"
            node.input[position] = names[node.input[position]]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def export(model: nn.Module) -> onnx.ModelProto:
    """Export each LSTM layer as one LSTM node."""
    exported = export_torchscript(model, torch.zeros(2, 8, PIXELS), "rows", {0: "batch", 1: "time"})
    name_lstm_weights(exported)
    return exported


def main() -> None:
    """Train, export and write the files beside this script."""
    set_up()
    splits = digits_splits(as_images=False)
    model = BiLSTM()
    train_classifier(model, splits.train_x, splits.train_y, epochs=60, lr=1e-2)
    card = Card(
        what="Two-layer bidirectional LSTM (48 units each way) over pixel rows, mean over time",
        framework=f"torch {torch.__version__}",
        exporter="torch.onnx.export, TorchScript (dynamo=False)",
        dataset=DIGITS,
        metric="accuracy",
        output="logits",
    )
    write_all(__file__, export(model), splits, card, run(model, splits.eval_x))


if __name__ == "__main__":
    main()
