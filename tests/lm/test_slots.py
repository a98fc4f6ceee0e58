"""The slot cache by itself: what is written is what is read."""

from __future__ import annotations

import pytest
import torch

from plr.lm.slots import SlotCache


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 3, generator=generator), torch.randn(rows, 2, tokens, 5, generator=generator)


def test_rows_of_different_lengths_read_back_what_they_wrote():
    cache = SlotCache(layers=1, slots=4, columns=8)
    keys, values = states(2, 3, seed=0)
    cache.plan_block(slice(0, 2), 0, 3)
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    cache.update(keys, values, 0)
    new_keys, new_values = states(2, 1, seed=1)
    cache.plan_point(torch.arange(2), torch.tensor([1, 3]), longest=4)  # row 0 was padded: its token 1 is overwritten
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(1, 0) == (4, 0)
    read_keys, read_values = cache.update(new_keys, new_values, 0)
    assert read_keys.shape == (2, 2, 4, 3)
    assert read_values.shape == (2, 2, 4, 5)
    assert torch.equal(read_keys[0, :, :2], torch.stack([keys[0, :, 0], new_keys[0, :, 0]], 1))
    assert torch.equal(read_keys[1], torch.cat([keys[1], new_keys[1]], 1))
    assert torch.equal(read_values[1], torch.cat([values[1], new_values[1]], 1))


def test_reading_copies_nothing():
    cache = SlotCache(layers=1, slots=2, columns=8)
    cache.plan_point(torch.arange(2), torch.tensor([0, 0]), longest=1)
    read, _ = cache.update(*states(2, 1, seed=0), 0)
    assert read.data_ptr() == cache.layers[0].keys.data_ptr()


def filled(layers: int, slots: int, columns: int, written: int, seed: int = 0) -> SlotCache:
    cache = SlotCache(layers, slots, columns)
    for layer in range(layers):
        cache.plan_block(slice(0, slots), 0, written)
        cache.update(*states(slots, written, seed=seed + layer), layer)
    return cache


def test_move_takes_a_row_to_another():
    cache = filled(layers=2, slots=3, columns=4, written=3)
    before = [layer.keys.clone() for layer in cache.slot_layers]
    cache.move(2, 1, length=2)
    for layer, old in zip(cache.slot_layers, before, strict=True):
        assert torch.equal(layer.keys[1, :, :2], old[2, :, :2])
        assert torch.equal(layer.keys[1, :, 2], old[1, :, 2])


@pytest.mark.parametrize("used", [False, True])
def test_spread_copies_a_prefix_to_all_rows(used):
    prefix = filled(layers=2, slots=1, columns=2, written=2, seed=7)
    cache = filled(layers=2, slots=3, columns=4, written=3) if used else SlotCache(2, 3, 4)
    before = [layer.keys.clone() if used else torch.zeros(3, 2, 4, 3) for layer in cache.slot_layers]
    cache.spread(prefix)
    for layer, other, old in zip(cache.slot_layers, prefix.slot_layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :2], other.keys.expand(3, -1, -1, -1))
        assert torch.equal(layer.values[:, :, :2], other.values.expand(3, -1, -1, -1))
        assert torch.equal(layer.keys[:, :, 2:], old[:, :, 2:])


def test_what_lies_before_column_0_counts_as_seen():
    cache = SlotCache(layers=1, slots=2, columns=8, origin=5)
    cache.plan_block(slice(0, 2), 0, 3)
    assert cache.get_seq_length() == 5
    cache.update(*states(2, 3, seed=0), 0)
    cache.plan_point(torch.arange(2), torch.tensor([3, 3]), longest=4)
    assert cache.get_mask_sizes(1, 0) == (9, 0)
    assert cache.update(*states(2, 1, seed=1), 0)[0].shape == (2, 2, 4, 3)
