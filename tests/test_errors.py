"""Errors: their text, their exit codes, and their way across a process."""

from __future__ import annotations

import pickle

from plr import errors
from plr.errors import PlrError, UnknownNameError


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
