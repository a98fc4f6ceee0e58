"""k-bit codes in 32-bit words: the layout of GPTQ checkpoints (AutoGPTQ, GPTQModel, transformers, vLLM).

How a column of codes lies in words: code i occupies the bits `[i*bits, (i+1)*bits)` of a little-endian stream of int32
words.

- 2, 4, 8 bits: 16, 8, 4 codes in each word. A last word that is not full ends in zeros.
- 3 bits: 32 codes in 3 words, "10-1-10-1-10": ten codes, one across two words, ten, one across, ten. Whole threes of
  words only.

    qweight int32 [ceil(in*bits/32), out]      codes along `in`
    qzeros  int32 [groups, ceil(out*bits/32)]  zero points along `out`: less 1 in format gptq (v1), as is in gptq_v2
    scales  fp16  [groups, out]
    g_idx   int32 [in]                         the group of each column

v1 cannot hold a zero point of 0 (an asymmetric group without negative weights): 0 - 1 wraps to maxq, which readers turn
into a carry that spoils the neighbouring zero point. `zero_format` therefore picks gptq_v2 where a zero point is 0, and
v1, which every consumer reads, everywhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plr.gptq.affine import check_bits
from plr.gptq.errors import PackingError

__all__ = ["Codes", "pack", "pack_zeros", "packed_size", "unpack", "unpack_rows", "unpack_zeros", "zero_format"]

WORD = 32
V1, V2 = "gptq", "gptq_v2"


class Codes(NamedTuple):
    """A weight `[out, in]` as it is stored: the four tensors of the layout above, and how to read them."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bits: int
    in_features: int
    checkpoint_format: str
    in_order: bool  # g_idx is 0..0 1..1 2..2, in groups of equal size

    @property
    def out_features(self) -> int:
        return self.qweight.shape[1]

    @property
    def offset(self) -> int:
        """Number to add to a stored zero point: 1 in v1, else 0; the sum wraps around at `2**bits`."""
        return _offset(self.checkpoint_format)

    def zeros(self) -> Tensor:
        """Unpack the zero points, int32 `[groups, out]`."""
        return unpack_zeros(self.qzeros, self.bits, self.out_features, self.checkpoint_format)


def packed_size(n: int, bits: int, what: str = "codes") -> int:
    """Count the 32-bit words that `n` codes take. `PackingError` for 3 bits unless 32 divides `n`."""
    check_bits(bits)
    if WORD % bits and n % WORD:
        raise PackingError(
            f"{what}={n} at {bits} bits.",
            f"a multiple of {WORD}: the format stores {bits}-bit codes as {WORD} codes in {bits} words.",
            "use 2, 4 or 8 bits for this layer, or skip it.",
        )
    return -(-n * bits // WORD)


def pack(codes: Tensor, bits: int, what: str = "codes") -> Tensor:
    """Pack `codes [n, m]` (any integer dtype, `0 .. 2**bits - 1`) along the first axis: int32 `[ceil(n*bits/32), m]`.

    Raises:
        PackingError: a code out of range, or a 3-bit `n` that 32 does not divide.
    """
    n = codes.shape[0]
    words = packed_size(n, bits, what)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise PackingError(
            f"Codes from {int(codes.min())} to {int(codes.max())} at {bits} bits.",
            f"codes from 0 to {2**bits - 1}.",
            "clamp codes to the grid before packing.",
        )
    span = WORD if WORD % bits else WORD // bits  # codes that fill `bits` words, or one word
    spans, m = -(-n // span), codes.shape[1]
    padded = torch.zeros(spans * span, m, dtype=torch.int32, device=codes.device)
    padded[:n] = codes
    padded = padded.view(spans, span, m)
    out = torch.zeros(spans, span * bits // WORD, m, dtype=torch.int32, device=codes.device)
    for i in range(span):
        word, shift = divmod(i * bits, WORD)
        out[:, word] |= padded[:, i] << shift
        if shift + bits > WORD:
            out[:, word + 1] |= padded[:, i] >> (WORD - shift)
    return out.view(words, m)


def unpack(words: Tensor, bits: int, n: int) -> Tensor:
    """Undo `pack`: the first `n` codes, int32 `[n, m]`, of `words [ceil(n*bits/32), m]`."""
    return unpack_rows(words, bits, n).t().to(torch.int32)


def unpack_rows(words: Tensor, bits: int, n: int) -> Tensor:
    """Unpack the first `n` codes of each column, uint8 `[m, n]`, of `words` int32 `[ceil(n*bits/32), m]`: as a weight lies.

    Fast, because nothing is done code by code. The words of a column are laid side by side; on a little-endian machine
    their bytes are then the stream of codes. A chunk of codes is widened to an integer with one byte for each, in
    halves: the upper half moves up by the bytes it lacks, then the same within each half. Four codes of 2 bits:

        0000 0000 ddcc bbaa  ->  0000 ddcc 0000 bbaa (12 bits up, masked)  ->  dd cc bb aa, a byte each (6 bits up)
    """
    size = packed_size(n, bits)
    if words.shape[0] != size:
        raise PackingError(
            f"{words.shape[0]} words for {n} codes of {bits} bits.",
            f"{size} words.",
            "check bits and the layer's shape.",
        )
    m = words.shape[1]
    stream = words.t().reshape(-1).view(torch.uint8)  # [m * size * 4]
    if bits == 4:  # two codes in 8 bits
        wide = stream.to(torch.int16)
        wide = (wide | (wide << 4)).bitwise_and_(0x0F0F)
    elif bits == 2:  # four codes in 8 bits
        wide = stream.to(torch.int32)
        wide = (wide | (wide << 12)).bitwise_and_(0x000F000F)
        wide = (wide | (wide << 6)).bitwise_and_(0x03030303)
    elif bits == 3:  # eight codes in 24 bits: no code lies across
        chunk = stream.view(-1, 3).to(torch.int64)
        wide = chunk[..., 0] | (chunk[..., 1] << 8) | (chunk[..., 2] << 16)
        wide = (wide | (wide << 20)).bitwise_and_(0x00000FFF00000FFF)
        wide = (wide | (wide << 10)).bitwise_and_(0x003F003F003F003F)
        wide = (wide | (wide << 5)).bitwise_and_(0x0707070707070707)
    else:
        wide = stream
    return wide.view(torch.uint8).view(m, size * WORD // bits)[:, :n]


def pack_zeros(zero: Tensor, bits: int, checkpoint_format: str) -> Tensor:
    """Pack qzeros `[groups, ceil(out*bits/32)]` of zero points `zero [groups, out]` in format "gptq" (v1) or "gptq_v2"."""
    return pack(zero.t() - _offset(checkpoint_format), bits, "out_features").t().contiguous()


def unpack_zeros(qzeros: Tensor, bits: int, out_features: int, checkpoint_format: str) -> Tensor:
    """Unpack zero points int32 `[groups, out]` of qzeros; in v1 a stored `maxq` is read as 0, the wrapped-around 0 - 1."""
    zero = unpack_rows(qzeros.t(), bits, out_features).to(torch.int32)
    return (zero + _offset(checkpoint_format)) & (2**bits - 1)


def zero_format(zero: Tensor) -> str:
    """Choose the checkpoint format that holds these zero points: "gptq" (v1) unless one of them is 0."""
    return V1 if zero.numel() == 0 or int(zero.min()) >= 1 else V2


def _offset(checkpoint_format: str) -> int:
    if checkpoint_format not in (V1, V2):
        raise PackingError(
            f"checkpoint_format={checkpoint_format!r}.", f"{V1!r} or {V2!r}.", "convert it with GPTQModel."
        )
    return 1 if checkpoint_format == V1 else 0
