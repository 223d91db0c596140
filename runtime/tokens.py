"""Text to token ids: CLIP's byte-pair tokenizer, as transformers' CLIPTokenizer has it."""

from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.vocabulary import read_vocabulary

MAX_BYTES = 64 * 1024  # of UTF-8, in one prompt

# CLIP's words: its two marks, English endings, runs of letters, single digits, runs of the rest.
WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokenizer:
    """One tokenizer folder, opened. Safe for several threads at once: it keeps no state of a text.

    `size` is the number of ids; `comma` the id of a comma that ends a word, where there is one.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.size: int = backend.get_vocab_size(with_added_tokens=True)
        self.comma: int | None = backend.token_to_id(",</w>")

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """Read a tokenizer folder as `read_vocabulary` does; raises its BadInput."""
        vocabulary = read_vocabulary(folder)
        backend = Backend(vocabulary.model)
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.add_tokens(list(vocabulary.added))
        backend.encode_special_tokens = vocabulary.split_special
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, start and end not among them. Raises BadInput as `check_text` does."""
        check_text("text", text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def check_text(name: str, text: str) -> None:
    """Raise BadInput where a text holds a lone surrogate or more than 64 KiB of UTF-8."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{name} holds a lone surrogate at character {error.start}, which no text can; "
            "give valid Unicode"
        ) from None
    if size > MAX_BYTES:
        raise BadInput(f"{name} has {size} bytes; give at most {MAX_BYTES} (64 KiB)")
