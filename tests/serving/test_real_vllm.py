"""vLLM itself on the embedded base, against `plr.lm`: where it is installed, on a GPU or in its build for CPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from plr.embedded import tiny_path
from plr.lm import answer_loss, generate
from plr.serving.vllm import VllmEngine
from plr.tasks import tasks

from . import vllm_stand_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: pip install 'plr[vllm]' in an environment of its own",
    ),
]
TARGETS = ["q_proj", "v_proj", "down_proj"]
STOPS = ([], ["####", " so", "\n"], ["=", " "])


@pytest.fixture(scope="module")
def device() -> str:
    """Where vLLM computes here."""
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    if current_platform.device_type not in ("cuda", "cpu"):
        pytest.skip(f"vLLM finds no device here ({current_platform.device_type or 'none'})")
    return str(current_platform.device_type)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    task = tasks.get("tiny_math")
    return [(task.prompt(row.values), task.target(row.values)) for row in task.generated().read("test")[:12]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("adapter"), False)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its B is zero."""
    return saved(tmp_path_factory.mktemp("idle"), True)


def saved(folder: Path, init: bool) -> Path:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=init, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


@pytest.fixture
def engines() -> Iterator[Any]:
    """Starts an engine; all are closed at the end."""
    started: list[VllmEngine] = []

    def start(folder: Path, **settings: Any) -> VllmEngine:
        common = {"max_model_len": None, "seed": 0, "offline": True, "memory_share": 0.2, "eager": True}
        started.append(VllmEngine(folder, tokenizer_folder=tiny_path(), **common, **settings))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


def test_the_base_alone_in_float32(engines: Any, device: str, rows: list[tuple[str, str]], tokenizer: Any) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32).to(device).eval()
    served = engines(tiny_path(), dtype="float32", max_lora_rank=None)
    prompts = [prompt for prompt, _ in rows]
    for stop in STOPS:
        settings: dict[str, Any] = {"max_new_tokens": 48, "stop": stop}
        assert served.generate(prompts, **settings) == generate(model, tokenizer, prompts, **settings)
    for ours, expected in zip(served.answer_loss(rows), answer_loss(model, tokenizer, rows), strict=True):
        assert ours.nll == pytest.approx(expected.nll, rel=1e-4)
        assert ours.tokens == expected.tokens


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_lora_on_each_width(
    engines: Any,
    device: str,
    bits: int,
    rows: list[tuple[str, str]],
    tokenizer: Any,
    adapter: Path,
    idle: Path,
    tmp_path: Path,
) -> None:
    """In half precision two near-equal logits may change places: ten of twelve answers must be those of float32."""
    from plr.bases.load import load_quantized
    from plr.gptq import quantize_model, save_checkpoint

    if (bits, device) == (8, "cpu"):
        pytest.skip("vLLM has no kernel for 8-bit GPTQ on CPUs")
    folder = tiny_path()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    if bits < 16:
        folder = tmp_path / "base"
        quantize_model(model, [], bits=bits, group_size=32, method="rtn")
        save_checkpoint(model, folder, bits=bits, group_size=32)
        model = load_quantized(folder, dtype=torch.float32, device=device)
    served = engines(folder, dtype="float16", max_lora_rank=4, targets=TARGETS)
    prompts = [prompt for prompt, _ in rows]
    plain = served.generate(prompts, max_new_tokens=24)
    answers = served.generate(prompts, max_new_tokens=24, adapter=adapter)
    losses = served.answer_loss(rows, adapter=adapter)
    assert served.adapter_change(rows[:4], adapter) > 0
    assert served.adapter_change(rows[:4], idle) == 0
    assert served.generate(prompts, max_new_tokens=24) == plain
    assert _alike(plain, generate(model, tokenizer, prompts, max_new_tokens=24)) >= 10
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    assert _alike(answers, generate(adapted, tokenizer, prompts, max_new_tokens=24)) >= 10
    assert _alike(answers, plain) < 10
    for ours, expected in zip(losses, answer_loss(adapted, tokenizer, rows), strict=True):
        assert ours.mean == pytest.approx(expected.mean, abs=0.02)


def test_the_stand_in_ends_answers_where_vllm_does(rows: list[tuple[str, str]], tokenizer: Any) -> None:
    """vLLM's detokenizer and stop rule, token by token: what the tests without vLLM rest on."""
    from types import SimpleNamespace

    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer  # type: ignore[import-not-found]

    for prompt, target in rows:
        ids = tokenizer(prompt)["input_ids"]
        out = [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for stop in STOPS:
            settings: dict[str, Any] = {"temperature": 0.0, "stop": stop, "max_tokens": len(out)}
            request = SimpleNamespace(
                sampling_params=SamplingParams(**settings), prompt_token_ids=ids, prompt_embeds=None, request_id="0"
            )
            detokenizer, kept, reason = IncrementalDetokenizer.from_new_request(tokenizer, request), [], None
            for token in out:
                kept.append(token)
                reason = detokenizer.update([token], token == tokenizer.eos_token_id)
                if reason or token == tokenizer.eos_token_id:
                    break
            stand_in = SimpleNamespace(tokenizer=tokenizer)
            params = vllm_stand_in.SamplingParams(**settings)
            assert vllm_stand_in.LLM._finish(stand_in, ids, out, params)[::2] == (kept, reason)  # type: ignore[arg-type]


def _alike(ones: list[Any], others: list[Any]) -> int:
    return sum(one == other for one, other in zip(ones, others, strict=True))
