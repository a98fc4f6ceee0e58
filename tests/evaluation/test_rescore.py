"""`plr score`: the same numbers as the scorers of plr eval and scikit-learn, every malformed line refused with its number."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from plr.cli.root import app, main
from plr.errors import DataError
from plr.evaluation.predictions import read_predictions
from plr.evaluation.rescore import Rescored, rescore
from plr.lab import Lab
from plr.stats import wilson
from plr.tasks import Response, task_of
from plr.tasks.data.rows import load_split, resolve_task

WORDS = ("acceptable", "unacceptable")


def lines(folder: Path, values: list[Any], name: str = "predictions.jsonl") -> Path:
    file = folder / name
    file.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return file


def tiny(folder: Path, values: list[Any], task: str = "tiny_math", **how: Any) -> Rescored:
    return rescore(resolve_task(task), "test", read_predictions(lines(folder, values)), **how)


def gold(task: str = "tiny_math", n: int | None = None) -> list[dict[str, Any]]:
    rows = load_split(resolve_task(task), "test").examples[:n]
    return [{"doc_id": int(row.id.split("-")[1]), "response": row.target, "ended": True} for row in rows]


@pytest.mark.parametrize("task", ["tiny_math", "tiny_sql"])
def test_gold_scores_one_hundred_percent(tmp_path: Path, task: str) -> None:
    found = tiny(tmp_path, gold(task), task)
    assert {name: metric["value"] for name, metric in found.metrics.items()} == dict.fromkeys(found.metrics, 1.0)
    assert found.metrics["ended"]["low"] == wilson(found.about["rows"], found.about["rows"]).low
    assert found.about["without_prediction"] == 0


def test_progress_is_told_and_parts_come_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    whole = tiny(tmp_path, gold(), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(400, 400)]
    monkeypatch.setattr("plr.evaluation.rescore._AT_ONCE", 150)
    parts = tiny(tmp_path, gold(), on_progress=lambda done, total: told.append((done, total)))
    assert told[1:] == [(150, 400), (300, 400), (400, 400)]
    assert (parts.metrics, parts.rows) == (whole.metrics, whole.rows)


@pytest.mark.parametrize("task", ["tiny_math", "tiny_sql"])
def test_shuffled_gold_scores_near_nothing(tmp_path: Path, task: str) -> None:
    values = gold(task)
    responses = [value["response"] for value in values]
    random.Random(0).shuffle(responses)
    moved = [{**value, "response": response} for value, response in zip(values, responses, strict=True)]
    assert tiny(tmp_path, moved, task).metrics["exact_match,first-answer"]["value"] < 0.05


def test_the_mean_is_that_of_the_scorer(tmp_path: Path) -> None:
    """Against the task's own score, over responses of every kind; order of the lines does not count."""
    spec = resolve_task("tiny_math")
    task, rows = task_of(spec), load_split(spec, "test").examples[:40]
    kinds = [lambda t: t, lambda t: t + "\nQuestion: more", lambda t: t.replace("####", "##"), lambda t: "#### 1\n" + t]
    made = [(row, Response(kinds[i % 4](row.target), ended=i % 3 > 0)) for i, row in enumerate(rows)]
    values = [{"doc_id": int(r.id.split("-")[1]), "response": p.text, "ended": p.ended} for r, p in made]
    found = tiny(tmp_path, values[::-1])
    for name in task.metrics:
        wanted = [task.score(row, response)[name].value for row, response in made]
        assert found.metrics[name]["value"] == pytest.approx(sum(v or 0 for v in wanted) / len(wanted)), name
    assert found.about["without_prediction"] == found.about["rows"] - 40


def test_where_ended_is_not_said_strict_is_not_measured(tmp_path: Path) -> None:
    values = [{"doc_id": v["doc_id"], "response": v["response"]} for v in gold(n=4)]
    values[0]["ended"] = True
    found = tiny(tmp_path, values)
    assert (found.metrics["exact_match,strict"]["n"], found.metrics["ended"]["unscored"]) == (1, 3)
    assert found.metrics["exact_match,first-answer"]["n"] == 4
    assert found.about["ended_unknown"] == 3


def test_missing_rows_are_left_out_wrong_or_refused(tmp_path: Path) -> None:
    values = gold(n=100)
    total = tiny(tmp_path, values).about["rows"]
    assert tiny(tmp_path, values).metrics["ended"]["n"] == 100
    wrong = tiny(tmp_path, values, missing="wrong").metrics["exact_match,first-answer"]
    assert (wrong["n"], wrong["value"]) == (total, 100 / total)
    with pytest.raises(
        DataError, match=f"{total - 100} of {total} rows .* have no prediction: 100, 101, 102, 103, 104 and"
    ):
        tiny(tmp_path, values, missing="refuse")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": 1, "response": "x"', "line 2: not JSON"),
        ("[1, 2]", "line 2: a JSON list"),
        ('{"response": "x"}', "line 2: doc_id is missing"),
        ('{"doc_id": "1", "response": "x"}', "line 2: doc_id is '1'"),
        ('{"doc_id": true, "response": "x"}', "line 2: doc_id is True"),
        ('{"doc_id": -1, "response": "x"}', "line 2: doc_id is -1"),
        ('{"doc_id": 1}', "line 2: there is no response; the keys are doc_id"),
        ('{"doc_id": 1, "response": null}', "line 2: the response is None"),
        ('{"doc_id": 1, "response": {"a": 1}}', "line 2: the response is {'a': 1}"),
        ('{"doc_id": 1, "response": [NaN]}', r"line 2: the response is \[nan\]"),
        ('{"doc_id": 1, "response": "x", "ended": "yes"}', "line 2: ended is 'yes'"),
        ('{"doc_id": 1, "resps": [["x", "y"]]}', "line 2: resps is not one generation"),
        (
            '{"doc_id": 1, "resps": [["-1.5", "False"]]}',
            "next: samples of a task that compares likelihoods hold no text",
        ),
        ('{"doc_id": ' + "9" * 5000 + ', "response": "x"}', "line 2: not JSON"),
        ('{"doc_id": 1, "response": ' + "9" * 400 + "}", r"line 2: the response is \[999"),
        ('{"doc_id": 0, "response": "other"}', "line 2: row 0 is answered a second time, and otherwise than on line 1"),
        ('{"doc_id": 100000, "response": "x"}', "line 2: doc_id 100000 is no row of the test split"),
        ('{"doc_id": 1, "response": 5}', "line 2: the response is a number"),
        (
            '{"doc_id": 1, "resps": [["x"]], "doc": {"question": "?"}}',
            "line 2: doc 1 is another row .* its question differs",
        ),
    ],
)
def test_malformed_lines_are_refused_by_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny(tmp_path, [{"doc_id": 0, "response": "x"}, line])


def test_bytes_that_are_no_text_are_refused_by_number(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"doc_id": 0, "response": "x"}\n{"doc_id": 1, "response": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_predictions(file)
    file.write_bytes(gzip.compress(b'{"doc_id": 0, "response": "x"}\n'))
    with pytest.raises(DataError, match=r"line 1: not UTF-8 .*\n.*\n  next: unpack it first"):
        read_predictions(file)


def test_a_doc_that_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    values = [{"doc_id": i, "resps": [["x"]], "doc": {"query": "?"}} for i in range(3)]
    assert tiny(tmp_path, values).about["rows_not_compared"] == 3
    printed = CliRunner().invoke(app, ["score", "tiny_math", str(lines(tmp_path, values))], env={"COLUMNS": "200"})
    assert "3 samples hold a doc without any field of these rows" in printed.stdout
    assert tiny(tmp_path, gold(n=3)).about["rows_not_compared"] == 0


def test_the_written_rows_hold_whatever_a_model_wrote(tmp_path: Path) -> None:
    out, file = tmp_path / "rows.jsonl", lines(tmp_path, ['{"doc_id": 0, "response": "\\ud800\\ud83d\\ude00 #### 1"}'])
    done = CliRunner().invoke(app, ["score", "tiny_math", str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text(encoding="utf-8"))["response"] == "\ufffd\U0001f600 #### 1"
    none = CliRunner().invoke(app, ["score", "tiny_math", str(file), "-o", str(tmp_path / "no" / "rows.jsonl")])
    assert "there is no folder" in str(none.exception)


def test_nothing_to_score(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "there is no file"),
        (lines(tmp_path, ["", " "]), "no predictions"),
        (tmp_path, "no files"),
    ):
        with pytest.raises(DataError, match=message):
            read_predictions(path)


def test_a_line_that_repeats_another_counts_once(tmp_path: Path) -> None:
    """lm-eval writes one line for each of its filters."""
    values = [
        {"doc_id": v["doc_id"], "resps": [[v["response"]]], "filter": f}
        for v in gold(n=5)
        for f in ("strict", "flexible")
    ]
    found = tiny(tmp_path, values)
    assert (found.about["scored"], found.about["repeated_lines"]) == (5, 5)


def test_our_own_samples_score_as_they_did(tmp_path: Path) -> None:
    """Through the record that plr eval writes, read back from its folder."""
    from plr.evaluation.records import Sample, summary

    spec = resolve_task("tiny_math")
    task, rows = task_of(spec), load_split(spec, "test").examples[:30]
    samples = []
    for i, row in enumerate(rows):
        text = row.target if i % 3 else row.target + "\nQuestion: x"
        scores = task.score(row, Response(text, ended=i % 2 == 0))
        values = {name: score.value for name, score in scores.items()}
        samples.append(Sample(row, arguments=[row.prompt], response=text, answer=text, scores=values, loss=0.0))
    lines(tmp_path, [sample.as_json() for sample in samples], "samples_tiny_math_x.jsonl")
    found = rescore(spec, "test", read_predictions(tmp_path))
    assert {n: m["value"] for n, m in found.metrics.items()} == {
        n: m["value"] for n, m in summary(samples).items() if n in task.metrics
    }


def table(folder: Path, labels: list[str], name: str = "test") -> Path:
    text = "text\tlabel\n" + "".join(f"words {name} {i}\t{label}\n" for i, label in enumerate(labels))
    (folder / f"{name}.tsv").write_text(text)
    return folder


@pytest.fixture
def cola(tmp_path: Path) -> Any:
    """A task file with all the metrics of two labels, 60 rows."""
    generator = random.Random(1)
    labels = [generator.choice(WORDS) for _ in range(60)]
    folder = tmp_path / "rows"
    folder.mkdir()
    table(folder, labels * 2, "train"), table(folder, labels)
    (tmp_path / "own.yaml").write_text(
        "kind: classification\ndata: rows\ntexts: '{text}'\nlabel: label\n"
        "labels: [unacceptable, acceptable]\nmetric: [acc, f1, mcc, roc_auc]\n"
    )
    return resolve_task(str(tmp_path / "own.yaml")), labels


def test_label_names_agree_with_scikit_learn(tmp_path: Path, cola: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    spec, labels = cola
    generator = random.Random(2)
    given = [label if generator.random() < 0.7 else generator.choice((*WORDS, "no such label")) for label in labels]
    found = rescore(
        spec, "test", read_predictions(lines(tmp_path, [{"doc_id": i, "response": g} for i, g in enumerate(given)]))
    )
    values = {name: metric["value"] for name, metric in found.metrics.items()}
    assert values["acc"] == pytest.approx(metrics.accuracy_score(labels, given))
    assert values["mcc"] == pytest.approx(metrics.matthews_corrcoef(labels, given))
    positive = [g == "acceptable" for g in given]
    assert values["f1"] == pytest.approx(metrics.f1_score([label == "acceptable" for label in labels], positive))
    assert values["roc_auc"] is None
    assert found.about["outside_labels"] == given.count("no such label") > 0


def test_outputs_of_a_head_give_every_metric(tmp_path: Path, cola: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    spec, labels = cola
    generator = random.Random(3)
    outputs = [[generator.gauss(0, 1), generator.gauss(label == "acceptable", 1)] for label in labels]
    samples = [{"doc_id": i, "resps": [[pair]], "filtered_resps": ["-"]} for i, pair in enumerate(outputs)]
    found = rescore(spec, "test", read_predictions(lines(tmp_path, samples)))
    wanted = metrics.roc_auc_score([label == "acceptable" for label in labels], [b - a for a, b in outputs])
    assert found.metrics["roc_auc"]["value"] == pytest.approx(wanted)
    assert (
        found.metrics["acc"]["value"]
        == sum((b > a) == (y == "acceptable") for (a, b), y in zip(outputs, labels, strict=True)) / 60
    )
    low, high = found.metrics["mcc"]["low"], found.metrics["mcc"]["high"]
    assert -1 <= low < found.metrics["mcc"]["value"] < high <= 1


def test_a_head_with_another_number_of_outputs(tmp_path: Path, cola: Any) -> None:
    with pytest.raises(DataError, match="line 1: the response has 3 numbers"):
        rescore(cola[0], "test", read_predictions(lines(tmp_path, [{"doc_id": 0, "response": [1, 2, 3]}])))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = lines(tmp_path, [*gold(n=3)]), tmp_path / "rows.jsonl"
    done = CliRunner().invoke(app, ["score", "tiny_math", str(file), "--json", "-o", str(out)])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["scored"], value["metrics"]["ended"]["value"], value["primary"]) == (
        3,
        1.0,
        "exact_match,first-answer",
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["scores"]["exact_match,strict"] for row in rows] == [1.0, 1.0, 1.0]
    printed = CliRunner().invoke(app, ["score", "tiny_math", str(file)], env={"COLUMNS": "120"}).stdout
    assert "* " in printed
    assert "397 of 400 rows have no prediction and are left out" in printed
    monkeypatch.setattr(sys, "argv", ["plr", "score", "tiny_mth", str(file)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "did you mean" in capsys.readouterr().err


def test_scoring_takes_no_torch(tmp_path: Path) -> None:
    file = lines(tmp_path, [*gold(n=3)])
    code = (
        f"import sys; sys.argv = ['plr', 'score', 'tiny_math', {str(file)!r}]\n"
        "from plr.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_the_files_that_lm_eval_writes_score_as_lm_eval_scored_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own task, evaluator and writer; a model that recites. Its folder is read as it lies, a line for each filter."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    rows = [{"question": f"What is {i} + 1?", "answer": f"One more: {i + 1}.\n#### {i + 1}"} for i in range(24)]
    said = (
        " {n}",
        " It is #### {n}",
        " #### ${n}",
        " 5, so {n}.00",
        " #### {n}\n#### 7",
        "",
        " So {n}.\n\nQuestion: 3",
        " x",
    )
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        lines(tmp_path / "data", rows, f"{split}.jsonl")

    class Reciting(LM):
        def generate_until(self, requests: Any) -> list[str]:
            found: list[str] = []
            for one in requests:
                number = int(one.doc["question"].split()[2])
                text = said[number % len(said)].format(n=number + 1)
                for stop in one.args[1]["until"]:  # as lm-eval asks of every model
                    text = text.partition(stop)[0]
                found.append(text)
            return found

        loglikelihood = loglikelihood_rolling = None  # type: ignore[assignment]

    text = (Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8")
    config = {key: value for key, value in yaml.safe_load(text).items() if key not in ("tag", "dataset_name")}
    files = {split: str(tmp_path / "data" / f"{split}.jsonl") for split in ("train", "test")}
    config |= {"task": "gsm8k_here", "dataset_path": "json", "num_fewshot": 0}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    theirs: Any = lm_eval.simple_evaluate(model=Reciting(), tasks=[config], bootstrap_iters=0)
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.log_experiment_args("fake", {"pretrained": "org/name"}, None, None, False)
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(theirs, samples=samples)
    tracker.save_results_samples("gsm8k_here", samples["gsm8k_here"])
    spec = resolve_task("gsm8k", data=str(tmp_path / "data"))
    ours = rescore(spec, "test", read_predictions(tmp_path / "out" / "org__name"))
    assert (ours.about["scored"], ours.about["repeated_lines"], ours.about["rows_not_compared"]) == (24, 24, 0)
    for name in ("exact_match,strict-match", "exact_match,flexible-extract"):
        assert 0 < theirs["results"]["gsm8k_here"][name] < 1
        assert ours.metrics[name]["value"] == pytest.approx(theirs["results"]["gsm8k_here"][name])


def test_rows_with_numbers_that_are_none_are_written_as_json_and_scored_again(tmp_path: Path) -> None:
    """A table of pandas has NaN where a cell is empty, for which JSON has no word."""
    nothing = {"note": float("nan"), "more": [float("inf")]}
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        numbers = range(len(split) * 10, len(split) * 10 + count)
        rows = [{"question": f"{n} plus {n}?", "answer": str(2 * n), **nothing} for n in numbers]
        lines(tmp_path, rows, f"{split}.jsonl")
    task = tmp_path / "sums.yaml"
    task.write_text(
        f"name: sums\ndata: {tmp_path}\nprompt: '{{question}}'\ntarget: ' {{answer}}'\nmax_new_tokens: 4\n",
        encoding="utf-8",
    )
    lab = Lab(tmp_path / "store", offline=True, dtype="float32")
    result = lab.evaluate(lab.base(bits=16), task=str(task), limit=4)
    samples = next(result.path.glob("samples_*.jsonl"))
    docs = [json.loads(line, parse_constant=pytest.fail)["doc"] for line in samples.read_text().splitlines()]
    assert [(doc["note"], doc["more"]) for doc in docs] == [(None, [None])] * 4
    again = rescore(resolve_task(str(task)), "test", read_predictions(samples))
    assert again.metrics["exact_match,strict"]["value"] == result.metrics["metrics"]["exact_match,strict"]["value"]
