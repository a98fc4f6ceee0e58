"""`plr ls`: the table in any width, names that every command takes, JSON."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.core.manifest import MANIFEST, write_manifest
from plr.core.specs import Calibration, Evaluate, ModelRef, Quantization, Quantize, Source, TaskSpec
from plr.core.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "store"


@pytest.fixture
def plr(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    shutil.copytree(GOLDEN, home)
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *words: run(monkeypatch, capsys, *words)


def lay_more(home: Path, n: int = 12) -> None:
    """Commit bases and results with long names beside those that are there."""
    store = Store(home)
    source = Source(model=ModelRef(kind="hub", name="organization/a-model-with-a-long-name-1.5B", revision="0" * 40))
    task = TaskSpec(name="a_task_with_a_long_name", version=1)
    for seed in range(n):
        calibration = Calibration(task=task, seed=seed)
        base = Quantize(source=source, quantization=Quantization(bits=4, calibration=calibration))
        store.make(base, lambda folder: {})
        measured = {"value": seed / n, "stderr": 0.01, "n": 1319}
        record = {"primary": "exact_match,strict", "metrics": {"exact_match,strict": measured}}
        store.make(Evaluate(target=base, task=task), lambda folder, record=record: record)


def test_every_name_that_is_printed_is_a_ref_for_that_artifact(plr: Any, home: Path) -> None:
    lay_more(home)
    listed = json.loads(plr("ls", "--json")[1])
    names = plr("ls", "--names")[1].split()
    assert names == [row["name"] for row in listed]
    assert {row["kind"] for row in listed} == {"base", "adapter", "restored", "result"}
    for row in listed:
        for ref in (row["name"], row["hash"], row["fingerprint"], row["path"]):
            assert json.loads(plr("show", ref, "--json")[1])["fingerprint"] == row["fingerprint"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_fits_the_terminal_and_its_first_column_is_a_ref(
    plr: Any, home: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_more(home)
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = plr("ls")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= width
    hashes = re.findall(r"^([0-9a-f]{6,12}) ", out, re.MULTILINE)
    assert len(hashes) == 4 + 24
    stored = [row["fingerprint"] for row in json.loads(plr("ls", "--json")[1])]
    for short, whole in zip(hashes, stored, strict=True):
        assert whole.startswith(short)
        assert sum(one.startswith(short) for one in stored) == 1
    assert ("left out" in out) == (width < 150)
    assert "91.67 (1319)" in out


def test_a_pipe_has_all_columns(plr: Any) -> None:
    out = plr("ls")[1]
    assert out.split("\n")[0].split() == [
        "hash", "kind", "model", "k", "l", "mode", "method", "task", "score", "(n)", "metric", "size", "date",
    ]  # fmt: skip
    assert "mode" not in plr("ls", "base")[1].split("\n")[0].split()  # no base has one


def test_filters_order_and_limit(plr: Any, home: Path) -> None:
    lay_more(home)
    best = json.loads(plr("ls", "result", "--sort", "score", "--limit", "2", "--task", "a_*", "--json")[1])
    assert [row["score"]["value"] for row in best] == [10 / 12, 11 / 12]
    first = json.loads(plr("ls", "--kind", "result", "--sort", "score", "--limit", "1", "--reverse", "--json")[1])
    assert first[0]["score"]["value"] == 11 / 12
    kinds = {row["kind"] for row in json.loads(plr("ls", "base", "--kind", "adapter", "--json")[1])}
    assert kinds == {"base", "adapter"}
    assert len(plr("ls", "--k", "2", "--l", "16", "--mode", "restore", "--names")[1].split()) == 2
    assert len(plr("ls", "--method", "none", "--method", "lora", "--names")[1].split()) == 3 + 12


def test_nothing_that_fits_is_said_with_what_there_is(plr: Any, home: Path) -> None:
    code, out, _ = plr("ls", "--task", "gsm8k", "--k", "2")
    assert code == 0
    assert "none of 4 artifacts fits --k 2 --task gsm8k" in out
    assert "task: tiny_math" in out
    assert plr("ls", "--task", "gsm8k", "--names")[1] == ""
    assert json.loads(plr("ls", "--task", "gsm8k", "--json")[1]) == []
    shutil.rmtree(home)
    assert "run plr quantize" in plr("ls")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("result", "--sort", "age"), "--sort is 'age' expected: one of date, score, size, name"),
        (("bases",), "unknown kind 'bases'"),
        (("--kind", "adaptor"), "did you mean adapter"),
        (("--names", "--json"), "--names and --json were given"),
    ],
)
def test_bad_options(plr: Any, words: tuple[str, ...], message: str) -> None:
    code, out, err = plr("ls", *words)
    assert code == 2
    assert message in (err or out)


def test_an_artifact_of_a_later_version_has_its_name(plr: Any, home: Path) -> None:
    folder = next((home / "base").iterdir())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["step"]["surprise"] = 1
    write_manifest(
        folder / MANIFEST, {key: value for key, value in manifest.items() if key not in ("format", "sha256")}
    )
    code, out, _ = plr("ls", "base")
    assert code == 0
    assert "tiny-gptq-2bit" in out


def test_one_without_a_manifest_is_an_error_after_the_rest(plr: Any, home: Path) -> None:
    folder = next((home / "base").iterdir())
    (folder / MANIFEST).write_text("{")
    code, out, err = plr("ls")
    assert code == 5
    assert "b6e76479bb54" in out
    assert "1 more without a manifest" in err
    assert plr("ls", "adapter")[0] == 0
