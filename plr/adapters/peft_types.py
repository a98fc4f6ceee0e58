"""PEFT's list of methods is a closed enum: this opens it for plr's own methods.

After :func:`register`, ``get_peft_model``, ``PeftModel.from_pretrained``, ``PeftConfig.from_pretrained`` and everything else
of PEFT know the method by the ``peft_type`` in its ``adapter_config.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft.utils import PeftType

__all__ = ["register"]


def register(name: str, config_class: Any, model_class: Any) -> PeftType:
    """Make ``name`` (lower case) a method of PEFT; its member of ``PeftType``. A second call does nothing.

    Raises:
        KeyError: PEFT, or another package, has a method of that name already.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    value = name.upper()
    member = PeftType.__members__.get(value)
    if member is None:
        # A member as the metaclass would have made it: a str with a name and a value, known by both.
        member = str.__new__(PeftType, value)
        member._name_, member._value_ = value, value
        vars(member).update(__objclass__=PeftType, _sort_order_=len(PeftType._member_names_))
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    elif member in PEFT_TYPE_TO_CONFIG_MAPPING:
        if PEFT_TYPE_TO_CONFIG_MAPPING[member].__qualname__ == config_class.__qualname__:
            return member
        raise KeyError(f"PEFT has a method called {name!r} already")
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    return member
