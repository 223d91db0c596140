"""Compiled images on disk: found again, made anew when anything changes, never trusted blindly."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    cache.fill([(VARIANT, arch) for arch in (*ARCHS, None)])
    assert len(compiler.made) == len(ARCHS) + 1

    def none() -> Counting:
        raise CompileError("no CUDA compiler")

    alone = ImageCache(tmp_path / "kernels", none)
    for arch in (*ARCHS, 130, 999, None):
        assert alone.image(VARIANT, arch)
    with pytest.raises(CompileError):
        alone.image(CATALOGUE["select_rows"], 90)


def test_a_chip_nobody_knows_gets_ptx(cache: ImageCache) -> None:
    assert cache.image(VARIANT, 130) == b"prepare.float16 ptx"


def test_a_kernel_of_one_chip_is_made_for_no_other(
    cache: ImageCache, compiler: Counting, tmp_path: Path
) -> None:
    one = dataclasses.replace(VARIANT, archs=(90,), suffix="a")
    assert cache.image(one, 90) == b"prepare.float16 sm_90"
    assert cache.image(one, None) == b"prepare.float16 ptx"
    names = sorted(path.name for path in (tmp_path / "kernels").iterdir())
    assert ["-compute_90a-" in names[0], "-sm_90a-" in names[1]] == [True, True]
    for arch in (100, 130):
        with pytest.raises(CompileError, match=f"is for sm_90a alone, not for sm_{arch}"):
            cache.image(one, arch)
    cache.image(VARIANT, 90)
    cache.image(VARIANT, None)
    assert len(compiler.made) == 4  # Another target is another image.


class Slow(Counting):
    """A compiler that is met by others while it works, as long as `together` do."""

    def __init__(self, together: int = 1) -> None:
        super().__init__()
        self._meeting = threading.Barrier(together, timeout=10)

    def itself(self) -> "Slow":
        return self

    def cubin(self, variant: Variant, arch: int) -> bytes:
        self._meeting.wait()
        time.sleep(0.05)
        return super().cubin(variant, arch)


def test_what_is_missing_is_made_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    compiler = Slow(together=2)  # breaks where one is made after the other
    cache = ImageCache(tmp_path, lambda: compiler)
    heard: list[tuple[int, int]] = []
    wanted = [(VARIANT, arch) for arch in (80, 86, 89, 90, 80)]
    cache.fill(wanted, lambda done, total: heard.append((done, total)))
    assert heard == [(done, 4) for done in range(5)]
    assert sorted(compiler.made) == [f"prepare.float16 sm_{arch}" for arch in (80, 86, 89, 90)]
    heard.clear()
    cache.fill(wanted, lambda done, total: heard.append((done, total)))
    assert (len(compiler.made), heard) == (4, [])


def test_a_kernel_that_does_not_compile_ends_it_and_keeps_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Counting):
        def ptx(self, variant: Variant) -> bytes:
            raise CompileError("ptx does not compile")

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    compiler = Broken()
    cache = ImageCache(tmp_path, lambda: compiler)
    with pytest.raises(CompileError, match="ptx does not compile"):
        cache.fill([(VARIANT, 80), (VARIANT, None), *((VARIANT, arch) for arch in ARCHS[1:])])
    assert len(compiler.made) < len(ARCHS)  # what had not begun is not begun
    assert cache.image(VARIANT, 80) == b"prepare.float16 sm_80"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_who_wants_an_image_that_somebody_makes_waits_for_it(tmp_path: Path) -> None:
    """Caches that share nothing but the folder, as two processes do."""
    compilers = [Slow() for _ in range(4)]
    caches = [ImageCache(tmp_path, made.itself) for made in compilers]
    with ThreadPoolExecutor(len(caches)) as pool:
        found = set(pool.map(lambda cache: cache.image(VARIANT, 90), caches))
    assert found == {b"prepare.float16 sm_90"}
    assert sum(len(compiler.made) for compiler in compilers) == 1
    assert len(list(tmp_path.iterdir())) == 1  # no lock is left


def test_without_locks_each_makes_its_own(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", none)
    assert cache.image(VARIANT, 90) == b"prepare.float16 sm_90"


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
