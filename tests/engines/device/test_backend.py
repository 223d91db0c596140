"""The backend over a device: it closes what it took over, and leaves nothing open that failed."""

from typing import Any

import pytest

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.kernels import driver
from diffusion_rt.runtime.pipeline import SHIPPED
from support.device_graphs import HostGraphs, simulated_gpu


def test_an_engine_that_cannot_be_fed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = simulated_gpu()
    graphs = HostGraphs(NullBackend(open_model(SHIPPED)), gpu)

    def none_left() -> Any:
        raise driver.OutOfMemory("no more streams")

    monkeypatch.setattr(gpu.device, "stream", none_left)
    with pytest.raises(OutOfMemory, match="vae_decoder: no more streams"):
        DeviceBackend(graphs, gpu).load("vae_decoder")
    assert [engine.closed for engine in graphs.engines] == [True]
    gpu.close()


def test_closing_it_closes_engines_and_device() -> None:
    gpu = simulated_gpu()
    graphs = HostGraphs(NullBackend(open_model(SHIPPED)), gpu)
    backend = DeviceBackend(graphs, gpu)
    backend.load("vae_decoder")
    backend.close()
    assert [engine.closed for engine in graphs.engines] == [True]
    with pytest.raises(driver.Misuse, match="a closed"):
        gpu.device.stream()
