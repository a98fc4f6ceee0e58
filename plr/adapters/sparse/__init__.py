"""The sparse adapter: configuration, layer, product, budget, and reading a saved one.

`SparseConfig` and `SparseModel` are loaded on first use: they bring PEFT and torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plr.adapters.sparse.tuner import SparseConfig, SparseModel

__all__ = ["SparseConfig", "SparseModel"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from plr.adapters.sparse import tuner

        return getattr(tuner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
