"""Residual CNN on 16x16 digits, with its BatchNormalization nodes kept in the graph.

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


class Block(nn.Module):
    """Basic residual block; a 1x1 convolution carries the sum where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stem, three stages of two blocks with 16, 32 and 64 channels, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def export(model: nn.Module) -> onnx.ModelProto:
    """Export with PRESERVE: the EVAL mode would fold each BatchNormalization into its Conv."""
    return export_torchscript(
        model,
        torch.zeros(2, 1, 16, 16),
        "image",
        {0: "batch"},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def main() -> None:
    """Train, export and write the files beside this script."""
    set_up()
    splits = digits_splits(as_images=True)
    model = ResNet()
    train_classifier(model, splits.train_x, splits.train_y, epochs=20, reach=2)
    card = Card(
        what="Residual CNN (16/32/64 channels, six blocks), BatchNormalization not folded",
        framework=f"torch {torch.__version__}",
        exporter="torch.onnx.export, TorchScript (dynamo=False, TrainingMode.PRESERVE)",
        dataset=DIGITS,
        metric="accuracy",
        output="logits",
    )
    write_all(__file__, export(model), splits, card, run(model, splits.eval_x))


if __name__ == "__main__":
    main()
