"""A task in one YAML file: what it asks, how it scores, what it is identified by, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plr.core.specs import step_from_json
from plr.errors import ConfigError, DataError
from plr.lab import Lab
from plr.study import Study, study_config
from plr.study.resolve import Resolver
from plr.tasks import Response, TaskData, find_task, task_of, tasks
from plr.tasks.data.rows import head_of, load_split, resolve_task

CAPITALS = {
    "data": "rows.tsv",
    "prompt": "Question: What is the capital of {country}?\nAnswer:",
    "target": " {capital}",
    "stop": ["Question:"],
    "max_new_tokens": 8,
}
PLACES = ["France Paris", "Japan Tokyo", "Italy Rome", "Peru Lima", "Cuba Havana", "Fiji Suva", "Mali Bamako",
          "Chad Ndjamena", "Oman Muscat", "Iraq Baghdad", "Iran Tehran", "Spain Madrid"]  # fmt: skip
LABELS = {"kind": "classification", "texts": "{a}", "label": "y"}


def write(folder: Path, *, stem: str = "capitals", **changes: Any) -> str:
    (folder / "rows.tsv").write_text("\n".join(["country\tcapital", *(p.replace(" ", "\t") for p in PLACES)]))
    file = folder / f"{stem}.yaml"
    kept = {key: value for key, value in {**CAPITALS, **changes}.items() if value is not None}
    file.write_text(yaml.safe_dump(kept, allow_unicode=True))
    return str(file)


def score(task: Any, row: dict[str, Any], text: str, ended: bool = True) -> dict[str, float | None]:
    from plr.tasks import Example

    example = Example("test-0", row, task.prompt(row), task.target(row))
    return {name: value.value for name, value in task.score(example, Response(text, ended)).items()}


def test_prompt_target_and_scores(tmp_path: Path) -> None:
    task, row = find_task(write(tmp_path)), {"country": "Peru", "capital": "Lima"}
    assert (task.prompt(row), task.target(row)) == ("Question: What is the capital of Peru?\nAnswer:", " Lima")
    names = ("exact_match,first-answer", "exact_match,strict", "ended")
    assert task.metrics == names
    cases = [
        (" Lima", True, 1, 1, 1),
        (" Lima\nQuestion: x", False, 1, 0, 0),
        (" Lima", False, 1, 0, 0),
        ("Cuzco", True, 0, 0, 1),
    ]
    for text, ended, *wanted in cases:
        assert score(task, row, text, ended) == dict(zip(names, wanted, strict=True)), text


def test_rows_lie_beside_the_file_and_splits_are_cut(tmp_path: Path) -> None:
    spec = resolve_task(write(tmp_path))
    sizes = [len(load_split(spec, split).examples) for split in ("train", "validation", "test")]
    assert sizes == [10, 1, 1]
    assert spec.path == str(tmp_path / "rows.tsv")


def test_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    one, two = resolve_task(write(first)), resolve_task(write(second))
    Path(second / "capitals.yaml").write_text("# a comment\n" + Path(second / "capitals.yaml").read_text())
    assert one.identity() == two.identity() == resolve_task(str(second / "capitals.yaml")).identity()
    changed = resolve_task(write(first, prompt="{country}:"))
    assert changed.identity() != one.identity()


def test_a_registered_task_keeps_its_identity() -> None:
    assert "definition" not in resolve_task("tiny_math").identity()


def test_the_definition_travels_in_the_step(tmp_path: Path) -> None:
    """A worker, or a later evaluation, needs the rows and not the file."""
    file = write(tmp_path)
    step = Lab(tmp_path / "home").adapter("embedded:tiny", bits=16, task=file)
    Path(file).unlink()
    again = step_from_json(step.model_dump(mode="json"))
    assert again.fingerprint == step.fingerprint
    assert again.task.name == "capitals"
    assert "capitals" in again.label
    assert task_of(again.task).prompt({"country": "x"}) == "Question: What is the capital of x?\nAnswer:"


def test_a_study_takes_a_file_wherever_it_takes_a_name(tmp_path: Path) -> None:
    file = write(tmp_path)
    axes = {"train_bits": [4], "restore_bits": [4], "preset": "tiny"}
    study = Study(study_config({"name": "own", "tasks": [file, {"name": "tiny_math", "tests": ["tiny_sql"]}], **axes}))
    assert {cell.task for cell in study.cells} == {"capitals", "tiny_sql"}
    cell = study.cells[0].step
    assert cell.max_new_tokens == 8
    assert cell.base.quantization.calibration.task == cell.task == cell.target.adapter.task  # type: ignore[union-attr]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path), write(tmp_path, stem="other")]
    Path(files[1]).write_text("name: capitals\n" + Path(files[1]).read_text())
    with pytest.raises(ConfigError, match="both called capitals"):
        Study(study_config({"name": "own", "tasks": files, "preset": "tiny"}))


def test_restoring_to_another_width_needs_no_file(tmp_path: Path) -> None:
    file = write(tmp_path)
    lab = Lab(tmp_path / "home")
    trained = lab.adapter("embedded:tiny", bits=16, task=file)
    Path(file).unlink()
    restored = lab.restored(trained, bits=4)
    assert restored.base.quantization.calibration.task == trained.task  # type: ignore[union-attr]


def test_an_unresolved_hub_data_set_keeps_the_definition(tmp_path: Path) -> None:
    file = write(tmp_path, data=None, hub="org/capitals")
    resolver = Resolver(strict=False, offline=True)
    spec = resolver.task(file)
    assert (spec.name, spec.revision, resolver.unresolved) == ("capitals", "unresolved", [f"data of task {file}"])
    assert task_of(spec).hub.id == "org/capitals"  # type: ignore[union-attr]


@pytest.mark.parametrize("label", [1, "1", "Lima"])
def test_choices_by_place_or_text(tmp_path: Path, label: Any) -> None:
    task = find_task(
        write(tmp_path, prompt="{q}", choices=["{a}", "{b}"], label="y", target=" {choice}", metric="exact_match")
    )
    row = {"q": "Peru?", "a": "Rome", "b": "Lima", "y": label}
    assert task.problem(row) is None
    assert task.target(row) == " Lima"
    assert [score(task, row, text)["exact_match,first-answer"] for text in (" Lima", "Rome", "Cuzco")] == [1, 0, 0]
    assert [score(task, row, text)["in_choices,first-answer"] for text in (" Lima", "Rome", "Cuzco")] == [1, 1, 0]
    assert "none of the choices" in str(task.problem({**row, "y": 2}))


@pytest.mark.parametrize("label", [2, "2"])
def test_choices_that_are_digits_are_meant_by_their_text(tmp_path: Path, label: Any) -> None:
    """A table has no numbers and JSON has: both must ask for the same answer."""
    task = find_task(write(tmp_path, prompt="{q}", choices=["1", "2", "3"], label="y", target="{choice}"))
    assert task.problem({"q": "?", "y": label}) is None
    assert task.target({"q": "?", "y": label}) == "2"


def test_a_label_that_is_a_place_and_another_choice_is_refused(tmp_path: Path) -> None:
    task = find_task(write(tmp_path, prompt="{q}", choices=["{a}", "{b}"], label="y", target="{choice}"))
    row = {"q": "1 + 1?", "a": "2", "b": "0"}
    assert "the text of one choice and the place of another" in str(task.problem({**row, "y": "0"}))
    assert task.problem({**row, "y": 0}) is None
    assert task.target({**row, "y": 0}) == "2"
    assert task.target({**row, "y": "2"}) == "2"
    assert "none of the choices" in str(task.problem({**row, "y": "9" * 5000}))


def test_a_scorer_brings_metrics_boundary_and_gold(tmp_path: Path) -> None:
    """Another wording of GSM8K scores every answer as GSM8K does, and says so in its identity."""
    file = write(tmp_path, prompt="Solve: {question}", target="{answer}", scorer="gsm8k", stop=["Solve:"])
    task, gsm8k = find_task(file), tasks.get("gsm8k")
    row = {"question": "1 + 1?", "answer": "One more.\n#### 2"}
    assert (task.metrics, task.primary, task.strict) == (gsm8k.metrics, gsm8k.primary, gsm8k.strict)
    assert task.stop == ("Solve:", *gsm8k.stop)
    for text in ("#### 2", "#### $2", "#### 3 #### 2", "is 2.", "", "#### 2\nQuestion: 5", "#### 2\nmore"):
        assert score(task, row, text) == score(gsm8k, row, text), text
    assert score(task, row, "#### 2\nSolve: 3")["exact_match,flexible-extract"] == 1
    assert "as its scorer gsm8k reads it" in str(task.problem({"question": "?", "answer": "2"}))
    assert "'answer' is missing" in str(task.problem({"question": "?"}))
    assert "scorer_version" in str(task.definition)
    other = str(task.definition).replace('"scorer_version":1', '"scorer_version":9')
    spec = resolve_task(file).model_copy(update={"definition": other})
    with pytest.raises(ConfigError, match="another version of plr"):
        task_of(spec)


def test_rows_that_the_scorer_ties_are_cut_together(tmp_path: Path) -> None:
    """Questions to one table stay on one side, as in the task itself."""
    file = write(tmp_path, prompt="{question}", target="{answer}", scorer="sql_create_context")
    rows = [
        {"question": f"q {i}?", "context": f"CREATE TABLE t{i // 5} (a INT)", "answer": "SELECT 1"} for i in range(100)
    ]
    (tmp_path / "sql.json").write_text(json.dumps([*rows, rows[0]]))
    task, data = find_task(file), TaskData(path=str(tmp_path / "sql.json"))
    tables = {one: {row.row["context"] for row in task.load(one, data).examples} for one in task.splits(data)}
    assert sum(map(len, tables.values())) == 20
    assert sum(task.load(one, data).report.duplicates for one in tables) == 1


@pytest.mark.parametrize(
    ("boundary", "text", "first"),
    [
        ("line", "\n a b\nc", "a b"),
        ("paragraph", "a\nb\n\nc", "a\nb"),
        ("statement", "SELECT 1; x", "SELECT 1"),
        ("text", "a\n\nb STOP c", "a\n\nb"),
    ],
)
def test_boundaries(tmp_path: Path, boundary: str, text: str, first: str) -> None:
    assert find_task(write(tmp_path, boundary=boundary, stop=["STOP"])).boundary(text) == first


def test_a_semicolon_behind_a_statement_is_no_more_answer(tmp_path: Path) -> None:
    task = find_task(write(tmp_path, metric="sql_match", boundary="statement"))
    row = {"country": "x", "capital": "SELECT a FROM t"}
    assert score(task, row, " SELECT a FROM t;")["sql_match,strict"] == 1
    assert score(task, row, " SELECT a FROM t; SELECT b")["sql_match,strict"] == 0


@pytest.mark.parametrize(("metric", "known"), [("exact_match_folded", 1), ("exact_match", 0), ("rougeL", 0)])
def test_a_right_answer_is_one_of_the_choices(tmp_path: Path, metric: str, known: int) -> None:
    task = find_task(
        write(tmp_path, prompt="{q}", choices=["Lima", "Rome"], label="y", target=" {choice}", metric=metric)
    )
    assert score(task, {"q": "Peru?", "y": 0}, " lima")["in_choices,first-answer"] == known
    assert score(task, {"q": "Peru?", "y": 0}, " Rome")["in_choices,first-answer"] == 1
    assert score(task, {"q": "Peru?", "y": 0}, " Oslo")["in_choices,first-answer"] == 0


def test_a_metric_of_degrees_has_no_strict_twin(tmp_path: Path) -> None:
    task = find_task(write(tmp_path, metric=["rougeL", "exact_match"], boundary="text"))
    assert task.metrics == ("rougeL,first-answer", "exact_match,first-answer", "ended")
    assert score(task, {"country": "x", "capital": "a b c"}, "a c d")["rougeL,first-answer"] == pytest.approx(2 / 3)


def test_a_head_with_named_labels(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f'{{"a": "text {i}", "y": {i % 2}}}\n' for i in range(40)))
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({**LABELS, "labels": ["good", "bad"], "metric": ["acc", "f1"]}))
    spec = resolve_task(str(file), data=str(tmp_path))
    task, example = task_of(spec), load_split(spec, "train").examples[0]
    assert head_of(spec).names == ("good", "bad")  # type: ignore[union-attr]
    assert example.target == ("good", "bad")[example.row["y"]]
    assert task.label(example.row, head_of(spec)) == example.row["y"]  # type: ignore[attr-defined]
    assert task.texts(example.row) == (example.row["a"], None)  # type: ignore[attr-defined]
    file.write_text(yaml.safe_dump(LABELS))
    assert head_of(resolve_task(str(file), data=str(tmp_path))).names == ("0", "1")  # type: ignore[union-attr]
    rows = "".join(f'{{"a": "text {i}", "y": {i % 3}}}\n' for i in range(40))
    (tmp_path / "train.jsonl").write_text(rows)
    file.write_text(yaml.safe_dump({**LABELS, "metric": "f1"}))
    with pytest.raises(DataError, match="f1 is of two labels, and the train split has 3"):
        head_of(resolve_task(str(file), data=str(tmp_path)))
    file.write_text(yaml.safe_dump({**LABELS, "metric": "pearson"}))
    assert head_of(resolve_task(str(file), data=str(tmp_path))).regression  # type: ignore[union-attr]
    assert "not a number" in str(find_task(str(file)).problem({"a": "x", "y": 10**400}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "unknown key promt, did you mean prompt"),
        ({"metric": "exact_mach"}, "there is no metric exact_mach .* did you mean exact_match"),
        ({"target": "capital"}, "write its field in braces"),
        ({"prompt": "What?"}, "prompt reads no field"),
        ({"prompt": "{country.__class__}"}, "plain {field} names"),
        ({"prompt": None}, "prompt is missing"),
        ({"labels": ["a", "b"]}, "labels belongs to kind: classification"),
        ({"choices": ["a", "b"]}, "choices and label go together"),
        ({"choices": ["a", "b"], "label": "y"}, "target must hold"),
        ({"hub": "org/name"}, "data and hub are both given"),
        ({"name": "gsm8k"}, "already a task called gsm8k"),
        ({"name": "a/b"}, "name"),
        ({"name": "2 b"}, "a name is a letter, then letters, digits, _ and -"),
        ({"data": None, "hub": "https://huggingface.co/datasets/org/name"}, "hub.id: .* is ORG/NAME"),
        ({"group": "{country}"}, "group: this is the name of a field, without braces"),
        ({"stop": [""]}, "stop text is empty"),
        ({"splits": {"train": "a", "test": "A"}}, "two splits are read from one place: test: A, train: a"),
        ({"splits": {"all": "a", "test": "b"}}, "name no other beside it"),
        ({"prompt": "{{country}}"}, "prompt reads no field"),
        ({"prompt": "{choice}?", "choices": ["a", "b"], "label": "y", "target": "{choice}"}, "stands in target"),
        ({"choices": ["a", "{choice}"], "label": "y", "target": "{choice}"}, "stands in target"),
        ({"scorer": "gsm9k"}, "scorer gsm9k is no registered task: did you mean gsm8k"),
        ({"scorer": "glue_cola"}, "scorer glue_cola judges a head"),
        ({"scorer": "gsm8k", "metric": "exact_match"}, "scorer brings its own metrics"),
        ({"scorer": "gsm8k", "boundary": "text"}, "scorer brings its own metrics"),
        ({**LABELS, "prompt": None, "target": None, "stop": None, "scorer": "gsm8k"}, "scorer belongs to kind"),
        ({**LABELS, "prompt": None, "target": None, "stop": None, "labels": list("abc"), "metric": "f1"}, "f1 is of two"),
        ({"kind": "classification", "prompt": None, "target": None, "stop": None}, "texts is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_task(write(tmp_path, **changes))


@pytest.mark.parametrize("name", ["folder", "rows.tsv", "folder.yaml"])
def test_what_is_no_task_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    for folder in ("folder", "folder.yaml"):
        (tmp_path / folder).mkdir()
    (tmp_path / "folder" / "task.yaml").touch()
    with pytest.raises(ConfigError, match="and no task") as caught:
        find_task(str(tmp_path / name))
    hint = str(tmp_path / "folder" / "task.yaml") if name == "folder" else "rows are named with --data"
    assert hint in str(caught.value.hint)


def test_splits_that_are_named_must_be_there(tmp_path: Path) -> None:
    task = find_task(write(tmp_path, splits={"train": "a", "test": "b"}))
    (tmp_path / "a.tsv").write_bytes((tmp_path / "rows.tsv").read_bytes())
    for path, message in ((tmp_path, "has no file b for test"), (tmp_path / "rows.tsv", "none of the splits")):
        with pytest.raises(DataError, match=message):
            task.splits(TaskData(path=str(path)))
    (tmp_path / "b.tsv").write_bytes((tmp_path / "rows.tsv").read_bytes())
    assert task.splits(TaskData(path=str(tmp_path))) == ("train", "validation", "test")
    assert task.splits(TaskData(path=str(tmp_path / "a.tsv"))) == ("train", "validation")


def test_yaml_truth_is_caught(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("kind: classification\ntexts: '{a}'\nlabel: y\nlabels: [yes, no]\n")
    with pytest.raises(ConfigError, match="in quotes"):
        find_task(str(file))


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_task(str(tmp_path / "capitols.yaml"))
    assert caught.value.hint == "did you mean capitals.yaml?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"country": "Peru"}', "line 1: the field 'capital' is missing; given are country"),
        ('{"country": "Peru", "capital": " "}', "line 1: the field 'capital' is empty"),
        ('{"country": "Peru", "capital": ["Lima"]}', "line 1: the field 'capital' is a list"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=message):
        load_split(resolve_task(write(tmp_path), data=str(tmp_path / "test.jsonl")), "test")
