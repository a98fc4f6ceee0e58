"""The samples are what their generator writes, and one file alone knows where real data lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_data import SAMPLES, both, needs, real
from samples.make import FOLDER, files

TESTS = Path(__file__).parent


def test_the_samples_are_those_of_the_generator() -> None:
    """Also in the other direction: no file lies there that it does not write."""
    made = files()
    assert FOLDER == SAMPLES
    lying = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.*") if not path.match("*.py*")}
    assert lying == set(made)
    assert [name for name in made if (SAMPLES / name).read_text(encoding="utf-8") != made[name]] == []


def test_no_test_looks_for_data_beside_the_clone_by_itself() -> None:
    """`real_data` resolves the folder; whoever wants real rows asks it."""
    for word in ("shared/data", '"shared" /', "../models", "PLR_TEST_DATA"):
        users = [path.name for path in TESTS.rglob("*.py") if word in path.read_text(encoding="utf-8")]
        assert set(users) <= {"real_data.py", Path(__file__).name}, word


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLR_TEST_DATA", str(tmp_path))
    assert real("gsm8k") is None
    (condition,) = needs("gsm8k").args
    assert condition is True
    assert "PLR_TEST_DATA" in needs("gsm8k").kwargs["reason"]
    (tmp_path / "gsm8k").mkdir()
    assert real("gsm8k") == tmp_path.resolve() / "gsm8k"
    samples, other = both("gsm8k", samples=(1,), sets=(2,))
    assert samples.values == (SAMPLES / "gsm8k", 1)
    assert other.values == (tmp_path.resolve() / "gsm8k", 2)
    assert other.marks[0].args == (False,)


def test_a_variable_that_names_no_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLR_TEST_DATA", str(tmp_path / "mistyped"))
    with pytest.raises(pytest.UsageError, match=r"mistyped'\n  expected: a folder\n  next:"):
        real("gsm8k")
