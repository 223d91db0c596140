"""The rows the device reads at each evaluation."""

import numpy as np
import pytest

from diffusion_rt.kernels.step_table import ALL_FINITE, cursor, step_table


def test_rows_stand_where_the_kernels_look() -> None:
    weights = np.arange(1, 13, dtype=np.float64).reshape(2, 2, 3)[:, :1]  # n 2, K 1
    table = step_table([0.5, 0.25], weights, [False, True], 7.5, 0.7)
    assert table["c_in"].tolist() == [0.5, 0.25]
    assert table["noise"].tolist() == [-1, 0]
    assert table["order"].tolist() == [1, 1]
    assert table["weights"][0, 0].tolist() == [1, 0, 0, 0, 0, 2, 3]
    assert not table["weights"][:, 1:].any()
    assert table.view(np.float32).reshape(2, 80)[0, :3].tolist() == pytest.approx([0.5, 7.5, 0.7])
    raw = table.view(np.float64).reshape(2, 40)
    assert raw[0, 4] == 1
    assert raw[0, 9:11].tolist() == [2, 3]


@pytest.mark.parametrize("order", [1, 2, 5])
def test_every_order_keeps_its_weights(order: int) -> None:
    rng = np.random.default_rng(order)
    weights = rng.normal(size=(3, order, order + 2))
    row = step_table(np.ones(3), weights, [True] * 3, 1, 0)["weights"]
    kept = np.concatenate([row[:, :order, :order], row[:, :order, 5:]], -1)
    np.testing.assert_array_equal(kept, weights)
    assert np.count_nonzero(row) == weights.size


def test_noise_rows_are_counted_where_they_are_drawn() -> None:
    draws = [False, True, True, False, True]
    table = step_table(np.ones(5), np.ones((5, 1, 3)), draws, 1, 0)
    assert table["noise"].tolist() == [-1, 0, 1, -1, 2]


@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 0, 2), (2, 2, 3)])
def test_matrices_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="K of 1 to 5"):
        step_table(np.ones(2), np.ones(shape), [False] * 2, 1, 0)


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 evaluations"):
        step_table(np.ones(3), np.ones((2, 1, 3)), [False] * 2, 1, 0)


def test_a_cursor_starts_before_the_first_evaluation() -> None:
    assert cursor(30).tolist() == [(0, 30, 0, ALL_FINITE)]
