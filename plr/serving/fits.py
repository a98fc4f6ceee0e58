"""Compatibility rules for vLLM, mirrored from its loaders and checked at planning time.

The rules are those of vLLM 0.32 and 0.33, from the source of their wheels:

1. GPTQ (`AutoGPTQConfig`): 8 and 4 bits, symmetric, no activation order across groups, groups of 32, 64, 128 or a whole row.
   Zero points are not read: a symmetric grid has its zero in the middle, which is what plr writes.
2. bitsandbytes, GGUF and fewer than 4 bits: no reader is left.
3. LoRA (`PEFTHelper`): PEFT's own files, rank up to 512, also rsLoRA and ranks or alphas by layer. Whatever changes the
   meaning of A and B, or trains anything else, is refused there. Keys that vLLM does not read at all are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plr.adapters.base import Config

__all__ = ["MAX_RANK", "RANKS", "lora_rank", "lora_targets", "room_for_rank", "why_not_vllm"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `max_lora_rank` may have."""
MAX_RANK = RANKS[-1]
GROUPS = (-1, 32, 64, 128)
GPTQ_METHODS = ("gptq", "rtn", "gptqmodel")
LORA_METHODS = ("lora", "rslora", "pissa", "olora", "relora")
"""Methods whose saved adapter is an ordinary LoRA."""
CHANGES_NOTHING_LATER = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
CONVERTED = ("pissa", "olora")
"""Initialisations that plr converts when it saves: then twice the rank, with `init_lora_weights: true`."""
MORE_THAN_LORA = {
    "use_dora": "DoRA has a magnitude beside A and B",
    "lora_bias": "its B has a bias",
    "modules_to_save": "it trains whole modules beside A and B",
    "trainable_token_indices": "it trains rows of the embedding beside A and B",
    "target_parameters": "it is put on parameters that are no layer of their own",
    "alora_invocation_tokens": "aLoRA acts from its invocation on",
    "layer_replication": "it repeats layers of the base",
    "use_qalora": "QALoRA pools the input of A",
    "use_bdlora": "its A or B is block-diagonal",
    "velora_config": "VeLoRA is more than A and B",
    "monteclora_config": "MonteCLoRA is more than A and B",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA is more than A and B",
}
"""Keys of PEFT's LoraConfig under which an adapter is more than `s B A` beside a layer."""


def why_not_vllm(
    step_bits: int,
    quantization_method: str | None,
    adapter_method: str | None,
    adapter_config: Config | None,
    merged: bool,
    *,
    quantization: Config | None = None,
    head: bool = False,
    gguf: bool = False,
) -> str | None:
    """Explain why vLLM cannot serve a cell, for an error message; None if nothing stands against it.

    Args:
        step_bits: width of the weights as they are served: 16 for a merged or `roundtrip` checkpoint.
        quantization_method: the quantizer's name in plr; None at 16 bits.
        adapter_method: the method's name in plr; None for a base alone.
        adapter_config: its resolved configuration, or the saved `adapter_config.json`, which says more.
        merged: whether the adapter is part of the checkpoint, so that nothing is asked of it.
        quantization: `bits`, `group_size`, `sym`, `desc_act` of the step or of the checkpoint's `quantization_config`.
        head: whether the task is scored with a classification head.
        gguf: whether the source is a GGUF file.

    >>> why_not_vllm(3, "gptq", None, None, False)
    'vLLM reads GPTQ at 8 and 4 bits, not at 3'
    >>> why_not_vllm(4, "gptq", "lora", {"r": 16, "bias": "none"}, False) is None
    True
    """
    if head:
        return "the task is scored with a classification head, and plr serves text through vLLM"
    reason = _why_not_weights(step_bits, quantization_method, quantization or {}, gguf)
    if reason is None and adapter_method is not None and not merged:
        reason = _why_not_adapter(adapter_method, adapter_config or {})
    return reason


def lora_rank(method: str, config: Config) -> int:
    """Return the largest rank of a LoRA as it is saved: what `max_lora_rank` must hold."""
    rank = max([int(config.get("r", 0)), *(int(r) for r in (config.get("rank_pattern") or {}).values())])
    if "peft_type" in config:
        return rank
    if method == "relora":
        return rank * (int(config.get("restarts", 0)) + 1)
    return 2 * rank if _init(config).startswith(CONVERTED) else rank


def lora_targets(configs: Iterable[Config]) -> frozenset[str] | None:
    """Return the names of all layers that saved LoRA adapters are on; None where one gives them as a pattern.

    >>> sorted(lora_targets([{"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "q_proj"]}]))
    ['q_proj', 'v_proj']
    >>> lora_targets([{"target_modules": ".*_proj"}]) is None
    True
    """
    names: set[str] = set()
    for config in configs:
        targets = config.get("target_modules")
        if targets is None or isinstance(targets, str):
            return None
        names.update(str(target).rpartition(".")[2] for target in targets)
    return frozenset(names)


def room_for_rank(rank: int) -> int:
    """Return the least `max_lora_rank` that holds `rank`.

    >>> room_for_rank(4), room_for_rank(64), room_for_rank(65)
    (8, 64, 128)
    """
    return next(room for room in RANKS if room >= rank)


def _why_not_weights(bits: int, method: str | None, settings: Config, gguf: bool) -> str | None:
    if bits == 16:
        return "vLLM reads no GGUF file" if gguf else None
    if method not in GPTQ_METHODS:
        return f"vLLM has no reader for {method} bases, only for GPTQ checkpoints"
    if bits not in (8, 4):
        return f"vLLM reads GPTQ at 8 and 4 bits, not at {bits}"
    if not settings.get("sym", True):
        return "vLLM reads symmetric GPTQ only, and this base was quantized with sym: false"
    group = settings.get("group_size", 128)
    if settings.get("desc_act", False) and group != -1:
        return "vLLM reads no GPTQ with desc_act any more; act_group_aware orders columns at no cost there"
    if group not in GROUPS:
        return f"vLLM reads GPTQ in groups of {', '.join(map(str, GROUPS))}, not of {group}"
    return None


def _why_not_adapter(method: str, config: Config) -> str | None:
    saved = config.get("peft_type")
    if str(getattr(saved, "value", saved) or "LORA") != "LORA" or (method not in LORA_METHODS and saved is None):
        if method == "dora":
            return f"vLLM serves plain LoRA: {MORE_THAN_LORA['use_dora']}"
        return f"vLLM serves adapters as LoRA, and {method} is none"
    for key, why in MORE_THAN_LORA.items():
        if config.get(key):
            return f"vLLM serves plain LoRA, and with {key} {why}"
    if config.get("bias", "none") != "none":
        return f"vLLM serves plain LoRA, and bias: {config['bias']} trains biases of the base"
    init = _init(config)
    if init not in ("", "true", "false", *CHANGES_NOTHING_LATER) and (saved or not init.startswith(CONVERTED)):
        return f"init_lora_weights is {init}: the adapter holds a part of its own base"
    rank = lora_rank(method, config)
    return f"vLLM holds LoRA of rank {MAX_RANK} at most, and this one has {rank}" if rank > MAX_RANK else None


def _init(config: Config) -> str:
    return str(config.get("init_lora_weights", "")).lower()
