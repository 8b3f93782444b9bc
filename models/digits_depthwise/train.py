"""MobileNet-like depthwise CNN with squeeze-and-excitation on 16x16 digits.

Packages: torch 2.13, onnx 1.23, onnxscript 0.7, onnxruntime 1.32, scikit-learn 1.9.
Data: scikit-learn's load_digits. Exporter: torch.onnx.export(dynamo=True), opset 18.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.common import DIGITS, Card, digits_splits, write_all
from models.torch_training import export_dynamo, run, set_up, train_classifier


def conv_bn(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution with batch normalization, which the exporter folds into it."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    )


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.reduce(self.pool(x)))
        return x * nn.functional.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand, filter per channel, gate, project; add the input where the shape allows."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inside
        self.expand = conv_bn(inside, wide, 1)
        self.depthwise = conv_bn(wide, wide, 3, stride, groups=wide)
        self.se = SqueezeExcite(wide)
        self.project = conv_bn(wide, outside, 1)
        self.relu6 = nn.ReLU6()
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu6(self.expand(x))
        y = self.relu6(self.depthwise(y))
        y = self.project(self.se(y))
        out: Tensor = x + y if self.residual else y
        return out


class DepthwiseNet(nn.Module):
    """Stem, five inverted residual blocks, a 1x1 head and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16, 3)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 24, 2),
            InvertedResidual(24, 24, 1),
            InvertedResidual(24, 40, 2),
            InvertedResidual(40, 40, 1),
            InvertedResidual(40, 40, 1),
        )
        self.head = conv_bn(40, 128, 1)
        self.relu6 = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.relu6(self.stem(image)))
        x = self.pool(self.relu6(self.head(x)))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def main() -> None:
    """Train, export and write the files beside this script."""
    set_up()
    splits = digits_splits(as_images=True)
    model = DepthwiseNet()
    train_classifier(model, splits.train_x, splits.train_y, epochs=30, reach=2)
    card = Card(
        what="MobileNet-like inverted residual CNN with depthwise Conv, ReLU6 and "
        "squeeze-and-excitation",
        framework=f"torch {torch.__version__}",
        exporter="torch.onnx.export, torch.export based (dynamo=True)",
        dataset=DIGITS,
        metric="accuracy",
        output="logits",
    )
    exported = export_dynamo(model, torch.zeros(2, 1, 16, 16), "image")
    write_all(__file__, exported, splits, card, run(model, splits.eval_x))


if __name__ == "__main__":
    main()
