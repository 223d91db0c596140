"""Kept files: of a model folder's own, and of no other's, those of an earlier manifest go."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.engines.artefact import locked
from diffusion_rt.engines.kept import kept_name, own_folder, remove_superseded
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from support.model_folders import make_model_folder


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    make_model_folder(tmp_path / "model")
    return open_model(tmp_path / "model")


def test_only_what_was_made_of_this_folder_before_goes(model: ModelFolder, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    earlier = replace(model, sha256="0" * 64)
    other = replace(earlier, path=tmp_path / "other")
    outside = tmp_path / "outside.weights"
    outside.write_bytes(b"mine")
    old = [kept_name(earlier, "abc"), kept_name(earlier, "unet_step-float16")]
    links = [kept_name(earlier, "link")]
    stay = [
        kept_name(model, "abc"),
        kept_name(other, "abc"),
        "x" + old[0],
        old[0] + ".bak",
        old[0].replace("abc", "a b"),
        "unet_step-float16.weights",
        "tactics.json",
    ]
    for name in old + stay:
        (cache / name).write_bytes(b"weights")
    for name in links:
        (cache / name).symlink_to(outside)
    folder = kept_name(earlier, "folder")
    assert remove_superseded(cache, model) == len(old) + len(links)
    assert sorted(path.name for path in cache.iterdir()) == sorted(stay)
    assert outside.read_bytes() == b"mine"
    (cache / folder).mkdir()  # in the way, and none of ours
    assert remove_superseded(cache, model) == 0
    assert (cache / folder).is_dir()
    assert remove_superseded(cache, other) == 0


def test_nothing_goes_while_another_is_at_it(model: ModelFolder, tmp_path: Path) -> None:
    old = tmp_path / kept_name(replace(model, sha256="0" * 64), "abc")
    old.write_bytes(b"weights")
    with locked(tmp_path, "test", key=f"old-{old.name[:16]}"):
        assert remove_superseded(tmp_path, model) == 0
    assert old.exists()
    assert remove_superseded(tmp_path, model) == 1
    assert remove_superseded(tmp_path / "nowhere", model) == 0


def test_a_model_folder_that_cannot_be_written_has_no_folder(model: ModelFolder) -> None:
    assert own_folder(model, "native") == model.path / "engines" / "native"
    (model.path / "engines" / "native").rmdir()
    (model.path / "engines").rmdir()
    (model.path / "engines").write_text("in the way")
    assert own_folder(model, "native") is None
