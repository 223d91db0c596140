"""Plan files: read back as written, refused where one byte is not, held against the machine."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.key import RECIPE, Key, Machine, differences
from diffusion_rt.engines.trt.options import BuilderOptions, Edits
from diffusion_rt.engines.trt.plan_file import (
    PAGE,
    Constant,
    NotOurs,
    PlanHeader,
    check_usable,
    is_ours,
    open_plan,
    plan_path,
    read_header,
    trust_plan,
    write_plan,
)
from diffusion_rt.engines.trt.profiles import Range, fixed
from support.model_folders import make_model_folder
from support.plans import MACHINE, PROFILE, header_of, key_of

PLAN = bytes(range(256)) * 40 + b"the end"


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    header = header_of(PLAN)
    path = write_plan(tmp_path, header, memoryview(PLAN))
    assert path == plan_path(tmp_path, "unet_step")
    assert [file.name for file in tmp_path.iterdir()] == ["unet_step.plan"]
    assert read_header(tmp_path, "unet_step") == header
    hashed: list[int] = []
    with open_plan(tmp_path, "unet_step", hashed.append) as plan:
        assert (plan.path, plan.header, bytes(plan.data)) == (path, header, PLAN)
        assert plan.data.readonly
    assert sum(hashed) == len(PLAN)
    assert (path.stat().st_size - len(PLAN)) % PAGE == 0


def test_an_empty_plan_and_one_that_is_missing(tmp_path: Path) -> None:
    write_plan(tmp_path, header_of(b""), b"")
    with open_plan(tmp_path, "unet_step") as plan:
        assert plan.data.nbytes == 0
    assert read_header(tmp_path, "vae_decoder") is None
    made_by = "no such plan; make it by diffusion-rt build"
    with pytest.raises(BadInput, match=made_by), open_plan(tmp_path, "vae_decoder"):
        pass


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_changed_byte_goes_unseen(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    path = write_plan(folder, header_of(PLAN), PLAN)
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "longer"]))
    if kind == "flip":
        place = data.draw(
            st.one_of(st.integers(0, len(content) - 1), st.integers(0, 3000), st.integers(0, 50))
        )
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content += data.draw(st.binary(min_size=1, max_size=5000))
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused, open_plan(folder, "unet_step"):
        pass
    assert not isinstance(refused.value, NotOurs)
    assert str(refused.value).startswith(str(path))
    assert "build it again" in str(refused.value)


@given(content=st.binary(max_size=6000))
@settings(deadline=None)
def test_any_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plan")
    plan_path(folder, "unet_step").write_bytes(content)
    with pytest.raises(BadInput):
        read_header(folder, "unet_step")


def test_a_plan_under_another_name(tmp_path: Path) -> None:
    write_plan(tmp_path, header_of(PLAN), PLAN).rename(plan_path(tmp_path, "vae_decoder"))
    with pytest.raises(BadInput, match="holds the plan of unet_step"):
        read_header(tmp_path, "vae_decoder")


def test_links_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    target = write_plan(tmp_path, header_of(PLAN), PLAN)
    plan_path(tmp_path, "linked").symlink_to(target)
    os.mkfifo(plan_path(tmp_path, "pipe"))
    plan_path(tmp_path, "folder").mkdir()
    for name in ("linked", "pipe", "folder"):
        with pytest.raises(BadInput):
            read_header(tmp_path, name)


def test_a_header_that_is_not_the_plans(tmp_path: Path) -> None:
    for wrong in (header_of(PLAN + b"x"), replace(header_of(PLAN), plan_sha256="0" * 64)):
        with pytest.raises(ValueError, match="not that of this plan"):
            write_plan(tmp_path, wrong, PLAN)
    with pytest.raises(BadInput, match="scratch_bytes"):
        header_of(PLAN, scratch_bytes=(1, 2))
    assert not list(tmp_path.iterdir())


def test_a_header_may_not_know_what_it_needs_and_brings_constants(tmp_path: Path) -> None:
    constants = (Constant(name="added.0", dtype="float32", data="0000803f"),)
    header = header_of(PLAN, scratch_bytes=(), constants=constants)
    write_plan(tmp_path, header, PLAN)
    assert read_header(tmp_path, "unet_step") == header


def test_a_full_disk_leaves_the_older_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(tmp_path, header_of(PLAN), PLAN)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="the disk is full"):
        write_plan(tmp_path, header_of(b"newer"), b"newer")
    monkeypatch.undo()
    with open_plan(tmp_path, "unet_step") as plan:
        assert bytes(plan.data) == PLAN
    assert [file.name for file in tmp_path.iterdir()] == ["unet_step.plan"]


@pytest.fixture
def own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trusted yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))


@contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """A cache folder, and so notes of what is trusted, of somebody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "theirs"))
        yield


@pytest.mark.usefixtures("own_notes")
def test_a_plan_that_somebody_else_built_is_not_run(tmp_path: Path) -> None:
    with another_user(tmp_path):
        path = write_plan(tmp_path, header_of(PLAN), PLAN)
        assert is_ours(tmp_path, "unet_step")
        assert read_header(tmp_path, "unet_step", ours=True) == header_of(PLAN)
    content = path.read_bytes()
    assert read_header(tmp_path, "unet_step") == header_of(PLAN)
    assert not is_ours(tmp_path, "unet_step")
    foreign = r"unet_step\.plan was not built by you here.*--trust"
    with pytest.raises(NotOurs, match=foreign), open_plan(tmp_path, "unet_step"):
        pass
    with pytest.raises(NotOurs, match=foreign):
        read_header(tmp_path, "unet_step", ours=True)
    assert trust_plan(tmp_path, "unet_step")
    assert not trust_plan(tmp_path, "unet_step")
    assert path.read_bytes() == content, "to trust a plan is to write nothing to it"
    with open_plan(tmp_path, "unet_step") as plan:
        assert bytes(plan.data) == PLAN
    with another_user(tmp_path / "third"):
        assert not is_ours(tmp_path, "unet_step")


@pytest.mark.usefixtures("own_notes")
def test_trust_goes_with_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    """Who can write the folder can make header, hash and plan fit each other; not what is noted."""
    path = write_plan(tmp_path, header_of(PLAN), PLAN)
    (tmp_path / "moved").mkdir()
    path.rename(plan_path(tmp_path / "moved", "unet_step"))
    assert is_ours(tmp_path / "moved", "unet_step")
    with another_user(tmp_path):
        write_plan(tmp_path, header_of(b"evil"), b"evil")
    with pytest.raises(NotOurs), open_plan(tmp_path, "unet_step"):
        pass


@pytest.mark.usefixtures("own_notes")
def test_what_is_no_plan_is_not_trusted(tmp_path: Path) -> None:
    assert not trust_plan(tmp_path, "unet_step")
    plan_path(tmp_path, "unet_step").write_bytes(b"nonsense")
    assert not trust_plan(tmp_path, "unet_step")
    with another_user(tmp_path):
        path = write_plan(tmp_path, header_of(PLAN), PLAN)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the plan, which is looked at before it is run
    path.write_bytes(content)
    trust_plan(tmp_path, "unet_step")
    with pytest.raises(BadInput, match="its bytes changed"), open_plan(tmp_path, "unet_step"):
        pass


def test_a_plan_that_cannot_be_noted_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("in the way")
    with another_user(tmp_path), pytest.raises(BadInput, match="set XDG_CACHE_HOME to a folder"):
        write_plan(tmp_path, header_of(PLAN), PLAN)
    assert [file.name for file in tmp_path.iterdir()] == ["theirs"]


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    make_model_folder(tmp_path / "model")
    return open_model(tmp_path / "model")


def built_for(model: ModelFolder, **changes: Any) -> PlanHeader:
    """A header that fits the model and MACHINE, but for `changes` of its key."""
    variant = model.variant("unet_step", "float16")
    weights = "unet/diffusion_pytorch_model.safetensors"
    fields: dict[str, Any] = {
        "onnx": model.manifest.files[variant.file].sha256,
        "weights": {weights: model.manifest.files[weights].sha256},
    }
    key = key_of(**(fields | changes))
    return header_of(PLAN, key, inputs=variant.inputs, outputs=variant.outputs)


OLDER = replace(MACHINE, tensorrt="11.3.0.99")
A10 = replace(MACHINE, gpu="NVIDIA A10", arch=86)
H100 = replace(MACHINE, gpu="NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("changes", "here", "words"),
    [
        ({}, MACHINE, None),
        ({}, replace(MACHINE, driver="13.2"), None),
        ({}, replace(MACHINE, driver="12.9"), "for a driver of CUDA 13.0 or newer"),
        ({}, A10, "for NVIDIA H200 (sm_90, hardware compatibility none), this GPU is NVIDIA A10"),
        ({}, H100, "this GPU is NVIDIA H100"),
        ({"builder": BuilderOptions(compatibility="same")}, H100, None),
        ({"builder": BuilderOptions(compatibility="same")}, A10, "this GPU is NVIDIA A10"),
        ({"builder": BuilderOptions(compatibility="ampere+")}, A10, None),
        (
            {"builder": BuilderOptions(compatibility="ampere+")},
            replace(MACHINE, arch=75),
            "hardware compatibility ampere+",
        ),
        ({}, OLDER, "for TensorRT 11.4.0.106, installed is 11.3.0.99"),
        ({"machine": OLDER}, MACHINE, "for TensorRT 11.3.0.99, installed is 11.4.0.106"),
        (
            {"machine": OLDER, "builder": BuilderOptions(version_compatible=True)},
            MACHINE,
            None,
        ),
        (
            {"builder": BuilderOptions(version_compatible=True)},
            OLDER,
            "installed is 11.3.0.99",
        ),
        ({"onnx": "9" * 64}, MACHINE, "was built from another unet_step.float16.onnx"),
        (
            {"weights": {"unet/diffusion_pytorch_model.safetensors": "9" * 64}},
            MACHINE,
            "was built for another unet/diffusion_pytorch_model.safetensors",
        ),
        ({"weights": {"vae/gone.safetensors": "9" * 64}}, MACHINE, "another vae/gone.safetensors"),
    ],
)
def test_plans_for_other_things(
    model: ModelFolder, changes: dict[str, Any], here: Machine, words: str | None
) -> None:
    header, path = built_for(model, **changes), Path("x.plan")
    if words is None:
        check_usable(header, path, model, here)
        return
    with pytest.raises(BadInput) as refused:
        check_usable(header, path, model, here)
    assert words in str(refused.value)
    assert "diffusion-rt build" in str(refused.value)


def test_another_signature(model: ModelFolder) -> None:
    header = replace(built_for(model), inputs=())
    with pytest.raises(BadInput, match="other inputs or outputs"):
        check_usable(header, Path("x.plan"), model, MACHINE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"onnx": "5" * 64, "network": "6" * 64}, ["the exported graph changed"]),
        ({"weights": {"unet/model.safetensors": "4" * 64}}, ["unet/model.safetensors changed"]),
        ({"network": "6" * 64}, ["this diffusion-rt prepares the graph in another way"]),
        ({"plugin": "7" * 64}, ["the attention kernel changed"]),
        (
            {"builder": BuilderOptions(optimization_level=5, stripped=True)},
            ["optimization level 3, now 5", "stripped off, now on"],
        ),
        (
            {"builder": BuilderOptions(workspace_bytes=1 << 30)},
            ["workspace bytes unset, now 1073741824"],
        ),
        (
            {"edits": Edits(arithmetic="float32"), "network": "6" * 64},
            ["arithmetic float16, now float32"],
        ),
        (
            {"machine": replace(MACHINE, driver="13.2", tensorrt="11.5.0")},
            ["driver 13.0, now 13.2", "tensorrt 11.4.0.106, now 11.5.0"],
        ),
        (
            {"profiles": (replace(key_of().profiles[0], name="64x64"),)},
            ["sizes: 128x128 no longer wanted, 64x64 not in the plan"],
        ),
        (
            {
                "profiles": (
                    *key_of().profiles,
                    replace(key_of().profiles[0], name="64x64", sizes={"batch": fixed(1)}),
                )
            },
            ["sizes: 64x64 not in the plan"],
        ),
        (
            {
                "profiles": (
                    replace(
                        key_of().profiles[0],
                        sizes={"batch": Range(min=1, opt=1, max=1), "height": fixed(16)},
                    ),
                )
            },
            ["batch 1:2:8, now 1:1:1"],
        ),
    ],
)
def test_a_miss_says_what_changed(changes: dict[str, Any], said: list[str]) -> None:
    have, want = key_of(), key_of(**changes)
    assert differences(have, want) == said
    assert (have == want) == (not said)


CHANGES: dict[str, Any] = {
    "graph": "vae_decoder",
    "onnx": "5" * 64,
    "weights": {},
    "edits": Edits(arithmetic="float16", wide_attention=True),
    "network": "6" * 64,
    "plugin": "7" * 64,
    "profiles": (replace(PROFILE, name="64x64"),),
    "builder": BuilderOptions(build_route="-a=1"),
    "recipe": RECIPE + 1,
    "machine": A10,
}


@pytest.mark.parametrize("part", [field.name for field in fields(Key)])
def test_no_part_of_the_key_changes_unheard(part: str) -> None:
    assert len(differences(key_of(), key_of(**{part: CHANGES[part]}))) >= 1


def test_the_hash_is_of_the_plan_alone() -> None:
    assert header_of(PLAN).plan_sha256 == hashlib.sha256(PLAN).hexdigest()
