"""The committed base: its size, its label, and a tokenizer that loses nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from plr.embedded import tiny_path
from plr.embedded.corpus import math_prompt, math_rows, pretraining_texts, sql_prompt, sql_rows


@pytest.fixture(scope="module")
def tokenizer():
    import transformers

    return transformers.AutoTokenizer.from_pretrained(tiny_path())


def texts() -> list[str]:
    pairs = [math_prompt(row) for row in math_rows("test", 200)] + [sql_prompt(row) for row in sql_rows("test", 200)]
    return ["".join(pair) for pair in pairs] + list(islice(pretraining_texts(0), 200))


def test_all_files_of_the_checkpoint_are_there() -> None:
    assert {path.name for path in tiny_path().iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    }  # fmt: skip


def test_weights_are_at_most_eight_megabytes_of_bfloat16() -> None:
    import safetensors

    path = tiny_path() / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with safetensors.safe_open(path, framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_inner_widths_divide_into_groups_of_128() -> None:
    config = json.loads((tiny_path() / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] % 128 == 0
    assert config["intermediate_size"] % 128 == 0
    assert config["hidden_size"] // config["num_attention_heads"] >= 32
    assert config["tie_word_embeddings"]
    assert not config["attention_bias"]
    assert not config["mlp_bias"]


def test_record_names_what_made_the_weights() -> None:
    record = json.loads((tiny_path() / "training.json").read_text(encoding="utf-8"))
    assert record["made_by"].startswith("python -m plr.embedded.pretrain --seed")
    assert record["steps"] > 0
    assert record["minutes"] > 0
    assert 0 < record["held_out_loss"] < 2
    assert record["torch"]


def test_tokenizer_gives_back_every_text_exactly(tokenizer) -> None:
    for text in [*texts(), "Unseen: žluťoučký\tкот 猫 <|x|>\r\n\n  99.5%"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_target_tokenize_apart_as_they_do_together(tokenizer) -> None:
    pairs = [math_prompt(row) for row in math_rows("test", 200)] + [sql_prompt(row) for row in sql_rows("test", 200)]
    for prompt, target in pairs:
        apart = tokenizer(prompt)["input_ids"] + tokenizer(target)["input_ids"]
        assert tokenizer(prompt + target)["input_ids"] == apart


def test_every_frequent_token_of_the_tasks_was_met_in_pretraining(tokenizer) -> None:
    """A token that the base never read keeps a logit that an adapter on the attention can hardly raise.

    Only what an adapter has to write counts: the targets.
    """
    rows = [math_prompt(row) for row in math_rows("train", 300)] + [sql_prompt(row) for row in sql_rows("train", 300)]
    used = Counter(token for _, target in rows for token in tokenizer.tokenize(target))
    met = Counter(token for text in islice(pretraining_texts(0), 4000) for token in tokenizer.tokenize(text))
    assert not [token for token, count in used.items() if count >= 10 and met[token] < 10]


def test_tokenizer_is_the_one_its_script_makes(tokenizer) -> None:
    from plr.embedded import pretrain

    record = json.loads((tiny_path() / "training.json").read_text(encoding="utf-8"))
    assert pretrain.make_tokenizer(record["seed"]).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_digits_are_tokens_one_by_one(tokenizer) -> None:
    assert tokenizer.tokenize("12+345") == ["1", "2", "+", "3", "4", "5"]
    assert not [token for token in tokenizer.get_vocab() if re.search(r"\d", token) and len(token) > 1]


def test_task_rows_are_short(tokenizer) -> None:
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts()[:400]]
    assert max(lengths) <= 128
    assert sum(lengths) / len(lengths) <= 80


def test_special_tokens_are_known_and_not_added_unasked(tokenizer) -> None:
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.bos_token_id not in tokenizer("Question:")["input_ids"]


def test_finding_the_folder_imports_no_torch() -> None:
    code = "import sys, plr.embedded, plr.embedded.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_base_gives_true_sums_most_weight_in_its_own_format(tokenizer) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    sums = [(a, b) for a in (7, 12, 28, 45) for b in (5, 16, 33, 51)]
    right = 0
    for a, b in sums:
        ids = tokenizer(f"Sums:\n{a}+{b}=", return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids.input_ids.shape[1] :]
        right += tokenizer.decode(out).startswith(f"{a + b}\n")
    assert right >= 13
