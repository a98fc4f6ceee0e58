"""What each metric of sql_create_context says about one response, and how its only split is divided."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from real_data import both

from plr.tasks import Example, Response, TaskData, tasks

TASK = tasks.get("sql_create_context")
ROW = {"context": "CREATE TABLE t (a VARCHAR)", "question": "Which a?", "answer": 'SELECT a FROM t WHERE a = "Tko"'}
EXAMPLE = Example("test-0", ROW, TASK.prompt(ROW), TASK.target(ROW))


def test_prompt_and_target() -> None:
    assert EXAMPLE.prompt == "CREATE TABLE t (a VARCHAR)\nQuestion: Which a?\nSQL:"
    assert EXAMPLE.target == ' SELECT a FROM t WHERE a = "Tko"'


@pytest.mark.parametrize(
    ("text", "ended", "raw", "normalized", "first", "folded", "executed", "strict", "stopped"),
    [
        (EXAMPLE.target, True, 1, 1, 1, 1, 1, 1, 1),
        (EXAMPLE.target, False, 1, 1, 1, 1, 1, 0, 0),
        (EXAMPLE.target + "; ", True, 0, 1, 1, 1, 1, 1, 1),
        (EXAMPLE.target + "\nOutput: 23", False, 0, 0, 1, 1, 1, 0, 0),
        (EXAMPLE.target + "; SELECT 2", True, 0, 0, 1, 1, 1, 0, 1),
        (" select T1.A from T as T1 where T1.a = 'Tko'", True, 0, 1, 1, 1, 1, 1, 1),
        (" SELECT a FROM t WHERE 'Tko' = a", True, 0, 0, 0, 0, 1, 0, 1),
        (EXAMPLE.target.replace("Tko", "TKO"), True, 0, 0, 0, 1, 0, 0, 1),
        (" SELECT b FROM t", True, 0, 0, 0, 0, 0, 0, 1),
        ("", True, 0, 0, 0, 0, 0, 0, 1),
    ],
)
def test_metrics_of(
    text: str, ended: bool, raw: int, normalized: int, first: int, folded: int, executed: int, strict: int, stopped: int
) -> None:
    scores = TASK.score(EXAMPLE, Response(text, ended))
    assert tuple(scores) == TASK.metrics
    assert [score.value for score in scores.values()] == [raw, normalized, first, folded, executed, strict, stopped]


def test_a_batch_is_scored_as_its_samples_are() -> None:
    texts = [EXAMPLE.target, " SELECT b FROM t", EXAMPLE.target + "\nOutput: 23"] * 20
    responses = [Response(text, i % 2 == 0) for i, text in enumerate(texts)]
    every = TASK.score_all([EXAMPLE] * len(responses), responses)
    assert every == [TASK.score(EXAMPLE, response) for response in responses]


def test_an_undecidable_sample_leaves_the_mean_of_exec_match_alone() -> None:
    row = ROW | {"answer": "SELECT b FROM t"}
    scores = TASK.score(Example("test-0", row, TASK.prompt(row), TASK.target(row)), Response(" SELECT b FROM t", True))
    assert scores["exec_match,first-answer"].value is None
    assert scores["exec_match,first-answer"].explanation.startswith("undecidable: the gold does not run")
    assert scores["exact_match,first-answer"].value == 1.0


def _write(path: Path, contexts: list[str]) -> str:
    rows = [{"context": c, "question": f"Question {i}?", "answer": "SELECT 1"} for i, c in enumerate(contexts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tables_are_grouped_by_name_whatever_columns_they_show() -> None:
    groups = TASK.groups({"context": 'CREATE TABLE Head (a INT); create  table if not exists "born" (b INT)'})
    assert groups == {"head", "born"}
    assert TASK.groups({"context": " no\n table "}) == {"no table"}


def test_one_split_is_divided_so_that_linked_tables_stay_together(tmp_path: Path) -> None:
    contexts = [f"CREATE TABLE t{i // 4} (c{i} INT)" for i in range(400)]
    contexts += [f"CREATE TABLE t{2 * i} (x INT); CREATE TABLE t{2 * i + 1} (y INT)" for i in range(20)]
    data = TaskData(path=_write(tmp_path / "rows.jsonl", contexts))
    parts = {split: TASK.load(split, data) for split in ("train", "validation", "test")}
    assert sum(part.report.rows for part in parts.values()) == 420
    assert all(30 <= len(parts[split].examples) <= 42 for split in ("validation", "test"))
    names = {s: set(re.findall(r"t\d+", " ".join(e.row["context"] for e in p.examples))) for s, p in parts.items()}
    assert (
        not names["train"] & names["validation"] | names["train"] & names["test"] | names["validation"] & names["test"]
    )
    assert parts["test"].examples[0].id.startswith("all-")
    assert "one split of 420 rows divided 80/10/10 in groups, seed 0" in (parts["test"].report.cut or "")


def test_the_division_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", [f"CREATE TABLE t{i} (c INT)" for i in range(200)])
    ids = [[e.id for e in TASK.load("test", TaskData(path=path, split_seed=seed)).examples] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_a_component_too_large_for_a_held_out_split_goes_to_train(tmp_path: Path) -> None:
    data = TaskData(
        path=_write(
            tmp_path / "rows.jsonl",
            ["CREATE TABLE big (c INT)"] * 50 + [f"CREATE TABLE t{i} (c INT)" for i in range(50)],
        )
    )
    for split in ("validation", "test"):
        assert not any("big" in example.prompt for example in TASK.load(split, data).examples)


def test_duplicates_of_question_and_schema_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"question": "which  A?"}, ROW | {"context": "CREATE TABLE u (a VARCHAR)"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = TASK.load("test", TaskData(path=str(tmp_path)))
    assert [example.id for example in split.examples] == ["test-0", "test-2"]
    assert (split.report.rows, split.report.duplicates, split.report.kept) == (3, 1, 2)


@pytest.mark.parametrize(("file", "least"), both("sql/dev.jsonl", samples=(17,), sets=(290,)))
def test_rows_divided_share_no_table(file: Path, least: int, tmp_path: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    data = TaskData(path=str(tmp_path / "rows.jsonl"))
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        examples = TASK.load(split, data).examples
        assert len(examples) >= least
        for example in examples:
            for table in TASK.groups(example.row):
                assert seen.setdefault(table, split) == split


@pytest.mark.slow
def test_a_file_as_large_as_the_real_one_loads_divides_and_is_scored(tmp_path: Path) -> None:
    """78,577 rows as the data set has them: most tables alone, some joined, in a component of thousands too."""
    count = 78_577
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(count):
            tables = [f"table_{i // 3}"] if i % 10 else [f"shop_{i % 400}", f"shop_{(i * 7) % 400}"]
            context = "; ".join(f"CREATE TABLE {name} (c{i % 5} VARCHAR, n INTEGER)" for name in dict.fromkeys(tables))
            row = {"context": context, "question": f"Which one is number {i}?"}
            file.write(json.dumps(row | {"answer": f"SELECT c{i % 5} FROM {tables[0]} WHERE n > {i}"}) + "\n")
    data, begun = TaskData(path=str(tmp_path / "rows.jsonl")), time.process_time()
    parts = {split: TASK.load(split, data) for split in ("train", "validation", "test")}
    assert time.process_time() - begun < 60  # seconds of CPU; 5 on the machine it was written on
    assert sum(part.report.rows for part in parts.values()) == count
    assert all(0.09 * count < len(parts[split].examples) <= 0.1 * count for split in ("validation", "test"))
    seen: dict[str, str] = {}
    for split, part in parts.items():
        assert all(seen.setdefault(table, split) == split for e in part.examples for table in TASK.groups(e.row))
    some = parts["test"].examples[:2000]
    scores = TASK.score_all(some, [Response(example.target, True) for example in some])
    assert {score["exec_match,first-answer"].value for score in scores} == {1.0}


LINES = "CREATE TABLE people (name TEXT, age INTEGER, city TEXT)"


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT name\nFROM people\nWHERE age > 30",
        "SELECT city, COUNT(*)\r\nFROM people\r\nGROUP BY city",
        "WITH old AS (\n  SELECT name FROM people WHERE age > 60\n)\nSELECT COUNT(*) FROM old;",
        "SELECT name\n\tFROM people\n",
    ],
)
def test_gold_over_several_lines(gold: str) -> None:
    row = {"question": "?", "context": LINES, "answer": gold}
    example = Example("test-0", row, TASK.prompt(row), TASK.target(row))

    def values(text: str) -> list[float | None]:
        scores = TASK.score(example, Response(text, ended=True))
        return [
            scores[name].value for name in ("exact_match,first-answer", "exec_match,first-answer", "exact_match,strict")
        ]

    one_line = " ".join(gold.split())
    assert values(f" {gold}") == [1.0, 1.0, 1.0]
    assert values(f" {one_line}") == [1.0, 1.0, 1.0]
    assert values(f" {one_line.rstrip(';')}\n\nQuestion: next")[:2] == [1.0, 1.0]
    assert values(f" {gold.replace('people', 'nobody')}")[:2] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('SELECT "First Name" FROM people WHERE age > 30', True),
        ("SELECT `First Name` FROM people WHERE age > 30", True),
        ("SELECT [First Name] FROM people WHERE age > 30", True),
        ('SELECT "Last Name" FROM people WHERE age > 30', False),
        ("SELECT 'First Name' FROM people WHERE age > 30", False),
    ],
)
def test_names_quoted_as_the_schema_quotes_them(answer: str, right: bool) -> None:
    context = 'CREATE TABLE people ("First Name" TEXT, "Last Name" TEXT, age INTEGER)'
    row = {"question": "?", "context": context, "answer": 'SELECT "First Name" FROM people WHERE age > 30'}
    scores = TASK.score(Example("test-0", row, "", ""), Response(f" {answer}", ended=True))
    assert scores["exec_match,first-answer"].value == scores["exact_match,first-answer"].value == float(right)
