"""Torch-Pruning through onnx2torch, run by peers.py in a Python that has both.

    PYTHON peer_torch.py MODEL DATA VARIANT

Variants: tp-l2, tp-global (GroupMagnitudeImportance). Without the training that Torch-Pruning is
made to be followed by; "fine-tuning" takes BatchNormalization's statistics again, where there is
any left. The net is exported back by the TorchScript exporter.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import onnx
import onnxsim
import torch
from peer_wire import batches, serve
from torch.library import define

# Builds of torchvision that lack their binary part fail on import without these two, and
# onnx2torch imports it for an operator that is not needed here.
for name in ("nms", "qnms"):
    try:
        define(f"torchvision::{name}", "(Tensor d, Tensor s, float t) -> Tensor")
    except RuntimeError as error:
        print(error, file=sys.stderr)

import torch_pruning as tp  # noqa: E402
from onnx2torch import convert  # noqa: E402

LAYERS = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
LARGEST = 0.9  # of a layer's channels, when they are ranked over all layers


def last_layers(net: torch.fx.GraphModule) -> list[torch.nn.Module]:
    """Layers that make the outputs: their channels are the interface."""
    modules = dict(net.named_modules())
    waiting = [node for node in net.graph.nodes if node.op == "output"]
    seen, found = set(waiting), []
    while waiting:
        node = waiting.pop()
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, LAYERS):
            found.append(module)
            continue
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return found


def renew(net: torch.nn.Module, feeds: list[tuple[torch.Tensor, ...]]) -> bool:
    """Take the statistics of BatchNormalization from the pruned net; False where there is none."""
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    with torch.no_grad():
        for feed in feeds if norms else []:
            net(*feed)
    return bool(norms)


def dynamic(values: Any) -> dict[str, dict[int, str]]:
    """Axes without a fixed length."""
    return {
        v.name: {
            axis: d.dim_param or f"{v.name}_{axis}"
            for axis, d in enumerate(v.type.tensor_type.shape.dim)
            if d.dim_value <= 0
        }
        for v in values
    }


def open_peer() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Convert, and return what answers requests."""
    path, data_path, variant = sys.argv[1:]
    raw = onnx.load(path)
    weights = {t.name for t in raw.graph.initializer}
    inputs = [i for i in raw.graph.input if i.name not in weights]
    model, _ = onnxsim.simplify(raw, inline_functions=True, skip_fuse_bn=True)
    names = [i.name for i in inputs]
    fixed = inputs[0].type.tensor_type.shape.dim[0].dim_value
    feeds = [tuple(map(torch.from_numpy, b.values())) for b in batches(data_path, names, 32)]
    example = tuple(x[: fixed or 2] for x in feeds[0])
    original = convert(model).eval()
    with torch.no_grad():
        original(*example)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        net = copy.deepcopy(original)
        is_global = variant == "tp-global"
        tp.pruner.BasePruner(
            net, example, importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=request["ratio"], ignored_layers=last_layers(net),
            global_pruning=is_global, max_pruning_ratio=LARGEST if is_global else 1.0,
        ).step()  # fmt: skip
        changed = request["finetune"] and renew(net, feeds)
        torch.onnx.export(
            net.eval(), example, request["out"], dynamo=False, opset_version=17,
            input_names=names, output_names=[o.name for o in raw.graph.output],
            dynamic_axes=dynamic([*inputs, *raw.graph.output]),
        )  # fmt: skip
        return {"changed": changed}

    return answer


if __name__ == "__main__":
    serve(open_peer)
