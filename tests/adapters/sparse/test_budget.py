"""How many blocks each module gets: laws of the ramp and of the budget, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.adapters.sparse.budget import Grid, SparseConfigError, check_grid, distribute, pattern_value


def layers(count: int, n: int = 8, m: int = 8, sizes: tuple[tuple[int, int], ...] = ((64, 64), (16, 64))) -> list[Grid]:
    return [Grid(f"model.layers.{i}.p{j}", o, d, n, m) for i in range(count) for j, (o, d) in enumerate(sizes)]


def parameters(grids: list[Grid], counts: list[int]) -> int:
    return sum(grid.blocks + k * grid.block for grid, k in zip(grids, counts, strict=True))


def test_a_weight_that_the_grid_does_not_divide_is_named_with_the_nearest_grid() -> None:
    with pytest.raises(SparseConfigError, match=r"h\.3\.q has a weight of 576 x 192 .* n = 25, m = 28") as caught:
        check_grid(Grid("h.3.q", 576, 192, 25, 28), 1)
    assert "n = 24, m = 32" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(SparseConfigError, match="n = 7, m = 5") as caught:
        check_grid(Grid("x", 7, 10, 9, 5), 1)
    assert "n = 7, m = 5; or leave" in str(caught.value)


def test_more_blocks_than_there_are() -> None:
    check_grid(Grid("q", 8, 8, 2, 4), 8)
    with pytest.raises(SparseConfigError, match=r"k = 9 blocks for q, which has n\*m = 2 \* 4 = 8"):
        check_grid(Grid("q", 8, 8, 2, 4), 9)


def test_patterns_match_as_rank_pattern_does() -> None:
    from peft.utils.other import get_pattern_key

    pattern = {r"layers\.1\..*": 9, "q_proj": 2, "v": 3}
    for name in ("model.layers.1.q_proj", "model.layers.0.q_proj", "q_proj", "xq_proj", "a.v", "av", "layers.1.k"):
        assert pattern_value(pattern, name, 5) == pattern.get(get_pattern_key(list(pattern), name), 5)


def test_no_ramp_and_no_budget_is_what_was_asked() -> None:
    grids = layers(3)
    assert distribute(grids, [4, 5] * 3) == [4, 5] * 3


def test_ramp_rises_from_first_to_last_and_keeps_the_mean() -> None:
    counts = distribute(layers(5, sizes=((64, 64),)), [12] * 5, ramp=3.0)
    assert counts == [6, 9, 12, 15, 18]
    down = distribute(layers(5, sizes=((64, 64),)), [12] * 5, ramp=1 / 3)
    assert down == counts[::-1]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 12), k=st.integers(4, 20), ramp=st.floats(0.34, 3.0))
def test_ramp_keeps_the_number_of_blocks_of_each_size_and_the_order(count: int, k: int, ramp: float) -> None:
    grids = layers(count)
    counts = distribute(grids, [k] * len(grids), ramp)
    for part in (0, 1):
        mine = counts[part::2]
        assert sum(mine) == k * count
        assert mine == sorted(mine, reverse=ramp < 1)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 8), extra=st.integers(0, 60_000), ramp=st.sampled_from([1.0, 2.0, 5.0, 0.5]))
def test_budget_is_kept_and_used_up_to_less_than_a_block(count: int, extra: int, ramp: float) -> None:
    grids = layers(count)
    least = sum(grid.blocks + grid.block for grid in grids)
    counts = distribute(grids, [5] * len(grids), ramp, least + extra)
    assert parameters(grids, counts) <= least + extra
    assert all(1 <= k <= grid.blocks for k, grid in zip(counts, grids, strict=True))
    left = least + extra - parameters(grids, counts)
    assert all(k == grid.blocks or left < grid.block for k, grid in zip(counts, grids, strict=True))
    for part in (0, 1):
        assert counts[part::2] == sorted(counts[part::2], reverse=ramp < 1)


def test_blocks_beyond_the_least_go_where_a_falling_ramp_wants_them() -> None:
    """Three blocks more than one each: quotas are cut to 1 at the bottom, and the cut ones keep their order."""
    grids = layers(4)
    least = sum(grid.blocks + grid.block for grid in grids)
    assert distribute(grids, [5] * 8, 0.5, least + 48)[1::2] == [2, 2, 2, 1]
    assert distribute(grids, [5] * 8, 2.0, least + 48)[1::2] == [1, 2, 2, 2]


def test_budget_keeps_the_ratio_of_the_ramp_and_of_patterns() -> None:
    grids = layers(3, sizes=((64, 64),))
    total = sum(grid.blocks for grid in grids) + 60 * 64
    assert distribute(grids, [7] * 3, 3.0, total) == [10, 20, 30]
    assert distribute(grids, [1, 2, 3], 1.0, total) == [10, 20, 30]


def test_budget_too_small_says_how_much_it_takes() -> None:
    grids = layers(2)
    least = sum(grid.blocks + grid.block for grid in grids)
    assert distribute(grids, [9] * 4, budget=least) == [1] * 4
    with pytest.raises(SparseConfigError, match=f"a budget of {least - 1:,} parameters for 4 modules") as caught:
        distribute(grids, [9] * 4, budget=least - 1)
    assert f"at least {least:,}" in str(caught.value)


def test_ramp_needs_layers_and_room() -> None:
    with pytest.raises(SparseConfigError, match="classifier has no layer number"):
        distribute([*layers(2), Grid("classifier", 8, 8, 8, 8)], [3] * 5, 2.0)
    with pytest.raises(SparseConfigError, match=r"k_ramp = 9.0 asks for .* of 64 blocks"):
        distribute(layers(4), [60] * 8, 9.0)


def test_depth_counts_layers_in_the_order_of_the_model() -> None:
    """Encoder before decoder, also where both count from 0."""
    grids = [Grid(f"{part}.block.{i}.q", 8, 8, 8, 8) for part in ("encoder", "decoder") for i in range(2)]
    assert distribute(grids, [10] * 4, 3.0) == [5, 8, 12, 15]
