"""A stand-in for vLLM where it is not installed: it says nothing about vLLM itself.

It has the part of the API of vLLM 0.32 and 0.33 that `plr.serving.vllm` uses, with the names and rules of their source: arguments,
when an answer ends, what is a stop, how the text of an answer is made. The model underneath is real and runs in transformers. So
what plr asks for, and what it makes of the results, can be compared with `plr.lm.generate`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.decoders import DecodeStream

ENGINE_ARGUMENTS = {"max_model_len", "enable_prefix_caching", "generation_config", "max_num_seqs", "enforce_eager"}
LORA_ARGUMENTS = {"enable_lora", "max_lora_rank", "max_loras", "lora_target_modules"}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMError(Exception):
    pass


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0.0:
            raise VLLMError("the stand-in is greedy")
        if self.stop and not self.detokenize:
            raise VLLMError("stop strings are only supported when detokenize is True.")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Loads the checkpoint with transformers; one prompt at a time."""

    started: list[dict[str, Any]] = []  # noqa: RUF012 - what tests look at

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        trust_remote_code: bool = False,
        **engine: Any,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if unknown := engine.keys() - ENGINE_ARGUMENTS - LORA_ARGUMENTS:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {min(unknown)!r}")
        assert engine.get("max_lora_rank", 16) in RANKS
        type(self).started.append({"model": model, "dtype": dtype, "seed": seed, **engine})
        self.lora = bool(engine.get("enable_lora"))
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
        limit = engine.get("max_model_len") or self.model.config.max_position_embeddings
        self.model_config = SimpleNamespace(max_model_len=limit, dtype=self.model.dtype)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None))
        self.calls: list[tuple[int, SamplingParams, LoRARequest | None]] = []

    def generate(
        self,
        prompts: list[dict[str, Any]],
        sampling_params: SamplingParams,
        *,
        use_tqdm: Any = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        self.calls.append((len(prompts), sampling_params, lora_request))
        model = self.model
        if lora_request is not None:
            from peft import PeftModel

            assert self.lora
            model = PeftModel.from_pretrained(model, lora_request.lora_path).eval()
        if use_tqdm:
            prompts = list(use_tqdm(prompts, desc="Rendering prompts"))
        bar = use_tqdm(total=len(prompts), desc="Processed prompts", postfix="") if use_tqdm else None
        outputs = []
        for prompt in prompts:
            outputs.append(self._one(model, prompt["prompt_token_ids"], sampling_params))
            if bar:
                bar.postfix = f"{bar.format_dict['elapsed']}"
                bar.update(1)
        if bar:
            bar.close()
        if lora_request is not None:
            self.model = model.unload()
        return outputs

    @torch.inference_mode()
    def _one(self, model: Any, prompt: list[int], params: SamplingParams) -> Any:
        ids = torch.tensor([prompt])
        logprobs: list[Any] | None = None
        if params.prompt_logprobs is not None:
            table = model(input_ids=ids).logits[0].float().log_softmax(-1)
            after = zip(prompt[1:], table[:-1], strict=True)
            logprobs = [
                None,
                *({t: SimpleNamespace(logprob=float(row[t]), rank=1 + int((row > row[t]).sum()))} for t, row in after),
            ]
        model.generation_config.eos_token_id = None
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=params.max_tokens,
            pad_token_id=0,
        )
        kept, finish, reason = self._finish(prompt, made[0, len(prompt) :].tolist(), params)
        completion = SimpleNamespace(token_ids=kept, finish_reason=finish, stop_reason=reason)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion], prompt_logprobs=logprobs)

    def _finish(self, prompt: list[int], out: list[int], params: SamplingParams) -> tuple[list[int], str, Any]:
        stream, text = DecodeStream(ids=prompt, skip_special_tokens=True), ""
        for n, token in enumerate(out, 1):
            if token == self.tokenizer.eos_token_id or token in params.stop_token_ids:
                return out[:n], "stop", None if token == self.tokenizer.eos_token_id else token
            if params.detokenize:
                text += stream.step(self.tokenizer._tokenizer, token) or ""
                for stop in params.stop:
                    if stop in text:
                        return out[:n], "stop", stop
        return out, "length", None


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Put the stand-in where `import vllm` finds it, for one test."""
    vllm, lora, request, exceptions = (
        ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.exceptions")
    )
    vars(vllm).update(LLM=LLM, SamplingParams=SamplingParams, __version__="0.33.0", __path__=[])
    vars(lora).update(request=request, __path__=[])
    vars(request).update(LoRARequest=LoRARequest)
    vars(exceptions).update(VLLMError=VLLMError)
    for module in (vllm, lora, request, exceptions):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "started", [])
    return LLM
