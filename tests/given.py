"""What other tools leave: adapters by PEFT alone, quantized checkpoints by GPTQModel's and bitsandbytes' own writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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
