"""ViT-like transformer over the eight pixel rows of a digit.

Packages: torch 2.13, onnx 1.23, onnxscript 0.7, onnxruntime 1.32, scikit-learn 1.9.
Data: scikit-learn's load_digits. Exporter: torch.onnx.export(dynamo=True), opset 18.
"""

import sys
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.common import DIGITS, Card, digits_splits, write_all
from models.torch_training import export_dynamo, run, set_up, train_classifier

TOKENS, PIXELS, WIDTH, HEADS, HIDDEN, DEPTH = 8, 8, 64, 8, 192, 3


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width / heads)."""
        return x.view(-1, TOKENS + 1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            self.split_heads(project(x)) for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Attention and a GELU feed-forward part, each normalized first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        hidden = nn.functional.gelu(self.fc1(self.norm2(x)))
        out: Tensor = x + self.dropout(self.fc2(hidden))
        return out


class Transformer(nn.Module):
    """Each row of pixels is a token; a class token gathers what the classifier reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, WIDTH)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS + 1, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, rows: Tensor) -> Tensor:
        token = self.class_token.expand(rows.shape[0], -1, -1)
        x = torch.cat([token, self.embed(rows)], dim=1) + self.position
        logits: Tensor = self.classifier(self.norm(self.layers(x))[:, 0])
        return logits


def name_linear_weights(model: onnx.ModelProto) -> None:
    """Name each transposed MatMul weight, which the exporter leaves as val_123, after its bias."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for add in graph.node:
        if add.op_type == "Add" and add.input[0] in products and add.input[1].endswith(".bias"):
            product = products[add.input[0]]
            tensor = tensors[product.input[1]]
            tensor.name = add.input[1].removesuffix("bias") + "weight_t"
            product.input[1] = tensor.name


def export(model: nn.Module) -> onnx.ModelProto:
    """Export with telling names for all weights."""
    exported = export_dynamo(model, torch.zeros(2, TOKENS, PIXELS), "rows")
    name_linear_weights(exported)
    return exported


def main() -> None:
    """Train, export and write the files beside this script."""
    set_up()
    splits = digits_splits(as_images=False)
    model = Transformer()
    train_classifier(model, splits.train_x, splits.train_y, epochs=80, lr=2e-3, weight_decay=0.05)
    card = Card(
        what="Transformer over pixel rows: class token, three pre-norm layers, eight heads, GELU",
        framework=f"torch {torch.__version__}",
        exporter="torch.onnx.export, torch.export based (dynamo=True)",
        dataset=DIGITS,
        metric="accuracy",
        output="logits",
    )
    write_all(__file__, export(model), splits, card, run(model, splits.eval_x))


if __name__ == "__main__":
    main()
