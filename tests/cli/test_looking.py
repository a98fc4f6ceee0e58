"""The commands generate and diff."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from command_line import run

from plr import Lab
from plr.cli.looking import plain
from plr.evaluation.samples import read_samples

QUICK = ["train.epochs=1", "train.train_limit=32", "quantize.samples=8"]
COMMON = ("--offline", "--device", "cpu", "--dtype", "float32")


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert plain("a\x1b[31mb\x07\n\tc\x9b") == "a\\x1b[31mb\\x07\n\tc\\x9b"


def test_one_answer_two_side_by_side_and_a_row(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(home, dtype="float32", device="cpu", offline=True)
    adapter = lab.train(bits=4, task="tiny_math", overrides=QUICK)
    name = adapter.path.name
    code, out, error = run(monkeypatch, capsys, "generate", "embedded:tiny", "Ann has 4 pens.", *COMMON)
    assert code == 0, error
    with lab.speaker(lab.target("embedded:tiny")) as one:
        assert out == one.answer("Ann has 4 pens.", max_new_tokens=256).text + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Ann has 4 pens."))
    assert run(monkeypatch, capsys, "generate", "embedded:tiny", "-", *COMMON)[1] == out
    code, out, error = run(
        monkeypatch,
        capsys,
        "generate",
        name,
        "embedded:tiny",
        "Ann [bold]has[/bold] 4",
        "--max-new-tokens",
        "5",
        "--json",
        *COMMON,
    )
    value = json.loads(out)
    assert (code, value["prompt"], [one["model"] for one in value["answers"]]) == (
        0,
        "Ann [bold]has[/bold] 4",
        [name, "embedded:tiny"],
    )
    result = lab.evaluate(adapter, limit=4)
    record = read_samples(result.path)[0]
    words = ("generate", name, "--task", "tiny_math", "--row", str(record["doc_id"]))
    value = json.loads(run(monkeypatch, capsys, *words, "--json", *COMMON)[1])
    assert value["answers"][0]["text"] == record["resps"][0][0]
    assert value["gold"] == record["target"]
    text = run(monkeypatch, capsys, *words, *COMMON)[1]
    assert f"row {record['doc_id']} of tiny_math" in text
    other = lab.evaluate("embedded:tiny", "tiny_math", limit=4)
    code, text, error = run(
        monkeypatch, capsys, "diff", result.path.name, other.path.name, "--only", "all", "--prompts"
    )
    assert code == 0, error
    assert "2 against 1: " in text
    assert text.count("gold  ") == 4


BAD = [
    (["generate", "embedded:tiny"], "there is nothing to ask"),
    (["generate", "embedded:tiny", " "], "the prompt is empty"),
    (["generate", "embedded:tiny", "a", "b", "c"], "4 words were given"),
    (["generate", "embedded:tiny", "hi", "--temperature", "-1"], "temperature is -1.0"),
    (["generate", "embedded:tiny", "--row", "1"], "--row is of a task"),
    (["generate", "embedded:tiny", "hi", "--chat", "--offline"], "has no chat template"),
    (["diff", "aa", "bb"], "no artifact matches 'aa'"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_message(
    words: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, error = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, ""), error
    assert message in error
