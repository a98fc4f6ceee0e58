"""Check the values of an adapter's configuration against its method's defaults, without importing PEFT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from plr.adapters.base import Config
from plr.errors import ConfigError

__all__ = ["check_values"]


def check_values(method: str, defaults: Config, config: Config) -> None:
    """Refuse a value of another kind than its default, and a size or a share out of its bounds.

    A whole number that is positive by default is a size and stays positive; a dropout is a share below 1. Keys without a default
    here are left to the method's own config class.

    Raises:
        ConfigError: by the first such key.
    """
    for key, value in config.items():
        if (wanted := _wanted(key, defaults.get(key), value)) is not None:
            raise ConfigError(
                f"{method}: {key} is {value!r}", expected=wanted, hint=f"{defaults[key]!r} is the method's own value"
            )


def _wanted(key: str, default: object, value: object) -> str | None:
    """Say what is wanted instead of `value`; None if it will do."""
    match default:
        case bool():
            return None if isinstance(value, bool | str) else "true or false"
        case int() | float():
            return _wanted_number(key, default, value)
        case str():
            return None if isinstance(value, str | bool) else "a word"
        case [_, *_]:
            return (
                None if value is None or isinstance(value, str) or _is_texts(value) else "a list of names, or a pattern"
            )
        case Mapping():
            return None if isinstance(value, Mapping) else "a mapping"
        case _:
            return None


def _wanted_number(key: str, default: float, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "a number"
    if "dropout" in key:
        return None if 0 <= value < 1 else "a number from 0 to below 1"
    if "alpha" in key or isinstance(default, float):
        return None if value > 0 or default <= 0 or isinstance(default, float) else "a number above 0"
    if not isinstance(value, int):
        return "a whole number"
    if "seed" in key or key.endswith("_key") or "block" in key:  # 0 blocks: as many as the other key says
        return None if value >= 0 else "a whole number >= 0"
    return None if value >= 1 or default < 1 else "a whole number >= 1"


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in cast("list[object]", value))
