"""Whole exports of tiny checkpoints, against the libraries that the checkpoints come from."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.manifest import NAME, read_manifest
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.safetensors_file import read_table
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.export import pipeline
from diffusion_rt.export.check import run, session
from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.names import published
from diffusion_rt.export.pipeline import Exported, export
from support.checkpoints import MakeCheckpoint
from support.tracing import Tracer

Arrays = dict[str, NDArray[Any]]
WHOLE = {"Attention", "GroupNormalization", "LayerNormalization", "Gelu"}
OPERATORS = WHOLE | {
    *("Add", "ArgMax", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Equal", "Gather"),
    *("GatherND", "Gemm", "MatMul", "Mul", "Pad", "Range", "Reshape", "Resize", "Shape"),
    *("Sigmoid", "Sin", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}


def graph(exported: Exported, name: str, precision: str) -> onnx.ModelProto:
    """One exported file, its external data left where it is."""
    path = exported.folder / f"{name}.{precision}.onnx"
    return onnx.load(path, load_external_data=False)


def outputs(folder: Path, name: str, given: Arrays, precision: str = "float32") -> Arrays:
    """What a graph of an exported folder gives."""
    variant = read_manifest(folder).graphs[name][precision]  # type: ignore[index]
    loaded = session((folder / variant.file).read_bytes(), folder)
    return run(loaded, variant.inputs, given)


def unet_outputs(folder: Path, given: Arrays, precision: str = "float32") -> NDArray[Any]:
    """The prediction, through the three parts."""
    known = dict(given)
    for part in ("unet_prompt", "unet_timestep", "unet_step"):
        known |= outputs(folder, part, known, precision)
    return known["prediction"]


def unet_inputs(batch: int, tokens: int, height: int, width: int) -> Arrays:
    draw = np.random.default_rng(batch)
    return {
        "latent": draw.standard_normal((batch, 4, height, width), dtype=np.float32),
        "timestep": draw.uniform(0, 999, batch).astype(np.float32),
        "context": draw.standard_normal((batch, tokens, 56), dtype=np.float32),
        "text_embeds": draw.standard_normal((batch, 24), dtype=np.float32),
        "time_ids": np.tile(np.array([1024, 768, 8, 0, 512, 1024], np.float32), (batch, 1)),
    }


def torch_unet(folder: Path, given: Arrays, **loading: Any) -> NDArray[Any]:
    """The prediction of diffusers' own UNet, from its own reading of the folder."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **loading).float()
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    added = {name: tensors[name] for name in ("text_embeds", "time_ids")}
    with torch.inference_mode():
        found = unet(
            tensors["latent"], tensors["timestep"], tensors["context"], added_cond_kwargs=added
        )
    return np.asarray(found.sample.numpy())


def closeness(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 77), (3, 154)])
@pytest.mark.parametrize(("height", "width"), [(17, 23), (16, 32), (8, 9)])
def test_the_parts_of_the_unet_are_diffusers_unet(
    plain: Exported, batch: int, tokens: int, height: int, width: int
) -> None:
    given = unet_inputs(batch, tokens, height, width)
    wanted = torch_unet(plain.folder, given)
    assert closeness(unet_outputs(plain.folder, given), wanted) < 1e-5
    assert closeness(unet_outputs(plain.folder, given, "float16"), wanted) < 1e-2


@pytest.mark.parametrize("tokens", [77, 20, 3])
def test_text_encoders_give_every_layer(plain: Exported, tokens: int) -> None:
    draw = np.random.default_rng(tokens)
    ids = draw.integers(0, 630, (3, tokens))
    ids[:, -1] = 632  # the end
    ids[0, 1] = 632
    for name, kind in (
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
    ):
        encoder: Any = kind.from_pretrained(plain.folder / name, attn_implementation="eager")
        with torch.inference_mode():
            wanted = encoder(torch.from_numpy(ids), output_hidden_states=True)
        found = outputs(plain.folder, name, {"input_ids": ids})
        hidden = torch.stack(wanted.hidden_states).numpy()
        assert found["hidden_states"].shape == hidden.shape
        assert closeness(found["hidden_states"], hidden) < 1e-5
        if name == "text_encoder_2":
            assert closeness(found["text_embeds"], wanted.text_embeds.numpy()) < 1e-5


def test_pooling_by_the_largest_id_where_the_config_is_of_that_age(
    checkpoint: MakeCheckpoint, tracer: Tracer
) -> None:
    # Published SDXL configs say 2, which in transformers means the place of the largest id.
    folder = checkpoint(text_encoder_2={"num_hidden_layers": 1, "eos_token_id": 2})
    export(open_checkpoint(folder), folder, precisions=["float32"], check=False, tracer=tracer)
    ids = np.random.default_rng(0).integers(3, 630, (3, 11))
    ids[0, 2] = ids[1, 10] = ids[2, 0] = 632
    encoder: Any = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(ids)).text_embeds.numpy()
    found = outputs(folder, "text_encoder_2", {"input_ids": ids})
    assert closeness(found["text_embeds"], wanted) < 1e-5


def test_the_vae_is_diffusers_vae(plain: Exported) -> None:
    vae: Any = AutoencoderKL.from_pretrained(plain.folder / "vae")
    for batch, height, width in ((1, 17, 23), (2, 8, 9)):
        draw = np.random.default_rng(batch)
        latent = draw.standard_normal((batch, 4, height, width), dtype=np.float32)
        image = draw.uniform(-1, 1, (batch, 3, 8 * height, 8 * width)).astype(np.float32)
        with torch.inference_mode():
            decoded = vae.decode(torch.from_numpy(latent)).sample.numpy()
            posterior = vae.encode(torch.from_numpy(image)).latent_dist
        found = outputs(plain.folder, "vae_decoder", {"latent": latent})
        assert closeness(found["image"], decoded) < 1e-5
        found = outputs(plain.folder, "vae_encoder", {"image": image})
        assert closeness(found["mean"], posterior.mean.numpy()) < 1e-5
        assert closeness(found["logvar"], posterior.logvar.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("settings", "loading"),
    [
        ({"dtype": "float16", "age": "old"}, {}),
        ({"dtype": "bfloat16", "shards": 3}, {}),
        ({"dtype": "float16", "variant": "fp16"}, {"variant": "fp16"}),
        ({"dtype": "float32", "variant": "fp16", "shards": 2}, {"variant": "fp16"}),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_any_layout_and_dtype_of_the_weights(
    checkpoint: MakeCheckpoint, tracer: Tracer, settings: Any, loading: Any
) -> None:
    folder = checkpoint(**settings)
    exported = export(open_checkpoint(folder), folder, tracer=tracer)
    assert exported.unused == ()
    assert all(outcome.error is not None for outcome in exported.outcomes)
    given = unet_inputs(2, 77, 9, 12)
    wanted = torch_unet(folder, given, **loading)
    assert closeness(unet_outputs(folder, given), wanted) < 1e-5
    latent = given["latent"]
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", **loading).float()
    with torch.inference_mode():
        decoded = vae.decode(torch.from_numpy(latent)).sample.numpy()
    assert closeness(outputs(folder, "vae_decoder", {"latent": latent})["image"], decoded) < 1e-5


def test_attention_stored_as_convolutions(checkpoint: MakeCheckpoint, tracer: Tracer) -> None:
    flat, conv = checkpoint("flat", age="old"), checkpoint("conv", age="old", conv_attention=True)
    latent = unet_inputs(1, 2, 9, 8)["latent"]
    pictures = []
    for folder in (flat, conv):
        export(open_checkpoint(folder), folder, precisions=["float32"], tracer=tracer)
        pictures.append(outputs(folder, "vae_decoder", {"latent": latent})["image"])
    shape = (
        read_table(conv / "vae/diffusion_pytorch_model.safetensors")
        .tensors["decoder.mid_block.attentions.0.query.weight"]
        .shape
    )
    assert shape[2:] == (1, 1)
    np.testing.assert_array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_operators_are_standard_and_whole(plain: Exported, name: str, precision: str) -> None:
    proto = graph(plain, name, precision)
    found = {node.op_type for node in proto.graph.node}
    assert found <= OPERATORS
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 23)]
    has = {
        "text_encoder": {"Attention", "LayerNormalization"},
        "text_encoder_2": {"Attention", "LayerNormalization", "Gelu"},
        "unet_step": WHOLE,
        "vae_decoder": {"Attention", "GroupNormalization"},
        "vae_encoder": {"Attention", "GroupNormalization"},
    }
    assert has.get(name, set()) <= found
    path = plain.folder / f"{name}.{precision}.onnx"
    onnx.checker.check_model(path, full_check=True)  # with types and shapes of every value


def test_each_weight_is_read_once_in_each_precision(plain: Exported) -> None:
    stored = {
        (file, tensor.offset, tensor.length): published(file.split("/")[0], name)
        for file in plain.manifest.files
        if file.endswith(".safetensors")
        for name, tensor in read_table(plain.folder / file).tensors.items()
    }
    unread = {name for name in stored.values() if name.startswith("text_model.final_layer_norm")}
    for precision in ("float32", "float16"):
        read = Counter[tuple[str, int, int]]()
        for name in GRAPHS:
            proto = graph(plain, name, precision)
            for tensor in proto.graph.initializer:
                if tensor.external_data:
                    entries = {entry.key: entry.value for entry in tensor.external_data}
                    place = (entries["location"], int(entries["offset"]), int(entries["length"]))
                    assert stored[place] == tensor.name
                    read[place] += 1
                else:
                    assert np.prod(tensor.dims) <= 77, "no parameter was folded"
        # The first text encoder's last norm is behind the layer that SDXL takes.
        left = {stored[place] for place in stored.keys() - read.keys()}
        assert left == unread
        assert set(read.values()) == {1}


def test_inputs_and_outputs_are_those_of_the_design(plain: Exported) -> None:
    graphs = {name: variants["float16"] for name, variants in plain.manifest.graphs.items()}

    def spelled(name: str, side: str) -> dict[str, str]:
        specs = getattr(graphs[name], side)
        return {s.name: f"{s.dtype} {', '.join(map(str, s.shape))}" for s in specs}

    prompt, timestep, step = (f"unet_{part}" for part in ("prompt", "timestep", "step"))
    assert spelled("text_encoder", "inputs") == {"input_ids": "int64 batch, tokens"}
    assert spelled("text_encoder_2", "outputs") == {
        "hidden_states": "float16 5, batch, tokens, 32",
        "text_embeds": "float16 batch, 24",
    }
    assert spelled(prompt, "inputs") == {
        "context": "float16 batch, tokens, 56",
        "text_embeds": "float16 batch, 24",
        "time_ids": "float32 batch, 6",
    }
    assert spelled(timestep, "inputs") == {"timestep": "float32 n", "added": "float16 n, 64"}
    assert spelled(step, "outputs") == {"prediction": "float16 batch, 4, height, width"}
    assert spelled("vae_decoder", "outputs") == {
        "image": "float16 batch, 3, image_height, image_width"
    }
    assert spelled("vae_encoder", "inputs") == {"image": "float16 batch, 3, height, width"}
    crossing = spelled(prompt, "outputs")
    assert crossing.pop("added") == "float16 batch, 64"
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.key"
    assert crossing[key] == "float16 batch, 2, tokens, 16"
    blocks = 11  # 1 + 2 on the way down, 2 in the middle, 4 + 2 on the way up
    assert len(crossing) == 2 * blocks
    projections = spelled(timestep, "outputs")
    assert projections["mid_block.resnets.0.time_emb_proj"] == "float16 n, 48"
    inputs = spelled(step, "inputs")
    assert inputs.pop("latent") == "float16 batch, 4, height, width"
    assert inputs == crossing | {n: s.replace(" n,", " batch,") for n, s in projections.items()}
    assert len(projections) == 3 + 2 + 6  # resnets down, in the middle and up


def test_the_folder_opens_here_and_in_diffusers(plain: Exported) -> None:
    model = open_model(plain.folder)
    model.verify(full=True)
    backend = OrtBackend(model, threads=1)
    for name in GRAPHS:
        for precision in ("float32", "float16"):
            backend.load(name, precision).close()
    pipe = StableDiffusionXLPipeline.from_pretrained(plain.folder, dtype=torch.float32)
    picture = pipe("a red circle", width=64, height=64, num_inference_steps=2, output_type="np")
    assert np.isfinite(picture.images).all()


def test_a_copy_is_complete_and_leaves_the_checkpoint_alone(
    checkpoint: MakeCheckpoint, tracer: Tracer, tmp_path: Path
) -> None:
    source, output = checkpoint(), tmp_path / "new/model"
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    exported = export(open_checkpoint(source), output, check=False, tracer=tracer)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    assert exported.copied_bytes == sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
    open_model(output).verify(full=True)
    for path in source.rglob("*"):
        if path.is_file():
            assert (output / path.relative_to(source)).read_bytes() == path.read_bytes()
    again = export(open_checkpoint(source), output, check=False, tracer=tracer)
    assert again.copied_bytes == 0


def test_an_export_of_one_precision_replaces_one_of_both(
    checkpoint: MakeCheckpoint, tracer: Tracer
) -> None:
    folder = checkpoint()
    export(open_checkpoint(folder), folder, check=False, tracer=tracer)
    export(open_checkpoint(folder), folder, precisions=["float16"], check=False, tracer=tracer)
    assert not list(folder.glob("*.float32.onnx"))
    assert {p for v in open_model(folder).manifest.graphs.values() for p in v} == {"float16"}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("stage", "error"),
    [("hashing", KeyboardInterrupt()), ("checking", OSError(28, "No space left on device"))],
)
def test_what_ends_an_export_early_leaves_what_was_there(
    checkpoint: MakeCheckpoint, tracer: Tracer, tmp_path: Path, error: BaseException, stage: str
) -> None:
    source, old, new = checkpoint(), tmp_path / "old", tmp_path / "a/new"
    export(open_checkpoint(source), old, precisions=["float32"], check=False, tracer=tracer)
    before = snapshot(old)

    def report(found: str, done: int, total: int) -> None:
        if found == stage:
            raise error

    for output in (old, new):
        with pytest.raises(type(error)):
            export(
                open_checkpoint(source),
                output,
                precisions=["float32"],
                report=report,
                tracer=tracer,
            )
    assert snapshot(old) == before
    assert not (tmp_path / "a").exists()


def test_a_graph_that_differs_from_torch_is_not_published(
    checkpoint: MakeCheckpoint, tracer: Tracer
) -> None:
    folder = checkpoint()

    def wrong(network: Any) -> Any:
        model = tracer(network)
        for node in model.graph:
            if node.op_type == "LayerNormalization" and network.plan.network == "unet":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)
        return model

    with pytest.raises(Fault, match=r"unet_step\.float32\.onnx differs from torch by .*nothing"):
        export(open_checkpoint(folder), folder, precisions=["float32"], tracer=wrong)
    assert not list(folder.glob("*.onnx"))
    assert not (folder / NAME).exists()


def test_two_exports_into_one_folder(
    checkpoint: MakeCheckpoint, tracer: Tracer, tmp_path: Path
) -> None:
    source, output = checkpoint(), tmp_path / "out"

    def report(stage: str, done: int, total: int) -> None:
        if stage == "hashing" and done == total:
            with pytest.raises(BadInput, match='in use by another process: "export"'):
                export(open_checkpoint(source), output, check=False, tracer=tracer)

    export(open_checkpoint(source), output, check=False, tracer=tracer, report=report)
    open_model(output).verify(full=True)


def test_leftover_tensors_are_named(checkpoint: MakeCheckpoint, tracer: Tracer) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoint()
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "loss.logvar": torch.ones(1)}, file)
    exported = export(open_checkpoint(folder), folder, check=False, tracer=tracer)
    assert exported.unused == ("vae: loss.logvar",)


def test_the_plan_of_networks_covers_all_graphs(checkpoint: MakeCheckpoint) -> None:
    names = set(pipeline.plans(open_checkpoint(checkpoint())))
    assert names - {"unet"} | {g for g in GRAPHS if g.startswith("unet_")} == set(GRAPHS)
