"""Divergence against the plain definition: both models' logits in full, one row at a time, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import tiny_model

from plr.errors import DataError, ModelError
from plr.lm import answer_loss, divergence
from plr.lm.divergence import Reference, Shift

ROWS = [[1, 5, 9, 3, 22, 7, 7], [1, 4], [1, 30, 12, 6, 6, 18, 2, 25, 11, 19, 8, 3], [1, 8, 17, 2]]


def changed(model, by: float = 0.3):
    """The same model with noise on its blocks' linear layers, not on the head: what quantizing does."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (".layers." in name or ".h." in name):
                parameter += by * parameter.std() * torch.randn_like(parameter)
    return model


@torch.no_grad()
def dense(model, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[t-1, vocabulary]` of the model's own logits."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)


def oracle(p: torch.Tensor, q: torch.Tensor, ids: list[int]) -> Shift:
    targets = torch.tensor(ids[1:])[:, None]
    return Shift(
        before=-p.gather(1, targets)[:, 0],
        after=-q.gather(1, targets)[:, 0],
        kl=(p.exp() * (p - q)).sum(-1),
        same=(p.argmax(-1) == q.argmax(-1)).double(),
    )


def equal(found: Shift, expected: Shift) -> None:
    for name in ("before", "after", "kl", "same"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


def check(make, rows=ROWS, **options) -> None:
    """`make` builds the same model twice; the second one is changed."""
    model = make()
    before = [dense(model, ids) for ids in rows]
    reference = Reference(model, rows, **options)
    after = changed(model)
    shifts = reference.compare(after)
    for ids, p, found in zip(rows, before, shifts, strict=True):
        expected = oracle(p, dense(after, ids), ids)
        equal(found, expected)
        assert len(found.kl) == len(ids) - 1, "padding does not count"
    assert sum(float(s.kl.sum()) for s in shifts) > 0.01, "the change is seen"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3", "opt", "gpt2", "mistral-window", "mamba"])
def test_shift_is_that_of_the_whole_logits(family, make_model):
    check(lambda: make_model(family))


@pytest.mark.parametrize("budget", [1, 15, 4096])
def test_batches_do_not_matter(budget, make_model):
    check(lambda: make_model("llama"), max_tokens_per_batch=budget)


def test_small_pieces_of_logits_give_the_same(make_model, monkeypatch):
    monkeypatch.setattr(divergence, "_MAX_LOGITS", 100)
    check(lambda: make_model("llama"))


SHAPE = {
    "vocab_size": 40,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.4,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
    ids=["gemma2 caps", "granite divides", "cohere multiplies"],
)
def test_what_stands_behind_the_head_counts(family, settings):
    def make():
        return tiny_model(family, dtype=torch.float32, **SHAPE, **settings)

    check(make)
    model = make()
    x = torch.randn(3, 32) * 4
    with torch.no_grad():
        raw = model.get_output_embeddings()(x)
        assert not torch.allclose(divergence._finish(model.config)(raw), raw, rtol=0.05), "the case is a case"


def test_unchanged_model_has_not_moved(llama):
    for shift in Reference(llama, ROWS).compare(llama):
        assert shift.kl.abs().max() < 1e-6
        assert bool((shift.same == 1).all())
        torch.testing.assert_close(shift.before, shift.after)


def test_one_reference_serves_several_models(make_model):
    reference = Reference(make_model("llama"), ROWS)
    first = reference.compare(changed(make_model("llama"), 0.1))
    again = reference.compare(changed(make_model("llama"), 0.4))
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a.before, b.before)
    assert sum(float(s.kl.sum()) for s in first) < sum(float(s.kl.sum()) for s in again)


def test_answers_lose_what_answer_loss_says(make_model, tokenizer):
    from plr.lm import encode_pair

    model = make_model("llama")
    pairs = [("what is it", " 42"), ("x", "a longer answer")]
    encoded = [encode_pair(tokenizer, *pair) for pair in pairs]
    shifts = Reference(model, [a + b for a, b in encoded]).compare(model)
    for (_, target), shift, loss in zip(encoded, shifts, answer_loss(model, tokenizer, pairs), strict=True):
        assert float(shift.after[-len(target) :].sum()) == pytest.approx(loss.nll, rel=1e-5)


def test_a_replaced_head_is_compared_too(make_model):
    model = make_model("llama")
    reference = Reference(model, ROWS)
    before = [dense(model, ids) for ids in ROWS]
    head = torch.nn.Linear(32, model.config.vocab_size, bias=False)
    model.set_output_embeddings(head)
    for ids, p, found in zip(ROWS, before, reference.compare(model), strict=True):
        equal(found, oracle(p, dense(model, ids), ids))


def test_kl_is_large_and_never_negative_where_the_model_is_sure_and_wrong(make_model):
    model = make_model("llama")
    reference = Reference(model, ROWS)
    with torch.no_grad():
        model.model.norm.weight.mul_(-30.0)
    shifts = reference.compare(model)
    assert all(bool((s.kl > -1e-6).all()) for s in shifts)
    assert max(float(s.kl.max()) for s in shifts) > math.log(model.config.vocab_size)


def test_head_sees_one_column_and_the_model_is_left_as_it_was(make_model):
    model = make_model("llama")
    model.train()
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    Reference(model, ROWS)
    handle.remove()
    assert {shape[1] for shape in seen} == {1}
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=torch.tensor([ROWS[0]])).logits.shape[1] == len(ROWS[0])


def test_a_classifier_has_no_head_to_compare():
    model = tiny_model("bert", initializer_range=0.4)
    with pytest.raises(ModelError, match="no language model with an output head"):
        Reference(model, ROWS)


def test_an_encoder_sees_to_the_right():
    model = tiny_model("bert", head="masked", initializer_range=0.4)
    with pytest.raises(ModelError, match="sees what stands to its right"):
        Reference(model, ROWS)


def test_logits_that_are_not_the_heads_are_an_error(make_model, monkeypatch):
    model = make_model("gemma2")
    model.config.final_logit_softcapping = 0.5
    monkeypatch.setattr(divergence, "_finish", lambda _: lambda logits: logits)
    with pytest.raises(ModelError, match="not those of its output head"):
        Reference(model, ROWS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no text to compare on"), ([[1]], "no text to compare on"), ([[1] * 130], "at most 129")],
)
def test_rows_that_cannot_be_compared_are_an_error(rows, message, llama):
    with pytest.raises(DataError, match=message):
        Reference(llama, rows)
