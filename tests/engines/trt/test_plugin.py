"""The attention plugin: what it tells TensorRT, and that this computes attention.

The bindings' own Python asks it, as TensorRT does while it builds; what it answers is launched on
the host and held to the reference.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.trt.plugin_edit import NAME, NAMESPACE, VERSION
from diffusion_rt.kernels import attention_plugin
from diffusion_rt.kernels.attention import reference
from diffusion_rt.kernels.compile import CompileError, find_compiler
from diffusion_rt.kernels.cubin import facts
from diffusion_rt.kernels.driver import Launch, Misuse, limits_of
from diffusion_rt.kernels.variant import ARCHS, Variant
from support.assembler import assemble
from support.kernel_bench import KernelBench
from support.tensorrt_libs import make_libraries, with_bindings


@dataclass(frozen=True, kw_only=True)
class Question:
    """An attention in a graph."""

    heads: int
    head_size: int
    queries: int
    keys: int
    query_by_head: bool = False
    key_by_head: bool = False
    batch: int = 2
    scale: float | None = None

    @property
    def attributes(self) -> dict[str, int]:
        """Of the node."""
        scale = self.head_size**-0.5 if self.scale is None else self.scale
        return {
            "heads": self.heads,
            "head_size": self.head_size,
            "scale_bits": attention_plugin.scale_bits(scale),
            "query_by_head": int(self.query_by_head),
            "key_by_head": int(self.key_by_head),
        }

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of q, k and v."""
        key = self._shape(self.keys, self.key_by_head)
        return [self._shape(self.queries, self.query_by_head), key, key]

    def _shape(self, tokens: int, by_head: bool) -> tuple[int, ...]:
        inner = (self.heads, tokens) if by_head else (tokens, self.heads)
        return (self.batch, *inner, self.head_size)


TINY = (  # launched on the host
    Question(heads=3, head_size=32, queries=70, keys=70),
    Question(heads=2, head_size=40, queries=9, keys=77, key_by_head=True),
    Question(heads=2, head_size=64, queries=131, keys=154, key_by_head=True),
    Question(heads=1, head_size=64, queries=65, keys=33, query_by_head=True, scale=0.7),
    Question(heads=2, head_size=80, queries=5, keys=231, query_by_head=True, key_by_head=True),
    Question(heads=1, head_size=96, queries=33, keys=50),
    Question(heads=2, head_size=112, queries=17, keys=35, key_by_head=True),
    Question(heads=2, head_size=160, queries=40, keys=77, batch=1),
)
FULL = (  # SDXL at 1024 x 1024 with guidance, and the largest there is
    Question(heads=10, head_size=64, queries=4096, keys=4096),
    Question(heads=20, head_size=64, queries=1024, keys=1024),
    *(
        Question(heads=20, head_size=64, queries=1024, keys=keys, key_by_head=True)
        for keys in (77, 154, 231)
    ),
    Question(heads=40, head_size=160, queries=16384, keys=16384, batch=32, query_by_head=True),
)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[Question, dict[str, Any]]:
    """What the plugin says to the real bindings, for each question."""
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    questions = (*TINY, *FULL)
    spelt = [
        {"plugin": (NAME, VERSION, NAMESPACE), "attributes": q.attributes, "shapes": q.shapes}
        for q in questions
    ]
    libraries = make_libraries(tmp_path_factory.mktemp("libraries"))
    told = with_bindings(libraries, ["-m", "support.plugin_bindings", json.dumps(spelt)])
    return dict(zip(questions, json.loads(told.splitlines()[-1]), strict=True))


def test_the_bindings_take_the_plugin(answered: dict[Question, dict[str, Any]]) -> None:
    for question, answer in answered.items():
        assert answer["fields"] == list(question.attributes)
        assert answer["types"] == ["DataType.HALF"]
        assert answer["shapes"] == [list(question.shapes[0])]
        assert answer["combinations"] == [["DataType.HALF", "TensorFormat.LINEAR"]] * 4
        streams = attention_plugin.streams(question.head_size)
        assert [launch["tactic"] for launch in answer["launches"]] == [
            1 + place for place in range(len(streams))
        ]
        for launch, stream in zip(answer["launches"], streams, strict=True):
            assert launch["kernel"] == attention_plugin.KERNEL
            assert launch["ptx"] == attention_plugin.ptx(attention_plugin.variant(stream)).decode()


def test_launches_are_within_every_chips_limits(answered: dict[Question, dict[str, Any]]) -> None:
    for question, answer in answered.items():
        streams = attention_plugin.streams(question.head_size)
        for launch, stream in zip(answer["launches"], streams, strict=True):
            assert launch["shared_mem"] == 0
            assert stream.shared_bytes <= attention_plugin.SHARED_BYTES
            assert launch["grid_x"] * stream.rows >= question.queries
            for arch in ARCHS:
                limits_of(arch).check(as_launch(launch), "attention_plugin", stream.shared_bytes)


@pytest.mark.parametrize("question", TINY, ids=str)
def test_what_is_launched_is_attention(
    answered: dict[Question, dict[str, Any]], question: Question
) -> None:
    rng = np.random.default_rng(question.queries)
    q, k, v = (rng.normal(size=shape).astype(np.float16) for shape in question.shapes)
    scale = question.head_size**-0.5 if question.scale is None else question.scale
    by_head = (question.query_by_head, question.key_by_head, question.key_by_head)
    queries, keys, values = (turned(x, turn) for x, turn in zip((q, k, v), by_head, strict=True))
    truth = reference(queries, keys, values, scale)
    # Plain code rounds the weights to float16, and the result.
    rounding = 2.0**-11 * (np.abs(values).max() + np.abs(truth).max())
    allowed = 2 * rounding
    for launch in answered[question]["launches"]:
        stream = attention_plugin.streams(question.head_size)[launch["tactic"] - 1]
        bench = KernelBench([attention_plugin.variant(stream)])
        out = bench.poisoned(q.shape, np.float16)
        buffers = [bench.put(x) for x in (q, k, v)]
        # Inputs, integers, output: TensorRT's order.
        bench.run(launch["kernel"], as_launch(launch), *buffers, *launch["integers"], out)
        got = turned(bench.get(out, q.shape, np.float16), question.query_by_head)
        bench.clear()
        assert np.abs(got.astype(np.float64) - truth).max() <= allowed


@pytest.mark.parametrize("variant", attention_plugin.VARIANTS, ids=lambda variant: variant.name)
def test_its_ptx_assembles_for_every_chip(variant: Variant) -> None:
    try:
        ptx = find_compiler().ptx(variant)
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    kinds = re.findall(rb"\.param \.(\w+) attention_plugin_param_\d+", ptx)
    assert kinds == [b"u64"] * 3 + [b"u32"] * len(attention_plugin.INTEGERS) + [b"u64"]
    for arch in ARCHS:
        found = facts(assemble(ptx, arch), variant.kernel)
        assert found.frame_bytes == 0
        assert found.registers <= variant.registers
        assert len(found.parameters) == len(variant.parameters)


def test_ptx_that_is_none_does_not_assemble() -> None:
    try:
        ptx = find_compiler().ptx(attention_plugin.VARIANTS[0])
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    with pytest.raises(AssertionError, match="m16n8k17"):
        assemble(ptx.replace(b"m16n8k16", b"m16n8k17"), 90)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head_size": 36}, "head_size=36"),
        ({"head_size": 168}, "heads of 168; up to 160"),
        ({"heads": 0}, "heads=0"),
        ({"scale_bits": 0}, "scale_bits=0"),
        ({"scale_bits": attention_plugin.scale_bits(-1.0)}, "no finite number above 0"),
        ({"scale_bits": attention_plugin.scale_bits(float("inf"))}, "no finite number"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(changed: dict[str, int], said: str) -> None:
    good: dict[str, Any] = TINY[0].attributes
    attention_plugin.Layout(**good)
    with pytest.raises(Misuse, match=said):
        attention_plugin.Layout(**good | changed)


def as_launch(answer: dict[str, Any]) -> Launch:
    """A launch as TensorRT was told it."""
    grid, block = (
        (answer[f"{of}_x"], answer[f"{of}_y"], answer[f"{of}_z"]) for of in ("grid", "block")
    )
    return Launch(grid=grid, block=block, shared_bytes=answer["shared_mem"])


def turned(values: NDArray[Any], by_head: bool) -> NDArray[Any]:
    """As [batch, tokens, heads, head_size]."""
    return values.transpose(0, 2, 1, 3) if by_head else values
