"""Model folders of small ONNX graphs, made without torch: for tests of what opens and runs them.

Each of the seven graphs is `y = tanh(x · weight + bias) · scale`, with `weight` and `bias` in a
safetensors file beside it, and `scale` inside the ONNX file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from diffusion_rt.engines.manifest import (
    Defaults,
    GraphVariant,
    Manifest,
    ScheduleRecord,
    TextEncoderRecord,
    UnetRecord,
    VaeRecord,
    write_manifest,
)
from diffusion_rt.engines.model_folder import record_of
from diffusion_rt.engines.safetensors_file import read_table
from diffusion_rt.engines.spec import GRAPHS, Precision, TensorSpec

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
WIDTHS = (8, 16)  # of x and y
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class SmallModel:
    """A folder on disk and the numbers that its graphs compute with."""

    path: Path
    weight: NDArray[Any]
    bias: NDArray[Any]

    def expected(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """`y` for one `x`, in float32."""
        w, b = self.weight.astype(np.float32), self.bias.astype(np.float32)
        y: NDArray[np.float32] = np.tanh(x.astype(np.float32) @ w + b) * np.float32(0.5)
        return y


def make_model_folder(folder: Path, *, stored: str = "float32", seed: int = 0) -> SmallModel:
    """Write a whole model folder, weights stored as `stored`, graphs for both precisions."""
    draw = np.random.default_rng(seed)
    weight = draw.normal(size=WIDTHS).astype(stored)
    bias = draw.normal(size=WIDTHS[1]).astype(stored)
    (folder / "unet").mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
        (folder / name / "vocab.json").write_text('{"a": 0}')
    save_file({"weight": weight, "bias": bias}, folder / WEIGHTS)
    variants: dict[str, dict[Precision, GraphVariant]] = {}
    precisions: tuple[Precision, ...] = ("float32", "float16")
    for name in GRAPHS:
        variants[name] = {}
        for precision in precisions:
            file = f"{name}.{precision}.onnx"
            onnx.save(graph_model(folder, precision), folder / file)
            variants[name][precision] = GraphVariant(
                file=file,
                inputs=(TensorSpec("x", precision, ("batch", "tokens", WIDTHS[0])),),
                outputs=(TensorSpec("y", precision, ("batch", "tokens", WIDTHS[1])),),
            )
    write_manifest(folder, manifest_of(folder, variants))
    return SmallModel(folder, weight, bias)


def manifest_of(
    folder: Path, graphs: Mapping[str, Mapping[Precision, GraphVariant]], **changes: Any
) -> Manifest:
    """A manifest that names every file of the folder as it is now."""
    files = {
        str(path.relative_to(folder)): record_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    encoder: dict[str, Any] = {
        "max_length": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "layers": 2,
        "width": 32,
    }
    fields: dict[str, Any] = {
        "name": "small",
        "family": "sdxl",
        "schedule": ScheduleRecord(
            scheduler="EulerDiscreteScheduler",
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            timestep_spacing="leading",
            steps_offset=1,
            rescale_betas_zero_snr=False,
        ),
        "text_encoders": (
            TextEncoderRecord(graph="text_encoder", tokenizer="tokenizer", pooled=False, **encoder),
            TextEncoderRecord(
                graph="text_encoder_2", tokenizer="tokenizer_2", pooled=True, **encoder
            ),
        ),
        "unet": UnetRecord(in_channels=4, channels=(32, 64), heads=(0, 2)),
        "vae": VaeRecord(
            channels=4,
            factor=8,
            scaling_factor=0.13025,
            shift_factor=0.0,
            latents_mean=None,
            latents_std=None,
            force_upcast=True,
            decoder_channels=(16, 32),
        ),
        "force_zeros_for_empty_prompt": True,
        "defaults": Defaults(width=128, height=128, steps=20, guidance_scale=5.0),
        "graphs": graphs,
        "files": files,
        "exporter": {"diffusion-rt": "0.1.0"},
    }
    return Manifest(**(fields | changes))


def graph_model(folder: Path, precision: Precision) -> onnx.ModelProto:
    """The graph, its weights pointing into the safetensors file and cast where they are read."""
    kind = TYPES[precision]
    initializers = external_weights(folder)
    nodes = []
    for tensor in initializers:
        source = tensor.name
        if tensor.data_type != kind:
            nodes.append(helper.make_node("Cast", [source], [f"{source}_cast"], to=kind))
    names = [t.name if t.data_type == kind else f"{t.name}_cast" for t in initializers]
    weight = next(name for name in names if name.startswith("weight"))
    bias = next(name for name in names if name.startswith("bias"))
    scale = numpy_helper.from_array(np.array(0.5, precision), "scale")
    nodes += [
        helper.make_node("MatMul", ["x", weight], ["product"]),
        helper.make_node("Add", ["product", bias], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["tanh"]),
        helper.make_node("Mul", ["tanh", "scale"], ["y"]),
    ]
    return model_of(
        nodes,
        [*initializers, scale],
        [helper.make_tensor_value_info("x", kind, ["batch", "tokens", WIDTHS[0]])],
        [helper.make_tensor_value_info("y", kind, ["batch", "tokens", WIDTHS[1]])],
    )


def external_weights(folder: Path, file: str = WEIGHTS) -> list[TensorProto]:
    """An initializer for every tensor of a safetensors file, its bytes left there."""
    tensors = []
    for name, stored in read_table(folder / file).tensors.items():
        kind = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}[stored.dtype]
        tensor = TensorProto(name=name, data_type=kind, dims=stored.shape)
        set_external(tensor, location=file, offset=stored.offset, length=stored.length)
        tensors.append(tensor)
    return tensors


def set_external(tensor: TensorProto, **entries: object) -> None:
    """Say that a tensor's bytes are elsewhere, with these and no other entries."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """An ONNX model of opset 23."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
