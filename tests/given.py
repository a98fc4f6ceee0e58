"""What other tools leave: adapters by PEFT alone, quantized checkpoints by GPTQModel's and bitsandbytes' own writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from plr.embedded import tiny_path

TEXT = "Ann has 4 pens. She buys 5 more. How many pens has Ann?"


def float32_base(folder: Path) -> Path:
    """Write the embedded base in float32, so that what is merged into it is not rounded."""
    AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_path()).save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    *,
    model: Any = None,
    named: str | None = None,
    config: Any = None,
    shake: float = 0.05,
    **settings: Any,
) -> Path:
    """Write a LoRA as PEFT writes it after a training: none of its tensors is at its start."""
    base = model if model is not None else AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    chosen = config or LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    )
    torch.manual_seed(3)
    trained = get_peft_model(base, chosen)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(shake * torch.randn_like(parameter))
    trained.save_pretrained(folder)
    write_config(folder, base_model_name_or_path=named or str(tiny_path()))
    return folder


def write_config(folder: Path, **values: Any) -> None:
    """Change keys of a saved adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits(model: Any, tokenizer: Any = None) -> torch.Tensor:
    """Run `TEXT` through a model."""
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(tiny_path())
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)).logits.float()


def by_peft(adapter: Path, base: Any = None, rows: int | None = None) -> Any:
    """Load the adapter with plain transformers and PEFT, on a base with as many rows of its embedding as it was saved with."""
    base = base if base is not None else AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    if rows is not None:
        base.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(base, adapter).eval()


class Rounded(NamedTuple):
    """A weight rounded to nearest, by plain formulas: codes `[out, in]`, scales and zero points `[out, groups]`."""

    codes: np.ndarray[Any, Any]
    scale: torch.Tensor
    zero: np.ndarray[Any, Any]

    @property
    def dense(self) -> torch.Tensor:
        size = self.codes.shape[1] // self.scale.shape[1]
        zero = torch.from_numpy(self.zero.astype(np.float32)).repeat_interleave(size, 1)
        codes = torch.from_numpy(self.codes.astype(np.float32))
        return (codes - zero) * self.scale.float().repeat_interleave(size, 1)


def rounded(weight: torch.Tensor, bits: int, group: int, *, sym: bool, dtype: torch.dtype) -> Rounded:
    groups = weight.float().view(weight.shape[0], -1, group)
    most = 2**bits - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if sym:
        scale = (2 * torch.maximum(-low, high) / most).clamp(min=1e-6).to(dtype)
        zero = torch.full_like(low, 2 ** (bits - 1))
    else:
        scale = ((high - low) / most).clamp(min=1e-6).to(dtype)
        zero = (-low / scale.float()).round().clamp(0, most)
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, most).view(weight.shape)
    return Rounded(codes.numpy().astype(np.int64), scale, zero.numpy().astype(np.int64))


def stream(codes: np.ndarray[Any, Any], bits: int) -> torch.Tensor:
    """Write each row as a little-endian stream of bits, in whole words: int32 `[rows, words]`."""
    rows, n = codes.shape
    single = (codes[:, :, None] >> np.arange(bits)) & 1
    padded = np.zeros((rows, -(-n * bits // 32) * 32), np.uint8)
    padded[:, : n * bits] = single.reshape(rows, -1)
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view("<i4").copy())


def awq_words(codes: np.ndarray[Any, Any]) -> torch.Tensor:
    """Put eight columns into a word, in AutoAWQ's order: int32 `[rows, columns / 8]`."""
    eights = codes.reshape(codes.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint64)
    return torch.from_numpy((eights << (4 * np.arange(8, dtype=np.uint64))).sum(-1).astype(np.uint32).view(np.int32))


def quantized_by(
    folder: Path,
    method: str,
    *,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    dtype: torch.dtype = torch.float32,
    rescaled: bool = False,
    strategy: str = "group",
    **settings: Any,
) -> tuple[Path, Any]:
    """Write the embedded base as an AWQ or compressed-tensors checkpoint; return it, and the dense model that it stands for.

    `rescaled`: the inputs of q, k and v are scaled, as AWQ leaves them.
    """
    dense = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    state = dense.state_dict()
    if rescaled:
        torch.manual_seed(5)
        for layer in dense.model.layers:
            by = 2.0 ** torch.randint(-1, 2, (dense.config.hidden_size,))
            layer.input_layernorm.weight.data /= by
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, name).weight.data *= by
    stored: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if not name.endswith("_proj.weight"):
            if name != "lm_head.weight":
                stored[name] = value.clone()
            continue
        lead = name.removesuffix(".weight")
        size = value.shape[1] if strategy == "channel" else group
        small = rounded(value, bits, size, sym=sym, dtype=torch.float16 if method == "awq" else dtype)
        value.copy_(small.dense)
        if method == "awq":
            stored[f"{lead}.qweight"], stored[f"{lead}.qzeros"] = awq_words(small.codes.T), awq_words(small.zero.T)
            stored[f"{lead}.scales"] = small.scale.t().contiguous()
        else:
            stored[f"{lead}.weight_packed"] = stream(small.codes, bits)
            stored[f"{lead}.weight_scale"] = small.scale
            stored[f"{lead}.weight_shape"] = torch.tensor(value.shape)
            if not sym:
                stored[f"{lead}.weight_zero_point"] = stream(small.zero.T, bits).t().contiguous()
    if method == "awq":
        setting: dict[str, Any] = {"bits": bits, "group_size": group, "zero_point": True, "version": "gemm"}
    else:
        weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": strategy}
        if strategy == "group":
            weights["group_size"] = group
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        setting = {"format": "pack-quantized", "config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
        setting["quantization_status"] = "compressed"
    folder.mkdir()
    contiguous = {name: value.contiguous() for name, value in stored.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((tiny_path() / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **setting, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(tiny_path()).save_pretrained(folder)
    return folder, dense.eval()
