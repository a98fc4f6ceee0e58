"""A head says of each text what it says of it alone, whatever stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM

from plr.bases.load import Loaded, load_source
from plr.bases.resolve import resolve_model
from plr.embedded import tiny_path
from plr.errors import DataError, ModelError
from plr.lm.classify import classify, collate, encode_texts, head_limit, head_loss, needs_equal_lengths, probe
from plr.tasks import HeadSpec

HEAD = HeadSpec(("no", "perhaps", "yes"))
PAIRS: list[Any] = [("w1 w2 w3", "w4"), ("w5", "w6 w7 w8 w9 w10"), ("good", "bad w1"), ("w1 " * 20, "w2")]
SINGLE: list[Any] = [("w1 w2 w3 w4 w5 w6", None), ("good", None), ("bad w1 w2", None)]
KINDS = ("bert", "roberta", "distilbert", "deberta-v2", "decoder")


def load(kind: str, folder: Path, head: HeadSpec | None = HEAD) -> Loaded:
    name = "embedded:tiny" if kind == "decoder" else str(save_tiny(kind, folder))
    return load_source(resolve_model(name), dtype=torch.float32, device="cpu", head=head)


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("texts", [PAIRS, SINGLE], ids=["pairs", "texts"])
def test_a_row_in_a_batch_is_the_row_alone(loaded: Loaded, texts: list[Any]) -> None:
    together = classify(loaded.model, loaded.tokenizer, texts)
    assert together.shape == (len(texts), 3)
    assert together.dtype == torch.float32
    alone = torch.cat([classify(loaded.model, loaded.tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together - together[0]).abs().max() > 1e-3  # the texts are told apart
    small = classify(loaded.model, loaded.tokenizer, texts, max_tokens_per_batch=1)
    torch.testing.assert_close(small, alone, rtol=1e-4, atol=1e-5)


def test_outputs_are_those_of_transformers_own_call(loaded: Loaded) -> None:
    """On one text of plain tokens, as anybody would call the model."""
    tokenizer: Any = loaded.tokenizer
    pair = tokenizer.sep_token is not None
    inputs = tokenizer(*PAIRS[0], return_tensors="pt") if pair else tokenizer("\n".join(PAIRS[0]), return_tensors="pt")
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
    torch.testing.assert_close(classify(loaded.model, tokenizer, PAIRS[:1]), expected)


def test_both_texts_of_a_pair_count(loaded: Loaded) -> None:
    swapped = classify(loaded.model, loaded.tokenizer, [("w1", "w2"), ("w1", "w3"), ("w4", "w2")])
    assert len({round(float(row[0]), 5) for row in swapped}) == 3


def test_the_head_starts_the_same_each_time(tmp_path: Path) -> None:
    first, second = load("bert", tmp_path / "a"), load("bert", tmp_path / "a")
    torch.manual_seed(5)
    assert first.head_is_new
    assert torch.equal(classify(first.model, first.tokenizer, PAIRS), classify(second.model, second.tokenizer, PAIRS))


def test_a_head_of_the_checkpoint_is_kept_if_it_fits(tmp_path: Path) -> None:
    first = load("roberta", tmp_path / "plain")
    with torch.no_grad():
        for parameter in first.model.classifier.parameters():
            parameter.normal_()
    first.model.save_pretrained(tmp_path / "trained")
    first.tokenizer.save_pretrained(tmp_path / "trained")
    ref = resolve_model(str(tmp_path / "trained"))
    again = load_source(ref, dtype=torch.float32, device="cpu", head=HEAD)
    assert not again.head_is_new
    assert torch.equal(classify(again.model, again.tokenizer, PAIRS), classify(first.model, first.tokenizer, PAIRS))
    other = load_source(ref, dtype=torch.float32, device="cpu", head=HeadSpec(("no", "yes")))
    assert other.head_is_new
    assert classify(other.model, other.tokenizer, PAIRS).shape == (4, 2)


def test_a_checkpoint_without_a_part_of_its_body_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of its body: .*query"):
        load_source(resolve_model(str(tmp_path)), dtype=torch.float32, device="cpu", head=HEAD)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 66), ("roberta", 64)])
def test_the_longest_text_fits_and_a_longer_one_is_an_error(kind: str, limit: int, tmp_path: Path) -> None:
    loaded = load(kind, tmp_path)
    assert head_limit(loaded.model) == limit
    words = limit - 2  # CLS and SEP
    assert classify(loaded.model, loaded.tokenizer, [("w1 " * words, None)]).isfinite().all()
    with pytest.raises(DataError, match=f"row 0 has {limit + 1} tokens"):
        classify(loaded.model, loaded.tokenizer, [("w1 " * (words + 1), None)])


def test_rows_are_padded_on_the_right_with_their_mask_and_segments(tmp_path: Path) -> None:
    tokenizer = load("bert", tmp_path).tokenizer
    batch = collate(tokenizer, encode_texts(tokenizer, [("good bad", "bad"), ("good", "bad")]))
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["input_ids"][1, -1] == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("texts", "limit", "message"),
    [
        ([("good", None), ("w1 w2 w3", None)], 4, "row second has 5 tokens"),
        ([("good", None), ("good", "bad")], None, "mixed"),
    ],
)
def test_rows_that_cannot_be_encoded(texts: list[Any], limit: int | None, message: str, tmp_path: Path) -> None:
    tokenizer = load("bert", tmp_path).tokenizer
    with pytest.raises(DataError, match=message):
        encode_texts(tokenizer, texts, limit, names=["first", "second"])


def test_the_loss_is_cross_entropy_or_squared_error() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    each = -torch.stack([logits[0].log_softmax(0)[1], logits[1].log_softmax(0)[1]])
    labels = torch.tensor([1, 1])
    torch.testing.assert_close(head_loss(logits, labels, False, reduction="none"), each)
    torch.testing.assert_close(head_loss(logits, labels, False), each.sum())
    squares = torch.tensor([0.25, 4.0])
    numbers, gold = torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), torch.tensor([1.5, 4.0])
    torch.testing.assert_close(head_loss(numbers, gold, True, reduction="none"), squares)
    torch.testing.assert_close(head_loss(numbers, gold, True, reduction="mean"), squares.mean())


def test_outputs_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    loaded = load("bert", tmp_path)
    with torch.no_grad():
        loaded.model.classifier.bias[1] = float("nan")
    with pytest.raises(ModelError, match="nan"):
        classify(loaded.model, loaded.tokenizer, PAIRS)


def test_a_model_without_a_head_is_an_error() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path())
    with pytest.raises(ModelError, match="no classification head"):
        classify(model, None, PAIRS)


def test_an_encoder_loads_without_a_head_as_a_body(tmp_path: Path) -> None:
    """What is quantized: no language model's head is made up for it."""
    assert type(load("roberta", tmp_path, head=None).model).__name__ == "RobertaModel"


def test_a_new_head_alone_is_no_change(loaded: Loaded) -> None:
    """A trained head changes every output, and proves nothing of the adapter below it."""
    before = probe(loaded.model, loaded.tokenizer, PAIRS)
    assert before.change(probe(loaded.model, loaded.tokenizer, PAIRS)) == 0.0
    head: Any = getattr(loaded.model, "classifier", None) or loaded.model.score
    parameters = list(head.parameters())
    kept = [parameter.clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1
    other_head = probe(loaded.model, loaded.tokenizer, PAIRS)
    assert not torch.equal(other_head.outputs, before.outputs)
    assert before.change(other_head) == 0.0
    with torch.no_grad():
        for parameter, old in zip(parameters, kept, strict=True):
            parameter.copy_(old)
        vector = next(p for n, p in loaded.model.base_model.named_parameters() if n.endswith("bias") or "norm" in n)
        vector += 0.1
        assert before.change(probe(loaded.model, loaded.tokenizer, PAIRS)) > 0.0
        vector -= 0.1


@pytest.mark.parametrize("kind", ["bert", "decoder"])
def test_virtual_tokens_before_the_text(kind: str, tmp_path: Path) -> None:
    """Transformers cannot see the padding of a decoder then: its rows are batched by length."""
    from peft import PromptTuningConfig, get_peft_model

    loaded = load(kind, tmp_path)
    model: Any = get_peft_model(loaded.model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    assert needs_equal_lengths(model) == (kind == "decoder")
    together = classify(model, loaded.tokenizer, PAIRS)
    alone = torch.cat([classify(model, loaded.tokenizer, [text]) for text in PAIRS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
