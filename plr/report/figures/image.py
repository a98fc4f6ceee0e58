"""Images of few colours as PNG (ISO/IEC 15948), for the block scores inside an SVG.

It replaces a drawing of one rectangle a block, which makes a page of some ten thousand blocks slow; an image library would be a
dependency for this alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

__all__ = ["palette_png"]


def palette_png(colours: Any, cell: int, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode `colours [n, m]`, numbers in a `palette` of 16, as a PNG of `cell` x `cell` pixels each, 4 bits a pixel."""
    import numpy as np

    pixels = np.repeat(np.repeat(colours, cell, axis=0), cell, axis=1)
    height, width = pixels.shape
    even = np.pad(pixels, ((0, 0), (0, width % 2)))
    packed = (even[:, 0::2] << 4 | even[:, 1::2]).astype(np.uint8)
    lines = np.pad(packed, ((0, 0), (1, 0)))  # filter 0 before every line

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"PLTE", bytes(part for colour in palette for part in colour))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
