"""Every method PEFT has, also those without an entry in plr's table: found by name, no PEFT imported before it is used.

`adapters.get("waveft")` gives a method whose configuration is dumped from PEFT's config class when it is resolved, so that
the whole of it stands in the step and nothing is inherited. What such a method needs from the user (`num_virtual_tokens` of
`cartridge`, a `vector_length` of `vblora` that divides the layers) PEFT itself asks for. Four cannot train one adapter for
one task and are refused with the reason.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import MISSING, fields, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from plr.adapters.base import Config, Properties, Settings
from plr.adapters.peft import SET_BY_PLR, PeftMethod
from plr.adapters.targets import ATTENTION
from plr.core.fingerprint import is_json
from plr.core.quiet import quiet_libraries
from plr.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["REFUSED", "OtherPeftMethod", "peft_names"]

SEVERAL_TASKS = "it trains on several tasks at once and wants the number of each row's task"
REFUSED = {
    "multitask_prompt_tuning": SEVERAL_TASKS,
    "poly": SEVERAL_TASKS,
    "shadow": "it trains a second model beside the base, with a loss of its own",
    "xlora": "it mixes adapters that were trained before",
}
"""Methods of PEFT that are no adapter of one task."""


@cache
def peft_names() -> tuple[str, ...]:
    """List the names of PEFT's methods in lower case, read from the source of its enum: importing PEFT takes seconds."""
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        return ()
    source = Path(spec.origin).parent / "utils" / "peft_types.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "PeftType":
            values = [item.value for item in node.body if isinstance(item, ast.Assign)]
            return tuple(sorted(str(v.value).lower() for v in values if isinstance(v, ast.Constant)))
    return ()


class OtherPeftMethod(PeftMethod):
    """A method of PEFT with PEFT's own defaults, all of them written down."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "",
            {},
            Properties(
                summary=f"PEFT's {name.upper()}, with PEFT's own defaults",
                family="reparameterization",
                source="see the documentation of PEFT",
            ),
        )
        self.name = name

    def resolve(self, config: Config) -> Settings:
        if self.name in REFUSED:
            raise ConfigError(
                f"PEFT's {self.name} is not for plr: {REFUSED[self.name]}",
                expected="a method that trains one adapter on one task",
                hint="plr adapters lists them",
            )
        self._config_class()  # its defaults are read once
        return super().resolve(config)

    def _config_class(self) -> type[PeftConfig]:
        if "peft" not in sys.modules:
            quiet_libraries()
        from peft.config import PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils import PeftType

        chosen = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[self.name.upper()]]
        if not self.config_class:
            self.config_class = chosen.__name__
            self.defaults = _defaults(chosen)
            if issubclass(chosen, PromptLearningConfig):
                self.properties = replace(self.properties, family="prompt", merges=False)
        return chosen


def _defaults(config_class: type[PeftConfig]) -> Settings:
    """List every field of a PEFT config that JSON can hold, with its default; target_modules by name."""
    values: Settings = {}
    for field in fields(config_class):
        if field.name in SET_BY_PLR:
            continue
        value = field.default_factory() if field.default_factory is not MISSING else field.default
        value = value.value if isinstance(value, Enum) else value
        if value is not MISSING and is_json(value):
            values[field.name] = value
    if "target_modules" in values and values["target_modules"] is None:
        values["target_modules"] = list(ATTENTION)
    return values
