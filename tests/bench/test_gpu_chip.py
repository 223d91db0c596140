"""The chip as the driver's libraries tell it, over small libraries that stand for them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench.gpu_chip import Chip

CUDA = """
#include <stdio.h>
#include <stddef.h>
static int started;
int cuInit(unsigned flags) { started = flags == 0; return started ? FAILS : 1; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return !started; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "A chip %d ", device);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 150ull << 30; return device != 40; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    if (device != 40) return 101;
    switch (which) {
        case 16: *value = 132; return 0;
        case 38: *value = 50 << 20; return 0;
        case 75: *value = 9; return 0;
        case 76: *value = 0; return 0;
        default: return 1;
    }
}
"""
NVML = """
#include <stdio.h>
static int handles[2];
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = &handles[index];
    return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, handle == &handles[1] ? "A chip 40" : "Another");
    return 0;
}
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "580.95.05");
    return 0;
}
int nvmlDeviceGetClockInfo(void *handle, unsigned which, unsigned *mhz) {
    if (handle != &handles[1]) return 2;
    *mhz = which == 1 ? 1980 : 3201;
    return which == 2 ? MEMORY_FAILS : 0;
}
#include <unistd.h>
struct process { unsigned pid; unsigned long long used; unsigned instances[2]; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *found) {
    if (*count < 2) return 7;
    found[0] = (struct process){1, 3};
    found[1] = (struct process){getpid(), 5ull << 30};
    *count = 2;
    return MEMORY_FAILS;
}
"""
SCRIPT = """
import json
from dataclasses import asdict
from diffusion_rt.bench.gpu_chip import Clocks, NoChip, this_chip
try:
    chip = this_chip()
except NoChip as error:
    print(json.dumps(str(error)))
else:
    clocks = Clocks(chip.name)
    print(json.dumps([asdict(chip), clocks.driver(), clocks.now(), clocks.used()]))
"""


def ask(folder: Path, *, cuda: str | None = "0", nvml: str | None = "0") -> Any:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("skipped: no gcc")
    for name, source, value in (
        ("libcuda.so.1", CUDA, f"-DFAILS={cuda}"),
        ("libnvidia-ml.so.1", NVML, f"-DMEMORY_FAILS={nvml}"),
    ):
        if value.endswith("None"):
            (folder / name).write_bytes(b"none")
            continue
        command = [compiler, "-shared", "-fPIC", value, "-x", "c", "-", "-o", str(folder / name)]
        subprocess.run(command, input=source, text=True, check=True)
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_chip_is_described(tmp_path: Path) -> None:
    chip, driver, clocks, used = ask(tmp_path)
    wanted = {"name": "A chip 40", "arch": 90, "multiprocessors": 132, "memory": 150 << 30}
    assert chip == wanted | {"l2_bytes": 50 << 20, "cuda": "13.1", "simulated": False}
    assert driver == "580.95.05"
    assert clocks == {"sm_mhz": 1980, "memory_mhz": 3201}
    assert used == 5 << 30


def test_a_clock_that_is_not_told_is_left_out(tmp_path: Path) -> None:
    assert ask(tmp_path, nvml="3")[2] == {"sm_mhz": 1980}


def test_memory_that_is_not_told_is_unknown(tmp_path: Path) -> None:
    assert ask(tmp_path, nvml="3")[3] is None


def test_without_nvml_the_chip_is_still_known(tmp_path: Path) -> None:
    chip, driver, clocks, used = ask(tmp_path, nvml=None)
    assert chip["name"] == "A chip 40"
    assert (driver, clocks, used) == (None, {}, None)


def test_no_driver_and_no_gpu_are_said(tmp_path: Path) -> None:
    assert ask(tmp_path, cuda="100") == "the NVIDIA driver answers 100 to cuInit"
    assert "no NVIDIA driver" in str(ask(tmp_path, cuda=None))


def test_records_name_the_chip_alone() -> None:
    chip = Chip(name="A", arch=90, multiprocessors=132, memory=5, l2_bytes=1, cuda="13.0")
    assert (chip.device.kind, chip.device.name, chip.device.cores) == ("gpu", "A", 132)
