"""Training and export for the torch models of this folder (torch 2.13, CPU)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from models.common import SEED, Array

BATCH = 64


def set_up() -> None:
    """Make runs repeatable: one thread, fixed seed, deterministic kernels."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def random_shift(x: Tensor, reach: int) -> Tensor:
    """Move each image of (n, ..., height, width) by up to reach pixels, filling with zeros."""
    n, (height, width) = len(x), x.shape[-2:]
    padded = nn.functional.pad(x.reshape(n, -1, height, width), (reach,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(0, 2 * reach + 1, (2, n))
    return windows[torch.arange(n), :, down, right].reshape(x.shape)


def train_classifier(
    model: nn.Module,
    x: Array,
    y: Array,
    *,
    epochs: int,
    lr: float = 3e-3,
    weight_decay: float = 1e-2,
    reach: int = 1,
) -> None:
    """Train with AdamW, a one-cycle learning rate and random shifts; leave it in eval mode."""
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    steps = len(inputs) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        # The last, smaller batch is left out; the next epoch's order brings its rows back.
        for rows in torch.randperm(len(inputs))[: steps * BATCH].view(steps, BATCH):
            logits = model(random_shift(inputs[rows], reach))
            loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def run(model: nn.Module, x: Array) -> Array:
    """The model's outputs as an array."""
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(x)))


def export_torchscript(
    model: nn.Module, example: Tensor, name: str, axes: dict[int, str], **options: Any
) -> onnx.ModelProto:
    """Export by the older, TorchScript-based exporter; axes names the dynamic axes of the input."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            opset_version=17,
            input_names=[name],
            output_names=["logits"],
            dynamic_axes={name: axes, "logits": {0: "batch"}},
            **options,
        )
        return onnx.load(path)


def export_dynamo(model: nn.Module, example: Tensor, name: str) -> onnx.ModelProto:
    """Export by the newer exporter, with its default optimizations and a dynamic batch."""
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=18,
        input_names=[name],
        output_names=["logits"],
        dynamic_shapes={name: {0: torch.export.Dim("batch")}},
    )
    assert program is not None
    return program.model_proto
