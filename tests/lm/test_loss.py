"""Losses against the plain definition: one row at a time, float64, no padding."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from plr.bases.load import load_source
from plr.errors import DataError
from plr.lm import AnswerLoss, answer_loss, encode_pair, generate, perplexity
from plr.lm.loss import _batches, _losses
from plr.lm.tokens import encode_prompt
from plr.study.resolve import Resolver
from plr.tasks.data.rows import load_split

PAIRS = [
    ("ab", "c"),
    ("a longer prompt here", "42."),
    ("x", "a long answer to it all"),
    ("", ""),
    ("q", "yes"),
    ("rst", "uv"),
]


@torch.no_grad()
def naive(model, ids: list[int], count: int) -> float:
    log_probabilities = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return -sum(log_probabilities[at - 1, ids[at]].item() for at in range(len(ids) - count, len(ids)))


@torch.no_grad()
def naive_exact(model, ids: list[int], count: int) -> bool:
    likeliest = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
    return likeliest[len(ids) - count - 1 : -1] == ids[len(ids) - count :]


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma2", "gpt-neox", "opt", "gpt2", "mistral-window", "bloom", "mamba"]
)
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_answer_loss_is_the_naive_loss_of_each_row(family, budget, make_model, tokenizer):
    model = make_model(family)
    losses = answer_loss(model, tokenizer, PAIRS, max_tokens_per_batch=budget)
    for (prompt, target), loss in zip(PAIRS, losses, strict=True):
        prompt_ids, target_ids = encode_pair(tokenizer, prompt, target)
        assert loss.tokens == len(target) + 1, "EOS counts"
        assert loss.nll == pytest.approx(naive(model, prompt_ids + target_ids, len(target_ids)), rel=1e-5)
        assert loss.exact == naive_exact(model, prompt_ids + target_ids, len(target_ids))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mamba"])
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_a_row_is_exact_where_the_model_would_write_it(family, budget, make_model, make_tokenizer):
    """Greedy continuations, whose last token is taken for the end, and the same with another token at one place."""
    model, tokenizer = make_model(family), make_tokenizer(bos=False)
    rows, expected = [], []
    for prompt, wrong in zip("abcdefghijkl", [None, 0, 1, 2] * 3, strict=True):
        ids = tokenizer(prompt * (2 + ord(prompt) % 5)).input_ids
        for _ in range(3):
            ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        if wrong is not None:
            ids[len(ids) - 3 + wrong] = (ids[len(ids) - 3 + wrong] + 1) % model.config.vocab_size
        rows.append((ids, 3))
        expected.append(wrong is None)
    read = _losses(model, rows, budget, None)
    assert [exact for _, exact in read] == expected


def test_of_equals_the_first_is_the_likeliest(llama, tokenizer):
    """A table of one row: greedy decoding takes the first token of all equals, and so does the measure."""
    model = copy.deepcopy(llama)
    torch.nn.init.zeros_(model.lm_head.weight)
    first, other = _losses(model, [([3, 0], 1), ([3, 1], 1)], 64, None)
    assert first[1]
    assert not other[1]


def test_exact_is_what_generation_writes():
    """The embedded base, whose answers end by themselves: each is exact as it was written, and not with its last word left out."""
    resolver = Resolver(offline=True)
    loaded = load_source(resolver.model("embedded:tiny"), dtype=torch.float32, device="cpu")
    prompts = [row.prompt for row in load_split(resolver.task("tiny_math"), "test").examples[:40]]
    written = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=64)
    pairs = [(prompt, answer.text) for prompt, answer in zip(prompts, written, strict=True) if answer.ended]
    assert len(pairs) >= 30
    assert all(loss.exact for loss in answer_loss(loaded.model, loaded.tokenizer, pairs))
    cut = [(prompt, text.rpartition("\n")[0]) for prompt, text in pairs]
    assert not any(loss.exact for loss in answer_loss(loaded.model, loaded.tokenizer, cut))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt-neox", "opt", "gpt2", "mistral-window", "mamba"])
@pytest.mark.parametrize("budget", [32, 4096])
def test_a_shared_beginning_changes_no_loss(family, budget, make_model, tokenizer):
    """One row has nothing of its own but the last token of its prompt."""
    model, first = make_model(family), "examples that all the rows begin with, "
    pairs = [(first + prompt, target) for prompt, target in PAIRS if prompt]
    losses = answer_loss(model, tokenizer, [*pairs, (first, "end")], max_tokens_per_batch=budget)
    for (prompt, target), loss in zip([*pairs, (first, "end")], losses, strict=True):
        prompt_ids, target_ids = encode_pair(tokenizer, prompt, target)
        assert loss.nll == pytest.approx(naive(model, prompt_ids + target_ids, len(target_ids)), rel=1e-5)


def test_a_shared_beginning_is_computed_once(llama, tokenizer):
    seen = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"].shape), with_kwargs=True
    )
    answer_loss(llama, tokenizer, [("a" * 50 + letter, "xy") for letter in "bcdef"])
    hook.remove()
    assert seen == [(1, 51), (5, 3)]  # BOS and 50; then a token of the prompt and two of the target


def test_without_bos_the_first_token_is_context(make_tokenizer, llama):
    tokenizer = make_tokenizer(bos=False)
    (loss,) = answer_loss(llama, tokenizer, [("a", "b")])
    assert loss.nll == pytest.approx(naive(llama, [*tokenizer("ab").input_ids, 2], 2), rel=1e-5)


def test_mean_is_nats_a_token():
    assert AnswerLoss(nll=6.0, tokens=4, exact=False).mean == 1.5


def test_output_layer_sees_the_targets_only(llama, tokenizer):
    seen = []
    hook = llama.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    answer_loss(llama, tokenizer, [("a" * 60, "bc"), ("d" * 60, "e")])
    hook.remove()
    assert seen == [3]


def test_progress_and_training_flag(llama, tokenizer):
    llama.train()
    seen = []
    answer_loss(llama, tokenizer, PAIRS, max_tokens_per_batch=16, on_progress=lambda *at: seen.append(at))
    assert llama.training
    llama.eval()
    assert seen[-1] == (len(PAIRS), len(PAIRS))
    assert len(seen) > 1


def test_prompt_without_token_is_named(llama, make_tokenizer):
    with pytest.raises(DataError, match="prompt 1 has no token"):
        answer_loss(llama, make_tokenizer(bos=False), [("a", "b"), ("", "b")])


def test_pair_beyond_the_positions_is_named(llama, tokenizer):
    # 128 positions predict 129 tokens: BOS + 126 + 1 + EOS.
    assert answer_loss(llama, tokenizer, [("a" * 126, "b")])[0].tokens == 2
    with pytest.raises(DataError, match=r"row 1 has 130 tokens.*\n.*at most 129"):
        answer_loss(llama, tokenizer, [("a", "b"), ("a" * 127, "b")])


def test_perplexity_is_that_of_windows_without_overlap(llama, tokenizer):
    texts = ["some running text of no meaning", "short", "a"]
    nll, tokens = 0.0, 0
    for text in texts:
        ids = encode_prompt(tokenizer, text)
        for at in range(1, len(ids), 7):
            window = [tokenizer.bos_token_id, *ids[at : at + 7]]
            if len(window) > 1:
                nll += naive(llama, window, len(window) - 1)
                tokens += len(window) - 1
    value, scored = perplexity(llama, tokenizer, texts, max_length=8)
    assert scored == tokens
    assert value == pytest.approx(math.exp(nll / tokens), rel=1e-5)


def test_perplexity_of_nothing_is_refused(llama, make_tokenizer):
    with pytest.raises(DataError, match="no token to score in 2 texts"):
        perplexity(llama, make_tokenizer(bos=False), ["a", ""])


def test_batches_keep_to_the_budget_and_hold_every_row_once():
    rows = [(list(range(n)), 1 + n % 3) for n in (5, 90, 7, 31, 30, 29, 64, 12, 2)]
    batches = list(_batches(rows, 64, vocabulary=100))
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(rows[i][0]) for i in batch) - 1) <= 64


def test_batches_bound_the_cache_behind_a_prefix():
    rows = [([0] * 10, 2)] * 40
    assert [len(batch) for batch in _batches(rows, 400, 10)] == [40]
    assert [len(batch) for batch in _batches(rows, 400, 10, 91)] == [16, 16, 8]  # 16 (91 + 9) = 4 * 400


def test_batches_bound_the_logits(monkeypatch):
    monkeypatch.setattr("plr.lm.loss._MAX_LOGITS", 4000)
    rows = [(list(range(11)), 10)] * 7
    assert [len(batch) for batch in _batches(rows, 10_000, vocabulary=100)] == [4, 3]
