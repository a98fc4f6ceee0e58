"""A task in one YAML file: what it asks, how it scores, what it is identified by, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plr.data import head_of, load_split, resolve_task
from plr.errors import ConfigError, DataError
from plr.lab import Lab
from plr.resolve import Resolver
from plr.specs import step_from_json
from plr.study import Study, study_config
from plr.tasks import Response, find_task, task_of

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
    file.write_text(yaml.safe_dump({**LABELS, "metric": "pearson"}))
    assert head_of(resolve_task(str(file), data=str(tmp_path))).regression  # type: ignore[union-attr]


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
        ({"stop": [""]}, "stop text is empty"),
        ({"kind": "classification", "prompt": None, "target": None, "stop": None}, "texts is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_task(write(tmp_path, **changes))


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
