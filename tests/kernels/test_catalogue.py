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
from diffusion_rt.kernels.cubin import Facts, facts
from diffusion_rt.kernels.driver import Parameter, limits_of
from support.assembler import assemble

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SYSTEM_SHARED_BYTES = 1024  # of each block from sm_90 on, counted into the section's size

# Registers and spills hardly differ within a family of chips. So each variant is compiled for one
# chip of three families, those of other types than float16 for one of these three, and a sixth of
# all for one of the other chips, by their names. For all chips where the environment says so;
# whoever builds images compiles for all anyway.
EVERY_CHIP = "DIFFUSION_RT_TEST_EVERY_CHIP"
ALWAYS = (80, 90, 120)
OTHERS = tuple(arch for arch in ARCHS if arch not in ALWAYS)


def compiled_for(variant: Variant) -> tuple[int, ...]:
    """The chips that this run compiles a variant for."""
    if EVERY_CHIP in os.environ:
        return variant.archs
    number = zlib.crc32(variant.name.encode())
    always: tuple[int, ...] = ALWAYS
    if variant.name.endswith((".bfloat16", ".float32")) and variant.archs == ARCHS:
        always = ALWAYS[number % 3 :][:1]
    drawn = number % (6 * len(OTHERS))
    return tuple(arch for arch in variant.archs if arch in (*always, *OTHERS[drawn : drawn + 1]))


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    try:
        return find_compiler()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def wrong(variant: Variant, arch: int, found: Facts) -> list[str]:
    """Where a compiled kernel does not keep to its catalogue row."""
    trouble = []
    if found.frame_bytes:
        trouble.append(f"{found.frame_bytes} bytes of stack: a spill or a local array")
    if found.registers > variant.registers:
        trouble.append(f"{found.registers} registers, {variant.registers} allowed")
    system = SYSTEM_SHARED_BYTES if arch >= 90 and found.shared_bytes else 0
    if found.shared_bytes - system != variant.shared_bytes:
        trouble.append(f"{found.shared_bytes - system} bytes of shared memory")
    if found.parameters != layout(variant.parameters):
        trouble.append(f"parameters {found.parameters}")
    return trouble


def layout(parameters: tuple[Parameter, ...]) -> tuple[tuple[int, int], ...]:
    """Offset and size of each in the parameter block, by C's rules of alignment.

    Tensor maps lie at multiples of 64 of memory; on sm_90 the block begins 16 bytes beside one.
    """
    at, places = 0, []
    for parameter in parameters:
        size = parameter.nbytes
        at += -(at + 16) % 64 if parameter.kind == "tensor_map" else -at % size
        places.append((at, size))
        at += size
    return tuple(places)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_variant_keeps_to_its_row(compiler: Compiler, arch: int) -> None:
    for variant in CATALOGUE.values():
        if arch not in compiled_for(variant):
            continue
        found = facts(compiler.cubin(variant, arch), variant.kernel)
        assert wrong(variant, arch, found) == [], f"{variant.name} on sm_{arch}"


def test_every_variant_has_ptx_for_chips_to_come(compiler: Compiler) -> None:
    for variant in CATALOGUE.values():
        if variant.suffix:
            continue
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
        assert variant.archs == ARCHS or variant.suffix
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
    with pytest.raises(CompileError, match="one is for sm_90a alone, not for newer chips"):
        compiler.ptx(variant)


def test_a_kernel_that_may_start_early_waits_for_the_one_ahead(
    compiler: Compiler, disassembler: str, tmp_path: Path
) -> None:
    """Before its machine code touches memory; one variant of each source."""
    early = {v.source: v for v in CATALOGUE.values() if v.overlaps and not v.suffix}
    assert len(early) > 5
    image = tmp_path / "kernel.cubin"
    for variant in early.values():
        image.write_bytes(compiler.cubin(variant, 90))
        command = [disassembler, "-sass", str(image)]
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
    with pytest.raises(CompileError, match=r"nvcc is not .*; pip install nvidia-cuda-nvrtc"):
        find_compiler()
