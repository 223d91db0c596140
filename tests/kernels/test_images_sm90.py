"""The images of sm_90a: no serialised product, no spill, the instructions that were meant."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from diffusion_rt.kernels import attention_sm90
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.compile import CompileError, Nvrtc
from diffusion_rt.kernels.cubin import facts
from diffusion_rt.kernels.tiles_sm90 import WARPGROUP

# Those of bfloat16 differ in the types of instructions alone; test_catalogue reads their costs.
VARIANTS = [v for v in CATALOGUE.values() if v.suffix and v.name.endswith(".float16")]


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    try:
        return Nvrtc()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def test_there_are_some() -> None:
    assert len(VARIANTS) > 10


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_machine_code_is_what_was_meant(
    variant: Variant, nvrtc: Nvrtc, disassembler: str, tmp_path: Path
) -> None:
    image = tmp_path / "kernel.cubin"
    image.write_bytes(nvrtc.cubin(variant, variant.archs[0]))
    # Its assembler says here (C7510 and its like) where it serialises products or lets
    # setmaxnreg be.
    assert nvrtc.log == ""
    done = subprocess.run(
        [disassembler, "-sass", str(image)], capture_output=True, text=True, check=True
    )
    code = done.stdout
    for instruction in variant.instructions:
        assert re.search(rf"\b{re.escape(instruction)}", code), instruction
    products = set(re.findall(r"\bHGMMA\.(\w+)", code))
    wanted = {part.split(".")[1] for part in variant.instructions if part.startswith("HGMMA")}
    assert products == wanted
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
        [disassembler, "-sass", str(image)], capture_output=True, text=True, check=True
    )
    waits = re.split(r"DEPBAR\.LE gsb0, (0x\d)", done.stdout)
    (overlapped,) = (code for wait, code in pairwise(waits) if wait == "0x1")
    assert overlapped.count("MUFU.EX2") >= attention_sm90.KEYS / 2


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
