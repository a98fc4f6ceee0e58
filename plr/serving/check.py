"""Check at planning time that the engine a cell names can serve it."""

from __future__ import annotations

from plr.core.specs import Evaluate, Quantize, Restore
from plr.errors import UsageError
from plr.serving.fits import why_not_vllm
from plr.tasks import task_of

__all__ = ["check_engine"]


def check_engine(step: Evaluate) -> None:
    """Refuse, before any work, what the engine of `step` cannot serve.

    Raises:
        UsageError: with the reason, and what can.
    """
    if step.engine != "vllm":
        return
    restored = step.target if isinstance(step.target, Restore) else None
    dense = restored is not None and restored.form.writes == "dense"
    bits = 16 if dense else step.base.bits
    quantization = step.base.quantization if isinstance(step.base, Quantize) and not dense else None
    adapter = restored.adapter.adapter if restored else None
    reason = why_not_vllm(
        bits,
        quantization.method if quantization else None,
        adapter.method if adapter else None,
        adapter.config if adapter else None,
        restored is not None and restored.is_checkpoint,
        quantization=quantization.model_dump() if quantization else None,
        head=task_of(step.task).kind == "classification",
        gguf=step.base.model.kind == "gguf" and quantization is None and not dense,
    )
    if reason is not None:
        raise UsageError(
            f"vLLM cannot serve {step.target.label}: {reason}",
            expected="16 bits, or symmetric GPTQ at 8 or 4, alone or with a LoRA adapter",
            hint="use --engine hf, which runs everything that plr makes",
        )
