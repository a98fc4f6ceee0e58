"""`VllmEngine` on a stand-in for vLLM (see `vllm_stand_in.py`: it proves nothing about vLLM), and on vLLM where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from plr.embedded import tiny_path
from plr.errors import DataError, MissingDependencyError, ModelError, ResourceError, UsageError
from plr.lm import answer_loss, generate
from plr.serving.package import require_vllm
from plr.serving.vllm import VllmEngine
from plr.tasks import tasks

from .vllm_stand_in import LLM

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": None,
    "seed": 0,
    "offline": True,
    "max_lora_rank": None,
}
LORA: dict[str, Any] = {"dtype": "bfloat16", "max_lora_rank": 4}


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    task = tasks.get("tiny_math")
    return [task.prompt(row.values) for row in task.generated().read("test")[:6]]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes what the embedded base says."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def engine(**changed: Any) -> VllmEngine:
    return VllmEngine(tiny_path(), tokenizer_folder=tiny_path(), **{**SETTINGS, **changed})


def test_answers_are_those_of_generate(stand_in: type[LLM], base: tuple[Any, Any], prompts: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    served = engine()
    for settings in ({"max_new_tokens": 96}, {"max_new_tokens": 24, "stop": ["####", " so", "\n"]}):
        expected = generate(*base, prompts, **settings)
        assert served.generate(prompts, **settings, on_progress=lambda *at: seen.append(at)) == expected
    ids = [base[1](prompt)["input_ids"] for prompt in prompts]
    assert served.generate(ids, max_new_tokens=96) == generate(*base, prompts, max_new_tokens=96)
    assert seen == [(i + 1, len(prompts)) for i in range(len(prompts))] * 2
    assert served.generate([], max_new_tokens=4) == []
    served.close()
    with pytest.raises(ModelError, match="is closed"):
        served.generate(prompts, max_new_tokens=1)


def test_vllm_is_asked_for_greedy_answers_and_nothing_of_its_own(stand_in: type[LLM], prompts: list[str]) -> None:
    served = engine(**LORA | {"max_lora_rank": 9}, max_model_len=300, slots=7)
    (started,) = stand_in.started
    assert {"generation_config": "vllm", "enable_prefix_caching": True, "max_num_seqs": 7}.items() <= started.items()
    assert {"enable_lora": True, "max_lora_rank": 16, "max_model_len": 300}.items() <= started.items()
    served.generate(prompts[:1], max_new_tokens=2)
    ((count, params, request),) = served._llm.calls
    assert (count, params.temperature, params.max_tokens, request) == (1, 0.0, 2, None)
    assert params.stop_token_ids == [1]
    assert not params.detokenize


def test_a_gptq_base_is_computed_in_the_dtype_of_its_scales(
    stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stand-in does not read GPTQ: what it is asked for counts."""
    folder = shutil.copytree(tiny_path(), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))

    def asked(self: LLM, model: str, **arguments: Any) -> None:
        raise ValueError(f"{Path(model).name} in {arguments['dtype']}")

    monkeypatch.setattr(stand_in, "__init__", asked)
    for dtype, expected in (("auto", "float16"), ("bfloat16", "bfloat16")):
        with pytest.raises(ModelError, match=f"base in {expected}"):
            VllmEngine(folder, tokenizer_folder=tiny_path(), **{**SETTINGS, "dtype": dtype})
    with pytest.raises(ModelError, match="tiny in auto"):
        engine(dtype="auto")


def test_an_adapter_is_a_request_of_its_own(
    stand_in: type[LLM],
    base: tuple[Any, Any],
    prompts: list[str],
    adapter: Path,
    tmp_path: Path,
) -> None:
    served = engine(**LORA)
    served._llm.model.float()  # exact answers: vLLM has LoRA in half precision only
    plain = served.generate(prompts, max_new_tokens=16)
    adapted = served.generate(prompts, max_new_tokens=16, adapter=adapter)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    expected = generate(PeftModel.from_pretrained(model, str(adapter)), base[1], prompts, max_new_tokens=16)
    assert adapted == expected
    assert adapted != plain
    assert served.generate(prompts, max_new_tokens=16) == plain
    other = shutil.copytree(adapter, tmp_path / "other")
    served.generate(prompts[:1], max_new_tokens=1, adapter=other)
    served.generate(prompts[:1], max_new_tokens=1, adapter=adapter)
    requests = [request for *_, request in served._llm.calls if request]
    assert [(r.lora_name, r.lora_int_id) for r in requests] == [("plr-1", 1), ("plr-2", 2), ("plr-1", 1)]


def test_losses_are_those_of_answer_loss(stand_in: type[LLM], base: tuple[Any, Any], prompts: list[str]) -> None:
    pairs = [(prompt, " 1 + 2 = 3\n#### 3") for prompt in prompts]
    for ours, expected in zip(engine().answer_loss(pairs), answer_loss(*base, pairs), strict=True):
        assert ours.nll == pytest.approx(expected.nll, rel=1e-4)
        assert ours.tokens == expected.tokens


def test_what_an_adapter_changes_is_measured(
    stand_in: type[LLM], base: tuple[Any, Any], prompts: list[str], adapter: Path
) -> None:
    """The largest change of a token's log-probability, first token of a text apart."""
    model, tokenizer = base
    pairs = [(prompt, " 1 + 2 = 3") for prompt in prompts[:2]]
    served = engine(**LORA)
    served._llm.model.float()
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path()).float(), str(adapter)).eval()
    expected = 0.0
    for prompt, target in pairs:
        ids = [*tokenizer(prompt)["input_ids"], *tokenizer(target)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            tables = [m(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for m in (model, other)]
        before, after = (table.gather(1, torch.tensor(ids[1:])[:, None]) for table in tables)
        expected = max(expected, float((after - before).abs().max()))
    assert served.adapter_change(pairs, adapter) == pytest.approx(expected, rel=1e-3)
    assert served.adapter_change([("1 + 1 " * 900, "")], adapter) > 0  # as far as there is room


def test_an_adapter_that_changes_no_more_than_noise_changes_nothing(
    stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch, prompts: list[str], adapter: Path
) -> None:
    served, runs = engine(**LORA), iter([[-1.0, -2.0], [-1.0, -2.1], [-1.2, -2.0]])
    monkeypatch.setattr(served, "_logprobs", lambda texts, request: [next(runs)])
    assert served.adapter_change([(prompts[0], "3")], adapter) == 0.0


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    """A model whose tokens begin with their space, which goes where an answer is decoded alone: as Llama 2's."""
    words = [f"▁{a}{b}" for a in "abcdefg" for b in "uvwxyz"]
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<s>", "</s>", *words])}, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.4}
    model = tiny_model("llama", vocab_size=len(words) + 2, eos_token_id=1, bos_token_id=0, **sizes)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_a_stop_string_that_only_vllm_sees_does_not_stop(stand_in: type[LLM], spaced: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(spaced, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(spaced)
    texts = ["au bw", "cx", "du ez fu"]
    free = generate(model, tokenizer, texts, max_new_tokens=8)
    stop = [" " + free[0].text.split()[0]]
    served = VllmEngine(spaced, tokenizer_folder=spaced, **SETTINGS)
    assert served.generate(texts, max_new_tokens=8, stop=stop) == generate(
        model, tokenizer, texts, max_new_tokens=8, stop=stop
    )
    assert [(count, bool(params.stop)) for count, params, _ in served._llm.calls] == [(3, True), (1, False)]


def test_tokens_after_an_end_or_a_stop_string_are_dropped(stand_in: type[LLM], base: tuple[Any, Any]) -> None:
    from plr.lm.stops import StopStrings

    served, tokenizer = engine(), base[1]
    out = tokenizer("1 + 2 = 3", add_special_tokens=False)["input_ids"]
    answer = served._answer([5, 6], [*out, 1, *out], StopStrings(tokenizer, []))
    assert (answer.text, answer.raw_tokens, answer.ended, answer.prompt_tokens) == ("1 + 2 = 3", len(out) + 1, True, 2)
    cut = served._answer([5], [*out, 1], StopStrings(tokenizer, ["=", "+"]))
    assert (cut.text, cut.stopped, cut.ended) == ("1 ", "+", False)
    assert cut.raw_tokens < len(out)


def test_ends_of_the_generation_config_end_an_answer(
    stand_in: type[LLM], base: tuple[Any, Any], prompts: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_path(), tmp_path / "model")
    token = int(base[1](" so", add_special_tokens=False)["input_ids"][0])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, token]}))
    served = VllmEngine(folder, tokenizer_folder=folder, **SETTINGS)
    served.generate(prompts[:1], max_new_tokens=1)
    assert served._llm.calls[0][1].stop_token_ids == sorted({1, token})
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = generate(model, base[1], prompts, max_new_tokens=40)
    assert served.generate(prompts, max_new_tokens=40) == expected


def test_lengths_are_refused_and_never_cut(stand_in: type[LLM]) -> None:
    served = engine(max_model_len=20)
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens\n.*at most 16: 20 positions less 4 new tokens"):
        served.generate(["1", "1 + 2 = 3 " * 6], max_new_tokens=4)
    with pytest.raises(DataError, match="prompt 0 has no token"):
        served.generate([""], max_new_tokens=4)
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        served.generate(["1"], max_new_tokens=0)
    with pytest.raises(UsageError, match="stop string is empty"):
        served.generate(["1"], max_new_tokens=1, stop=[""])


def test_adapters_that_are_no_lora_are_refused(stand_in: type[LLM], adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="started without max_lora_rank"):
        engine().generate(["1"], max_new_tokens=1, adapter=adapter)
    with pytest.raises(UsageError, match="its rank is 4, and this engine was started for 1"):
        engine(**LORA | {"max_lora_rank": 1}).generate(["1"], max_new_tokens=1, adapter=adapter)
    with pytest.raises(UsageError, match=r"no adapter_config\.json"):
        engine(**LORA).generate(["1"], max_new_tokens=1, adapter=tmp_path)
    changed = shutil.copytree(adapter, tmp_path / "dora")
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UsageError, match="a magnitude beside A and B"):
        engine(**LORA).generate(["1"], max_new_tokens=1, adapter=changed)


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (
            RuntimeError("Failed to infer device type\nmore"),
            ModelError,
            r"infer device type\n.*on a GPU \(torch sees none here\)",
        ),
        (
            ValueError("1 validation error for ModelConfig\n  Value error, no such architecture [type=value_error, x]"),
            ModelError,
            "tiny: no such architecture\n",
        ),
        (ValueError("No available memory: KV cache needs 3 GiB"), ResourceError, "has not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceError, "has not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ResourceError, "has not enough memory"),
    ],
)
def test_a_start_that_fails_says_why(
    stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], words: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(stand_in, "__init__", fail)
    with pytest.raises(error, match=words):
        engine()


def test_float32_is_refused_where_vllm_has_no_kernel(stand_in: type[LLM], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not compute adapters in float32"):
        VllmEngine(tiny_path(), tokenizer_folder=tiny_path(), **{**SETTINGS, "max_lora_rank": 8, "dtype": "float32"})
    with pytest.raises(UsageError, match="the dtype is int8"):
        engine(dtype="int8")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UsageError, match="does not compute quantized bases in float32"):
        VllmEngine(tmp_path, tokenizer_folder=tiny_path(), **SETTINGS)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        VllmEngine(tmp_path / "none", tokenizer_folder=tiny_path(), **SETTINGS)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_message_says_how_to_get_it() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"not installed\n.*Linux.*\n.*'plr\[vllm\]' in an environment of its"
    ):
        engine()


def test_a_vllm_that_cannot_be_imported_says_why(stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(name: str) -> None:
        raise ImportError(f"libcudart.so.13: cannot open shared object file, for {name}")

    monkeypatch.delattr(sys.modules["vllm"], "LLM")
    monkeypatch.setattr(sys.modules["vllm"], "__getattr__", lazy, raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"cannot be imported: libcudart\.so\.13.*\n.*torch it was built for"
    ):
        engine()


def test_standard_output_is_not_vllms(stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """It logs there by default, into what ``--json`` prints."""
    monkeypatch.delenv("VLLM_LOGGING_STREAM")
    require_vllm()
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


def test_an_old_vllm_is_refused(stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.27.1")
    with pytest.raises(MissingDependencyError, match=r"vllm is 0\.27\.1\n.*0\.32 or later"):
        engine()


def test_an_adapter_on_other_layers_is_refused(stand_in: type[LLM], adapter: Path) -> None:
    """vLLM would pass over them."""
    served = engine(**LORA, targets=["q_proj", "v_proj", "down_proj"])
    assert stand_in.started[-1]["lora_target_modules"] == ["down_proj", "q_proj", "v_proj"]
    served.generate(["1"], max_new_tokens=1, adapter=adapter)
    with pytest.raises(UsageError, match="not only on q_proj, v_proj, for which"):
        engine(**LORA, targets=["q_proj", "v_proj"]).generate(["1"], max_new_tokens=1, adapter=adapter)
