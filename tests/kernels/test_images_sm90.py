"""The images of sm_90a: no serialised product, no spill, the instructions that were meant."""

import os
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from diffusion_rt.kernels import attention_sm90
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.compile import CompileError, Nvrtc
from diffusion_rt.kernels.cubin import facts
from diffusion_rt.kernels.tiles_sm90 import WARPGROUP
from support.assembler import assemble
from support.kernel_rows import EVERY_CHIP, wrong

VARIANTS = [variant for variant in CATALOGUE.values() if variant.suffix]
# The first of each source is its widest tile; all where the environment says so.
FIRST = {variant.source: variant for variant in reversed(VARIANTS)}
FOR_DRIVERS = VARIANTS if EVERY_CHIP in os.environ else list(FIRST.values())


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    try:
        return Nvrtc()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def test_there_are_some_of_both_types() -> None:
    for dtype in ("float16", "bfloat16"):
        assert sum(variant.name.endswith(f".{dtype}") for variant in VARIANTS) > 5


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_machine_code_is_what_was_meant(
    variant: Variant, nvrtc: Nvrtc, disassembler: str, tmp_path: Path
) -> None:
    (arch,) = variant.archs
    cubin = nvrtc.cubin(variant, arch)
    # Its assembler says here (C7510 and its like) where it serialises products or lets
    # setmaxnreg be.
    assert nvrtc.log == ""
    assert wrong(variant, arch, facts(cubin, variant.kernel)) == []
    image = tmp_path / "kernel.cubin"
    image.write_bytes(cubin)
    done = subprocess.run(
        [disassembler, "-c", str(image)], capture_output=True, text=True, check=True
    )
    code = done.stdout
    for instruction in variant.instructions:
        assert re.search(rf"\b{re.escape(instruction)}", code), instruction
    products = set(re.findall(r"\bHGMMA\.(\w+)", code))
    wanted = {part.split(".")[1] for part in variant.instructions if part.startswith("HGMMA")}
    assert products == wanted
    types = set(re.findall(r"\bHGMMA\.\w+\.F32(\.BF16)?", code))
    assert types == {".BF16" if variant.name.endswith(".bfloat16") else ""}
    assert not re.search(r"\b(LDL|STL|CALL)\b", code)
    # The kernel ahead is waited for before anything of memory is read or written.
    touched = re.search(r"\b(LDG|STG|UTMALDG|ATOMG|REDG)\b", code)
    assert touched is not None
    assert 0 < code.find("ACQBULK") < touched.start()
    # Warpgroups share out just the registers that the block begins with: where one waits for more
    # than there are, it waits for ever.
    found, groups = facts(image.read_bytes(), variant.kernel), variant.threads // WARPGROUP
    least, most = sorted(int(n, 16) for n in re.findall(r"\bUSETMAXREG\.\S+ .*?(0x\w+) ;", code))
    assert least + (groups - 1) * most == groups * found.registers
    # Nobody waits for the whole chip's memory between products: a fence of the wrong scope would.
    between = code[code.index("HGMMA") : code.rindex("HGMMA")]
    assert "MEMBAR" not in between


@pytest.mark.parametrize("tactic", attention_sm90.TACTICS, ids=lambda tactic: tactic.variant.name)
def test_the_softmax_is_made_while_products_are_under_way(
    tactic: attention_sm90.Sm90Attention, nvrtc: Nvrtc, disassembler: str, tmp_path: Path
) -> None:
    """Between waiting for the scores and for the values: an exponential for each score."""
    image = tmp_path / "kernel.cubin"
    image.write_bytes(nvrtc.cubin(tactic.variant, tactic.variant.archs[0]))
    done = subprocess.run(
        [disassembler, "-c", str(image)], capture_output=True, text=True, check=True
    )
    waits = re.split(r"DEPBAR\.LE gsb0, (0x\d)", done.stdout)
    (overlapped,) = (code for wait, code in pairwise(waits) if wait == "0x1")
    assert overlapped.count("MUFU.EX2") >= attention_sm90.KEYS / 2


@pytest.mark.parametrize("variant", FOR_DRIVERS, ids=lambda variant: variant.name)
def test_a_driver_can_compile_it_from_ptx_of_an_older_version(
    variant: Variant, nvrtc: Nvrtc
) -> None:
    """The assembler holds the text to the version that it says it is of."""
    text = nvrtc.ptx(variant)
    assert b"\n.version 8.0\n" in text
    # The launch says how large clusters are. Of a kernel that says it too a driver may answer
    # CUDA_ERROR_NOT_PERMITTED: "if the value is set during compile time, it cannot be set at
    # runtime" (cuda.h).
    assert not re.search(rb"\.(req|max)ncta|\.explicitcluster|\.maxclusterrank", text)
    assert b"\n.target sm_90a\n" in text
    found = facts(assemble(text, "90a"), variant.kernel)
    # This assembler compiles parts of programs, where it ignores setmaxnreg: what wants registers
    # that are handed over lies on its stack. Whole programs are held to none above.
    assert wrong(variant, variant.archs[0], replace(found, frame_bytes=0)) == []


def test_a_planted_instruction_of_a_later_version_is_refused(nvrtc: Nvrtc) -> None:
    newer = "fence.proxy.tensormap::generic.release.gpu;"  # of PTX 8.3
    text = nvrtc.ptx(FOR_DRIVERS[0])
    planted = re.sub(rb"\n\s*ret;", b"\n" + newer.encode() + b"\nret;", text, count=1)
    assert planted != text
    with pytest.raises(AssertionError, match=r"requires PTX ISA \.version 8\.3"):
        assemble(planted, "90a")


def test_a_planted_serialised_product_is_said(nvrtc: Nvrtc, tmp_path: Path) -> None:
    """Sums that are touched while a product is under way: the assembler puts in a wait."""
    source = tmp_path / "serial.cu"
    source.write_text(
        """
#include "kernel.h"
#include "hopper.h"
extern "C" __global__ void serial(float* out) {
    DYNAMIC_SHARED(memory);
    float d[32] = {};
    const Descriptor rows = rows_of_128(window_address(memory));
    wgmma_fence();
    wgmma<half, 64>(d, rows, rows, 1);
    for (int i = 0; i < 32; i++) d[i] *= 2;
    wgmma<half, 64>(d, rows, rows, 1);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = d[i];
}
"""
    )
    variant = Variant(
        name="serial",
        kernel="serial",
        source=str(source),
        constants=(),
        parameters=(),
        registers=255,
        archs=(90,),
        suffix="a",
    )
    nvrtc.cubin(variant, 90)
    assert re.search(r"C75\d\d", nvrtc.log)
