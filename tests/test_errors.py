"""The error tree: what its documentation draws, texts and exit codes, and that no code decides by the words of a message."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from plr import errors
from plr.errors import DataError, HubDataUnreachable, HubUnreachable, PlrError

ROOT = Path(errors.__file__).parent
BY_WORDS = {
    "core/files.py": {"disk_full", "system_error"},
    "core/memory.py": {"out_of_memory"},
    "adapters/peft.py": {"_layer_is_foreign"},
    "serving/package.py": {"_memory_is_short"},
}
"""The functions that must read words, as the library gives neither class nor number; each says why."""


def test_the_documented_tree_is_the_tree() -> None:
    drawn: dict[str, tuple[int, str]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([ │├└─]*)(\w+Error|Hub\w+)\b", line):
            depth = len(match[1]) // 4
            above[depth] = match[2]
            drawn[match[2]] = (depth, above.get(depth - 1, "Exception"))
    assert set(drawn) == set(errors.__all__)
    for name, (_, parent) in drawn.items():
        assert parent in [base.__name__ for base in getattr(errors, name).__mro__[1:]], name


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


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_crosses_a_process_whole(name: str) -> None:
    kind: type[PlrError] = getattr(errors, name)
    again = pickle.loads(pickle.dumps(kind("what", expected="this", hint="do that")))
    assert type(again) is kind
    assert (again.message, again.expected, again.hint, again.exit_code) == ("what", "this", "do that", kind.exit_code)


def test_rows_of_an_unreachable_hub_are_both_kinds_and_a_usage_error() -> None:
    error = HubDataUnreachable("x")
    assert isinstance(error, DataError)
    assert isinstance(error, HubUnreachable)
    assert error.exit_code == 2


def is_message(node: ast.AST) -> bool:
    """`str(x)`, `repr(x)`, `x.message`, `x.args`, or a method of one of them."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id in ("str", "repr") and bool(node.args) and is_error(node.args[0])
        return isinstance(node.func, ast.Attribute) and is_message(node.func.value)
    return isinstance(node, ast.Attribute) and node.attr in ("message", "args") and is_error(node.value)


def is_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("error", "exception", "exc", "e", "cause", "reason", "raised")


def decides_by_words(function: ast.AST) -> bool:
    """Whether a message is compared or searched in it, directly or by a name that stands for it."""
    names = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and (is_message(node.value) or (isinstance(node.value, ast.Call) and "_line" in ast.unparse(node.value.func)))
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def words(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return words(node.func.value)
        return is_message(node) or (isinstance(node, ast.Name) and node.id in names)

    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and any(
            isinstance(operator, ast.In | ast.NotIn | ast.Eq | ast.NotEq) and words(right)
            for operator, right in zip(node.ops, node.comparators, strict=True)
        ):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith") and words(node.func.value):
                return True
            if ast.unparse(node.func) in ("re.search", "re.match", "re.fullmatch") and any(map(words, node.args)):
                return True
    return False


def test_the_search_finds_what_it_is_for() -> None:
    for code in (
        'if "hub" in error.message: pass',
        'if "x" not in str(error).lower(): pass',
        'text = str(error)\nif "y" in text: pass',
        'if str(error).startswith("z"): pass',
        'if re.search("z", str(error)): pass',
        'words = _first_line(error)\nif "KV" in words: pass',
    ):
        assert decides_by_words(ast.parse(code)), code
    assert not decides_by_words(ast.parse('raise X(f"{error}", hint=str(error)) if "a" in names else Y'))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_control_flow_never_reads_the_words_of_a_message(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = {function.name for function in functions if decides_by_words(function)}
    assert found == BY_WORDS.get(path.relative_to(ROOT).as_posix(), set())
