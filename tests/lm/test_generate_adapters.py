"""Adapters left unmerged: `generate` writes what recomputing the whole text at every token writes."""

from __future__ import annotations

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from plr.errors import DataError
from plr.lm import answer_loss, encode_pair, engine, generate, logits_probe
from plr.lm.support import prompt_learning, why_not_slots
from plr.lm.tokens import encode_prompt

SHAPE = {"num_layers": 2, "token_dim": 32, "num_attention_heads": 4, "num_transformer_submodules": 1}
METHODS = {
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False),
    "dora": lambda: LoraConfig(r=4, target_modules=["q_proj", "o_proj"], use_dora=True, init_lora_weights=False),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM", **SHAPE),
    "p-tuning": lambda: PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=8, encoder_num_layers=2, task_type="CAUSAL_LM", **SHAPE
    ),
    # Prefixes are stored in the shape of the keys: 2 heads of 8 here.
    "prefix": lambda: PrefixTuningConfig(
        num_virtual_tokens=5, task_type="CAUSAL_LM", **{**SHAPE, "token_dim": 16, "num_attention_heads": 2}
    ),
    "adaption-prompt": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=2, task_type="CAUSAL_LM"),
}
METHOD_NAMES = list(METHODS)


@pytest.fixture
def adapted(request, make_model):
    torch.manual_seed(3)
    model = get_peft_model(make_model("llama"), METHODS[request.param]())
    with torch.no_grad():  # away from the inits at which some methods do nothing
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * (0.5 if "lora" not in name else 0.1))
    return model.eval()


@torch.no_grad()
def recompute(model, ids: list[int], max_new_tokens: int) -> list[int]:
    """The argmax of the whole text, once a token: no cache, no mask, no padding."""
    text = list(ids)
    for _ in range(max_new_tokens):
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("adapted", METHOD_NAMES, indirect=True)
def test_slots_write_what_recomputing_everything_writes(adapted, tokenizer, prompts):
    adapted.generation_config.eos_token_id = None
    assert why_not_slots(adapted, 64) is None
    answers = generate(adapted, tokenizer, prompts[:6], max_new_tokens=6, slots=3)
    with adapted.disable_adapter():
        plain = generate(adapted, tokenizer, prompts[:6], max_new_tokens=6, slots=3)
    for prompt, answer in zip(prompts, answers, strict=False):
        expected = recompute(adapted, encode_prompt(tokenizer, prompt), 6)
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert answers != plain, "the adapter should change something"


@pytest.mark.parametrize("virtual_alone", [False, True])
@pytest.mark.parametrize("adapted", METHOD_NAMES, indirect=True)
def test_examples_before_all_prompts_are_kept_apart_with_the_virtual_tokens(
    adapted, virtual_alone, tokenizer, prompts, monkeypatch
):
    monkeypatch.setattr(engine, "_APART_FROM", 1)
    engines, run = [], engine.SlotEngine.run
    monkeypatch.setattr(engine.SlotEngine, "run", lambda self, done: (engines.append(self), run(self, done)))
    adapted.generation_config.eos_token_id = None
    shots = "" if virtual_alone else "question one. answer two\nquestion three.\n"
    texts = [shots + prompt for prompt in prompts[:6]]
    for text, answer in zip(texts, generate(adapted, tokenizer, texts, max_new_tokens=5, slots=4), strict=True):
        expected = recompute(adapted, encode_prompt(tokenizer, text), 5)
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    virtual = prompt_learning(adapted)
    (only,) = engines
    assert only.origin == only.shared
    assert only.origin >= virtual + len(shots)
    assert only.attention is not None


@pytest.mark.parametrize("adapted", METHOD_NAMES, indirect=True)
def test_adapters_of_every_kind_have_a_true_answer_loss(adapted, tokenizer):
    pairs = [("abc", "de"), ("f", "ghijkl"), ("mnopqrst", "u")]
    for (prompt, target), loss in zip(pairs, answer_loss(adapted, tokenizer, pairs), strict=True):
        prompt_ids, target_ids = encode_pair(tokenizer, prompt, target)
        with torch.no_grad():
            logits = adapted(input_ids=torch.tensor([prompt_ids + target_ids]), use_cache=False).logits[0]
        log_probabilities = logits.double().log_softmax(-1)[-len(target_ids) - 1 : -1]
        expected = -log_probabilities[range(len(target_ids)), target_ids].sum().item()
        assert loss.nll == pytest.approx(expected, rel=1e-5)
        assert loss.tokens == len(target_ids)


@pytest.mark.parametrize("adapted", ["lora", "prefix"], indirect=True)
def test_probe_shows_whether_an_adapter_is_active(adapted, tokenizer):
    texts = ["abc", "defgh"]
    active = logits_probe(adapted, tokenizer, texts)
    with adapted.disable_adapter():
        off = logits_probe(adapted, tokenizer, texts)
        assert torch.equal(off, logits_probe(adapted.get_base_model(), tokenizer, texts))
    assert active.shape == (2, adapted.config.vocab_size)
    assert active.dtype == torch.float32
    assert not torch.allclose(active, off)
    assert torch.equal(active, logits_probe(adapted, tokenizer, texts))


@pytest.mark.parametrize("adapted", ["prompt"], indirect=True)
def test_virtual_tokens_count_against_the_positions(adapted, tokenizer):
    with pytest.raises(DataError, match="at most 119: 128 positions less 4 new tokens and 5 virtual tokens"):
        generate(adapted, tokenizer, ["b" * 119], max_new_tokens=4)
