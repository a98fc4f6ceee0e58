"""The one measure of quality for all methods, taken from the checkpoints they saved. A process of its own.

1. One forward of the 16-bit model over the calibration tokens gathers `H = X^T X` of every distinct input `X`.
2. The error of a quantized layer is `||X W^T - X Wq^T||^2 / ||X W^T||^2 = tr(E H E^T) / tr(W H W^T)`, `E = W - Wq`: on
   the inputs of the 16-bit model, so that no method is measured on inputs of its own making. Mean over layers.
3. Perplexity of fixed windows of held-out tokens, the first token of a window being context; the loss of a task's
   answers.

Checkpoints are read by plr, whoever wrote them; folders without a `quantization_config` are dense models.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.peers.clock import MARK, options

__all__ = ["gather", "layer_errors", "load", "perplexity"]

BATCH_TOKENS = 2048


def load(folder: str | Path) -> nn.Module:
    """The model in `folder`, in float32."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        from plr.gptq import load_checkpoint

        return load_checkpoint(folder, dtype=torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers within the blocks."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def batches(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, BATCH_TOKENS // rows.shape[1]))


@torch.inference_mode()
def gather(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """`X^T X` for each layer of the blocks; layers called with the same tensor share theirs."""
    found: dict[str, Tensor] = {}
    last: list[Any] = [None, ""]  # the input of the layer before, and that layer

    def hook(name: str) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] is last[0]:
                found[name] = found[last[1]]
                return
            X = args[0].flatten(0, -2).float()
            if name in found:
                found[name].addmm_(X.t(), X)
            else:
                found[name] = X.t() @ X
            last[:] = [args[0], name]

        return before

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in block_linears(model).items()]
    for batch in batches(rows):
        model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@torch.inference_mode()
def layer_errors(dense: nn.Module, model: nn.Module, H: dict[str, Tensor]) -> dict[str, float]:
    """The relative output error of each layer of `model` whose weight is not that of `dense`."""
    errors: dict[str, float] = {}
    theirs = block_linears(model)
    for name, linear in block_linears(dense).items():
        W, Wq = linear.weight.float(), theirs[name].weight.float()
        if torch.equal(W, Wq):
            continue
        signal, noise = (float(((A @ H[name]) * A).sum(dtype=torch.float64)) for A in (W, W - Wq))
        errors[name] = noise / signal
    return errors


@torch.inference_mode()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """Of the ids `rows [windows, length]`, each predicted from those before it in its window."""
    total = 0.0
    for batch in batches(rows):
        logits = model(batch[:, :-1], use_cache=False).logits.float()
        total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / rows[:, 1:].numel())


def task_loss(model: nn.Module, folder: str, task: dict[str, Any]) -> float:
    """Nats a token of the gold answers of validation rows."""
    from plr.lm import answer_loss
    from plr.tasks.data.rows import draw, load_split, resolve_task

    spec = resolve_task(task["name"], data=task["data"], max_prompt_chars=task["max_prompt_chars"])
    rows = draw(load_split(spec, "validation").examples, task["limit"], 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    losses = answer_loss(model, tokenizer, [(row.prompt, row.target) for row in rows])
    return sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)


def _hessians(dense: nn.Module, rows: Tensor, cache: Path | None) -> dict[str, Tensor]:
    """`gather`, kept in a file: a table of many methods gathers once."""
    if cache is not None and cache.is_file():
        stored, names = load_file(cache), json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        return {name: stored[owner] for name, owner in names.items()}
    H = gather(dense, rows)
    if cache is not None:
        owners: dict[int, str] = {}
        names = {name: owners.setdefault(id(tensor), name) for name, tensor in H.items()}
        cache.with_suffix(".json").write_text(json.dumps(names), encoding="utf-8")
        part = cache.with_suffix(".part")
        save_file({name: H[name] for name in owners.values()}, part)
        part.replace(cache)
    return H


def main(o: dict[str, Any]) -> dict[str, Any]:
    """`{checkpoint: {error, layers, perplexity: {text: value}, answer_loss}}`; the folder None is the 16-bit model."""
    dense = load(o["model"])
    rows = {name: torch.tensor(json.loads(Path(file).read_text(encoding="utf-8"))) for name, file in o["eval"].items()}
    calibration = torch.tensor(json.loads(Path(o["calibration"]).read_text(encoding="utf-8")))
    H: dict[str, Tensor] | None = None
    results: dict[str, Any] = {}
    for name, folder in o["checkpoints"].items():
        model = dense if folder is None else load(folder)
        error = None
        if folder is not None:
            H = _hessians(dense, calibration, Path(o["cache"]) if o.get("cache") else None) if H is None else H
            errors = layer_errors(dense, model, H)
            if not errors:
                raise SystemExit(f"QualityError: no layer of {folder} is quantized")
            error = sum(errors.values()) / len(errors)
        results[name] = {
            "error": error,
            "layers": errors if folder is not None else {},
            "perplexity": {text: perplexity(model, ids) for text, ids in rows.items()},
            "answer_loss": task_loss(model, o["model"], o["task"]) if o.get("task") else None,
        }
    return results


if __name__ == "__main__":
    print("\n" + MARK + json.dumps(main(options())))
