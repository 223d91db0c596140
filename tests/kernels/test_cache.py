"""Compiled images on disk: found again, made anew when anything changes, never trusted blindly."""

import dataclasses
from pathlib import Path

import pytest

from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import ARCHS, CATALOGUE, SOURCES, Variant
from diffusion_rt.kernels.compile import CompileError

VARIANT = CATALOGUE["prepare.float16"]


class Counting:
    """A compiler that says what it was asked for."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def cubin(self, variant: Variant, arch: int) -> bytes:
        self.made.append(f"{variant.name} sm_{arch}")
        return self.made[-1].encode()

    def ptx(self, variant: Variant) -> bytes:
        self.made.append(f"{variant.name} ptx")
        return self.made[-1].encode()


@pytest.fixture
def compiler() -> Counting:
    return Counting()


@pytest.fixture
def cache(tmp_path: Path, compiler: Counting) -> ImageCache:
    return ImageCache(tmp_path / "kernels", lambda: compiler)


def test_an_image_is_made_once(cache: ImageCache, compiler: Counting, tmp_path: Path) -> None:
    for _ in range(3):
        assert cache.image(VARIANT, 90) == b"prepare.float16 sm_90"
    again = ImageCache(tmp_path / "kernels", lambda: compiler)
    assert again.image(VARIANT, 90) == b"prepare.float16 sm_90"
    assert compiler.made == ["prepare.float16 sm_90"]
    assert again.rebuilt == []


def test_a_filled_cache_needs_no_compiler(
    cache: ImageCache, compiler: Counting, tmp_path: Path
) -> None:
    cache.fill([VARIANT])
    assert len(compiler.made) == len(ARCHS) + 1

    def none() -> Counting:
        raise CompileError("no CUDA compiler")

    alone = ImageCache(tmp_path / "kernels", none)
    for arch in (*ARCHS, 130, 999):
        assert alone.image(VARIANT, arch)
    with pytest.raises(CompileError):
        alone.image(CATALOGUE["select_rows"], 90)


def test_a_chip_nobody_knows_gets_ptx(cache: ImageCache) -> None:
    assert cache.image(VARIANT, 130) == b"prepare.float16 ptx"


def test_a_kernel_of_one_chip_has_one_image(
    cache: ImageCache, compiler: Counting, tmp_path: Path
) -> None:
    one = dataclasses.replace(VARIANT, archs=(90,), suffix="a")
    cache.fill([one])
    assert compiler.made == ["prepare.float16 sm_90"]
    (path,) = (tmp_path / "kernels").iterdir()
    assert "-sm_90a-" in path.name
    assert cache.image(one, 90) == b"prepare.float16 sm_90"
    cache.image(VARIANT, 90)
    assert len(compiler.made) == 2  # Another target is another image.


def test_anything_that_changes_makes_another_image(
    cache: ImageCache, compiler: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.image(VARIANT, 90)
    cache.image(VARIANT, 80)
    cache.image(dataclasses.replace(VARIANT, constants=(("ELEMENT", "float"),)), 90)
    assert len(compiler.made) == 3
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("diffusion_rt.kernels.cache.SOURCES", sources)
    cache.image(VARIANT, 90)
    assert len(compiler.made) == 3  # The same content elsewhere is the same.
    for changed in ("prepare.cu", "half.h"):
        with (sources / changed).open("a") as file:
            file.write("// changed\n")
        cache.image(VARIANT, 90)
    assert len(compiler.made) == 5


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw[:-1] + b"!", lambda raw: raw[5:]],
)
def test_a_damaged_image_is_made_again_and_told(
    cache: ImageCache,
    compiler: Counting,
    tmp_path: Path,
    damage: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert callable(damage)
    cache.image(VARIANT, 90)
    (path,) = (tmp_path / "kernels").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.image(VARIANT, 90) == b"prepare.float16 sm_90"
    assert cache.rebuilt == [path.name]
    assert cache.image(VARIANT, 90)
    assert len(compiler.made) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was damaged and is made again"
    ]


def test_a_failed_write_leaves_nothing(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        cache.image(VARIANT, 90)
    assert list((tmp_path / "kernels").iterdir()) == []
