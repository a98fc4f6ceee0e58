"""Answers are those the model gives alone, on prompts of unequal length, whatever way `generate` takes for its architecture."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from architectures import DECODERS, architecture

from plr.errors import ModelError
from plr.lm import generate
from plr.lm.engine import SlotEngine
from plr.lm.probe import verdict_of
from plr.lm.tokens import encode_prompt

LENGTHS = (3, 14, 7, 30, 5, 21, 9, 2)


def texts() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choice("abcdefgh ") for _ in range(length)) for length in LENGTHS]


def alone(model: Any, tokenizer: Any, prompt: str, new: int) -> tuple[int, ...]:
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", DECODERS)
def test_answers_are_those_of_the_model_alone(family: str, tokenizer: Any) -> None:
    model, prompts = architecture(family, vocabulary=len(tokenizer)), texts()
    expected = [alone(model, tokenizer, prompt, 6) for prompt in prompts]
    for slots in (4, 64):
        assert [answer.ids for answer in generate(model, tokenizer, prompts, max_new_tokens=6, slots=slots)] == expected


@pytest.mark.parametrize(("family", "said"), [("gpt_neo", "padded batches"), ("rwkv", "one answer at a time")])
def test_a_slower_way_is_said_once(family: str, said: str, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = architecture(family, vocabulary=len(tokenizer))
    with caplog.at_level(logging.WARNING, logger="plr.lm.generate"):
        for _ in range(2):
            generate(model, tokenizer, texts(), max_new_tokens=6)
    assert [said in record.message for record in caplog.records] == [True]


def test_an_engine_that_errs_is_seen(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last token of every prompt at a wrong position: most answers stay plausible."""
    admit = SlotEngine._admit

    def shifted(self: SlotEngine, free: int) -> None:
        admit(self, free)
        self.position[: len(self.running)] -= (self.position[: len(self.running)] > 12).long()

    llama = architecture("llama", vocabulary=len(tokenizer))
    expected = [alone(llama, tokenizer, prompt, 6) for prompt in texts()]
    monkeypatch.setattr(SlotEngine, "_admit", shifted)
    with caplog.at_level(logging.WARNING, logger="plr.lm.generate"):
        found = generate(llama, tokenizer, texts(), max_new_tokens=6)
    assert "padded batches" in caplog.text
    assert [answer.ids[:6] for answer in found] == expected


def test_a_model_that_takes_no_slots_is_run_in_batches(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: SlotEngine, done: object) -> None:
        raise TypeError("unsupported operand type(s)")

    model = architecture("llama", vocabulary=len(tokenizer))
    expected = [alone(model, tokenizer, prompt, 6) for prompt in texts()]
    monkeypatch.setattr(SlotEngine, "run", fails)
    assert [answer.ids for answer in generate(model, tokenizer, texts(), max_new_tokens=6)] == expected


def test_a_base_is_probed_once_for_a_length(tokenizer: Any) -> None:
    model = architecture("llama", vocabulary=len(tokenizer))
    generate(model, tokenizer, ["abc", "a"], max_new_tokens=2)
    assert verdict_of(model).longest == len(encode_prompt(tokenizer, "abc"))
    generate(model, tokenizer, ["ab", "abcd"], max_new_tokens=2)
    assert verdict_of(model).longest == len(encode_prompt(tokenizer, "abc"))
    generate(model, tokenizer, ["abc" * 5], max_new_tokens=2)
    assert verdict_of(model).longest == len(encode_prompt(tokenizer, "abc" * 5))


def test_logits_that_are_no_numbers_are_an_error(tokenizer: Any) -> None:
    model = architecture("llama", vocabulary=len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not numbers"):
        generate(model, tokenizer, ["ab"], max_new_tokens=2)
