"""What inspect says a picture costs: held against a count from the config, and its own parts."""

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.native.chips import EXPONENTIALS, GAP, ROOFS, roof
from diffusion_rt.engines.native.counts import kernel_counts
from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.plan import Attention, Convolution, GroupNorm, Product
from diffusion_rt.engines.native.reckon import limits_under
from diffusion_rt.engines.native.roofline import by_kind, cost
from diffusion_rt.engines.native.tactics import Tactics, of_kind
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.kernels.catalogue import ARCHS
from diffusion_rt.runtime.inspect_plan import inspect_plan, report
from diffusion_rt.runtime.pipeline import SHIPPED
from support.unet_work import SDXL_BASE, unet_work

SMALL = {"batch": 2, "height": 8, "width": 8, "tokens": 7}
README = Path(__file__).parents[2] / "README.md"
BARE = README.with_name("bench") / "graphs" / "sdxl-base.tar.xz"


@pytest.fixture(autouse=True)
def no_tactics_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_count_is_that_of_the_published_unet() -> None:
    """13.52 TFLOP for a step of SDXL base with guidance, 6.761 without."""
    work = unet_work(SDXL_BASE, 2, 128, 128, 77)
    whole = work.unet_step + work.unet_prompt + work.unet_timestep
    assert round(whole / 1e12, 2) == 13.52
    assert whole == 2 * sum(
        getattr(unet_work(SDXL_BASE, 1, 128, 128, 77), part)
        for part in ("unet_step", "unet_prompt", "unet_timestep")
    )


@pytest.mark.parametrize("name", ["shapes-xl", "plain", "deep", "odd"])
def test_a_plan_computes_no_more_and_no_less_than_the_unet(
    name: str, exported_model: Callable[[str], Path]
) -> None:
    folder = SHIPPED if name == "shapes-xl" else exported_model(name)
    config = json.loads((folder / "unet/config.json").read_text())
    model = open_model(folder)
    for rows, height, width, tokens in ((2, 16, 16, 77), (3, 7, 13, 154)):
        work = unet_work(config, rows, height, width, tokens)
        sizes = {"batch": rows, "height": height, "width": width, "tokens": tokens, "n": rows}
        for graph in ("unet_prompt", "unet_timestep", "unet_step"):
            plan = plan_of(model, graph, sizes, "float32")
            assert plan.flops == getattr(work, graph), graph


def test_every_graph_is_there_and_its_kinds_add_up() -> None:
    found = inspect_plan(SHIPPED, bucket="160x96", images=3)
    assert json.loads(json.dumps(found)) == found
    assert list(found["graphs"]) == list(GRAPHS)
    assert (found["bucket"], found["rows"]) == ("160x96", 6)
    for one in found["graphs"].values():
        for key in ("operations", "kernels", "flops", "moved"):
            assert one[key] == sum(kind[key] for kind in one["kinds"].values())
        assert one["seconds"] == pytest.approx(sum(k["seconds"] for k in one["kinds"].values()))
        assert 0 < one["arena"] <= one["arena_unshared"]
    seconds = {graph: one["seconds"] for graph, one in found["graphs"].items()}
    steps = found["request"]["steps"]
    assert found["request"]["seconds"] == pytest.approx(
        sum(seconds.values())
        - seconds["vae_encoder"]
        + (steps - 1) * seconds["unet_step"]
        + 2 * seconds["vae_decoder"]
    )
    step = found["step_flops"]
    assert step["whole"] == step["loop"] + step["once"]
    assert {one["dtype"] for one in found["graphs"].values()} == {"float16"}


def test_the_models_own_size_is_the_default_and_float32_where_there_is_no_other(
    exported_model: Callable[[str], Path],
) -> None:
    folder = exported_model("plain")
    defaults = open_model(folder).manifest.defaults
    found = inspect_plan(folder, chip="a100")
    assert found["bucket"] == f"{defaults.width}x{defaults.height}"
    assert {one["dtype"] for one in found["graphs"].values()} == {"float32"}


def test_the_roof_of_an_operation() -> None:
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL)
    product = next(o for o in plan.operations if isinstance(o, Product))
    norm = next(o for o in plan.operations if isinstance(o, GroupNorm))
    h200 = roof("h200")
    busy = max(product.flops / 788e12, plan.bytes_moved(product) / 4.3e12)
    assert cost(plan, product, h200, 1).seconds == pytest.approx(busy + GAP)
    assert cost(plan, norm, h200, 2).seconds == pytest.approx(
        plan.bytes_moved(norm) / 4.3e12 + 2 * GAP
    )
    enlarged = next(o for o in plan.operations if isinstance(o, Convolution) and o.doubled)
    slow = replace(h200, half=1e8)  # so that it is arithmetic that takes the time
    assert cost(plan, enlarged, slow, 1).seconds == pytest.approx(
        enlarged.flops * 4 / 9 / 1e8 + GAP
    )
    counts = kernel_counts(plan, h200, of_kind("H200", limits_under(h200)).chosen)
    assert counts.kernels[plan.operations.index(norm)] == 2
    assert counts.refused == ()
    assert set(by_kind(plan, h200, counts.kernels)) == {type(o).__name__ for o in plan.operations}


def test_heads_of_few_channels_are_bound_by_the_exponential() -> None:
    """4,096 FLOP a clock of each multiprocessor are 256 of a head of 64 for each of 16 scores."""
    h200 = roof("h200")
    assert h200.exponentials == pytest.approx(16 * 132 * 1.83e9)
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL | {"height": 256, "width": 256})
    attention = next(o for o in plan.operations if isinstance(o, Attention))
    images, tokens, heads, size = attention.query.shape
    assert (tokens, size) == (attention.key.shape[1], 32)
    scores = images * heads * tokens**2
    assert attention.exponentials == scores
    seconds = scores / (EXPONENTIALS * 132 * 1.83e9)
    assert seconds > attention.flops / 788e12
    assert cost(plan, attention, h200, 1).seconds == pytest.approx(seconds + GAP)


def test_a_group_norm_reads_its_sources_for_each_of_its_kernels() -> None:
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL)
    norm = next(o for o in plan.operations if isinstance(o, GroupNorm) and len(o.sources) == 1)
    images, pixels, channels = norm.output.shape
    assert plan.bytes_moved(norm) == 2 * (3 * images * pixels * channels + 2 * channels)


def test_bytes_of_an_operation_are_those_of_its_arrays() -> None:
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL)
    product = next(o for o in plan.operations if o.name.endswith("attn1.to_out.0"))
    rows, width = 2 * 16, 96
    activations = 3 * rows * width  # read, residual, written
    assert plan.bytes_moved(product) == 2 * (activations + width * width + width)


@pytest.mark.parametrize("name", ROOFS)
def test_every_chip_of_the_table_takes_the_plan(name: str) -> None:
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL)
    top = roof(name)
    counts = kernel_counts(plan, top, of_kind(name, limits_under(top)).chosen)
    assert len(counts.kernels) == len(plan.operations)
    assert min(counts.kernels) >= 1
    assert counts.refused == ()
    assert 1e12 < top.single <= top.half < 1e16
    assert "measured on an H200" in top.source


def test_who_chose_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model at first, then by what was measured on a chip of that kind."""
    top = roof("l4")
    found = inspect_plan(SHIPPED, chip="l4")["graphs"]["unet_step"]
    assert set(found["chosen"]) == {"no choice", "cost model"}
    assert sum(found["chosen"].values()) == found["operations"]
    plan = plan_of(open_model(SHIPPED), "unet_step", SMALL)
    chip = Chip(limits_under(top))
    options = [found for o in plan.operations if len((found := ways(o, plan, chip)).ways) > 1]
    key = of_kind("NVIDIA L4", limits_under(top))._key
    tactics = Tactics(cache_folder("tactics"), replace(key, driver="13.0"))
    tactics.put(options[0], options[0].ways[-1], 1.0)
    tactics.save()
    choose = of_kind("L4", limits_under(top)).chosen
    same = sum(found.sizes == options[0].sizes for found in options)
    assert kernel_counts(plan, top, choose).chosen["measured here"] == same
    assert choose(options[0]) == (options[0].ways[-1], "measured here")
    other = replace(limits_under(top), multiprocessors=57)
    assert of_kind("L4", other).chosen(options[0])[1] == "cost model"
    text = report(inspect_plan(SHIPPED, bucket="64x64", chip="l4"))
    assert re.search(r"Ways to run unet_step, by who chose them: .*\d+ measured here", text)


def test_chips_are_compared_on_one_basis() -> None:
    """Two of the same processor multiply alike; the shares of a datasheet are those of the H200."""
    h200, h100 = roof("h200"), roof("h100")
    assert (h200.half, h200.bandwidth) == pytest.approx((788e12, 4.3e12))
    assert h100.half == h200.half
    assert h100.bandwidth / 3.35e12 == pytest.approx(h200.bandwidth / 4.8e12)
    found = {
        name: inspect_plan(SHIPPED, chip=name)["request"]["seconds"] for name in ("h100", "h200")
    }
    assert found["h200"] < found["h100"]
    assert {top.arch for top in ROOFS.values()} == set(ARCHS) - {100}


def test_what_no_kernel_takes_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusion_rt.kernels.attention.MOST_TOKENS", 77)
    found = inspect_plan(SHIPPED, bucket="128x128")
    refused = {name: one["refused"] for name, one in found["graphs"].items() if one["refused"]}
    assert set(refused) == {"vae_decoder", "vae_encoder"}
    assert len(refused["vae_decoder"]) == 1
    monkeypatch.setattr("diffusion_rt.kernels.attention.MOST_TOKENS", 63)
    assert main(["inspect", str(SHIPPED), "--plan", "--bucket=128x128"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    said = r"no kernel runs this on sm_90 \(attention: queries=%d, 1 to 63 taken\); run with "
    said += "--engine ort"
    assert re.search(rf"Cannot run: unet_step: \S+: {said % 64} \(and 5 more operations\)", text)
    assert re.search(rf"Cannot run: vae_decoder: \S+: {said % 256}, or it decodes in tiles", text)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bucket": "100x128"}, "width 100 is no multiple of 8; try 96 or 104"),
        ({"bucket": "0x64"}, "width 0, wants 8 to 8192 pixels"),
        ({"bucket": "sdxl"}, '--bucket "sdxl", wants WIDTHxHEIGHT such as 1024x1024'),
        ({"bucket": "9" * 5000 + "x8"}, "wants WIDTHxHEIGHT"),
        ({"images": 0}, "--batch 0, wants 1 to 64 images"),
        ({"images": 65}, "--batch 65, wants 1 to 64 images"),
        ({"chip": "h20"}, 'chip "h20" is unknown, did you mean h200?'),
        ({"chip": "\n"}, 'chip "\\n" is unknown; wants one of h200'),
    ],
)
def test_what_is_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=re.escape(reason)):
        inspect_plan(SHIPPED, **settings)  # type: ignore[arg-type]


def test_a_picture_that_is_no_multiple_the_model_can_halve(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        inspect_plan(tmp_path / "none")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(SHIPPED), "--plan", "--bucket", "128x128", "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == inspect_plan(SHIPPED, bucket="128x128")
    assert main(["inspect", str(SHIPPED), "--plan", "--bucket=128x128", "--chip=l4"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip("\n") == report(inspect_plan(SHIPPED, bucket="128x128", chip="l4"))
    assert all(len(line) <= 110 for line in text.splitlines())
    assert main(["inspect", str(SHIPPED), "--plan", "--graph=vae_decoder"]) == 0
    assert "vae_decoder, by kind" in capsys.readouterr().out
    assert main(["inspect", str(SHIPPED), "--plan", "--graph=vae"]) == 2
    assert '--graph "vae", wants one of text_encoder, ' in capsys.readouterr().err
    assert main(["inspect", str(SHIPPED), "--bucket", "128x128"]) == 2
    assert "--bucket says what --plan is for" in capsys.readouterr().err
    assert main(["inspect", str(SHIPPED), "--plan", "--verify"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert main(["inspect", str(SHIPPED), "--plan", "--chip="]) == 2
    assert 'chip "" is unknown' in capsys.readouterr().err


def readme_block() -> str:
    """What README says of full-size SDXL, which the full-size test holds against the program."""
    (block,) = re.findall(
        r"<!-- plan:sdxl -->\n```text\n(.*?)\n```\n<!-- /plan:sdxl -->",
        README.read_text(),
        re.DOTALL,
    )
    return str(block)


def test_a_folder_without_its_weights_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graphs of SDXL that the GPU run brings have none, and are what README tells."""
    with tarfile.open(BARE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["inspect", str(tmp_path), "--plan", "--bucket", "1024x1024"]) == 0
    told = capsys.readouterr().out.replace("sdxl-base, ", "sdxl, ", 1)
    assert told.rstrip("\n") == readme_block()
    assert main(["inspect", str(tmp_path)]) == 2, "what looks at weights misses them"
    (tmp_path / "unet_step.float16.onnx").write_bytes(b"")
    assert main(["inspect", str(tmp_path), "--plan"]) == 2
    assert "the manifest says" in capsys.readouterr().err


def test_the_figures_in_the_readme_are_those_of_sdxl() -> None:
    rows = {}
    for line in readme_block().splitlines():
        name, *cells = [word.replace(",", "") for word in line.split()] or [""]
        if len(cells) >= 5 and all(re.fullmatch(r"[0-9.]+", cell) for cell in cells[:5]):
            rows[name] = [float(cell) for cell in cells[:5]]
    work = unet_work(SDXL_BASE, 2, 128, 128, 77)
    assert rows["unet_step"][0] <= 900
    assert rows["unet_step"][2] == pytest.approx(work.unet_step / 1e9, rel=1e-5)
    assert rows["unet_prompt"][2] == pytest.approx(work.unet_prompt / 1e9, abs=0.06)
    assert rows["all"] == rows["unet_step"]
    kinds = ("Product", "Convolution", "Attention", "LayerNorm", "GroupNorm", "Copy")
    for column in (0, 1):
        assert sum(rows[kind][column] for kind in kinds) == rows["all"][column]
