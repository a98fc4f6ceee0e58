"""`generate` against transformers' own `generate`, one row at a time: the same text, whatever the batching."""

from __future__ import annotations

import copy

import pytest
import torch

from plr.errors import DataError, ModelError, ResourceError, UsageError
from plr.lm import Generation, generate
from plr.lm import generate as generate_function
from plr.lm.engine import SlotEngine
from plr.lm.support import why_not_slots
from plr.lm.tokens import encode_prompt

SLOT_FAMILIES = ["llama", "llama-eager", "qwen2", "gemma", "gemma2", "gemma3", "gpt-neox", "gpt2", "opt"]
BATCHED_FAMILIES = ["mistral-window", "bloom", "mamba"]


def oracle(model, tokenizer, prompts, max_new_tokens) -> list[Generation]:
    """Each prompt alone, by transformers, which is told to go on after EOS; cut here."""
    ends = model.generation_config.eos_token_id or 2
    ends = set(ends) if isinstance(ends, list) else {ends, 2}
    answers = []
    for prompt in prompts:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        own, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
        out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)
        model.generation_config.eos_token_id = own
        out = out[0, ids.shape[1] :].tolist()
        first = next((i for i, token in enumerate(out) if token in ends), None)
        kept = out if first is None else out[:first]
        text = tokenizer.decode(kept, skip_special_tokens=True)
        answers.append(Generation(text, len(kept) + (first is not None), first is not None, None, ids.shape[1]))
    return answers


def with_ends(model, tokenizer, prompts):
    """Random models rarely write EOS: declare ends, as chat models have several, so that some rows are short."""
    model.generation_config.eos_token_id = None
    text = "".join(g.text for g in generate(model, tokenizer, prompts, max_new_tokens=8))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["</s>", min(text, key=text.count)])
    return model


@pytest.mark.parametrize("family", SLOT_FAMILIES)
def test_slots_write_what_transformers_writes_row_by_row(family, tokenizer, prompts, make_model):
    model = with_ends(make_model(family), tokenizer, prompts)
    assert why_not_slots(model, 64) is None
    expected = oracle(model, tokenizer, prompts, 10)
    assert {g.ended for g in expected} == {True, False}, "the case should hold rows that end and rows that do not"
    assert generate(model, tokenizer, prompts, max_new_tokens=10, slots=3) == expected
    assert generate(model, tokenizer, prompts, max_new_tokens=10, slots=64) == expected


@pytest.mark.parametrize("family", BATCHED_FAMILIES)
def test_batches_write_what_transformers_writes_row_by_row(family, tokenizer, prompts, make_model):
    model = with_ends(make_model(family), tokenizer, prompts)
    assert why_not_slots(model, 64) is not None
    assert generate(model, tokenizer, prompts, max_new_tokens=8, slots=4) == oracle(model, tokenizer, prompts, 8)


def test_a_window_that_never_closes_runs_in_slots(tokenizer, make_model):
    model = make_model("mistral-window")  # window 8
    assert why_not_slots(model, 8) is None
    assert generate(model, tokenizer, ["ab", "c"], max_new_tokens=5) == oracle(model, tokenizer, ["ab", "c"], 5)


@pytest.mark.parametrize("slots", [2, 8])
def test_shared_prefix_is_computed_once_and_changes_nothing(slots, llama, tokenizer, prompts, monkeypatch):
    shots = "question one. answer two\nquestion three. answer four\n"
    few_shot = [shots + p for p in prompts[:5]]
    widths = []
    forward = SlotEngine._forward
    monkeypatch.setattr(
        SlotEngine,
        "_forward",
        lambda self, cache, rows, start, stop, **k: (
            widths.append(stop - start),
            forward(self, cache, rows, start, stop, **k),
        ),
    )
    assert generate(llama, tokenizer, few_shot, max_new_tokens=6, slots=slots) == oracle(llama, tokenizer, few_shot, 6)
    assert widths[0] >= len(shots)
    assert max(widths[1:]) <= 40


def test_shared_prefix_may_be_a_whole_prompt_but_its_last_token(llama, tokenizer):
    shots = "question one. answer two\nquestion three. answer four\n"
    texts = [shots, shots + "a", shots, shots + "bc"]
    assert generate(llama, tokenizer, texts, max_new_tokens=6) == oracle(llama, tokenizer, texts, 6)


def test_prompts_of_a_single_token_need_no_prefill(llama, prompts, make_tokenizer):
    tokenizer = make_tokenizer(bos=False)
    texts = ["a", "b", "z"]
    assert generate(llama, tokenizer, texts, max_new_tokens=8) == oracle(llama, tokenizer, texts, 8)


def test_more_tokens_than_max_new_tokens_are_never_made(llama, tokenizer, prompts):
    answers = generate(llama, tokenizer, prompts, max_new_tokens=1)
    assert [a.raw_tokens for a in answers] == [1] * len(prompts)
    assert answers == oracle(llama, tokenizer, prompts, 1)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_stop_string_cuts_text_before_it(family, tokenizer, prompts, make_model):
    model = make_model(family)
    free = generate(model, tokenizer, prompts, max_new_tokens=24)
    row = max(range(len(free)), key=lambda i: len(set(free[i].text)))
    stop = free[row].text[5:7]
    for before, after in zip(
        free, generate(model, tokenizer, prompts, max_new_tokens=24, stop=["\x00", stop]), strict=True
    ):
        at = before.text.find(stop)
        if at < 0:
            assert after == before
        else:
            assert (after.text, after.stopped, after.ended) == (before.text[:at], stop, False)
            assert at + 2 <= after.raw_tokens < before.raw_tokens + 1  # a token a character, special ones aside


def test_earliest_of_several_stop_strings_counts(llama, tokenizer, prompts):
    (free,) = generate(llama, tokenizer, prompts[:1], max_new_tokens=12)
    (cut,) = generate(llama, tokenizer, prompts[:1], max_new_tokens=12, stop=[free.text[6:9], free.text[2:4]])
    assert cut.text == free.text[: min(free.text.find(free.text[6:9]), free.text.find(free.text[2:4]))]


def test_results_come_in_the_order_of_the_prompts_with_progress(llama, tokenizer, prompts):
    seen = []
    answers = generate(llama, tokenizer, prompts, max_new_tokens=4, slots=3, on_progress=lambda *at: seen.append(at))
    assert [a.prompt_tokens for a in answers] == [len(p) + 1 for p in prompts]
    assert seen == [(i + 1, len(prompts)) for i in range(len(prompts))]


def test_no_prompts_no_answers(llama, tokenizer):
    assert generate(llama, tokenizer, [], max_new_tokens=4) == []


def test_model_is_left_as_it_was(llama, tokenizer):
    model = copy.deepcopy(llama).train()
    model.model.layers[0].eval()
    generate(model, tokenizer, ["abc"], max_new_tokens=2)
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training


def test_checkpoint_penalties_are_not_applied(tokenizer, prompts, make_model):
    for family in ("llama", "mistral-window"):
        model = make_model(family)
        plain = generate(model, tokenizer, prompts[:4], max_new_tokens=8)
        model.generation_config.repetition_penalty = 5.0
        assert generate(model, tokenizer, prompts[:4], max_new_tokens=8) == plain
        assert model.generation_config.repetition_penalty == 5.0


def test_prompt_too_long_for_the_positions_is_named(llama, tokenizer):
    with pytest.raises(DataError, match=r"prompt 1 has 125 tokens\n.*at most 124: 128 positions less 4 new"):
        generate(llama, tokenizer, ["a", "b" * 124], max_new_tokens=4)
    assert len(generate(llama, tokenizer, ["b" * 123], max_new_tokens=4)) == 1


def test_prompt_without_token_is_named(llama, make_tokenizer):
    with pytest.raises(DataError, match="prompt 1 has no token"):
        generate(llama, make_tokenizer(bos=False), ["a", ""], max_new_tokens=4)


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 0), ("slots", 0)])
def test_numbers_below_one_are_refused(name, value, llama, tokenizer):
    with pytest.raises(UsageError, match=f"{name} is 0"):
        generate(llama, tokenizer, ["a"], **{"max_new_tokens": 4, name: value})


def test_empty_stop_string_is_refused(llama, tokenizer):
    with pytest.raises(UsageError, match="stop string is empty"):
        generate(llama, tokenizer, ["a"], max_new_tokens=4, stop=["\n", ""])


def test_nan_logits_are_an_error_not_an_answer(llama, tokenizer):
    model = copy.deepcopy(llama)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"not numbers \(NaN\) for prompt 0"):
        generate(model, tokenizer, ["abc"], max_new_tokens=4)


def test_out_of_memory_halves_the_slots_and_loses_no_answer(llama, tokenizer, prompts, monkeypatch, caplog):
    expected = generate(llama, tokenizer, prompts, max_new_tokens=8)
    step, steps = SlotEngine._step, []

    def scarce(self):
        steps.append(self.slots)
        if self.slots > 4 and len(steps) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(SlotEngine, "_step", scarce)
    assert generate(llama, tokenizer, prompts, max_new_tokens=8, slots=12) == expected
    assert sorted(set(steps)) == [2, 5, 10]
    assert "out of memory" in caplog.text
    assert "5 at once" in caplog.text


def test_out_of_memory_with_one_slot_is_a_resource_error(llama, tokenizer, monkeypatch):
    def never(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SlotEngine, "_step", never)
    with pytest.raises(ResourceError, match="out of memory with a single prompt"):
        generate_function(llama, tokenizer, ["a", "b"], max_new_tokens=4, slots=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "mistral-window"])
def test_cuda_writes_what_cpu_writes(family, tokenizer, prompts, make_model):
    model = make_model(family)
    expected = generate(model, tokenizer, prompts, max_new_tokens=10, slots=4)
    assert generate(model.cuda(), tokenizer, prompts, max_new_tokens=10, slots=4) == expected
