"""errors, registry, fingerprint, provenance."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest

from plr import errors
from plr.core.fingerprint import canonical_json, file_sha256, fingerprint, folder_sha256
from plr.core.provenance import provenance
from plr.errors import PlrError, UnknownNameError
from plr.registry import Registry


def test_error_text_says_given_expected_next() -> None:
    text = str(PlrError("given", expected="right", hint="do"))
    assert text == "given\n  expected: right\n  next: do"


def test_exit_codes_of_the_tree() -> None:
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes["PlrError"] == codes["ModelError"] == codes["TrainingError"] == codes["MissingDependencyError"] == 1
    assert codes["ConfigError"] == codes["UnknownNameError"] == codes["DataError"] == codes["LeakageError"] == 2
    assert codes["CellsFailedError"] == 3
    assert codes["ResourceError"] == 4
    assert codes["IntegrityError"] == codes["ProvenanceError"] == 5


def test_errors_cross_a_process_boundary_whole() -> None:
    error = pickle.loads(pickle.dumps(UnknownNameError("a", expected="b", hint="c")))
    assert (type(error), error.message, error.expected, error.hint) == (UnknownNameError, "a", "b", "c")


def test_registry_suggests_the_nearest_name() -> None:
    registry: Registry[int] = Registry("thing", "plr.nothing")
    registry.register("gsm8k")(1)
    with pytest.raises(UnknownNameError, match=r"unknown thing 'gms8k'[\s\S]*did you mean gsm8k"):
        registry.get("gms8k")


def test_registry_refuses_a_second_owner_of_a_name() -> None:
    registry: Registry[object] = Registry("thing", "plr.nothing")
    registry.register("a")(1)
    with pytest.raises(PlrError, match="two things are called 'a'"):
        registry.register("a")(2)


def test_registry_loads_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "theirs"

        def load(self) -> int:
            return 7

    monkeypatch.setattr("plr.registry.entry_points", lambda group: [Point()] if group == "plr.things" else [])
    assert Registry[int]("thing", "plr.things").get("theirs") == 7


def test_fingerprint_ignores_key_order_and_tells_types_apart() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(v) for v in (1, 1.0, "1", True, None, [1])}) == 6


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), Path("a")])
def test_fingerprint_refuses_what_has_no_spelling(value: object) -> None:
    with pytest.raises(TypeError, match=r"\$\.a is a"):
        fingerprint({"a": value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fingerprint_refuses_infinite_numbers(value: float) -> None:
    with pytest.raises(ValueError, match=r"\$\[0\] is"):
        fingerprint([value])


def test_fingerprint_refuses_keys_that_are_not_text() -> None:
    with pytest.raises(ValueError, match="keys must be text"):
        canonical_json({1: "a"})


def test_known_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = folder_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_sha256(tmp_path) != before


def test_provenance_names_versions_and_machine() -> None:
    made = provenance()
    assert {"date", "command", "versions", "git", "machine"} == made.keys()
    assert {"python", "torch", "transformers", "peft"} <= made["versions"].keys()
