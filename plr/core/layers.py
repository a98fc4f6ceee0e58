"""Names of layers: which block of the model a layer is in, and what kind of layer it is there."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["layer_places"]


def layer_places(names: Iterable[str]) -> list[tuple[int, str]]:
    """Return (block, kind) of each layer, in the order of `names`.

    The kind is the part of the name behind the block's number (other numbers, of experts, left out): its last word where no
    other kind ends in the same one.

    >>> layer_places(["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"])
    [(0, 'c_attn'), (0, 'attn.c_proj'), (0, 'mlp.c_proj')]
    """
    places: list[tuple[int, str]] = []
    for name in names:
        match = re.search(r"(?:^|\.)(\d+)\.", name)
        rest = name[match.end() :] if match else name
        places.append(
            (int(match[1]) if match else 0, ".".join(word for word in rest.split(".") if not word.isdecimal()))
        )
    kinds = dict.fromkeys(kind for _, kind in places)
    ends = [kind.rpartition(".")[2] for kind in kinds]
    short = {kind: end if ends.count(end) == 1 else kind for kind, end in zip(kinds, ends, strict=True)}
    return [(block, short[kind]) for block, kind in places]
