"""What operators take, of a made-up profile and of a real one."""

from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench import cli
from diffusion_rt.bench.operators import by_run
from diffusion_rt.bench.records import OURS, read
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.tables import table
from support.exported import ExportedModel
from support.races import origin


def event(name: str, start: int, length: int, operator: str = "") -> dict[str, Any]:
    cat = "Node" if operator else "Session"
    return {"name": name, "cat": cat, "ts": start, "dur": length, "args": {"op_name": operator}}


def test_a_profile_is_told_run_by_run_and_kind_by_kind() -> None:
    events = [
        event("session_initialization", 0, 9),
        event("a_kernel_time", 101, 30, "MatMul"),
        event("b_kernel_time", 131, 20, "Conv"),
        event("b_fence_before", 131, 20, "Conv"),
        event("c_kernel_time", 151, 10, "Add"),
        event("d_kernel_time", 161, 4, "MatMul"),
        event("model_run", 100, 70),
        event("a_kernel_time", 201, 50, "Attention"),
        event("model_run", 200, 60),
    ]
    first, second = by_run(events)
    assert first == pytest.approx(
        {
            "evaluation": 7e-5,
            "products": 3.4e-5,
            "convolutions": 2e-5,
            "attention": 0,
            "rest": 1.6e-5,
        }
    )
    assert second["attention"] == pytest.approx(5e-5)
    assert second["rest"] == pytest.approx(1e-5)


def test_a_step_is_what_its_operators_are(exported_model: ExportedModel, tmp_path: Path) -> None:
    model = exported_model("plain")
    words = ["--sizes", "64x48,64x64", "--threads", "1", "--repeats", "3", "--warm-up", "1"]
    words += ["--model", str(model), "--output", str(tmp_path)]
    assert cli.main(["operators", *words]) == 0
    records = read(tmp_path)
    assert len(records) == 2 * 5
    for size in ("64x48", "64x64"):
        found = {r.measure: r for r in records if r.setting["size"] == size}
        assert all(record.spread and record.spread.n == 3 for record in found.values())
        middle = {name: record.spread.p50 for name, record in found.items() if record.spread}
        assert min(middle.values()) > 0, "every kind there is"
        kinds = (middle[name] for name in ("products", "convolutions", "attention"))
        assert sum(kinds) < middle["evaluation"]
        assert found["evaluation"].flop
        assert "steps" not in found["evaluation"].setting


def test_the_table_has_shares_and_how_near_to_the_roof_they_come() -> None:
    setting: dict[str, str | int | float] = {"model": "m", "size": "8x8", "images": 1}
    times = {"evaluation": 1.0, "products": 0.5, "convolutions": 0.2, "attention": 0.1, "rest": 0.2}
    records = [
        origin("operators").record(
            name, OURS, setting, spread=spread([value]), flop=8 * 10**9 if value == 1 else None
        )
        for name, value in times.items()
    ]
    line = "| m | 8x8 | 1 | 1 | 1.00 s | 50% | 20% | 10% | 20% | 10.0 | "
    assert f"{line}not measured |" in table("operators", records)
    chip = [
        origin("chip").record("matmul", "numpy", {}, spread=spread([1.0]), flop=2 * 10**10),
        origin("chip").record("copy", "numpy", {}, spread=spread([1.0]), nbytes=10**10),
    ]
    assert f"{line}50% |" in table("operators", [*records, *chip])
