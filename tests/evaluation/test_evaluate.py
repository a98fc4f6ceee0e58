"""Cells: what one leaves behind for the next, what is refused before any answer, and that files say what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recommit import recommit
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from plr import Lab
from plr.cli.root import app
from plr.core.specs import Evaluate
from plr.core.store import Artifact
from plr.errors import ConfigError, DataError, ModelError, ProvenanceError, UsageError
from plr.evaluation.cell import open_cell
from plr.evaluation.evaluate import evaluate
from plr.evaluation.holder import BaseHolder
from plr.evaluation.predictions import read_predictions
from plr.evaluation.rescore import rescore
from plr.lm import AnswerLoss

SHORT = ["train.epochs=1", "train.train_limit=32", "train.validation_limit=4"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


@pytest.fixture(scope="module")
def adapter(lab: Lab) -> Artifact:
    return lab.train(bits=16, task="tiny_math", overrides=SHORT)


@pytest.fixture
def misfit(lab: Lab) -> Artifact:
    """An adapter of which the last layer alone does not fit its base."""
    made = lab.train(bits=16, task="tiny_math", seed=1, overrides=SHORT)
    file = made.path / "adapter_model.safetensors"
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    save_file({**tensors, last: tensors[last].T.contiguous()}, file, {"format": "pt"})
    return recommit(made)


def of_math(lab: Lab, target: Any, **settings: Any) -> Evaluate:
    return lab.result(target, "tiny_math", **{"limit": 4, "max_new_tokens": 4, **settings})


def gsm8k(lab: Lab, folder: Path, **test: str) -> Evaluate:
    train = [{"question": f"How much is {i} and {i}?", "answer": f"{2 * i}\n#### {2 * i}"} for i in range(20)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, train)))
    (folder / "test.jsonl").write_text("\n".join([json.dumps(train[0] | {"question": "What?"}), json.dumps(test)]))
    return lab.result(lab.base(bits=16), "gsm8k", data=str(folder), limit=2, max_new_tokens=4)


def files(result: Artifact) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document = json.loads(next(result.path.glob("results_*.json")).read_text())
    lines = next(result.path.glob("samples_*.jsonl")).read_text().splitlines()
    return document, [json.loads(line) for line in lines]


def test_an_adapter_that_fails_leaves_nothing_on_the_base(
    lab: Lab, adapter: Artifact, misfit: Artifact, tmp_path: Path
) -> None:
    """PEFT has loaded the layers that fit when it finds the one that does not."""
    holder = BaseHolder(lab.store, lab.runtime())

    def loss(target: Any) -> float:
        return evaluate(of_math(lab, target), tmp_path, holder)["metrics"]["answer_loss"]["value"]

    base = lab.base(bits=16)
    before = loss(base), loss(adapter)
    with pytest.raises(ProvenanceError, match="does not fit"):
        loss(misfit)
    assert (loss(base), loss(adapter)) == before


def test_a_base_is_loaded_once_for_adapters_that_come_and_go(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:
    holder = BaseHolder(lab.store, lab.runtime())
    step = of_math(lab, adapter)
    cell = open_cell(step)
    first = holder.base(cell)
    for _ in range(2):
        evaluate(step, tmp_path, holder)
        assert holder.base(cell) is first


def test_rows_that_do_not_fit_are_named_before_any_answer(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise AssertionError("an answer was asked for")

    monkeypatch.setattr("plr.evaluation.writers.generate", generate)
    with pytest.raises(DataError, match=r"row test-1 has \d+ tokens, target included"):
        lab.make(gsm8k(lab, tmp_path, question="Why?", answer="so " * 600 + "\n#### 4"))


def test_a_prompt_without_room_for_an_answer_is_named(lab: Lab, tmp_path: Path) -> None:
    step = gsm8k(lab, tmp_path, question="1 + 1 " * 70, answer="4\n#### 4")
    with pytest.raises(DataError, match=r"prompt test-1 has \d+ tokens"):
        lab.make(step.model_copy(update={"max_new_tokens": 300}))
    with pytest.raises(UsageError, match=r"max_new_tokens is 600\n.*less than the 512 positions"):
        lab.make(step.model_copy(update={"max_new_tokens": 600}))


def test_a_loss_that_is_no_number_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = [AnswerLoss(1.0, 2, exact=False), AnswerLoss(float("nan"), 2, exact=False)]
    monkeypatch.setattr("plr.evaluation.writers.answer_loss", lambda *_, **__: nan)
    with pytest.raises(ModelError, match=r"loss of row test-\d+ is nan"):
        lab.make(of_math(lab, lab.base(bits=16), limit=2, max_new_tokens=3))


def test_a_field_that_no_model_reads_may_hold_what_is_no_text(lab: Lab, tmp_path: Path) -> None:
    """Half of a surrogate pair, as JSON can spell it, has no UTF-8."""
    odd = {"question": "Why?", "answer": "4\n#### 4", "note": "\ud800"}
    result = lab.make(gsm8k(lab, tmp_path, **odd))
    assert files(result)[1][1]["doc"] == odd
    assert rescore(result.step.task, "test", read_predictions(result.path)).about["scored"] == 2


def test_a_metric_of_all_rows_is_no_mean(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "".join(f"word {i}\t{i % 2}\n" for i in range(60)))
    step = lab.result(lab.base(bits=16), "text_classification", data=str(tmp_path / "rows.tsv"))
    listed = files(lab.make(step))[0]["configs"]["text_classification"]["metric_list"]
    assert {one["metric"]: one["aggregation"] for one in listed} == {
        "acc": "mean",
        "roc_auc": "roc_auc",
        "answer_loss": "mean",
    }


def test_zero_is_no_way_to_say_the_default(lab: Lab) -> None:
    for setting in ("limit", "max_new_tokens"):
        with pytest.raises(ConfigError, match=f"{setting}: Input should be greater than or equal to 1"):
            of_math(lab, lab.base(bits=16), **{setting: 0})


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_an_adapter_with_a_head_writes_no_answers(lab: Lab, tmp_path: Path, engine: str) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"word {i}\t{i % 2}\n" for i in range(60)))
    judge = lab.train(bits=16, task="text_classification", data=str(tmp_path), overrides=SHORT)
    with pytest.raises(UsageError, match=r"trained on text_classification .* asks for a written answer"):
        lab.make(of_math(lab, judge, engine=engine))


def test_progress_rises_to_its_total(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    holder = BaseHolder(lab.store, lab.runtime())
    evaluate(of_math(lab, adapter), tmp_path, holder, lambda done, total: seen.append((done, total)))
    assert seen == [(4 + i, 8) for i in range(5)]


def test_without_answers_nothing_is_said_of_generation(lab: Lab) -> None:
    step = of_math(lab, lab.base(bits=16)).model_copy(update={"generate": False})
    result = lab.make(step)
    document, samples = files(result)
    assert result.metrics["primary"] == "answer_loss"
    assert document["configs"]["tiny_math"]["output_type"] == "loglikelihood"
    assert [list(s["arguments"]["gen_args_0"].values())[1] for s in samples] == [s["target"] for s in samples]
    assert {s["resps"][0][0] for s in samples} == {None}
    protocol = result.metrics["protocol"]
    assert {protocol[key] for key in ("generation", "prompt_tokens", "answers_cut", "answers_stopped")} == {None}


@pytest.mark.parametrize("settings", [["quantize.method=rtn"], ["quantize.method=nf4", "quantize.group_size=64"]])
def test_weights_in_codes_are_parameters_too(lab: Lab, settings: list[str]) -> None:
    base = lab.quantize(bits=4, task="tiny_math", overrides=settings)
    numbers = {
        files(lab.make(of_math(lab, target, limit=1)))[0]["config"]["model_num_parameters"]
        for target in (lab.base(bits=16), base)
    }
    assert len(numbers) == 1


def test_numbers_of_a_result_are_those_of_its_samples(lab: Lab, adapter: Artifact) -> None:
    result = lab.make(of_math(lab, adapter, limit=9, max_new_tokens=24))
    document, samples = files(result)
    for name, metric in result.metrics["metrics"].items():
        values = [sample[name] for sample in samples if sample[name] is not None]
        assert metric["value"] == pytest.approx(sum(values) / len(values))
        assert (metric["n"], metric["unscored"]) == (len(values), 9 - len(values))
        measure, _, kind = name.partition(",")
        assert document["results"]["tiny_math"][f"{measure},{kind or 'none'}"] == metric["value"]
    cut = [s for s in samples if not s["ended"] and s["stopped"] is None]
    assert result.metrics["protocol"]["answers_cut"] == len(cut)
    assert all(s["tokens"] == 24 for s in cut)
    assert all(s["tokens"] <= 24 for s in samples)
    assert document["n-samples"]["tiny_math"] == {"original": 400, "effective": 9}


def test_an_answer_that_a_stop_text_cut_is_neither_ended_nor_cut_at_the_limit(lab: Lab, tmp_path: Path) -> None:
    rows = [{"question": f"How much is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = tmp_path / "sums.yaml"
    lines = [
        "prompt: 'Question: {question}'",
        "target: ' {answer}'",
        "metric: exact_match",
        "stop: ['。', '\u00e9', '?', 'A']",
    ]
    task.write_text("\n".join(["name: sums", "data: rows.jsonl", *lines]), encoding="utf-8")
    result = lab.make(lab.result(lab.base(bits=16), str(task), limit=3, max_new_tokens=24))
    protocol, samples = result.metrics["protocol"], files(result)[1]
    stopped = [s for s in samples if s["stopped"] is not None]
    assert stopped
    assert all(s["stopped"] in "?A" and s["stopped"] not in s["resps"][0][0] for s in stopped)
    assert {s["explanations"]["ended"] for s in stopped} <= {"ran into 'A'", "ran into '?'"}
    assert {s["ended"] for s in stopped} == {0.0}
    assert protocol["answers_stopped"] == len(stopped)
    assert protocol["answers_cut"] == sum(not s["ended"] for s in samples) - len(stopped)


def test_the_command_says_what_a_reader_of_the_numbers_must_know(lab: Lab, tmp_path: Path) -> None:
    def told(*words: str) -> str:
        settings = {"PLR_HOME": str(lab.store.home), "COLUMNS": "200"}
        done = CliRunner().invoke(app, ["eval", *words, "--device", "cpu"], env=settings)
        assert done.exit_code == 0, done.output
        return done.output

    base = lab.quantize(bits=4, task="tiny_sql", overrides=["quantize.method=rtn"])
    shown = told(base.fingerprint, "--task", "tiny_sql", "--limit", "3", "--max-new-tokens", "2")
    assert "3 of 3 answers were cut at 2 tokens" in shown
    assert "exec_match,first-answer: " in shown
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "".join(f"word {i}\t{i % 2}\n" for i in range(60)))
    shown = told(base.fingerprint, "--task", "text_classification", "--data", str(tmp_path / "rows.tsv"))
    assert "the head is untrained (random, seed 0): the scores are chance" in shown


def test_each_dtype_has_a_result_of_its_own(lab: Lab) -> None:
    base = lab.quantize(bits=4, task="tiny_math", overrides=["quantize.method=rtn"])
    settings = {"PLR_HOME": str(lab.store.home)}
    words = f"eval {base.fingerprint} --task tiny_math --limit 2 --max-new-tokens 2 --device cpu --json".split()

    def ask(dtype: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*words, "--dtype", dtype], env=settings)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    asked = {dtype: ask(dtype) for dtype in ("bfloat16", "float32")}
    assert asked["bfloat16"]["path"] != asked["float32"]["path"]
    for dtype, result in asked.items():
        assert result["metrics"]["dtype"] == result["metrics"]["protocol"]["engine"]["dtype"] == dtype
        assert ask(dtype)["path"] == result["path"]
    auto = ask("auto")
    assert auto["path"] == asked[auto["metrics"]["dtype"]]["path"]


def test_a_job_of_two_dtypes_loads_the_base_in_each(lab: Lab, tmp_path: Path) -> None:
    holder = BaseHolder(lab.store, lab.runtime())
    step = of_math(lab, lab.base(bits=16))
    computed = [
        evaluate(step.replaced(dtype=dtype), tmp_path, holder)["dtype"] for dtype in ("float32", "bfloat16", "float32")
    ]
    assert computed == ["float32", "bfloat16", "float32"]
