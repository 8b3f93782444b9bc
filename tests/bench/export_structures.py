"""Export untrained networks of many structures to ONNX, by both of PyTorch's exporters.

The models are made to test pruning, not to predict: no weight is downloaded, every parameter
comes from a seeded generator.  A freshly initialised network is a poor test, though: zeroed heads,
tiny layer scales and vanishing activations let a wrong cut leave the outputs as they were.  So the
weak parameters are redrawn, and each linear layer is scaled to give outputs of unit spread, before
the model is exported, run in ONNX Runtime at two batch sizes and compared with PyTorch.

    python tests/bench/export_structures.py --out DIR [--only PATTERN] [--exporter ts|dynamo]
    python tests/bench/export_structures.py --out DIR --extra

The first form writes ``DIR/<model>.<exporter>.onnx`` for torchvision's models; the second writes
``DIR/extra/<model>.<exporter>.onnx`` for models of timm and transformers, where those are
installed, and a few of plain torch.  ``export.json`` beside the files lists each attempt; a run
replaces the entries it repeats and keeps the others.  Needs torch, torchvision, onnx, onnxruntime
and onnxscript.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import gc
import itertools
import json
import logging
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

EXPORTERS = ("ts", "dynamo")
TS_OPSET = 17
EXAMPLE_BATCH = 2
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-3
VOCABULARY = 256

TORCHVISION = {
    "alexnet": 224,
    "vgg11_bn": 224,
    "resnet18": 224,
    "resnext50_32x4d": 224,
    "densenet121": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "squeezenet1_1": 224,
    "shufflenet_v2_x1_0": 224,
    "mobilenet_v3_small": 224,
    "efficientnet_b0": 224,
    "regnet_y_400mf": 224,
    "convnext_tiny": 224,
    "vit_b_32": 224,
    "swin_t": 224,
    "maxvit_t": 224,
    "deeplabv3_mobilenet_v3_large": 224,
}

TIMM = (
    "skresnet18",
    "resnest14d",
    "convnextv2_atto",
    "ghostnet_100",
    "mixer_s32_224",
    "res2net50_26w_4s",
    "levit_128s",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "efficientformer_l1",
    "poolformer_s12",
    "coatnet_nano_rw_224",
    "repvgg_a0",
    "dla34",
    "hrnet_w18_small",
    "cspresnet50",
    "xcit_nano_12_p16_224",
    "ese_vovnet19b_dw",
    "nf_resnet50",
    "volo_d1_224",
)


@dataclass(frozen=True)
class Case:
    """One model to export: how to build it, and the inputs it takes at a batch size."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    input_names: tuple[str, ...]
    axes: dict[int, str]
    """The dynamic axes, the same for every input."""


@dataclass
class Record:
    """One line of export.json: an attempt to export a model, and what came of it."""

    name: str
    exporter: str
    ok: bool = False
    error: str | None = None
    nodes: int | None = None
    params: int | None = None
    macs: int | None = None
    max_rel_error: float | None = None
    seconds: float = 0.0


# --- The models -----------------------------------------------------------------------------------


def image_inputs(size: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Noise images; each has its own mean colour, so that pooled features differ too."""

    def inputs(batch: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(batch)
        noise = torch.randn(batch, 3, size, size, generator=rng)
        return (noise + torch.randn(batch, 3, 1, 1, generator=rng),)

    return inputs


def text_inputs(batch: int) -> tuple[Tensor, ...]:
    """Random tokens and a mask that ends the last row early; the length varies with the batch."""
    rng = torch.Generator().manual_seed(batch)
    tokens = torch.randint(0, VOCABULARY, (batch, 6 + batch), generator=rng)
    mask = torch.ones_like(tokens)
    mask[-1, -2:] = 0
    return tokens, mask


def series_inputs(batch: int, fixed: bool = False) -> tuple[Tensor, ...]:
    """A random series of 8 features, whose length varies with the batch unless it is fixed."""
    rng = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, 20 if fixed else 20 + batch, 8, generator=rng),)


def image_case(name: str, build: Callable[[], nn.Module], size: int) -> Case:
    """A model that takes images, with a dynamic batch."""
    return Case(name, build, image_inputs(size), ("input",), {0: "batch"})


class PickOutput(nn.Module):
    """An image model that answers a mapping, made to answer one of its entries."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)[self.key]
        return output


class FirstOutput(nn.Module):
    """A transformers model that takes tokens and a mask and answers its first output alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs: tuple[Tensor, ...] = self.model(input_ids, attention_mask=attention_mask)
        return outputs[0]


def first_output(build: Callable[[], nn.Module]) -> FirstOutput:
    """The model that `build` builds, answering its first output alone."""
    return FirstOutput(build())


@functools.cache
def declare_torchvision_ops() -> torch.library.Library:
    """Declare the compiled operators torchvision registers shapes for, where it lacks them.

    A torchvision installed without its compiled library fails on import; none of the models here
    uses these operators, so a bare declaration is enough.  It lasts as long as the answer, which
    the cache keeps.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def build_torchvision(name: str) -> nn.Module:
    """An untrained torchvision model, without the auxiliary heads that evaluation ignores."""
    declare_torchvision_ops()
    import torchvision

    options: dict[str, bool | None] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("deeplab"):
        options |= {"weights_backbone": None}
    model = torchvision.models.get_model(name, **options)
    return PickOutput(model, "out") if name.startswith("deeplab") else model


def torchvision_cases() -> list[Case]:
    """The torchvision models, each at its native image size."""
    return [
        image_case(name, functools.partial(build_torchvision, name), size)
        for name, size in TORCHVISION.items()
    ]


def timm_cases() -> list[Case]:
    """The timm models, each at the image size of its own configuration."""
    declare_torchvision_ops()
    try:
        import timm
    except ImportError:
        return []

    cases = []
    for name in TIMM:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = config.input_size[-1] if config else 224
        cases.append(image_case(name, functools.partial(timm.create_model, name), size))
    return cases


def text_cases() -> list[Case]:
    """Small transformers language models; the query heads of some share key and value heads."""
    declare_torchvision_ops()
    try:
        import transformers as hf
    except ImportError:
        return []

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "use_cache": False}
    decoder = common | {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    grouped = decoder | {"num_key_value_heads": 2}
    window = grouped | {"sliding_window": None}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    gpt2 = common | special | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    t5 = common | {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4}
    builders: dict[str, Callable[[], nn.Module]] = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**decoder)),
        "llama_gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "qwen2_gqa": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped)),
        "mistral_gqa": lambda: hf.MistralForCausalLM(hf.MistralConfig(**window)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "t5_encoder": lambda: hf.T5EncoderModel(hf.T5Config(**t5)),
        "t5_encoder_gated": lambda: hf.T5EncoderModel(
            hf.T5Config(**t5, feed_forward_proj="gated-gelu")
        ),
        "bert": lambda: hf.BertModel(hf.BertConfig(**decoder), add_pooling_layer=False),
    }
    axes = {0: "batch", 1: "sequence"}
    names = ("input_ids", "attention_mask")
    return [
        Case(name, functools.partial(first_output, build), text_inputs, names, axes)
        for name, build in builders.items()
    ]


class UNet(nn.Module):
    """A small U-Net: transposed convolutions, and skips joined by concatenation."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(self.block(i, o) for i, o in zip(ins, widths, strict=True))
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, stride=2) for i, o in pairs)
        self.join = nn.ModuleList(self.block(2 * i, i) for i, _ in pairs)
        self.head = nn.Conv2d(widths[0], 5, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        """Convolution, instance normalisation, activation."""
        norm = nn.InstanceNorm2d(outputs, affine=True)
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.PReLU(outputs))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            if skips:
                x = functional.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((skips.pop(), up(x)), 1))
        output: Tensor = self.head(x)
        return output


class GatedSeries(nn.Module):
    """A WaveNet-like network: dilated 1-d convolutions, each halved into a value and its gate."""

    def __init__(self, width: int = 24, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.gated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(layers)
        )
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).transpose(1, 2)
        for gated, mix in zip(self.gated, self.mix, strict=True):
            value, gate = gated(x).chunk(2, 1)
            x = x + mix(torch.tanh(value) * torch.sigmoid(gate))
        output: Tensor = self.head(x.mean(2))
        return output


class Recurrent(nn.Module):
    """A two-way LSTM followed by a GRU, with linear layers on either side."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(2 * width, width, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.stem(x).relu())
        x, _ = self.gru(x)
        output: Tensor = self.head(x)
        return output


class EncoderLayers(nn.Module):
    """torch's own transformer encoder, whose queries, keys and values share one fused weight."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder(self.stem(x)))
        return output


def plain_cases() -> list[Case]:
    """Structures of plain torch that the model collections above lack."""
    axes = {0: "batch", 1: "sequence"}
    builders = {"gated_series": GatedSeries, "recurrent": Recurrent, "encoder": EncoderLayers}
    series = [Case(n, b, series_inputs, ("input",), axes) for n, b in builders.items()]
    # An exporter writes the example's length into each of the last two, so a fixed one is made too.
    fixed = functools.partial(series_inputs, fixed=True)
    series += [
        Case(f"{name}_fixed", builders[name], fixed, ("input",), {0: "batch"})
        for name in ("recurrent", "encoder")
    ]
    return [image_case("unet", UNet, 64), *series]


# --- Parameters worth testing with ----------------------------------------------------------------

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
GAINED = ("Conv1D",)
"""Names of linear layers of other libraries that are no subclasses of torch's (GPT-2's)."""


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a convolution or a matrix product with a weight."""
    return isinstance(module, LAYERS) or type(module).__name__ in GAINED


def redraw(model: nn.Module, rng: torch.Generator) -> None:
    """Give seeded random values to what an initialisation leaves zero, constant or tiny.

    Constants (gains, biases, layer scales, zeroed heads and tokens) would hide which channel is
    which; tiny values would hide that one is missing.  Batch normalisation gets statistics as
    after training.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.normal_(0.0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 2.0, generator=rng)
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_floating_point() and weight.numel():
                redraw_parameter(module, name, weight, rng)


def redraw_parameter(module: nn.Module, name: str, weight: Tensor, rng: torch.Generator) -> None:
    """Redraw one parameter of a module, if it is weak, by what it is for."""
    low, high = weight.min().item(), weight.max().item()
    if is_layer(module) and weight.dim() >= 2:
        if low == high:
            weight.normal_(0.0, 1.0, generator=rng)  # calibrate() sets the scale
    elif name == "in_proj_weight":  # a fused projection of attention: no layer to calibrate
        weight.normal_(0.0, weight.shape[1] ** -0.5, generator=rng)
    elif isinstance(module, nn.Embedding):
        if weight.std().item() < 0.5:
            weight.normal_(0.0, 1.0, generator=rng)
    elif weight.dim() == 1 and "bias" in name:
        weight.normal_(0.0, 0.2, generator=rng)
    elif low == high and low != 0:
        weight.uniform_(0.5, 1.5, generator=rng)
    elif weight.numel() == 1:
        weight.fill_(0.5)
    elif weight.std().item() < 0.2:
        weight.normal_(0.0, 0.5, generator=rng)


def calibrate(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Scale each linear layer, in the order they run, to outputs of unit spread on the inputs.

    Without this the deep models fade to a constant, or overflow, since their initialisation counts
    on statistics that are random here.  It also gives queries and keys the size at which attention
    tells tokens apart.  A weight shared with an embedding keeps its scale.
    """
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    done: set[int] = set()

    def scale(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        spread = output.std().item()
        if id(module.weight) in done | shared or not 1e-9 < spread < 1e9:
            return output
        done.add(id(module.weight))
        for parameter in module.parameters(recurse=False):
            parameter.div_(spread)
        return output / spread

    hooks = [m.register_forward_hook(scale) for m in model.modules() if is_layer(m)]
    model(*inputs)
    for hook in hooks:
        hook.remove()


def prepare(case: Case) -> nn.Module:
    """The case's model in evaluation mode, the same at every call."""
    seed = zlib.crc32(case.name.encode())
    torch.manual_seed(seed)
    model = case.build().eval()
    model.requires_grad_(False)
    with torch.no_grad():
        redraw(model, torch.Generator().manual_seed(seed))
        calibrate(model, case.inputs(4))
    return model


# --- Export and check -----------------------------------------------------------------------------


def export(case: Case, model: nn.Module, exporter: str, path: Path) -> None:
    """Write the model as one ONNX file, its weights inside, by one of the two exporters."""
    inputs = case.inputs(EXAMPLE_BATCH)
    names: dict[str, Any] = {"input_names": list(case.input_names), "output_names": ["output"]}
    if exporter == "ts":
        axes = dict.fromkeys(case.input_names, case.axes)
        output_axes = {"output": case.axes if keeps_axes(case, model) else {0: "batch"}}
        torch.onnx.export(
            model,
            inputs,
            str(path),
            dynamo=False,
            opset_version=TS_OPSET,
            dynamic_axes=axes | output_axes,
            **names,
        )
        return
    dims = {axis: torch.export.Dim(name) for axis, name in case.axes.items()}
    torch.onnx.export(
        model,
        inputs,
        str(path),
        dynamo=True,
        dynamic_shapes=tuple(dims for _ in inputs),
        external_data=False,
        verbose=False,
        **names,
    )


def keeps_axes(case: Case, model: nn.Module) -> bool:
    """Whether the output still has every dynamic axis of the input, at the same place."""
    inputs = case.inputs(EXAMPLE_BATCH)
    shape = model(*inputs).shape
    return all(a < len(shape) and shape[a] == inputs[0].shape[a] for a in case.axes)


def worst_error(case: Case, model: nn.Module, path: Path) -> float:
    """Run the file at each checked batch; the largest error, relative to the largest output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    worst = 0.0
    for batch in CHECKED_BATCHES:
        inputs = case.inputs(batch)
        fed = {n: t.numpy() for n, t in zip(case.input_names, inputs, strict=True) if n in names}
        expected = model(*inputs).numpy()
        (actual,) = session.run(["output"], fed)
        if actual.shape != expected.shape:
            raise ValueError(f"batch {batch}: shape {actual.shape}, not {expected.shape}")
        error = float(np.abs(actual - expected).max() / np.abs(expected).max())
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def multiplications(case: Case, model: nn.Module) -> int:
    """Multiply-accumulates of the convolutions and matrix products at batch 1."""
    with FlopCounterMode(display=False) as counter:
        model(*case.inputs(1))
    return int(counter.get_total_flops()) // 2


def attempt(case: Case, exporter: str, folder: Path) -> Record:
    """Export one model by one exporter and check it; what goes wrong goes into the record.

    The file is there afterwards only if it passed, so whoever reads the folder can trust it.
    """
    record = Record(case.name, exporter)
    path = folder / f"{case.name}.{exporter}.onnx"
    partial = path.with_name("." + path.name)
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        model = prepare(case)
        record.params = sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            record.macs = multiplications(case, model)
            export(case, model, exporter, partial)
            record.seconds = round(time.perf_counter() - start, 1)
            record.nodes = len(onnx.load(partial).graph.node)
            record.max_rel_error = worst_error(case, model, partial)
        if record.max_rel_error > TOLERANCE:
            raise ValueError(f"outputs differ from torch by {record.max_rel_error:.1e}")
        partial.replace(path)
        record.ok = True
    except Exception as error:  # whatever an exporter raises is a result here
        lines = str(error).strip().splitlines() or [""]
        record.error = f"{type(error).__name__}: {lines[0]}"[:300]
    finally:
        partial.unlink(missing_ok=True)
    record.seconds = record.seconds or round(time.perf_counter() - start, 1)
    return record


def save(record: Record, folder: Path) -> None:
    """Put the record into the folder's export.json, in place of an earlier one of the same."""
    path = folder / "export.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    key = (record.name, record.exporter)
    entries = [e for e in entries if (e["name"], e["exporter"]) != key] + [asdict(record)]
    path.write_text(json.dumps(entries, indent=1) + "\n")


def line(record: Record) -> str:
    """The record as a line of the report."""
    if not record.ok:
        return f"{record.name:30} {record.exporter:7} FAILED {record.error}"
    return (
        f"{record.name:30} {record.exporter:7} {record.nodes:5} nodes "
        f"{(record.params or 0) / 1e6:7.2f} M params {(record.macs or 0) / 1e6:8.1f} M MACs "
        f"error {record.max_rel_error:.1e} {record.seconds:6.1f} s"
    )


def main() -> None:
    """Export the chosen cases, one exporter after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", default="*", help="names to export, with * and ? (default: all)")
    parser.add_argument("--exporter", choices=EXPORTERS, help="one exporter (default: both)")
    parser.add_argument("--extra", action="store_true", help="the further families, to OUT/extra")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX counterpart
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    folder = options.out / "extra" if options.extra else options.out
    folder.mkdir(parents=True, exist_ok=True)
    extra = [timm_cases, text_cases, plain_cases]
    sources = extra if options.extra else [torchvision_cases]
    cases = [case for source in sources for case in source()]
    for exporter in (options.exporter,) if options.exporter else EXPORTERS:
        for case in cases:
            if fnmatch.fnmatch(case.name, options.only):
                record = attempt(case, exporter, folder)
                save(record, folder)
                print(line(record), flush=True)
                gc.collect()


if __name__ == "__main__":
    main()
