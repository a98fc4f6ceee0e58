from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.gptq.errors import PackingError
from plr.gptq.packing import pack, pack_zeros, packed_size, unpack, unpack_zeros, zero_format

BITS = (2, 3, 4, 8)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(BITS), n=st.integers(1, 130), m=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_unpack_is_the_inverse_of_pack_at_every_shape_the_format_holds(bits: int, n: int, m: int, seed: int) -> None:
    if bits == 3:
        n = -(-n // 32) * 32
    codes = torch.randint(0, 2**bits, (n, m), generator=torch.Generator().manual_seed(seed))
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (packed_size(n, bits), m) == (-(-n * bits // 32), m)
    assert torch.equal(unpack(words, bits, n), codes.int())


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from(BITS), seed=st.integers(0, 2**31))
def test_words_are_a_little_endian_stream_of_codes(bits: int, seed: int) -> None:
    """Against whole-number arithmetic: the column as one big integer."""
    codes = torch.randint(0, 2**bits, (64, 1), generator=torch.Generator().manual_seed(seed))
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    words = [int(word) & 0xFFFFFFFF for word in pack(codes, bits)]
    assert words == [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(len(words))]


def test_three_bits_lie_ten_one_ten_one_ten() -> None:
    codes = torch.zeros(32, 1, dtype=torch.int32)
    codes[10], codes[21] = 7, 7  # the codes across two words
    first, second, third = (int(word) & 0xFFFFFFFF for word in pack(codes, 3))
    assert (first, second, third) == (0b11 << 30, 1 | 1 << 31, 0b11)


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", BITS)
def test_zero_points_come_back(bits: int, checkpoint_format: str) -> None:
    zero = torch.randint(1, 2**bits, (5, 64), dtype=torch.int32)
    qzeros = pack_zeros(zero, bits, checkpoint_format)
    assert qzeros.shape == (5, 2 * bits)
    assert qzeros.is_contiguous()
    assert torch.equal(unpack_zeros(qzeros, bits, 64, checkpoint_format), zero)


def test_v1_stores_the_zero_point_less_one() -> None:
    zero = torch.full((1, 8), 8, dtype=torch.int32)
    assert int(pack_zeros(zero, 4, "gptq")) & 0xFFFFFFFF == 0x77777777
    assert int(pack_zeros(zero, 4, "gptq_v2")) & 0xFFFFFFFF == 0x88888888


def test_a_zero_point_of_zero_needs_v2_and_v1_refuses_it() -> None:
    zero = torch.tensor([[0, 3, 1, 2]], dtype=torch.int32)
    assert zero_format(zero) == "gptq_v2"
    assert zero_format(zero + 1) == "gptq"
    with pytest.raises(PackingError, match=r"Codes from -1 to 2"):
        pack_zeros(zero, 8, "gptq")


def test_a_wrapped_zero_point_of_another_writer_is_read_as_zero() -> None:
    stored = pack(torch.tensor([[15], [4]]), 4).t()  # 0 - 1 = 15 in four bits
    assert unpack_zeros(stored, 4, 2, "gptq").tolist() == [[0, 5]]


@pytest.mark.parametrize("n", [1, 33, 48])
def test_three_bits_need_whole_blocks_of_32(n: int) -> None:
    with pytest.raises(PackingError, match=rf"in_features={n} at 3 bits.*multiple of 32"):
        packed_size(n, 3, "in_features")


@pytest.mark.parametrize("code", [-1, 4])
def test_codes_out_of_range_are_an_error(code: int) -> None:
    with pytest.raises(PackingError, match=r"Codes from .* at 2 bits.*from 0 to 3"):
        pack(torch.tensor([[1], [code]]), 2)


def test_a_wrong_number_of_words_is_an_error() -> None:
    with pytest.raises(PackingError, match=r"3 words for 32 codes of 4 bits.*4 words"):
        unpack(torch.zeros(3, 2, dtype=torch.int32), 4, 32)


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(PackingError, match="checkpoint_format='marlin'"):
        pack_zeros(torch.ones(1, 8, dtype=torch.int32), 4, "marlin")
