"""One text encoder of a model: prompts to chunks, chunks to hidden states, each chunk only once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.manifest import TextEncoderRecord
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.runtime.prompt import Chunk, chunks, empty_chunk, literal, parse
from diffusion_rt.runtime.signature import check_names, output_buffers
from diffusion_rt.runtime.tokens import Tokenizer

Array = NDArray[np.float32]

# Chunks in one run: the states of all layers are written, 13 MB a chunk for SDXL's second encoder.
GROUP = 8


@dataclass(frozen=True, slots=True)
class States:
    """What an encoder makes of one chunk."""

    hidden: dict[int, Array]  # layer, 0 the embeddings -> [tokens, width]
    pooled: Array  # [projection], or [0] where the encoder pools nothing


class TextEncoder:
    """A text encoder with its tokenizer; the engine is loaded when first needed."""

    def __init__(
        self, record: TextEncoderRecord, folder: Path, load: Callable[[str], Engine]
    ) -> None:
        """Open the tokenizer in `folder`; `load` opens the graph that `record` names."""
        self.record = record
        self._load = load
        self._tokenizer = Tokenizer.open(folder / record.tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(record, name) >= self._tokenizer.size:
                raise BadInput(
                    f"{record.tokenizer} has {self._tokenizer.size} tokens, but the manifest's "
                    f"{name} is {getattr(record, name)}; export the model again"
                )

    def chunks(self, text: str, *, weighted: bool, name: str) -> list[Chunk]:
        """The chunks of a prompt, whose brackets are weights or only text."""
        sections = parse(text, name) if weighted else literal(text, name)
        return chunks(sections, self._tokenizer, self.record, name)

    def empty_chunk(self) -> Chunk:
        """What fills up a prompt of fewer chunks than another."""
        return empty_chunk(self.record)

    def encode(self, wanted: Iterable[Chunk], layers: Sequence[int]) -> dict[Chunk, States]:
        """The states of each chunk at `layers`, in float32 whatever the engine computes in.

        Raises Fault where they are not finite.
        """
        found = list(wanted)
        ids = list(dict.fromkeys(chunk.ids for chunk in found))
        states: dict[tuple[int, ...], States] = {}
        for start in range(0, len(ids), GROUP):
            group = ids[start : start + GROUP]
            states |= zip(group, self._run(group, layers), strict=True)
        return {chunk: states[chunk.ids] for chunk in found}

    def _run(self, group: Sequence[tuple[int, ...]], layers: Sequence[int]) -> list[States]:
        record, engine = self.record, self._load(self.record.graph)
        ids = np.array(group, np.int64)  # [batch, tokens]
        sizes = {"batch": len(group), "tokens": record.max_length}
        names = {"hidden_states", "text_embeds"} if record.pooled else {"hidden_states"}
        check_names(record.graph, engine, inputs={"input_ids"}, outputs=names)
        outputs = output_buffers(record.graph, engine, sizes)
        hidden = outputs["hidden_states"]
        if hidden.shape != (record.layers + 1, *ids.shape, record.width):
            raise BadInput(
                f"{record.graph} does not give what the manifest says of it "
                f"({record.layers} layers of {record.width}); export the model again"
            )
        engine.bind({"input_ids": ids, **outputs}, only={"hidden_states": sorted(set(layers))})
        engine.enqueue()
        kept = {layer: hidden[layer].astype(np.float32) for layer in layers}
        pooled = outputs.get("text_embeds", hidden[0, :, 0, :0]).astype(np.float32)
        if not all(np.isfinite(values).all() for values in (*kept.values(), pooled)):
            raise Fault(f"{record.graph} gave values that are not finite; use an engine of float32")
        return [
            States({layer: values[row] for layer, values in kept.items()}, pooled[row])
            for row in range(len(group))
        ]
