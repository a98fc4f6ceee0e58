"""`plr tasks`: the list, a row scored live, the check and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_data import both
from typer.testing import CliRunner

from plr.cli.root import app
from plr.tasks import tasks


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["tasks", *words], env={"COLUMNS": "160", "TERM": "dumb"})
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.fixture
def own(tmp_path: Path) -> str:
    rows = [{"q": f"question {i}", "a": "xyz"[i % 3]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "own.yaml"
    file.write_text("data: rows.jsonl\nprompt: '{q}:'\ntarget: ' {a}'\n")
    return str(file)


def test_every_task_is_listed_with_its_metrics() -> None:
    facts = {fact["name"]: fact for fact in json.loads(run("--json"))}
    assert list(facts) == tasks.names()
    out = run()
    for name, fact in facts.items():
        assert f"\n{name} " in out
        assert fact["primary"] in fact["metrics"]
    assert facts["gsm8k"]["source"] == "openai/gsm8k (main)"
    assert facts["glue_rte"]["kind"] == "classification"


@pytest.mark.parametrize("name", ["tiny_math", "tiny_sql"])
def test_a_row_is_scored_live(name: str) -> None:
    value = json.loads(run("show", name, "--row", "3", "--json"))["instance"]
    gold, on, other = value["scored"]
    assert (value["id"], value["rows"]) == ("test-3", 400)
    assert {s["value"] for s in gold["scores"].values()} == {1.0}
    assert (on["scores"]["exact_match,first-answer"]["value"], on["scores"]["exact_match,strict"]["value"]) == (
        1.0,
        0.0,
    )
    assert other["scores"]["exact_match,first-answer"]["value"] == 0.0
    out = run("show", name, "--row", "3")
    assert value["prompt"] in out
    assert "the answer of another row" in out


def test_a_task_file_is_shown(own: str) -> None:
    out = run("show", own)
    assert "a task of your own" in out
    assert "the gold answer, and on, without EOS" in out


def test_a_row_that_is_not_there_is_an_error() -> None:
    done = CliRunner().invoke(app, ["tasks", "show", "tiny_math", "--row", "400"])
    assert "there is no row 400 of the test split" in str(done.exception)


def test_without_its_data_a_task_says_what_is_missing() -> None:
    value = json.loads(run("show", "gsm8k", "--offline", "--json"))
    assert value["instance"] is None
    assert "--data FOLDER" in value["next"]
    assert "no row to show" in run("show", "gsm8k", "--offline")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        case
        for name, folder in (("gsm8k", "gsm8k"), ("glue_mrpc", "glue_std/mrpc"), ("glue_stsb", "glue_std/stsb"))
        for case in both(folder, samples=(name,), sets=(name,), label=name)
    ],
)
def test_a_row_of_a_folder(folder: Path, name: str) -> None:
    value: dict[str, Any] = json.loads(run("show", name, "--data", str(folder), "--json"))["instance"]
    assert value["id"] == "test-0"
    assert all(score["value"] == 1.0 for score in value["scored"][0]["scores"].values())


def test_check_ends_with_one_where_there_are_errors(own: str) -> None:
    assert "no errors" in run("check", own)
    out = run("check", own, "--max-length", "12", code=1)
    assert "more than 12 characters" in out
    value = json.loads(run("check", own, "--max-length", "12", "--json", code=1))
    assert value["errors"] == 3
    assert value["labels"]["train"].keys() == {"x", "y", "z"}


def test_check_counts_tokens_of_a_model(own: str) -> None:
    value = json.loads(run("check", own, "--max-length", "512", "--model", "embedded:tiny", "--json"))
    assert value["longest"]["unit"] == "tokens"
    assert 3 < value["longest"]["train"] < 20


def test_listing_takes_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['plr', 'tasks']\nfrom plr.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
