"""Names that tell the entries of a study apart in its tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from plr.core.specs import ModelRef
from plr.errors import ConfigError
from plr.study.cells import NO_ADAPTER
from plr.study.file import AdapterConfig

__all__ = ["adapter_names", "model_names"]


def adapter_names(adapters: Sequence[AdapterConfig]) -> list[str]:
    """Name each adapter: as its entry says, else by its method, and where entries share that by the settings they give.

    Raises:
        ConfigError: two entries that are called alike and cannot be told apart, or one called like the bases without an adapter.
    """
    counts = Counter(adapter.name or adapter.method for adapter in adapters if adapter.path is None)
    names = [adapter.name or _own_name(adapter, counts) for adapter in adapters]
    for name, count in Counter(names).items():
        if count > 1 or name == NO_ADAPTER:
            raise ConfigError(
                f"{count} adapters are called {name}"
                if count > 1
                else f"an adapter is called {name}, as the base without one",
                expected="a name of its own for each entry of adapters: tables tell them apart by it",
                hint="write name: NAME into the entries",
            )
    return names


def _own_name(adapter: AdapterConfig, counts: Mapping[str, int]) -> str:
    if adapter.path is not None:
        return adapter.path.rstrip("/").rpartition("/")[2]
    return _by_settings(adapter) if counts[adapter.method] > 1 else adapter.method


def _by_settings(adapter: AdapterConfig) -> str:
    """Join a method and the settings of its entry.

    >>> _by_settings(AdapterConfig(method="lora", config={"r": 4}, train={"epochs": 2}))
    'lora r=4 epochs=2'
    """
    given = {
        **adapter.config,
        **adapter.train,
        **({} if adapter.train_bits is None else {"train_bits": adapter.train_bits}),
    }
    return " ".join([adapter.method, *(f"{key}={_short(value)}" for key, value in given.items())])


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_short, cast("Sequence[object]", value)))
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else str(value)


def model_names(models: Sequence[ModelRef]) -> list[str]:
    """Name each source model by its title, and folders that share one by as many folders above them as tell them apart.

    Raises:
        ConfigError: two entries are the same model, or cannot be told apart.
    """
    for at, model in enumerate(models):
        for other in models[:at]:
            if model.identity() == other.identity():
                raise ConfigError(f"{other.path or other.title} and {model.path or model.title} are the same model")
    names = [model.title for model in models]
    counts, depth = Counter(names), 2
    while max(counts.values(), default=0) > 1 and depth < 64:
        names = [_tail(model, depth) if counts[name] > 1 else name for name, model in zip(names, models, strict=True)]
        counts, depth = Counter(names), depth + 1
    for name, count in counts.items():
        if count > 1:  # one model of the hub at two commits
            raise ConfigError(
                f"{count} models are called {name}: tables tell them apart by name",
                hint="make a study of each",
            )
    return names


def _tail(model: ModelRef, depth: int) -> str:
    return model.title if model.path is None else "/".join(Path(model.path).parts[-depth:])
