"""Attention over slots and a prefix kept apart: the numbers of attention over all keys, the texts of transformers alone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plr.gptq import quantize_model
from plr.lm import engine as engine_module
from plr.lm import generate
from plr.lm.engine import SlotEngine
from plr.lm.registered import Refused
from plr.lm.slot_attention import ROWS, SlotAttention, why_not_slot_attention
from plr.lm.slots import SlotCache
from plr.lm.tokens import encode_prompt

SHOTS = "question one. answer two\nquestion three. answer four\n"  # more than `_APART_FROM` tokens
FAMILIES = ["llama", "qwen2", "gemma", "gemma3", "gpt-neox", "gpt2", "opt"]


class Plain(nn.Module):
    """What an attention function sees of its module."""

    is_causal = True


@pytest.fixture
def engines(monkeypatch) -> list[SlotEngine]:
    """Every engine that `generate` runs."""
    seen: list[SlotEngine] = []
    run = SlotEngine.run
    monkeypatch.setattr(SlotEngine, "run", lambda self, done: (seen.append(self), run(self, done)))
    return seen


@torch.no_grad()
def alone(model, tokenizer, prompts, max_new_tokens) -> list[str]:
    """Each prompt by itself, the whole text computed anew for every token: no cache, no mask, no padding."""
    answers = []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        text = list(ids)
        while len(text) < len(ids) + max_new_tokens:
            text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
            if text[-1] == tokenizer.eos_token_id:
                text.pop()
                break
        answers.append(tokenizer.decode(text[len(ids) :], skip_special_tokens=True))
    return answers


def texts(answers) -> list[str]:
    return [answer.text for answer in answers]


# -- the numbers --


def attention(rows: int, shared: int, columns: int, dtype=torch.float32, heads: int = 6, groups: int = 2):
    """A `SlotAttention` over random keys, with those keys: `[rows, groups, shared + columns, 4]`."""
    torch.manual_seed(0)
    cache, prefix = SlotCache(1, rows, columns, origin=shared), SlotCache(1, 1, max(shared, 1))
    first = [torch.randn(1, groups, shared, 4, dtype=dtype) for _ in range(2)]
    if shared:
        prefix.plan_block(slice(0, 1), 0, shared)
        prefix.update(*first, 0)
    served = SlotAttention(cache, prefix if shared else None)
    own = [torch.randn(rows, groups, columns, 4, dtype=dtype) for _ in range(2)]
    everything = [torch.cat([f.expand(rows, -1, -1, -1), o], 2) for f, o in zip(first, own, strict=True)]
    return served, own, everything


@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("shared", [0, 40])
def test_a_step_is_attention_over_prefix_and_own_columns(rows, shared):
    served, own, (keys, values) = attention(rows, shared, 24)
    columns = [(7 * r + 5) % 24 for r in range(rows)]  # neighbours of very different length
    mask = torch.full((rows, 24), torch.finfo(torch.float32).min)
    for row, column in enumerate(columns):
        mask[row, : column + 1] = 0
    longest = max(columns) + 1
    query, seen = torch.randn(rows, 6, 1, 4), mask[:, None, None, :longest]
    served.plan(seen, columns)
    served.cache.latest = 0
    found, _ = served._attend(Plain(), query, own[0][:, :, :longest], own[1][:, :, :longest], seen, scaling=0.3)
    whole = torch.cat([torch.zeros(rows, shared), mask], 1)[:, None, None]
    expected = F.scaled_dot_product_attention(query, keys, values, whole, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)
    served.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [0, 40])
def test_a_prefill_is_causal_behind_the_prefix(shared, dtype):
    served, own, (keys, values) = attention(3, shared, 7, dtype)
    query = torch.randn(3, 6, 7, 4, dtype=dtype)
    served.plan(None)
    served.cache.latest = 0
    found, _ = served._attend(Plain(), query, *own, None, scaling=0.5)
    mask = torch.ones(7, shared + 7, dtype=torch.bool).tril(shared)
    expected = F.scaled_dot_product_attention(
        query.double(), keys.double(), values.double(), mask, scale=0.5, enable_gqa=True
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected.transpose(1, 2), rtol=tolerance, atol=tolerance)


def test_weights_far_apart_do_not_overflow():
    served, own, (keys, values) = attention(2, 40, 3)
    query = 1e4 * torch.randn(2, 6, 3, 4)
    served.plan(None)
    served.cache.latest = 0
    found, _ = served._attend(Plain(), query, *own, None, scaling=1.0)
    mask = torch.ones(3, 43, dtype=torch.bool).tril(40)
    expected = F.scaled_dot_product_attention(query, keys, values, mask, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


# -- the texts --


@pytest.mark.parametrize("slots", [3, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_write_the_same_with_their_prefix_apart(family, slots, tokenizer, prompts, make_model, engines):
    model = make_model(family)
    model.generation_config.eos_token_id = None
    few_shot = [SHOTS + p for p in prompts]
    assert texts(generate(model, tokenizer, few_shot, max_new_tokens=6, slots=slots)) == alone(
        model, tokenizer, few_shot, 6
    )
    (engine,) = engines
    assert engine.origin == engine.shared >= len(SHOTS), "nothing was kept apart"
    assert engine.cache.plan.columns < engine.shared + 40, "the slots hold the prefix too"


def test_prefix_may_be_all_of_a_prompt_but_its_last_token(llama, tokenizer, engines):
    few_shot = [SHOTS, SHOTS + "a", SHOTS, SHOTS + "bc"]
    assert texts(generate(llama, tokenizer, few_shot, max_new_tokens=6)) == alone(llama, tokenizer, few_shot, 6)
    assert engines[0].origin == len(SHOTS)  # with BOS: all but the last character


def test_more_rows_than_a_block_refilled_often(llama, tokenizer, prompts, engines):
    few_shot = [SHOTS + a + b for a in ("", "xy. ") for b in prompts]
    answers = generate(llama, tokenizer, few_shot, max_new_tokens=9, slots=ROWS + 3)
    assert texts(answers) == alone(llama, tokenizer, few_shot, 9)
    assert engines[0].slots == ROWS + 3


def test_bfloat16_runs_with_its_prefix_apart(make_model, tokenizer, prompts, engines):
    model = make_model("llama").to(torch.bfloat16)
    assert len(generate(model, tokenizer, [SHOTS + p for p in prompts], max_new_tokens=4)) == len(prompts)
    assert engines[0].origin
    assert len(engines) == 1


@pytest.mark.parametrize("kernel", ["dequantized", "packed"])
def test_adapters_on_k_bit_bases_write_the_same(kernel, make_model, tokenizer, prompts, engines):
    model = make_model("llama")
    quantize_model(model, [], method="rtn", bits=4, group_size=16, sym=True, kernel=kernel)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    few_shot = [SHOTS + p for p in prompts]
    answers = generate(model, tokenizer, few_shot, max_new_tokens=30, slots=4)
    assert texts(answers) == alone(model, tokenizer, few_shot, 30)
    assert engines[0].origin
    assert len(engines) == 1


def test_a_short_prefix_is_copied(llama, tokenizer, prompts, engines, monkeypatch):
    monkeypatch.setattr(engine_module, "_APART_FROM", 1000)
    few_shot = [SHOTS + p for p in prompts[:5]]
    assert texts(generate(llama, tokenizer, few_shot, max_new_tokens=6)) == alone(llama, tokenizer, few_shot, 6)
    assert engines[0].shared
    assert not engines[0].origin


# -- what it leaves behind, and what it refuses --


def test_config_and_registry_are_as_before_even_after_an_error(llama, tokenizer, monkeypatch):
    names = set(ALL_ATTENTION_FUNCTIONS.valid_keys())

    def broken(self):
        assert llama.config._attn_implementation not in names
        raise KeyboardInterrupt

    monkeypatch.setattr(SlotEngine, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        generate(llama, tokenizer, ["abc"], max_new_tokens=4)
    assert llama.config._attn_implementation == "sdpa"
    assert set(ALL_ATTENTION_FUNCTIONS.valid_keys()) == names


def test_why_not_names_the_reason(llama, make_model):
    assert why_not_slot_attention(llama) is None
    assert why_not_slot_attention(make_model("llama-eager")) == "its attention is 'eager'"
    assert why_not_slot_attention(make_model("gemma2")) == "its attention is 'eager'"  # whose scores have a soft cap
    assert why_not_slot_attention(copy.deepcopy(llama).to("meta")) == "it is not on the CPU alone"


def changed(make_model, change):
    """A llama whose second layer calls attention as `change(forward)` makes it."""
    model = make_model("llama")
    layer = model.model.layers[1].self_attn
    layer.forward = change(layer.forward)
    return model


def past_the_registry(forward):
    def run(hidden_states, past_key_values=None, **kwargs):
        past_key_values.update(
            *(torch.zeros(hidden_states.shape[0], 2, hidden_states.shape[1], 8) for _ in "kv"), layer_idx=1
        )
        return torch.zeros_like(hidden_states), None

    return run


def with_own_mask(forward):
    return lambda *args, attention_mask=None, **kwargs: forward(
        *args, **kwargs, attention_mask=None if attention_mask is None else attention_mask - 0
    )


def extra(name, value):
    return lambda forward: lambda *args, **kwargs: forward(*args, **kwargs, **{name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (past_the_registry, "does not go through transformers' registry"),
        (with_own_mask, "makes a mask of its own"),
        (extra("s_aux", torch.zeros(4)), "takes s_aux"),
        (extra("softcap", None), None),
    ],
)
def test_a_model_that_attends_otherwise_runs_with_its_own_attention(
    change, reason, make_model, tokenizer, prompts, engines, caplog
):
    model = changed(make_model, change)
    few_shot = [SHOTS + p for p in prompts[:4]]
    with caplog.at_level(logging.INFO):
        found = generate(model, tokenizer, few_shot, max_new_tokens=5)
    if reason is None:
        assert len(engines) == 1
        return
    assert reason in caplog.text
    assert [engine.attention is not None for engine in engines] == [True, False]
    assert found == generate(model, tokenizer, few_shot, max_new_tokens=5)


@pytest.mark.parametrize(
    ("values", "module", "latest", "reason"),
    [
        (torch.zeros(1, 2, 3, 5), Plain(), 0, "differ in size or type"),
        (torch.zeros(1, 2, 3, 4, dtype=torch.float64), Plain(), 0, "differ in size or type"),
        (torch.zeros(1, 2, 3, 4), Plain(), None, "layers share keys"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(values, module, latest, reason):
    served, own, _ = attention(1, 0, 3)
    served.plan(None)
    served.cache.latest = latest
    with pytest.raises(Refused, match=reason):
        served._attend(module, torch.zeros(1, 6, 3, 4), own[0], values, None)


def test_a_prefix_of_another_type_is_refused():
    served, own, _ = attention(1, 40, 3)
    served.plan(None)
    served.cache.latest = 0
    with pytest.raises(Refused, match=r"stored as torch.float32, and it computes in torch.bfloat16"):
        served._attend(Plain(), torch.zeros(1, 6, 3, 4).bfloat16(), *(t.bfloat16() for t in own), None)


def test_attention_that_looks_ahead_is_refused():
    served, own, _ = attention(1, 0, 3)
    both = Plain()
    both.is_causal = False
    served.plan(None)
    served.cache.latest = 0
    with pytest.raises(Refused, match="looks ahead"):
        served._attend(both, torch.zeros(1, 6, 3, 4), *own, None)
