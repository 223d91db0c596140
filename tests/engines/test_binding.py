"""Arrays that do not fit a signature are refused before any engine sees their addresses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.protocol import Entries
from diffusion_rt.engines.spec import TensorSpec

Arrays = dict[str, NDArray[Any]]
INPUTS = {
    "latent": TensorSpec("latent", "float32", ("batch", 4, "height", "width")),
    "key": TensorSpec("key", "float16", ("batch", "tokens")),
    "scale": TensorSpec("scale", "float32", ()),
}
OUTPUTS = {
    "prediction": TensorSpec("prediction", "float32", ("batch", 4, "height", "width")),
    "ids": TensorSpec("ids", "int64", ("tokens",)),
}


def arrays() -> Arrays:
    return {
        "latent": np.zeros((2, 4, 5, 6), np.float32),
        "key": np.zeros((2, 7), np.float16),
        "scale": np.zeros((), np.float32),
        "prediction": np.zeros((2, 4, 5, 6), np.float32),
        "ids": np.zeros(7, np.int64),
    }


def test_arrays_that_fit() -> None:
    check_buffers("g", INPUTS, OUTPUTS, arrays())


def test_entries_that_will_be_read() -> None:
    every: tuple[Entries, ...] = ({}, {"ids": []}, {"ids": [6, 0, 6], "prediction": [1]})
    for only in every:
        check_buffers("g", INPUTS, OUTPUTS, arrays(), only)
    for name, entries, words in (
        ("latent", [0], "g: has no output latent; wants one of ids, prediction"),
        ("ids", [0, 7], "g: ids has 7 entries, none is 7"),
        ("prediction", [-1], "g: prediction has 2 entries, none is -1"),
    ):
        with pytest.raises(BadInput, match=words):
            check_buffers("g", INPUTS, OUTPUTS, arrays(), {name: entries})


def replaced(name: str, array: Any) -> Callable[[Arrays], None]:
    def change(found: Arrays) -> None:
        found[name] = array

    return change


def _missing(found: Arrays) -> None:
    del found["key"], found["ids"]


def _read_only(found: Arrays) -> None:
    found["prediction"].flags.writeable = False


def _output_on_input(found: Arrays) -> None:
    found["prediction"] = found["latent"]


def _output_on_part_of_input(found: Arrays) -> None:
    both = np.zeros(480 - 1, np.float32)
    found["latent"] = both[:240].reshape(2, 4, 5, 6)
    found["prediction"] = both[239:].reshape(2, 4, 5, 6)


def _output_inside_a_bigger_input(found: Arrays) -> None:
    found["ids"] = found["latent"].reshape(-1).view(np.int64)[3:10]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_missing, "g: no array for ids, key; wants ids, key, latent, prediction, scale"),
        (replaced("late", np.zeros(1)), "g: has no late; wants ids, key"),
        (replaced("latent", np.zeros((2, 4, 5, 6))), "latent: got float64, wants float32"),
        (replaced("latent", np.zeros((2, 4, 5, 6), ">f4")), "latent: got >f4, wants float32"),
        (replaced("latent", [1.0]), "latent: got list, wants float32"),
        (replaced("ids", np.zeros(7, np.int32)), "ids: got int32, wants int64"),
        (
            replaced("latent", np.zeros((2, 4, 6, 5), np.float32).swapaxes(2, 3)),
            "latent: not C-contiguous; pass np.ascontiguousarray of it",
        ),
        (
            replaced("latent", np.zeros((2, 4, 5, 12), np.float32)[..., ::2]),
            "latent: not C-contiguous",
        ),
        (
            replaced("ids", np.zeros(57, np.uint8)[1:].view(np.int64)),
            "ids: not C-contiguous",
        ),
        (_read_only, "prediction: a read-only array, wants one to write to"),
        (
            replaced("latent", np.zeros((2, 3, 5, 6), np.float32)),
            "latent: got shape [2, 3, 5, 6], wants [batch, 4, height, width]",
        ),
        (replaced("latent", np.zeros((4, 5, 6), np.float32)), "latent: got shape [4, 5, 6], wants"),
        (
            replaced("prediction", np.zeros((2, 4, 6, 5), np.float32)),
            "prediction: got shape [2, 4, 6, 5], wants [batch, 4, height, width], and height is 5 "
            "in latent",
        ),
        (replaced("ids", np.zeros(8, np.int64)), "and tokens is 7 in key"),
        (replaced("key", np.zeros((2, 0), np.float16)), "key: got shape [2, 0], wants no zero in"),
        (_output_on_input, "lie over each other in memory"),
        (_output_on_part_of_input, "lie over each other in memory"),
        (_output_inside_a_bigger_input, "ids and latent lie over each other in memory"),
    ],
)
def test_arrays_that_do_not_fit(change: Callable[[Arrays], None], words: str) -> None:
    found = arrays()
    change(found)
    with pytest.raises(BadInput) as caught:
        check_buffers("g", INPUTS, OUTPUTS, found)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inputs_may_share_memory_and_read_only_ones_are_read() -> None:
    found = arrays()
    inputs = INPUTS | {"again": TensorSpec("again", "float32", ("batch", 4, "height", "width"))}
    found["again"] = found["latent"]
    found["latent"].flags.writeable = False
    check_buffers("g", inputs, OUTPUTS, found)


def test_neighbours_in_one_block_of_memory_are_apart() -> None:
    found = arrays()
    both = np.zeros(480, np.float32)
    found["latent"] = both[:240].reshape(2, 4, 5, 6)
    found["prediction"] = both[240:].reshape(2, 4, 5, 6)
    check_buffers("g", INPUTS, OUTPUTS, found)


def test_long_lists_of_names_are_cut() -> None:
    inputs = {f"i{i:02}": TensorSpec(f"i{i:02}", "float32", (1,)) for i in range(20)}
    with pytest.raises(BadInput, match="i04, i05 and 14 more; wants"):
        check_buffers("g", inputs, {}, {})
