"""The commands export and card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from peft import PeftConfig

from plr import Lab


def test_an_adapter_goes_out_with_its_card(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(home, dtype="float32", device="cpu", offline=True)
    adapter = lab.train(
        bits=4, task="tiny_math", overrides=["train.epochs=1", "train.train_limit=16", "quantize.samples=8"]
    )
    name, out = adapter.path.name, tmp_path / "out"
    code, text, error = run(monkeypatch, capsys, "export", name, "--format", "peft", "-o", str(out), "--offline")
    assert code == 0, error
    assert f"peft {out}" in " ".join(text.split())
    assert PeftConfig.from_pretrained(str(out)).base_model_name_or_path == "embedded:tiny"
    assert "Made with plr." in (out / "README.md").read_text()
    code, text, _ = run(
        monkeypatch, capsys, "export", name, "--bits", "16", "-o", str(out), "--force", "--offline", "--json"
    )
    value = json.loads(text)
    assert (code, value["format"], value["made"]["streamed"]) == (0, "merged", True)
    assert "model.safetensors" in value["files"]
    code, text, _ = run(monkeypatch, capsys, "card", name)
    assert code == 0
    assert text.startswith("---\n")
    assert "| trained on k | 4 bits |" in text
    code, text, _ = run(monkeypatch, capsys, "card", name, "-o", str(tmp_path / "card"), "--json")
    assert [Path(file).name for file in json.loads(text)["files"]] == ["README.md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "no folder was given expected: --output FOLDER"),
        (["export", "--format", "merge", "-o", "x"], "unknown export format 'merge'"),
        (["export", "-o", "x"], "run plr"),
        (["card"], "run plr"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    words: list[str],
    message: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, ""), error
    assert message in error or "is empty" in error or "no " in error, error
    assert not (tmp_path / "x").exists()
