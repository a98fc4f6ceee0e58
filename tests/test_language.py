"""The language of docstrings: a verb and its object (functions) or a noun phrase (classes, modules), in one markup."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "plr"

QUESTIONS = {
    *("What", "Whether", "How", "Where", "Of", "Which", "That", "Why", "When", "With", "For", "From"),
    *("Without", "After", "As", "In", "Inside"),
}
"""Words that begin neither a request nor a noun phrase: what follows is a riddle until the second line."""
ARTICLES = {"The", "A", "An", "One", "Every", "All", "Both", "Each", "Some", "Any", "No"}
"""Words that begin a noun phrase: right for a class, a module or a property, wrong for a function."""
ROLE = re.compile(r":[a-z]+:`")
ENDS = (".", ":", ";", "!", "?", "`", '"', ")")


class Docstring(NamedTuple):
    where: str
    is_function: bool
    text: str


def docstrings(path: Path) -> Iterator[Docstring]:
    """Yield every docstring of a file; a property is a noun, so it counts as no function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        decorators = [] if isinstance(node, ast.Module) else [ast.unparse(one) for one in node.decorator_list]
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_function = is_function and not any(one.endswith("property") for one in decorators)
        line = node.body[0].lineno
        yield Docstring(f"{path.relative_to(ROOT.parent).as_posix()}:{line}", is_function, text)


def string_faults(path: Path) -> Iterator[str]:
    """Yield what strings that stand alone (docstrings of attributes too) do wrong: another markup, a question for a beginning."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            word = node.value.value.split(" ", 1)[0]
            if word in QUESTIONS:
                yield f"{path.relative_to(ROOT.parent).as_posix()}:{node.lineno}: begins with {word}"
            for offset, line in enumerate(node.value.value.splitlines()):
                if not line.lstrip().startswith(("```", ">>>")) and ("``" in line or ROLE.search(line)):
                    yield f"{path.relative_to(ROOT.parent).as_posix()}:{node.lineno + offset}: {line.strip()}"


def fault_of(docstring: Docstring) -> str | None:
    """Name the first rule that a docstring breaks.

    >>> fault_of(Docstring("x", True, "Whether it rains."))
    'begins with Whether'
    >>> fault_of(Docstring("x", True, "The rain."))
    'a function begins with a verb, not with The'
    >>> fault_of(Docstring("x", True, "Measure the rain.")), fault_of(Docstring("x", False, "The rain."))
    (None, None)
    """
    first = docstring.text.split("\n", 1)[0].rstrip()
    word = re.match(r"\w*", first)
    name = word.group() if word else ""
    if not first:
        return "the first line is empty"
    if name in QUESTIONS:
        return f"begins with {name}"
    if docstring.is_function and name in ARTICLES:
        return f"a function begins with a verb, not with {name}"
    if docstring.is_function and not re.match(r"[A-Z][a-z]+,? ", first):
        return "a function begins with a verb and its object"
    if not first.endswith(ENDS):
        return "the first line does not end as a sentence"
    return None


def faults(room: str) -> list[str]:
    """List what breaks the rules in a room, a folder or a loose file of plr."""
    folder = ROOT / room
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]
    spoken = [
        f"{docstring.where}: {fault}: {docstring.text.splitlines()[0]}"
        for path in paths
        for docstring in docstrings(path)
        if (fault := fault_of(docstring)) is not None
    ]
    return spoken + [fault for path in paths for fault in string_faults(path)]


ALL_ROOMS = sorted(
    {
        path.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in ROOT.rglob("*.py")
        if "__pycache__" not in path.parts
    }
)


@pytest.mark.parametrize("room", ALL_ROOMS)
def test_docstrings_say_what_is_done_or_what_it_is(room: str) -> None:
    assert not faults(room), "\n" + "\n".join(faults(room))


@pytest.mark.parametrize(
    ("text", "is_function", "fault"),
    [
        ("Whether it rains.", True, "begins with Whether"),
        ("Of the rain.", False, "begins with Of"),
        ("The rain.", True, "a function begins with a verb, not with The"),
        ("`rain` in mm.", True, "a function begins with a verb and its object"),
        ("Measure the rain\nof a day.", True, "the first line does not end as a sentence"),
        ("The rain of a day.", False, None),
        ("Measure the rain of a day.\n\nIn mm.", True, None),
    ],
)
def test_each_rule_sees_its_fault(text: str, is_function: bool, fault: str | None) -> None:
    assert fault_of(Docstring("here", is_function, text)) == fault


def test_attributes_are_held_to_the_rules_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path / "plr")
    path = tmp_path / "plr" / "one.py"
    path.parent.mkdir()
    lines = ["One.", "A ``number`` of :func:`f`.", "Whether it rains.", "True if it rains."]
    text = "\n".join(f'"""{line}"""\nx = "``text``"' for line in lines) + "\n"
    path.write_text(text, encoding="utf-8")
    assert [fault.split(": ", 1)[0] for fault in string_faults(path)] == ["plr/one.py:3", "plr/one.py:5"]
