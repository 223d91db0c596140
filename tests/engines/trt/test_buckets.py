"""Buckets: the lists, what is read of a stranger's text, the nearest, the way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.trt.buckets import (
    SDXL,
    SDXL_ALL,
    Bucket,
    nearest,
    not_built,
    parse_buckets,
    spelt,
)

SIDES = st.integers(1, 1024).map(lambda n: 8 * n)
BUCKETS = st.builds(Bucket, SIDES, SIDES)


def test_lists() -> None:
    assert len(SDXL) == len(set(SDXL)) == 9
    assert len(SDXL_ALL) == len(set(SDXL_ALL)) == 41
    assert set(SDXL) <= set(SDXL_ALL)
    for bucket in SDXL_ALL:
        assert Bucket(bucket.height, bucket.width) in SDXL_ALL
        assert bucket.width % 64 == bucket.height % 64 == 0
        assert 0.85 <= bucket.width * bucket.height / 2**20 <= 1.05


def test_reads_lists_and_mixtures() -> None:
    assert parse_buckets("sdxl") == SDXL
    assert parse_buckets("sdxl-all") == SDXL_ALL
    assert parse_buckets("1000x8") == (Bucket(1000, 8),)
    assert parse_buckets("640x512, sdxl ,640x512") == (Bucket(640, 512), *SDXL)


@given(st.lists(BUCKETS, min_size=1, max_size=20, unique=True))
def test_what_is_spelt_is_read_back(buckets: list[Bucket]) -> None:
    assert set(parse_buckets(spelt(buckets))) == set(buckets)
    assert set(parse_buckets(spelt([*buckets, *SDXL]))) == {*buckets, *SDXL}


def test_spelt_is_short() -> None:
    assert spelt(SDXL) == "sdxl"
    assert spelt([*SDXL_ALL, Bucket(512, 512)]) == "sdxl-all,512x512"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--buckets"),
        (",", "--buckets"),
        ("1024", "--buckets"),
        ("1024x", "--buckets"),
        ("1024x-8", "--buckets"),
        ("1023x1024", "try 1016 or 1024"),
        ("0x1024", "wants 8 to 8192"),
        ("8200x8", "wants 8 to 8192"),
        ("999999999999999999x8", "--buckets"),
        ("١٠٢٤x1024", "--buckets"),
        ("sdxl\n", None),
        ("sdxl;rm -rf /", "--buckets"),
        ("\x1b[2J", "--buckets"),
        ("8x8," * 600, "at most 2000"),
        (",".join(f"{8 * n}x64" for n in range(1, 66)), "65 sizes, at most 64"),
    ],
)
def test_hostile_text(text: str, words: str | None) -> None:
    if words is None:
        assert parse_buckets(text) == SDXL
        return
    with pytest.raises(BadInput) as refused:
        parse_buckets(text)
    assert words in str(refused.value)
    assert str(refused.value).isprintable()


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse_buckets(text)
    except BadInput as refused:
        message = str(refused)
    else:
        return
    assert "\n" not in message


@given(BUCKETS, st.lists(BUCKETS, min_size=1, max_size=12))
def test_nearest_is_itself_where_it_is_there(bucket: Bucket, others: list[Bucket]) -> None:
    assert nearest(bucket, [*others, bucket]) == bucket
    assert nearest(bucket, others) in others


def test_nearest_goes_by_proportions_then_area() -> None:
    assert nearest(Bucket(1000, 1000), SDXL) == Bucket(1024, 1024)
    assert nearest(Bucket(1920, 1080), SDXL) == Bucket(1344, 768)
    assert nearest(Bucket(512, 512), [Bucket(1024, 1024), Bucket(640, 640)]) == Bucket(640, 640)


def test_a_size_that_is_not_built_names_the_nearest_and_the_command() -> None:
    message = str(not_built(Bucket(1000, 1000), SDXL, "diffusion-rt build ./my-model"))
    assert "the engines are built for sdxl; the nearest of these is 1024x1024" in message
    assert message.endswith("or run: diffusion-rt build ./my-model")
