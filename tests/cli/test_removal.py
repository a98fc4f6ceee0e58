"""`plr rm`: shows, asks, and says what it leaves alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.core.locks import hold

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
BASE, ADAPTER, RESTORED, RESULT = "eefca131dd1a", "722f6b67caf4", "b3a29cc2dba5", "b6e76479bb54"


@pytest.fixture
def plr(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    shutil.copytree(GOLDEN, home)
    return lambda *words: run(monkeypatch, capsys, *words)


def hashes(home: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[2] for path in home.glob("[!.]*/[!.]*"))


def test_it_shows_and_does_nothing_without_a_yes(plr: Any, home: Path) -> None:
    code, out, err = plr("rm", RESULT[:6])
    assert code == 2
    assert RESULT in out
    assert "1 artifacts" in err
    assert "--yes" in err
    assert len(hashes(home)) == 4
    code, out, _ = plr("rm", RESULT[:6], "--dry-run")
    assert code == 0
    assert "would remove 1 artifacts" in out
    assert len(hashes(home)) == 4
    code, out, _ = plr("rm", RESULT[:6], RESTORED, "--yes")
    assert code == 0
    assert "removed 2 artifacts" in out
    assert hashes(home) == sorted([BASE, ADAPTER])


def test_what_others_were_made_from(plr: Any, home: Path) -> None:
    code, _, err = plr("rm", ADAPTER, "--yes")
    assert code == 2
    assert "2 artifacts were made from" in err
    assert RESULT in err
    assert len(hashes(home)) == 4
    code, out, _ = plr("rm", BASE, "--with-dependents", "--yes")
    assert code == 0
    assert out.count("made from one of the others") == 3
    assert hashes(home) == []


def test_json(plr: Any, home: Path) -> None:
    assert json.loads(plr("rm", RESULT, "--json")[1])["exit_code"] == 2
    found = json.loads(plr("rm", RESULT, "--json", "--dry-run")[1])
    assert found["removed"] == []
    assert [Path(one["path"]).name[-12:] for one in found["found"]] == [RESULT]
    gone = json.loads(plr("rm", RESULT, "--json", "--yes")[1])
    assert gone["bytes"] == found["bytes"] > 0
    assert [Path(path).name[-12:] for path in gone["removed"]] == [RESULT]
    assert gone["left_alone"] == []


def test_one_in_use_is_passed_over_and_said(plr: Any, home: Path) -> None:
    with hold(home, RESULT):
        code, out, err = plr("rm", RESULT, RESTORED, "--yes")
    assert code == 1
    assert "removed 1 artifacts" in out
    assert "is in use now" in err
    assert "1 of 2 artifacts were not removed" in err
    assert hashes(home) == sorted([BASE, ADAPTER, RESULT])


@pytest.mark.parametrize(("answer", "count", "code"), [("y\n", 3, 0), ("n\n", 4, 1), ("\n", 4, 1)])
def test_it_asks_on_a_terminal(
    plr: Any, home: Path, answer: str, count: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    found, out, _ = plr("rm", RESULT)
    assert found == code
    assert "remove 1 artifacts" in out
    assert len(hashes(home)) == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing was named"),
        ((RESULT, "--unused"), "artifacts and a rule were given"),
        (("--older", "30"), "--older is '30' expected: hours, days or weeks"),
        (("",), "no artifact matches ''"),
        (("b",), "is ambiguous"),
        (("zzzz",), "no artifact matches"),
    ],
)
def test_bad_input(plr: Any, home: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = plr("rm", *words, "--yes")
    assert code == 2
    assert message in err
    assert len(hashes(home)) == 4


def test_nothing_to_do_is_no_error(plr: Any, home: Path) -> None:
    code, out, _ = plr("rm", "--unused")
    assert code == 0
    assert "removed 0 artifacts" in out
    shutil.rmtree(home)
    assert plr("rm", "--unused", "--older", "1d")[0] == 0
