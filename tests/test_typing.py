"""Types: how much of plr is `Any`, and that its doors take named options."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import plr

ROOT = Path(plr.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
DOORS = ("lab.py", "cli", "core", "engines", "study")
"""Rooms through which options come in: an editor follows a call through them to the spec."""
BOUND = 8
"""Uses of `Any` a thousand lines. The bound may only fall."""


def uses(text: str) -> int:
    """Count the word `Any` in code: its import and each annotation."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(ast.parse(text))) + len(
        re.findall(r"^from typing import .*\bAny\b", text, re.MULTILINE)
    )


def bags(text: str) -> list[str]:
    """List functions that take keyword arguments of any name and type."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg is not None:
            annotation = node.args.kwarg.annotation
            if annotation is None or ast.unparse(annotation) == "Any":
                found.append(node.name)
    return found


def test_any_and_bags_are_found() -> None:
    text = "from typing import Any\n\ndef f(a: dict[str, Any], **options: Any) -> int: ...\ndef g(**more: int) -> None: ...\n"
    assert uses(text) == 3
    assert bags(text) == ["f"]


def test_any_is_rare() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    lines = sum(text.count("\n") for text in texts)
    assert 1000 * sum(map(uses, texts)) / lines <= BOUND


@pytest.mark.parametrize("door", DOORS)
def test_options_have_names_and_types(door: str) -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == door:
            assert not bags(path.read_text(encoding="utf-8")), path


def test_nothing_is_left_untyped_at_the_front_door() -> None:
    assert uses((ROOT / "lab.py").read_text(encoding="utf-8")) == 0


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
