"""PEFT's list of methods is a closed enum: this opens it for plr's own methods.

After `register`, `get_peft_model`, `PeftModel.from_pretrained`, `PeftConfig.from_pretrained` and everything else of PEFT know the
method by the `peft_type` in its `adapter_config.json`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import PeftType

__all__ = ["add_member", "register"]

E = TypeVar("E", bound=Enum)


def add_member(enum: type[E], value: str) -> E:
    """Add a member to a closed enum of strings, its name and its value being `value`; return it.

    It is what the metaclass would have made: found by name, by value, in iteration, and as an attribute. Attributes were looked
    up among the members until Python 3.11 and are the class's own since 3.12.
    """
    member = str.__new__(enum, value)  # type: ignore[type-var]
    member._name_, member._value_ = value, value
    vars(member).update(__objclass__=enum, _sort_order_=len(enum._member_names_))
    setattr(enum, value, member)
    enum._member_names_.append(value)
    enum._member_map_[value] = member
    enum._value2member_map_[value] = member
    return member


def register(name: str, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> PeftType:
    """Make `name` (lower case) a method of PEFT; its member of `PeftType`. A second call does nothing.

    Raises:
        KeyError: PEFT, or another package, has a method of that name already.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    member = PeftType.__members__.get(name.upper())
    if member is None:
        member = add_member(PeftType, name.upper())
    elif member in PEFT_TYPE_TO_CONFIG_MAPPING:
        if PEFT_TYPE_TO_CONFIG_MAPPING[member].__qualname__ == config_class.__qualname__:
            return member
        raise KeyError(f"PEFT has a method called {name!r} already")
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    return member
