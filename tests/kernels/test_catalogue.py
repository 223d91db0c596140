"""Every variant compiles for every chip, and costs there what the catalogue allows."""

import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.kernels.catalogue import ARCHS, CATALOGUE, SOURCES, Variant
from diffusion_rt.kernels.compile import CompileError, Compiler, Nvcc, find_compiler
from diffusion_rt.kernels.cubin import facts
from diffusion_rt.kernels.driver import Parameter, limits_of
from support.assembler import assemble
from support.kernel_rows import EVERY_CHIP, wrong

SUPPORT = Path(__file__).resolve().parents[1] / "support"

# Registers and spills hardly differ within a family of chips. So each variant is compiled for one
# chip of three families, those of other types than float16 for one of these three. Of a source that
# a chip has not met then it gets one variant, each chip another. All chips take all where the
# environment says so; whoever builds images compiles for all anyway. Variants of one chip alone are
# in test_images_sm90.
FAMILIES = (80, 90, 120)
FOR_ALL = [variant for variant in CATALOGUE.values() if not variant.suffix]
SOURCES_OF = {variant.source for variant in FOR_ALL}


def compiled_for(arch: int) -> list[Variant]:
    """The variants that this run compiles for a chip."""
    if EVERY_CHIP in os.environ:
        return FOR_ALL
    chosen = [variant for variant in FOR_ALL if arch in _always(variant)]
    for source in SOURCES_OF - {variant.source for variant in chosen}:
        variants = [variant for variant in FOR_ALL if variant.source == source]
        chosen.append(variants[ARCHS.index(arch) % len(variants)])
    return chosen


def _always(variant: Variant) -> tuple[int, ...]:
    if variant.name.endswith((".bfloat16", ".float32")):
        return FAMILIES[zlib.crc32(variant.name.encode()) % len(FAMILIES) :][:1]
    return FAMILIES


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    try:
        return find_compiler()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


@pytest.mark.parametrize("arch", ARCHS)
def test_every_variant_keeps_to_its_row(compiler: Compiler, arch: int) -> None:
    variants = compiled_for(arch)
    assert {variant.source for variant in variants} == SOURCES_OF
    for variant in variants:
        found = facts(compiler.cubin(variant, arch), variant.kernel)
        assert wrong(variant, arch, found) == [], f"{variant.name} on sm_{arch}"


def test_every_variant_has_ptx_for_chips_to_come(compiler: Compiler) -> None:
    for variant in FOR_ALL:
        text = compiler.ptx(variant).decode()
        assert re.search(rf"\.visible \.entry {variant.kernel}\(", text)
        assert ".target sm_80" in text
        assert "\n.version 8.0\n" in text
        assert ".local" not in text
        # What the launch hands over is all there is: no hidden parameters.
        assert text.count(".param .") == len(variant.parameters)
        for instruction in variant.instructions:
            assert instruction in text, f"{variant.name} has no {instruction}"
        if EVERY_CHIP in os.environ:
            assemble(text.encode(), max(ARCHS))


def test_the_toolkits_compiler_makes_the_same_interface() -> None:
    try:
        nvcc = Nvcc()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    variant = CATALOGUE["guided_step.float16"]
    for arch in (80, 121):
        assert wrong(variant, arch, facts(nvcc.cubin(variant, arch), variant.kernel)) == []


def test_a_planted_local_array_is_found(compiler: Compiler) -> None:
    planted = Variant(
        name="local_array",
        kernel="local_array",
        source=str(SUPPORT / "local_array.cu"),
        constants=(),
        parameters=(Parameter("values", "pointer"), Parameter("at", "int32")),
        registers=255,
    )
    found = facts(compiler.cubin(planted, 90), "local_array")
    assert found.frame_bytes >= 256
    assert any("stack" in trouble for trouble in wrong(planted, 90, found))


def test_a_wrong_row_is_found(compiler: Compiler) -> None:
    variant = CATALOGUE["prepare.float16"]
    found = facts(compiler.cubin(variant, 90), variant.kernel)
    shorter = Variant(
        name=variant.name,
        kernel=variant.kernel,
        source=variant.source,
        constants=variant.constants,
        parameters=variant.parameters[:-1],
        registers=8,
        shared_bytes=4,
    )
    trouble = " ".join(wrong(shorter, 90, found))
    for word in ("registers", "shared", "parameters"):
        assert word in trouble


def test_an_error_in_a_source_is_one_line(compiler: Compiler, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "kernel.h"\nextern "C" __global__ void broken() { nothing(); }\n')
    variant = Variant(
        name="broken",
        kernel="broken",
        source=str(source),
        constants=(),
        parameters=(),
        registers=8,
    )
    with pytest.raises(CompileError, match=r"broken.*does not compile.*nothing") as caught:
        compiler.ptx(variant)
    assert "\n" not in str(caught.value)


def test_rows_are_named_after_their_kernel_and_fit_every_chip() -> None:
    for name, variant in CATALOGUE.items():
        assert name == variant.name
        assert name.split(".")[0].startswith(variant.kernel)
        assert (SOURCES / variant.source).is_file()
        assert variant.archs == ARCHS or (variant.suffix and len(variant.archs) == 1)
        assert set(variant.archs) <= set(ARCHS)
        for arch in variant.archs:
            # A block's registers, given out by eights, fit the file of 64 Ki.
            assert -(-variant.registers // 8) * 8 * variant.threads <= 65536
            assert variant.shared_bytes <= limits_of(arch).shared_bytes


def test_a_kernel_of_one_chip_is_made_for_no_other(compiler: Compiler) -> None:
    variant = replace(CATALOGUE["prepare.float16"], name="one", archs=(90,), suffix="a")
    assert facts(compiler.cubin(variant, 90), variant.kernel).parameters
    with pytest.raises(CompileError, match="one is for sm_90a alone, not for sm_100"):
        compiler.cubin(variant, 100)
    assert b".target sm_90a" in compiler.ptx(variant)


EARLY = {variant.source: variant for variant in FOR_ALL if variant.overlaps}


def test_a_kernel_that_may_start_early_waits_for_the_one_ahead(
    compiler: Compiler, disassembler: str, tmp_path: Path
) -> None:
    """Before its machine code touches memory; one variant of each source."""
    assert len(EARLY) > 5
    for variant in EARLY.values():
        _check_that_it_waits(compiler, variant, disassembler, tmp_path)


def test_what_the_toolkits_compiler_makes_waits_too(disassembler: str, tmp_path: Path) -> None:
    """Images are kept under one name, whichever compiler made them."""
    try:
        nvcc = Nvcc()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    for source in ("layer_norm.cu", "gemm.cu"):
        _check_that_it_waits(nvcc, EARLY[source], disassembler, tmp_path)


def _check_that_it_waits(
    compiler: Compiler, variant: Variant, disassembler: str, folder: Path
) -> None:
    image = folder / "kernel.cubin"
    image.write_bytes(compiler.cubin(variant, 90))
    command = [disassembler, "-c", str(image)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    touched = re.search(r"\b(LD|LDG|LDGSTS|ST|STG|ATOMG|REDG)\b", code)
    assert touched is not None
    assert 0 < code.find("ACQBULK") < touched.start(), variant.name


def test_every_source_is_in_the_catalogue() -> None:
    used = {variant.source for variant in CATALOGUE.values()}
    assert used == {path.name for path in SOURCES.glob("*.cu")}


def test_without_a_compiler_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match=r"nvcc is not .*; pip install 'diffusion-rt\[native\]'"):
        find_compiler()
