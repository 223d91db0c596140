"""`engines/trt` against the real bindings of TensorRT: names, arguments, types, numbers.

No TensorRT library is needed: the bindings are asked what they have, in a process of its own, and
mypy holds our code to the answer. Planted errors show that it would see ours.
"""

import ast
import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from support import simulated_tensorrt
from support.tensorrt_libs import make_libraries, with_bindings
from support.tensorrt_surface import Surface

ROOT = Path(__file__).parents[3]
ENGINES = ROOT / "src" / "diffusion_rt" / "engines" / "trt"
GENERATOR = ROOT / "tests" / "support" / "tensorrt_stubs.py"
VERSION = "11.4.0.106"  # of the wheel that constraints.txt pins

# What carries no signature that parses, and is Any in the stubs.
UNTYPED = {
    "Builder.gpu_allocator",
    "DataType.itemsize",
    "IErrorRecorder.MAX_DESC_LENGTH",
    "IExecutionContext.device_memory",
    "INetworkDefinition.add_scale_nd",
    "IPluginV2DynamicExt.get_workspace_size",
    "IPluginV3OneBuild.configure_plugin",
    "IPluginV3OneBuild.get_workspace_size",
    "IPluginV3OneRuntime.on_shape_change",
    "ISymExpr.dtype",
    "ISymExpr.expr",
    "ISymExpr.type",
    "Runtime.gpu_allocator",
    "common_enter",
    "common_exit",
    "get_plugin_registry",
    "nptype",
    "volume",
}


@dataclass(frozen=True)
class Bindings:
    """The bindings' stubs in a folder, and what was found on the way."""

    folder: Path
    libraries: Path
    report: dict[str, Any]

    @property
    def stub(self) -> Path:
        return self.folder / "tensorrt" / "__init__.pyi"


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    libraries = make_libraries(tmp_path_factory.mktemp("libraries"))
    folder = tmp_path_factory.mktemp("stubs")
    with_bindings(libraries, [str(GENERATOR), str(folder)])
    return Bindings(folder, libraries, json.loads((folder / "parsed.json").read_text()))


def check(
    bindings: Bindings, *flags: str, package: str = "diffusion_rt.engines.trt"
) -> tuple[int, str]:
    """mypy strict on a package with the stubs in reach: its status and its words."""
    paths = [bindings.folder, ROOT / "src", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", *flags, "-p", package],
        cwd=ROOT,
        env=os.environ
        | {
            "MYPYPATH": os.pathsep.join(map(str, paths)),
            "MYPY_CACHE_DIR": str(bindings.folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_wheel_is_the_one_that_was_read(bindings: Bindings) -> None:
    assert bindings.report["version"] == VERSION
    needed = [one for one in requires("tensorrt-cu13-bindings") or () if "extra ==" not in one]
    assert needed == []  # nothing comes with it
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"tensorrt-cu13-bindings=={VERSION}" in pinned


def test_nearly_everything_has_a_signature(bindings: Bindings) -> None:
    assert set(bindings.report["failed"]) == UNTYPED
    assert bindings.report["parsed"] > 1000


def test_our_code_is_typed_as_the_bindings_are(bindings: Bindings) -> None:
    status, words = check(bindings)
    assert status == 0, words
    assert "no issues found" in words


PLANTED = [
    ("builder.py", "builder.create_builder_config()", "builder.create_builder_configs()"),
    ("builder.py", "MemoryPoolType.WORKSPACE", "MemoryPoolType.WORK_SPACE"),
    ("builder.py", "BuilderFlag.STRIP_PLAN", "BuilderFlag.WEIGHTLESS"),  # of TensorRT 10
    ("builder.py", "set_shape(spec.name, low, best, high)", "set_shape(spec.name, low, high)"),
    ("builder.py", "low, best, high)\n", "low, best, maximum=high)\n"),
    ("builder.py", "config.set_timing_cache(cache, False)", "config.set_timing_cache(cache)"),
    ("builder.py", "max_aux_streams = options.aux", "max_aux_streams = str(1) or options.aux"),
    ("network.py", "trt.OnnxParser(self.definition, messages)", "trt.OnnxParser(messages, None)"),
    ("network.py", "weight.address, weight", "hex(weight.address), weight"),
    ("network.py", "trt.DataType.HALF", "trt.DataType.FLOAT16"),
    ("monitor.py", "def phase_finish(self, phase_name: str)", "def phase_finish(self)"),
    ("engine.py", ".execute_async_v3(", ".execute_async_v2("),
    ("loading.py", "trt.Runtime(messages)", "trt.Runtime()"),
    ("network.py", "set_weights_name(trt.Weights(values), name)", "set_weights_name(name, values)"),
    ("refit.py", "trt.Weights(TYPES[given.dtype],", "trt.Weights(given.dtype,"),
    ("messages.py", "severity: trt.ILogger.Severity", "severity: str"),
    ("plugin.py", "trtp.cdiv(", "trtp.ceil_div("),
    ("plugin.py", "trtp.SymExprs(len(integers))", "trtp.SymExprs(size=len(integers))"),
    ("plugin.py", "grid_y=heads", "grid_y=str(heads)"),
]


@pytest.mark.parametrize(("file", "old", "new"), PLANTED)
def test_a_planted_error_is_seen(
    file: str, old: str, new: str, bindings: Bindings, tmp_path: Path
) -> None:
    text = (ENGINES / file).read_text()
    assert text.count(old) >= 1, f"{old} is no longer in {file}: plant another"
    planted = tmp_path / file
    # mypy's cache takes a shadow of the same size for the file it knows: each gets its own size.
    comment = "#" * (100 + 100 * PLANTED.index((file, old, new)))
    planted.write_text(f"{text.replace(old, new)}{comment}\n")
    status, words = check(bindings, "--shadow-file", str(ENGINES / file), str(planted))
    assert status == 1, words
    line = text[: text.index(old)].count("\n") + 1
    assert f"engines/trt/{file}:{line}: error:" in words


def test_every_name_we_use_is_there(bindings: Bindings) -> None:
    """Without mypy's reading: each `trt.X.Y` in our source is asked for in the bindings."""
    used = sorted(used_names())
    assert "BuilderFlag.REFIT_IDENTICAL" in used
    code = (
        "import json, sys, operator, tensorrt_bindings as trt\n"
        "missing = []\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try: operator.attrgetter(name)(trt)\n"
        "    except AttributeError: missing.append(name)\n"
        "print(json.dumps(missing))"
    )
    missing = with_bindings(
        bindings.libraries, ["-c", code, json.dumps([*used, "BuilderFlag.FP16"])]
    )
    assert json.loads(missing) == ["BuilderFlag.FP16"]  # gone since TensorRT 11, planted


@cache
def used_names() -> frozenset[str]:
    """The dotted names after `trt.` in all modules of `engines/trt`."""
    found = set()
    for path in ENGINES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.startswith("trt.") and text.replace(".", "").isidentifier():
                found.add(text.removeprefix("trt."))
    return frozenset(found)


def test_flags_are_never_numbers_of_ours(bindings: Bindings) -> None:
    """Their values moved from TensorRT 10 to 11; only members' names say what is meant."""
    values = bindings.report["enums"]["NetworkDefinitionCreationFlag"]
    assert values == {
        "STRONGLY_TYPED": 0,
        "PREFER_JIT_PYTHON_PLUGINS": 1,
        "PREFER_AOT_PYTHON_PLUGINS": 2,
    }
    for path in ENGINES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("create_network"):
                assert all(not isinstance(argument, ast.Constant) for argument in node.args)


def test_the_simulated_tensorrt_has_no_other_surface(bindings: Bindings) -> None:
    surface = Surface(bindings.stub)
    found = [
        difference
        for name in simulated_tensorrt.__all__
        if inspect.isclass(kind := getattr(simulated_tensorrt, name))
        for difference in surface.differences(kind)
    ]
    assert found == []
    assert set(simulated_tensorrt.__all__) <= surface.names


def test_the_simulated_enumerations_have_the_real_numbers(bindings: Bindings) -> None:
    enums = bindings.report["enums"]
    checked = 0
    for name in simulated_tensorrt.__all__:
        members = getattr(getattr(simulated_tensorrt, name), "__members__", None)
        if members is not None:
            checked += 1
            for member, value in members.items():
                assert enums[name][member] == int(value), f"{name}.{member}"
    assert checked > 8


def test_bindings_without_their_library_are_told_of(tmp_path: Path) -> None:
    """What a user meets whose download of the library failed: the real bindings, and no library."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("from tensorrt_bindings import *\n")
    code = (
        "from diffusion_rt.engines.trt.library import require_tensorrt\n"
        "from diffusion_rt.engines.errors import BadInput\n"
        "try: require_tensorrt()\n"
        "except BadInput as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("engine trt: TensorRT cannot be imported (libnv")
    assert "cannot open shared object file" in line
    assert line.endswith("install it anew: pip install 'diffusion-rt[trt]'")


def test_a_layer_takes_the_class_of_a_constant(bindings: Bindings) -> None:
    """What `Network.added` does: the bindings hand out each layer under the base class alone."""
    code = (
        "import tensorrt_bindings as trt\n"
        "layer = trt.ILayer.__new__(trt.ILayer)\n"
        "print(hasattr(type(layer), 'weights'))\n"
        "layer.__class__ = trt.IConstantLayer\n"
        "print(hasattr(type(layer), 'weights'))\n"
    )
    printed = with_bindings(bindings.libraries, ["-c", code])
    assert printed.splitlines()[-2:] == ["False", "True"]


class Refitter:
    """Stands for the bindings' class, and is wrong in each way there is."""

    def get_all_weights(self) -> None:
        """As it is."""

    def get_every_weight(self) -> None:
        """No such member."""

    def refit_cuda_engine_async(self, handle: int) -> None:
        """Another name of a parameter."""

    def get_weights_prototype(self) -> None:
        """A parameter too few."""

    def set_named_weights(self, name: str, weights: Any, where: int) -> None:
        """A name that no overload has."""

    def refit_cuda_engine(self, stream: int = 0) -> None:
        """A parameter too many."""

    def max_threads(self) -> None:
        """A value there."""


def test_the_comparison_sees_what_is_wrong(bindings: Bindings) -> None:
    found = Surface(bindings.stub).differences(Refitter)
    assert [line.split(":")[0].split("(")[0] for line in found] == [
        "Refitter.get_every_weight",
        "Refitter.get_weights_prototype",
        "Refitter.max_threads",
        "Refitter.refit_cuda_engine",
        "Refitter.refit_cuda_engine_async",
        "Refitter.set_named_weights",
    ]


def test_plugins_import_with_a_registry_that_records(bindings: Bindings) -> None:
    """`tensorrt.plugin` is Python; only its registry is TensorRT's, and null here."""
    code = """
import sys
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
recorded = []

class Registry:
    def register_creator(self, creator, namespace):
        recorded.append((creator.name, namespace))
        return True

    def get_creator(self, name, version, namespace):
        return None

tensorrt_bindings.get_plugin_registry = lambda: Registry()
import tensorrt.plugin as trtp

@trtp.register("diffusion_rt::probe")
def probe(x: trtp.TensorDesc, count: int) -> trtp.TensorDesc:
    return x.like()

print(recorded)
"""
    assert with_bindings(bindings.libraries, ["-c", code]).splitlines()[-1] == (
        "[('probe', 'diffusion_rt')]"
    )
