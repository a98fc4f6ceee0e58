"""YAML files into checked values, with errors that point at the line's key and suggest the right one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from plr.core.fingerprint import JsonObject
from plr.errors import ConfigError

__all__ = ["Read", "apply_overrides", "as_it_is", "load_yaml", "parse"]

M = TypeVar("M", bound=BaseModel)
Read = Callable[[tuple[str, ...], Any], Any]


def as_it_is(place: tuple[str, ...], value: Any) -> Any:
    """Leave a value that was read as it is."""
    return value


_DEEPEST = 100
_MOST_VALUES = 100_000
_MOST_BYTES = 4 << 20


class _Bounded(yaml.SafeLoader):
    """YAML with bounds on depth and on the values that aliases stand for, in which a key stands once in a mapping."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_DEEPEST}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {}, set())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int], open_: set[int]) -> int:
    """Count the values of `node` with every alias written out."""
    if id(node) in open_:
        raise yaml.MarkedYAMLError(problem="a value that holds itself", problem_mark=node.start_mark)
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        open_.add(id(node))
        known[id(node)] = 1 + sum(_count(part, known, open_) for part in parts)
        open_.remove(id(node))
        if known[id(node)] > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_VALUES} values", problem_mark=node.start_mark)
    return known[id(node)]


def load_yaml(path: Path) -> JsonObject:
    """Read the mapping a YAML file holds.

    Raises:
        ConfigError: no such file (with the nearest names), broken YAML (with line and column), or no mapping at the top.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=2, cutoff=0.4)
        raise ConfigError(
            f"there is no file {path}",
            expected="a YAML file" + (f"; that folder has {', '.join(beside)}" if beside else ""),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes", expected=f"settings, at most {_MOST_BYTES} bytes")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Bounded)
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # of a tag that its value does not fit: the last two
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: {getattr(error, 'problem', None) or error}", expected="valid YAML"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}", expected="a mapping of keys to values")
    return cast("JsonObject", value)


def apply_overrides(value: Mapping[str, Any], overrides: Iterable[str], read: Read = as_it_is) -> JsonObject:
    """Apply `--set a.b=c` texts: a copy of `value` with the dotted keys replaced; the right side is read as YAML.

    `read` gets the place (`("a", "b")`) and the value read there, and gives what is put there.

    >>> apply_overrides({"train": {"epochs": 1}}, ["train.epochs=3", "train_bits=[4, 2]"])
    {'train': {'epochs': 3}, 'train_bits': [4, 2]}
    """
    result = _copy(value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}", expected="KEY=VALUE, e.g. --set train.epochs=3")
        *parents, last = key.strip().split(".")
        try:
            new = read((*parents, last), yaml.load(text, _Bounded))
            node: Any = result
            for parent in parents:
                node = _entered(node, parent)
            node[int(last) if isinstance(node, list) else last] = new
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not YAML", expected="KEY=VALUE") from error
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"--set {override!r}: there is no such place in the settings",
                expected="keys of the study file joined by dots, a number for a place in a list, e.g. tasks.0.data=DIR",
            ) from error
    return result


def parse(model: type[M], value: Mapping[str, Any], where: str) -> M:
    """Validate `value` as a `model`.

    Raises:
        ConfigError: every problem on its own line, with the key's path; an unknown key is answered with the nearest one.
    """
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        lines = [_problem(model, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _problem(model: type[BaseModel], problem: Any) -> str:
    path = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    dotted = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        advice = f", did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}" if known else ""
        return f"unknown key {dotted}{advice}"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    shown = f" (given: {value!r})" if isinstance(value, str | int | float | bool | None) else ""
    return f"{dotted or 'top level'}: {message}{shown}"


def _fields_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    node: Any = model
    for part in path:
        if isinstance(part, str) and _is_model(node) and part in node.model_fields:
            node = _model_in(node.model_fields[part].annotation)
    return list(node.model_fields) if _is_model(node) else []


def _model_in(annotation: Any) -> Any:
    """Return the pydantic model inside an annotation such as `tuple[TaskEntry, ...] | None`."""
    if _is_model(annotation):
        return annotation
    return next((model for arg in get_args(annotation) if _is_model(model := _model_in(arg))), None)


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _entered(node: Any, key: str) -> Any:
    """Go to a place inside a list or a mapping; a key that is not there yet is made."""
    return cast("list[Any]", node)[int(key)] if isinstance(node, list) else node.setdefault(key, {})


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in cast("Mapping[object, object]", value).items()}
    return [_copy(item) for item in cast("list[object]", value)] if isinstance(value, list) else value
