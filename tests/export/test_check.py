"""The check itself: what it measures, when it fails, when it does not run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.errors import Fault
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.safetensors_file import StoredTensor
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.export import check
from diffusion_rt.export.bind import Graph
from diffusion_rt.export.check import Outcome, check_network, relative_error
from diffusion_rt.export.names import Weight
from diffusion_rt.export.pipeline import Exported


def graph(name: str, precision: Any) -> Graph:
    return Graph(name, precision, b"", GraphVariant(file="g.onnx", inputs=(), outputs=()))


def test_the_error_is_relative_and_infinite_for_what_is_not_finite() -> None:
    wanted = np.array([3, 4], np.float32)
    assert relative_error(np.array([3, 4], np.float32), wanted) == 0
    assert relative_error(np.array([3, 4.5], np.float16), wanted) == pytest.approx(0.1)
    assert relative_error(np.array([3, np.nan], np.float32), wanted) == float("inf")
    assert relative_error(np.array([np.inf, 4], np.float32), wanted) == float("inf")
    assert relative_error(wanted, np.array([3, np.nan], np.float32)) == float("inf")


def test_every_graph_was_compared_and_is_close(plain: Exported) -> None:
    compared = {(o.graph, o.precision): o.error for o in plain.outcomes}
    assert len(compared) == 14
    for (_, precision), error in compared.items():
        assert error is not None
        assert error < {"float32": 2e-5, "float16": 1e-2}[precision]


@pytest.mark.parametrize(
    ("error", "precision", "config"),
    [
        (2e-4, "float32", {}),
        (0.1, "float16", {}),
        (float("inf"), "float16", {"force_upcast": False}),
        (float("inf"), "float32", {"force_upcast": True}),
        (float("nan"), "float32", {}),
    ],
)
def test_more_than_rounding_is_a_fault(error: float, precision: str, config: Any) -> None:
    candidate = graph("vae_decoder", precision)
    with pytest.raises(Fault, match=rf"vae_decoder\.{precision}\.onnx differs.*nothing was writ"):
        check._outcome(candidate, error, config)


def test_a_vae_that_may_overflow_float16_is_no_fault() -> None:
    candidate = graph("vae_decoder", "float16")
    outcome = check._outcome(candidate, float("inf"), {"force_upcast": True})
    assert outcome == Outcome(
        "vae_decoder", "float16", None, "overflows float16, as its config says it may"
    )


def test_what_does_not_fit_the_memory_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 99999999 kB\nMemAvailable:    2000000 kB\n")
    monkeypatch.setattr(check, "MEMORY", memory)
    weights = {"w": Weight("w", StoredTensor("F16", (1000, 1_000_000), 8, 2_000_000_000))}
    candidate = graph("unet_step", "float16")
    plan: Any = None
    found = check_network(plan, {}, weights, tmp_path, [candidate])
    remark = "not checked: needs 13 GB of memory, 2 GB are free"
    assert found == [Outcome("unet_step", "float16", None, remark)]


def test_memory_that_is_not_known_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "MEMORY", tmp_path / "none")
    assert check.available_memory() is None


def test_keys_are_compared_as_the_heads_they_become() -> None:
    flat = np.arange(2 * 3 * 8).reshape(2, 3, 8)
    shaped = check._shaped(flat, TensorSpec("a.key", "float32", ("batch", 2, "tokens", 4)))
    assert shaped.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(shaped[1, 1, 2], flat[1, 2, 4:])
