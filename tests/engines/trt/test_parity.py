"""Each engine against ONNX Runtime, told by Polygraphy's comparator and written down.

On a real TensorRT every output's figures go to parity/trt.jsonl, a line each, under bench/results
or the folder that DIFFUSION_RT_TEST_RESULTS names: apart from the records of benchmarks, which have
other fields.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.bench import records
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.library import require_tensorrt
from diffusion_rt.engines.trt.options import Options
from support.tensorrt_bench import COVERAGE, PLAIN, SIZES, Kind, random_inputs

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench" / "results"
RECORDS = Path("parity", "trt.jsonl")
BUILDS = {"float32": PLAIN, "float16": Options()}

# Of the largest number in an output. Nobody has measured the real one yet: these bounds are wide
# on purpose, what was found stands in the records.
CLOSE = {"float32": 1e-3, "float16": 5e-2}


@pytest.fixture(scope="module")
def built(
    model: ModelFolder, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModelFolder]:
    """The shipped model with engines of each precision."""
    half = tmp_path_factory.mktemp("half") / "shapes-xl"
    shutil.copytree(model.path, half)
    found = open_model(half)
    build(found, COVERAGE, BUILDS["float16"], device=gpu.device, made_by="tests")
    return {"float32": model, "float16": found}


@pytest.mark.parametrize("precision", list(BUILDS))
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_output_is_that_of_onnx_runtime(
    built: dict[str, ModelFolder],
    gpu: Gpu,
    kind: Kind,
    graph: str,
    precision: str,
    tmp_path: Path,
) -> None:
    comparator = pytest.importorskip(
        "polygraphy.comparator", reason="skipped: no Polygraphy; pip install polygraphy"
    )
    results = []
    engines = (
        ("onnxruntime", OrtBackend(built["float32"], threads=1).load(graph)),
        ("tensorrt", open_trt(built[precision], gpu).load(graph)),
    )
    inputs = random_inputs(engines[0][1], SIZES[graph])
    for name, engine in engines:
        given = {n: a.astype(engine.inputs[n].dtype) for n, a in inputs.items()}
        outputs = {
            output: np.full(spec.resolve(SIZES[graph]), np.nan, spec.dtype)
            for output, spec in engine.outputs.items()
        }
        engine.bind(given | outputs)
        engine.enqueue()
        engine.close()
        wide = {output: values.astype(np.float32) for output, values in outputs.items()}
        results.append((name, comparator.IterationResult(outputs=wide, runner_name=name), wide))
    largest = max(float(np.abs(values).max()) for values in results[0][2].values())
    # Polygraphy before 0.50 has it under another name.
    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    compare = simple(atol=CLOSE[precision] * largest, rtol=0, check_error_stat="max")
    found = compare(results[0][1], results[1][1])
    lines = []
    for output, result in found.items():
        wanted, got = results[0][2][output], results[1][2][output]
        figures = {
            "graph": graph,
            "build": precision,
            "output": output,
            "max": float(result.max_absdiff),
            "mean": float(result.mean_absdiff),
            "psnr": psnr(wanted, got),
            "largest": float(np.abs(wanted).max()),
        }
        lines.append(
            {**origin(gpu), "graph": graph, "build": precision, "output": output} | figures
        )
    kept = Path(os.environ.get("DIFFUSION_RT_TEST_RESULTS") or RESULTS)
    write((kept if kind == "real" else tmp_path) / RECORDS, lines)
    assert found.keys() == results[0][2].keys()
    assert all(found.values()), lines


def test_the_record_of_a_real_one_is_written(tmp_path: Path) -> None:
    """By `pytest -m trt`, as on a machine that has all: here the simulated one stands for it."""
    here = str(Path(__file__))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "trt"]
    command += ["-p", "support.as_real", "-k", "text_encoder_2 or unet_prompt", here]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), *filter(None, sys.path)])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "DIFFUSION_RT_TEST_RESULTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()]
    assert {(line["graph"], line["build"]) for line in lines} == {
        (graph, build) for graph in ("text_encoder_2", "unet_prompt") for build in BUILDS
    }
    for line in lines:
        assert line["device"] == "simulator"
        assert line["mean"] <= line["max"] <= CLOSE[line["build"]] * line["largest"]
        assert (line["psnr"] is None) == (line["max"] == 0)


def test_the_records_of_benchmarks_can_still_be_read(tmp_path: Path) -> None:
    write(tmp_path / RECORDS, [{"graph": "unet_step"}])
    assert records.read(tmp_path) == []


def psnr(wanted: NDArray[Any], got: NDArray[Any]) -> float | None:
    """Peak signal to noise in dB, the peak being the largest number wanted; None where equal."""
    error = float(np.mean((wanted.astype(np.float64) - got) ** 2))
    peak = float(np.abs(wanted).max())
    return round(10 * math.log10(peak * peak / error), 2) if error and peak else None


def origin(gpu: Gpu) -> dict[str, Any]:
    """Where, when and with what."""
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "version": 1,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": gpu.device.name,
        "arch": gpu.device.arch,
        "driver": gpu.device.driver,
        "tensorrt": require_tensorrt(),
        "model": "shapes-xl",
        "commit": commit.stdout.strip() or None,
    }


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
