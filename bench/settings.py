"""Settings that people know by name, each as the flags it stands for."""

from collections.abc import Collection, Mapping, Sequence

from diffusion_rt.command import shortened
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.trt.buckets import SDXL

BUCKETS = ",".join(map(str, SDXL))
SETTINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "mlperf": (
        "Euler, 20 steps, guidance 8, 1024x1024, as MLPerf Inference has it",
        {"samplers": "euler", "steps": "20", "guidance-scale": "8", "sizes": "1024x1024"},
    ),
    "steps30": ("30 steps at 1024x1024", {"steps": "30", "sizes": "1024x1024"}),
    "turbo1": (
        "1 step without guidance at 512x512",
        {"steps": "1", "guidance-scale": "1", "sizes": "512x512"},
    ),
    "turbo4": (
        "4 steps without guidance at 512x512",
        {"steps": "4", "guidance-scale": "1", "sizes": "512x512"},
    ),
    "buckets": ("all nine sizes that SDXL is asked for", {"sizes": BUCKETS}),
    "batches": ("1, 2, 4 and 8 images together", {"batches": "1,2,4,8"}),
    "growth": (
        "five sizes up to four times the area of 128x128, and 1, 2, 4 and 8 images together",
        {
            "sizes": "64x64,96x96,128x128,192x192,256x256",
            "batches": "1,2,4,8",
            "axes": "",
        },
    ),
}


def expanded(argv: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments with every `--setting NAME,…` replaced by what it stands for.

    Flags that are also given by themselves win over a setting's, and a later setting over an
    earlier one. What is no flag of this benchmark (`flags`, without dashes) is left out, since it
    has nothing of the kind. Raises BadInput for a name that is no setting.
    """
    words: list[str] = []
    meant: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--setting":
            words.append(word)
            continue
        if not equals:
            value = next(rest, "")
        for one in value.split(","):
            if one not in SETTINGS:
                raise BadInput(
                    f"--setting: {shortened(one)!r} is no setting; of {', '.join(SETTINGS)}"
                )
            meant |= SETTINGS[one][1]
    fitting = [(f"--{name}", text) for name, text in meant.items() if name in flags]
    return [*(part for pair in fitting for part in pair if part), *words]


def listed() -> str:
    """Every setting and what it is, in lines for a help text."""
    return "\n".join(f"  {name:<10}{text}" for name, (text, _) in SETTINGS.items())
