"""What every operation launches, for the largest pictures there are."""

from pathlib import Path

import pytest

from diffusion_rt.engines.errors import NoKernel
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.ways import Call, Chip
from diffusion_rt.kernels.driver import limits_of
from diffusion_rt.kernels.driver.arguments import Packed
from diffusion_rt.kernels.driver.tensor_map import plain

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
LARGEST = 16384  # pixels a side, of a request
IN_ONE_PASS = 8192  # of the VAE


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model(SHIPPED)


class Places:
    """Addresses that nothing lies at."""

    scratch, counters = 1 << 40, 1 << 41

    def view(self, view: p.View) -> int:
        return (1 << 42) + view.offset * p.ITEM[view.dtype]

    def weight(self, name: str) -> int:
        return 1 << 43


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize(
    ("graph", "side"),
    [("unet_step", LARGEST), ("vae_decoder", IN_ONE_PASS), ("vae_encoder", IN_ONE_PASS)],
)
def test_the_largest_pictures_can_be_launched(
    model: ModelFolder, graph: str, side: int, arch: int
) -> None:
    """Every way of every operation: its grids are the chip's, its arguments fit their types."""
    limits = limits_of(arch)
    chip = Chip(limits, plain if arch >= 90 else None)
    latents = side if graph == "vae_encoder" else side // 8
    batch = 2 if graph == "unet_step" else 1
    sizes = {"batch": batch, "height": latents, "width": latents, "tokens": 77}
    plan = plan_of(model, graph, sizes)
    for operation in plan.operations:
        for way in ways(operation, plan, chip).ways:
            for call in way.calls(Places()):
                assert isinstance(call, Call)
                variant = call.variant
                limits.check(call.launch, variant.name, variant.shared_bytes)
                Packed(variant.name, variant.parameters, call.arguments)


def test_a_larger_one_of_the_vae_is_refused(model: ModelFolder) -> None:
    side = LARGEST // 8
    plan = plan_of(model, "vae_decoder", {"batch": 1, "height": side, "width": side})
    (attention,) = (o for o in plan.operations if isinstance(o, p.Attention))
    with pytest.raises(NoKernel, match=r"^vae_decoder: .*queries=4194304, 1 to 1048576 taken\); "):
        ways(attention, plan, Chip(limits_of(90)))
