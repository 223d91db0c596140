"""Builds that cannot be: what is missing here, and what TensorRT says where it gives up."""

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt import build as build_module
from diffusion_rt.engines.trt.options import Options
from diffusion_rt.kernels.driver.launch import limits_of
from diffusion_rt.kernels.driver.simulator import Simulator
from support import model_folders
from support.model_folders import make_model_folder
from support.simulated_build import (
    failing,
    files_in,
    folder_of,
    in_place_of_tensorrt,
    out_of_memory,
    small_build,
)
from support.simulated_tensorrt import (
    OnnxParser,
    Runtime,
    rules,
)
from support.simulated_tensorrt.build import Builder

pytestmark = pytest.mark.usefixtures("cache")


STEP = ("unet_step",)


def test_no_tensorrt_here(small: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BadInput, match=r"TensorRT .*pip install 'diffusion-rt\[trt\]'"):
        small_build(small, Simulator())
    assert not (small.path / "engines").exists()


def test_a_tensorrt_that_is_too_old(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.13.3.9")
    with pytest.raises(BadInput, match=r"TensorRT 10\.13\.3\.9, wants 11\.0 or newer"):
        small_build(small, device)


@pytest.mark.parametrize(
    ("arch", "version", "options", "words"),
    [
        (75, None, Options(vae_precision="float32"), "sm_75; .* sm_80 and newer; .* --engine ort"),
        (90, "11.2.1.2", Options(wide_attention=True), "wants TensorRT 11.3 or newer"),
    ],
)
def test_what_a_machine_cannot_do(
    arch: int,
    version: str | None,
    options: Options,
    words: str,
    small: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with in_place_of_tensorrt() as device:
        device._limits = replace(limits_of(90), arch=arch)
        if version:
            monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
        with pytest.raises(BadInput, match=words):
            small_build(small, device, options=options)
    assert not (small.path / "engines").exists()


def test_too_little_device_memory_names_three_ways_out(shipped: ModelFolder) -> None:
    with (
        in_place_of_tensorrt(memory_bytes=1 << 20) as device,
        pytest.raises(OutOfMemory) as refused,
    ):
        small_build(shipped, device, graphs=("unet_step",))
    message = str(refused.value)
    assert "GB of device memory is needed" in message
    assert all(way in message for way in ("other programs", "--buckets", "--batch", "--workspace"))


def test_no_memory_to_build_says_what_is_known(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "build_serialized_network", out_of_memory)
    with pytest.raises(
        OutOfMemory,
        match=r"weights alone take \d\.\d{3} GB, \d\.\d{3} GB was free; close .* --workspace",
    ):
        small_build(small, device, graphs=STEP)


def test_what_a_failing_builder_says(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Builder,
        "build_serialized_network",
        failing("[defaultAllocator.cpp] Cuda Runtime (out of memory)", "[builder.cpp] Error 10"),
    )
    with pytest.raises(OutOfMemory, match=r"out of memory.*fewer --buckets"):
        small_build(small, device)
    monkeypatch.setattr(
        Builder, "build_serialized_network", failing("Could not find any\n implementation", "so")
    )
    with pytest.raises(Fault, match="text_encoder: TensorRT cannot build it: Could not find any "):
        small_build(small, device)
    monkeypatch.setattr(Builder, "build_serialized_network", failing())
    with pytest.raises(Fault, match="it gave no reason"):
        small_build(small, device)
    assert files_in(folder_of(small.path)) == []


def test_a_builder_that_does_not_start(small: ModelFolder, device: Simulator) -> None:
    rules.attach(None)
    with pytest.raises(Fault, match="TensorRT's builder does not start"):
        small_build(small, device)


def test_what_does_not_start(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, *arguments: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    for kind, name in ((OnnxParser, "parser"), (Runtime, "runtime")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "__init__", nothing)
            with pytest.raises(Fault, match=f"TensorRT's {name} does not start"):
                small_build(small, device, graphs=STEP)

    def wrong(self: Any, *arguments: Any) -> None:
        raise TypeError("incompatible constructor arguments")

    monkeypatch.setattr(Runtime, "__init__", wrong)
    with pytest.raises(TypeError, match="incompatible"):  # a mistake of ours stays one
        small_build(small, device, graphs=STEP)


def test_what_the_parser_refuses(
    tmp_path: Path, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model_folders.graph_model

    def mixed(folder: Path, precision: Any) -> onnx.ModelProto:
        model = whole(folder, precision)
        (node,) = [node for node in model.graph.node if node.op_type == "Add"]
        node.op_type, node.name = "BitShift", "odd\none"
        return model

    monkeypatch.setattr(model_folders, "graph_model", mixed)
    model = open_model(make_model_folder(tmp_path / "model", stored="float16").path)
    with pytest.raises(Fault) as refused:
        small_build(model, device, graphs=("unet_step",))
    message = str(refused.value)
    assert message.startswith("unet_step.float16.onnx: TensorRT's parser refuses it: ")
    assert "\n" not in message


def test_a_weight_that_is_not_handed_over(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator's parser wants every initializer: the net under our own handing over."""
    monkeypatch.setattr(build_module, "map_weights", lambda *arguments: {})
    with pytest.raises(Fault, match="parser refuses it"):
        small_build(small, device, graphs=("unet_step",))


def test_a_full_disk_leaves_nothing(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="the disk is full"):
        small_build(small, device)
    assert files_in(folder_of(small.path)) == []
