"""Train LoRA on packed layers, alone and sharded over the processes of torchrun (FSDP2); prints a line of JSON a width.

torchrun --standalone --nproc_per_node 2 tests/gptq/sharded_training.py BITS [BITS ...]
"""

from __future__ import annotations

import json
import sys

import peft
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from plr.gptq import PackedLinear, quantize_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def make_model(bits: int) -> peft.PeftModel:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))
    quantize_model(model, [], bits=bits, group_size=32, method="rtn", kernel="packed")
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))


def train(model: nn.Module, ids: Tensor) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses: list[float] = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def compare(bits: int) -> None:
    size = dist.get_world_size()
    ids = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    alone = train(make_model(bits), ids)
    model = make_model(bits)
    mesh = init_device_mesh("cpu", (size,))
    for block in model.get_base_model().model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = torch.tensor(train(model, ids.chunk(size)[dist.get_rank()]), dtype=torch.float64)
    dist.all_reduce(losses)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    if dist.get_rank() == 0:
        lora = next(p for n, p in model.named_parameters() if "lora_A" in n)
        kinds = {"adapter": type(lora).__name__, "codes": type(packed[0].qweight).__name__}
        found = {"bits": bits, "alone": alone, "sharded": (losses / size).tolist(), "layers": len(packed), **kinds}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for word in sys.argv[1:]:
        compare(int(word))
    dist.destroy_process_group()
