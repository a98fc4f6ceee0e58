"""An attention function of ours in a model: by transformers' registry, under a name that the config holds for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from plr.lm.support import decoder_config, unwrap

__all__ = ["Attend", "Refused", "attending", "refuse_options", "why_not_registered"]

Attend = Callable[..., tuple[Tensor, None]]
_NO_MATTER = {"sliding_window", "position_ids", "use_cache", "cache_position"}  # windows: see `why_not_slots`


class Refused(Exception):
    """The model attends in a way that our function cannot express; the message names it."""


def why_not_registered(model: nn.Module) -> str | None:
    """Return the reason why `model` does not attend through the registry of transformers on a CPU; None if it does."""
    if any(tensor.device.type != "cpu" for tensor in unwrap(model).parameters()):
        return "it is not on the CPU alone"
    if not getattr(unwrap(model), "_supports_attention_backend", True):
        return "its attention does not go through transformers' registry"
    config = decoder_config(model)
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}"
    if config.sub_configs:
        return "its decoder has configs inside its config"
    return None


@contextmanager
def attending(config: PreTrainedConfig, attend: Attend) -> Iterator[None]:
    """Let the model of `config` attend by `attend` inside."""
    before, name = config._attn_implementation, f"plr-{id(attend):x}"
    AttentionInterface.register(name, attend)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop(name)  # there is no public way to take a name back


def refuse_options(options: Mapping[str, object]) -> None:
    """Raise `Refused` where a layer asks for more than plain attention."""
    for name, value in options.items():
        if name not in _NO_MATTER and value is not None and value is not False:
            raise Refused(f"its attention takes {name}")
