"""A request's prompts and sizes to what the UNet is conditioned on, by the rules of diffusers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.runtime.prompt import Chunk
from diffusion_rt.runtime.request import Request
from diffusion_rt.runtime.text_encoder import TextEncoder

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What one request tells the UNet; with guidance, the unconditional row comes first."""

    context: Array  # [rows, tokens, width]: a hidden state of every text encoder, side by side
    text_embeds: Array  # [rows, projection]: the pooled text of the last encoder's first chunk
    time_ids: Array  # [rows, 6]: original height, width; crop top, left; target height, width


class Conditioner:
    """The text encoders of a model, and the rules by which its prompts become a Conditioning."""

    def __init__(self, folder: ModelFolder, load: Callable[[str], Engine]) -> None:
        """Open the tokenizers of `folder`; `load` opens a graph by name, and may keep it.

        Raises BadInput where a tokenizer's files are broken or do not fit the manifest.
        """
        self._manifest = folder.manifest
        records = folder.manifest.text_encoders
        if len({record.max_length for record in records}) > 1 or not records[-1].pooled:
            raise BadInput(
                f"{folder.path}: the text encoders differ in max_length, or the last one gives no "
                "text_embeds, and so cannot condition an SDXL UNet; export the model again"
            )
        self._encoders = [TextEncoder(record, folder.path, load) for record in records]

    def tokens(self, request: Request, *, guided: bool) -> int:
        """How many tokens the context of a request will have; runs no engine.

        Raises BadInput as the conditioning itself does.
        """
        cut = self._cut(self._prompts(request, guided=guided), request.emphasis)
        longest = max(len(chunks) for of_encoder in cut for chunks in of_encoder)
        return longest * self._encoders[0].record.max_length

    def __call__(self, request: Request, *, guided: bool) -> Conditioning:
        """The conditioning of one request, of two rows where it is `guided`, else of one.

        Raises BadInput where a prompt cannot be read or is too long, where `clip_skip` leaves no
        layer, and where a negative setting would have no effect.
        """
        prompts = self._prompts(request, guided=guided)
        contexts, pooled = self._encode(prompts, request.emphasis)
        if guided and len(prompts) == 1:  # diffusers' force_zeros_for_empty_prompt
            contexts.insert(0, np.zeros_like(contexts[0]))
            pooled.insert(0, np.zeros_like(pooled[0]))
        time_ids = self._time_ids(request)
        return Conditioning(
            context=np.stack(contexts),
            text_embeds=np.stack(pooled),
            time_ids=time_ids if guided else time_ids[1:],
        )

    def _prompts(self, request: Request, *, guided: bool) -> list["_Prompt"]:
        """What is encoded: the negative prompt, where there is one and it counts, comes first."""
        prompts = [self._positive(request)]
        negative = self._negative(request)
        if guided and negative:
            prompts.insert(0, negative)
        return prompts

    def _positive(self, request: Request) -> "_Prompt":
        second = ("prompt_2", request.prompt_2) if request.prompt_2 else ("prompt", request.prompt)
        skip, most = request.clip_skip or 0, min(e.record.layers for e in self._encoders) - 1
        if skip > most:
            raise BadInput(f"clip_skip={skip} leaves no layer of a text encoder; give 0 to {most}")
        return _Prompt((("prompt", request.prompt), second), skip)

    def _negative(self, request: Request) -> "_Prompt | None":
        """The negative prompt; None where zeros stand for it, which is not what \"\" means.

        clip_skip does not count here, as in diffusers.
        """
        text, text_2 = request.negative_prompt, request.negative_prompt_2
        if text is None and self._manifest.force_zeros_for_empty_prompt:
            if text_2 is not None:
                raise BadInput(
                    "negative_prompt_2 has no effect on this model without negative_prompt; "
                    'give that too, if only as ""'
                )
            return None
        first = ("negative_prompt", text or "")
        return _Prompt((first, ("negative_prompt_2", text_2) if text_2 else first), 0)

    def _encode(
        self, prompts: Sequence["_Prompt"], emphasis: str
    ) -> tuple[list[Array], list[Array]]:
        """The context [tokens, width] and the pooled text [projection] of each prompt.

        All are as long as the longest: the others end in empty chunks.
        """
        cut = self._cut(prompts, emphasis)
        count = max(len(chunks) for of_encoder in cut for chunks in of_encoder)
        contexts: list[list[Array]] = [[] for _ in prompts]
        pooled: list[Array] = []
        for encoder, of_encoder in zip(self._encoders, cut, strict=True):
            filled = [c + [encoder.empty_chunk()] * (count - len(c)) for c in of_encoder]
            layers = [encoder.record.layers - 1 - prompt.skip for prompt in prompts]
            states = encoder.encode(chain.from_iterable(filled), layers)
            for context, chunks, layer in zip(contexts, filled, layers, strict=True):
                context += [
                    np.concatenate(
                        [emphasised(states[c].hidden[layer], c.weights, emphasis) for c in chunks]
                    )
                ]
            pooled = [states[chunks[0]].pooled for chunks in filled]
        return [np.concatenate(context, axis=-1) for context in contexts], pooled

    def _cut(self, prompts: Sequence["_Prompt"], emphasis: str) -> list[list[list[Chunk]]]:
        """For each encoder the chunks of each prompt."""
        weighted = emphasis != "none"
        return [
            [
                encoder.chunks(text, weighted=weighted, name=name)
                for name, text in (prompt.texts[place] for prompt in prompts)
            ]
            for place, encoder in enumerate(self._encoders)
        ]

    def _time_ids(self, request: Request) -> Array:
        """The sizes [2, 6] that the negative and the positive row are told."""
        defaults = self._manifest.defaults
        size = (request.height or defaults.height, request.width or defaults.width)
        positive = (
            *(request.original_size or size),
            *request.crops_coords_top_left,
            *(request.target_size or size),
        )
        given = (request.negative_original_size, request.negative_target_size)
        crops = request.negative_crops_coords_top_left
        if given[0] is not None and given[1] is not None:
            return np.array([(*given[0], *crops, *given[1]), positive], np.float32)
        if given != (None, None) or crops != (0, 0):
            raise BadInput(
                "negative_original_size, negative_target_size and negative_crops_coords_top_left "
                "only have an effect together; give both sizes, or none of the three"
            )
        return np.array([positive, positive], np.float32)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What each text encoder reads, as (setting, text), and how many layers are skipped."""

    texts: tuple[tuple[str, str], tuple[str, str]]
    skip: int


def emphasised(hidden: Array, weights: Sequence[float], emphasis: str) -> Array:
    """The states [tokens, width] of one chunk, each multiplied by its token's weight.

    "original", as AUTOMATIC1111 calls it, then scales the chunk so that its mean is what it was;
    "no-norm" does not. Where no weight differs from 1 the states stay as they are, to the bit.
    """
    if all(weight == 1 for weight in weights):
        return hidden
    found = hidden * np.array(weights, np.float32)[:, None]
    if emphasis == "original":
        before, after = hidden.mean(dtype=np.float64), found.mean(dtype=np.float64)
        if after != 0:  # else no factor brings the mean back
            found *= np.float32(before / after)
    return found
