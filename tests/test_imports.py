"""What importing costs, and that the linter of layers sees through the links in src/."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "PIL",
    "diffusers",
    "numpy",
    "onnx",
    "onnxruntime",
    "rich",
    "tensorrt",
    "torch",
    "transformers",
    "triton",
)


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    code += "\nimport sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import diffusion_rt",
        "import diffusion_rt.runtime",
        "from diffusion_rt import BadInput, Fault, Request",
        "from diffusion_rt.__main__ import main; main(['--help'])",
        "from diffusion_rt.__main__ import main; main(['generate', '--help'])",
        "from diffusion_rt.__main__ import main; main(['inspect', '--help'])",
        "from diffusion_rt.__main__ import main; main(['doctor', '--help'])",
    ],
)
def test_the_front_door_is_light(code: str) -> None:
    assert not loaded(code) & set(HEAVY)


def test_export_help_needs_no_torch() -> None:
    code = "from diffusion_rt.__main__ import main; main(['export', '--help'])"
    assert not loaded(code) & {"torch", "diffusers", "transformers", "onnxruntime"}


def test_the_pipeline_loads_no_engine_before_it_opens_one() -> None:
    names = loaded("from diffusion_rt import Pipeline")
    assert "numpy" in names
    assert not names & {"torch", "triton", "tensorrt", "onnxruntime", "rich"}


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import diffusion_rt

    with pytest.raises(AttributeError, match="Pipelin"):
        diffusion_rt.Pipelin  # noqa: B018
    for name in diffusion_rt.__all__:
        assert getattr(diffusion_rt, name) is not None


def test_the_layers_are_checked_for_every_file() -> None:
    graph = grimp.build_graph("diffusion_rt", cache_dir=None)
    for folder in ("bench", "engines", "export", "kernels", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(("diffusion_rt", *parts)).removesuffix(".__init__")
            assert name in graph.modules, f"import-linter does not see {path}"
