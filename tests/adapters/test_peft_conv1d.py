"""Adapters trained on k-bit GPT-2, whose layers are `nn.Linear`, put on 16-bit GPT-2, whose layers are `Conv1D`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import rounded, tiny_model

from plr.adapters.peft import PeftMethod
from plr.errors import ModelError

IDS = torch.arange(3, 35).view(2, 16)
WHERE = {"target_modules": ["c_attn", "c_fc"]}
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")


def make_model(bits: int = 16) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    return rounded(tiny_model("gpt2", seed=1, **sizes, bos_token_id=1, eos_token_id=2), bits, group_size=32)


def trained(method: PeftMethod, folder: Path) -> Path:
    model = method.attach(make_model(4), method.resolve({}), seed=0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad.sign()
    method.save(model, folder)
    return folder


def test_lora_acts_there_and_comes_off_again(tmp_path: Path) -> None:
    method = PeftMethod("LoraConfig", {"r": 4, "lora_alpha": 8, **WHERE})
    folder, base = trained(method, tmp_path), make_model()
    before = base(IDS).logits
    served = method.load(base, folder, "restored")
    assert not torch.allclose(served(input_ids=IDS).logits, before)
    assert torch.equal(method.unload(served, "restored")(IDS).logits, before)


def test_a_method_that_peft_does_not_put_on_conv1d_says_so(tmp_path: Path) -> None:
    method = PeftMethod("OFTConfig", {"oft_block_size": 16, **WHERE})
    folder = trained(method, tmp_path)
    method.load(make_model(4), folder, "kept")
    with pytest.raises(ModelError, match=r"OFTConfig cannot be put on GPT2LMHeadModel: .*Conv1D") as caught:
        method.load(make_model(), folder, "restored")
    assert "k-bit base" in str(caught.value.hint)
