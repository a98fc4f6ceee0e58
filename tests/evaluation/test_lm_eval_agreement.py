"""plr against lm-eval (0.4.13) with its own ``hf`` backend: for the same rows the same prompts, answers and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plr.core.specs import Evaluate, Source
from plr.embedded import tiny_path
from plr.embedded.corpus import math_rows
from plr.lab import Lab
from plr.scoring.numbers import flexible_extract

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.slow

NEW = 64
FILTERS = ("strict-match", "flexible-extract")
HAS_SHOTS = "num_fewshot" in Evaluate.model_fields


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


@pytest.fixture(autouse=True)
def no_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip and the machine for all they have, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows in GSM8K's form, as files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, n in (("train", 12), ("test", 16)):
        _write(folder / f"{split}.jsonl", math_rows(split, n))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("who", ["base", "adapter"])
def test_answers_and_scores_are_those_of_lm_eval(who: str, lab: Lab, data: Path, tmp_path: Path) -> None:
    target: Any = Source(model=lab.resolver.model("embedded:tiny"))
    arguments: dict[str, Any] = {}
    if who == "adapter":
        few = ("train.train_limit=800", "train.validation_limit=8")
        trained = lab.train(bits=16, overrides=few)
        target, arguments = lab.restored(trained, bits=16), {"peft": str(trained.path)}
    else:
        _give_every_other_row_the_number_it_is_answered_with(lab, target, data)
    ours = _ours(lab, target, data)
    result = _theirs(data, tmp_path, **arguments)
    samples = result["samples"]["gsm8k_here"]
    assert len(samples) == len(FILTERS) * len(ours)
    for sample in samples:
        own = ours[sample["doc_id"]]
        assert [own[key] for key in ("doc", "doc_hash", "prompt_hash")] == [
            sample[key] for key in ("doc", "doc_hash", "prompt_hash")
        ]
        assert own["arguments"]["gen_args_0"]["arg_0"] == sample["arguments"][0][0]
        assert own["resps"] == sample["resps"]
        assert own[f"exact_match,{sample['filter']}"] == sample["exact_match"]
        assert own["answers"][f"exact_match,{sample['filter']}"] == sample["filtered_resps"][0]
    means = {name: sum(own[f"exact_match,{name}"] for own in ours.values()) / len(ours) for name in FILTERS}
    for name in FILTERS:
        assert result["results"]["gsm8k_here"][f"exact_match,{name}"] == pytest.approx(means[name])
    told = "strict-match" if who == "adapter" else "flexible-extract"
    assert 0 < means[told] < 1, "the case should hold right answers and wrong ones"


@pytest.mark.skipif(not HAS_SHOTS, reason="evaluations have no examples in the prompt")
def test_prompts_and_answers_after_examples_are_those_of_lm_eval(lab: Lab, data: Path, tmp_path: Path) -> None:
    target = Source(model=lab.resolver.model("embedded:tiny"))
    ours = _ours(lab, target, data, num_fewshot=3)
    blocks = [own["arguments"]["gen_args_0"]["arg_0"].split("\n\n")[:-1] for own in ours.values()]
    assert all(found == blocks[0] for found in blocks), "the same examples before every question"
    by_text = {f"Question: {row['question']}\nAnswer: {row['answer']}": row for row in _read(data / "train.jsonl")}
    _write(data / "train.jsonl", [by_text[block] for block in blocks[0]])
    result = _theirs(data, tmp_path, num_fewshot=3)
    for sample in result["samples"]["gsm8k_here"]:
        own = ours[sample["doc_id"]]
        assert len(blocks[0]) == 3
        assert own["arguments"]["gen_args_0"]["arg_0"] == sample["arguments"][0][0]
        assert own["resps"] == sample["resps"]
        assert own[f"exact_match,{sample['filter']}"] == sample["exact_match"]


def _ours(lab: Lab, target: Any, data: Path, **options: Any) -> dict[int, dict[str, Any]]:
    """plr's records by ``doc_id``."""
    made = lab.evaluate(target, task="gsm8k", data=str(data), limit=100, max_new_tokens=NEW, **options)
    return {record["doc_id"]: record for record in _read(next(made.path.glob("samples_*.jsonl")))}


def _theirs(data: Path, tmp_path: Path, num_fewshot: int = 0, **model: Any) -> Any:
    """lm-eval's own gsm8k.yaml on the rows of ``data``; examples are the first of train, in their order."""
    text = (Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8")
    config = {key: value for key, value in yaml.safe_load(text).items() if key not in ("tag", "dataset_name")}
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "test")}
    config |= {"task": "gsm8k_here", "dataset_path": "json", "num_fewshot": num_fewshot}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    config["fewshot_config"] = {"sampler": "first_n"}
    config["generation_kwargs"]["max_gen_toks"] = NEW
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_path()), "dtype": "float32", **model},
        tasks=[config],
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
    )


def _give_every_other_row_the_number_it_is_answered_with(lab: Lab, target: Any, data: Path) -> None:
    answered = [flexible_extract(own["resps"][0][0]) for _, own in sorted(_ours(lab, target, data).items())]
    rows = _read(data / "test.jsonl")
    for row, number in list(zip(rows, answered, strict=True))[::2]:
        row["answer"] += f"\n#### {number}"
    _write(data / "test.jsonl", rows)


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
