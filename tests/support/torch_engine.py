"""An engine that runs a text encoder in torch, with the signature that export gives its graph."""

from typing import Any

import numpy as np
import torch

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import Dtype, TensorSpec


class TorchTextEncoder:
    """Runs transformers' module in float32, rounds to `dtype`, and notes the size of each batch.

    What `bind` is given to write to is NaN until `enqueue` has run, and after it what is not asked
    for.
    """

    def __init__(self, module: Any, *, pooled: bool, dtype: Dtype = "float32") -> None:
        config = module.config
        layers, width = config.num_hidden_layers, config.hidden_size
        hidden = TensorSpec("hidden_states", dtype, (layers + 1, "batch", "tokens", width))
        self.inputs = {"input_ids": TensorSpec("input_ids", "int64", ("batch", "tokens"))}
        self.outputs = {hidden.name: hidden}
        if pooled:
            text = TensorSpec("text_embeds", dtype, ("batch", config.projection_dim))
            self.outputs[text.name] = text
        self.batches: list[int] = []
        self._module = module
        self._buffers: Buffers = {}
        self._only: Entries = {}

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        check_buffers("text encoder", self.inputs, self.outputs, buffers, only)
        self._buffers, self._only = buffers, only or {}
        for name in self.outputs:
            buffers[name].fill(np.nan)

    def enqueue(self, stream: int | None = None) -> None:
        ids = self._buffers["input_ids"]
        self.batches.append(len(ids))
        with torch.no_grad():
            found = self._module(torch.from_numpy(ids), output_hidden_states=True)
        hidden = self._buffers["hidden_states"]
        for layer in self._only.get("hidden_states", range(len(hidden))):
            hidden[layer] = found.hidden_states[layer].numpy()
        if "text_embeds" in self.outputs:
            self._buffers["text_embeds"][...] = found.text_embeds.numpy()

    def close(self) -> None:
        self._buffers = {}
