"""What the suites of faults work on: a tiny model and a task of its own, and the command line of each kind of step."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from faults.forks import Forks, Ran
from tiny_models import WORDS, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TASK = """\
name: words
data: rows
prompt: "{question} w39"
target: " {answer}"
max_new_tokens: 3
"""
SETTINGS = (
    "quantize.group_size=32",
    "quantize.samples=8",
    "quantize.max_length=16",
    "train.epochs=1",
    "train.batch_size=4",
    "train.learning_rate=0.02",
    "train.validation_limit=4",
    "runtime.dtype=float32",
    "runtime.checkpoint_seconds=0",
)
_SET = tuple(word for setting in SETTINGS for word in ("--set", setting))
STEPS: dict[str, tuple[str, ...]] = {
    "base": ("quantize", "-m", "m", "--calibration", "task:words.yaml", "-b", "3", *_SET),
    "adapter": ("train", "-m", "m", "-t", "words.yaml", "-b", "3", *_SET),
    "served": ("restore", "--bits", "4"),
    "merged": ("restore", "--merge"),
    "result": ("eval", "--limit", "4", "--dtype", "float32"),
}
"""The command that makes an artifact of each kind, in the order in which they need each other."""


def write_inputs(folder: Path) -> None:
    write_model(folder / "m")
    (folder / "words.yaml").write_text(TASK)
    (folder / "rows").mkdir()
    for split, start, count in (("train", 0, 16), ("validation", 16, 4), ("test", 20, 8)):
        rows = [
            {"question": f"{WORDS[i % 30]} {WORDS[3 * i % 31]}", "answer": WORDS[i % 7]}
            for i in range(start, start + count)
        ]
        (folder / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, seed: int = 0) -> None:
    """Write a Llama of two layers with random weights, and a tokenizer of words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tiny_model(
        "llama", seed=seed, initializer_range=0.3, eos_token_id=1, pad_token_id=0, bos_token_id=None
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)


def make(forks: Forks, kind: str, home: Path, cwd: Path, **more: Any) -> Ran:
    """Run the command of `kind`, by the hash of nothing: what it needs is the latest in the store."""
    return forks.run(*STEPS[kind], home=home, cwd=cwd, **more)


def hashes(home: Path) -> dict[str, str]:
    """sha256 of every committed file but those that hold a date or measured times, by its path without its date."""
    return {
        str(file.relative_to(home)).partition("_20")[0]: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(home.glob("[!.]*/[!.]*/**/*"))
        if file.is_file() and file.name != "manifest.json" and not file.name.startswith("results_")
    }


def manifests(home: Path) -> dict[str, Any]:
    """What a manifest holds that is not measured, by the name of its folder."""
    return {
        file.parent.name: {key: json.loads(file.read_text())[key] for key in ("kind", "fingerprint", "step", "inputs")}
        for file in home.glob("[!.]*/[!.]*/manifest.json")
    }


def copied(store: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    if store.exists():
        shutil.copytree(store, to)
    else:
        to.mkdir(parents=True)
    return to
