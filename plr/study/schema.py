"""JSON schemas of study and task files, for editors and for the reference page.

Types, bounds and defaults are those of the pydantic models that check a file; meanings are the docstrings below their fields,
read from the source when a schema is asked for, so that nothing else is slower for it. Three things a file may say are not in the
models' fields and are added here: a bare name for an entry, one text for a list of one, and partial settings laid over others.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import BITS, Calibration, CorrectionKnobs, Evaluate, Quantization, TaskSpec, TrainSpec
from plr.study.file import AdapterConfig, EvaluateConfig, QuantizeConfig, StudyConfig, TaskConfig, TestConfig
from plr.tasks.file.schema import HubPart, TaskFile

__all__ = ["MODELS", "SCHEMAS", "file_schema", "meanings"]

Which = Literal["study", "task"]
SCHEMAS: dict[Which, type[BaseModel]] = {"study": StudyConfig, "task": TaskFile}
MODELS: tuple[type[BaseModel], ...] = (
    StudyConfig,
    TaskConfig,
    TestConfig,
    AdapterConfig,
    QuantizeConfig,
    TrainSpec,
    EvaluateConfig,
    CorrectionKnobs,
    Runtime,
    TaskFile,
    HubPart,
)
"""Every model whose keys may stand in a file."""

_SAME_AS: dict[type[BaseModel], tuple[type[BaseModel], ...]] = {
    QuantizeConfig: (Quantization, Calibration),
    EvaluateConfig: (Evaluate,),
    TestConfig: (TaskSpec,),
    TaskConfig: (TestConfig, TaskSpec),
}
"""Specs whose fields a part of a file takes over by name, with their meanings."""

_PARTIAL: dict[tuple[str, str], type[BaseModel]] = {
    ("StudyConfig", "runtime"): Runtime,
    ("TestConfig", "evaluate"): EvaluateConfig,
    ("TaskConfig", "evaluate"): EvaluateConfig,
    ("TaskConfig", "quantize"): QuantizeConfig,
    ("TaskConfig", "train"): TrainSpec,
    ("AdapterConfig", "train"): TrainSpec,
}
"""Mappings in a file whose keys are those of another part."""

_ONE_FOR_A_LIST = {"texts", "metric", "stop"}


def file_schema(which: Which) -> JsonObject:
    """Build the JSON schema (draft 2020-12) of a study or task file."""
    root = SCHEMAS[which]
    schema = root.model_json_schema()
    parts = schema.pop("$defs", {})
    for model in {*_PARTIAL.values()} if which == "study" else ():
        parts.setdefault(model.__name__, model.model_json_schema())
    by_name = {model.__name__: model for model in MODELS}
    for name, part in {root.__name__: schema, **parts}.items():
        _describe(by_name[name], part)
    schema["required"] = [
        key for key in schema.get("required", []) if key != "name"
    ]  # the file's own name, if left out
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"plr {which} file",
        "$defs": dict(sorted(parts.items())),
    }


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Read the meaning of each field of `model`: the docstring below it, its own before an inherited one."""
    read: dict[str, str] = {}
    for cls in (*model.__mro__, *(base for spec in _SAME_AS.get(model, ()) for base in spec.__mro__)):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            read = _docstrings(cls) | read
    return {name: read[name] for name in model.model_fields if name in read}


def _docstrings(cls: type[BaseModel]) -> dict[str, str]:
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    read: dict[str, str] = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                read[name] = " ".join(text.split()).replace("``", "`")
            case _:
                continue
    return read


def _describe(model: type[BaseModel], part: JsonObject) -> None:
    """Add meanings and the short forms of a file to the schema of one model."""
    part["description"] = " ".join((model.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
    explained = meanings(model)
    for key, value in part["properties"].items():
        value.pop("title", None)
        partial = _PARTIAL.get((model.__name__, key))
        if partial is not None:
            value.clear()
            value["$ref"] = f"#/$defs/{partial.__name__}"
        elif key == "by_bits":
            value["additionalProperties"] = {"$ref": "#/$defs/QuantizeConfig"}
            value["propertyNames"] = {"enum": ["8", "4", "3", "2"]}
        elif key in ("train_bits", "restore_bits"):
            _lists_in(value)["items"] = {"enum": list(BITS)}
        _allow_short_forms(key, value)
        value.pop("default_factory", None)
        if key in explained:
            value["description"] = explained[key]


def _lists_in(value: JsonObject) -> JsonObject:
    """Find the list that a value is, or may be."""
    return value if value.get("type") == "array" else next(v for v in value["anyOf"] if v.get("type") == "array")


def _allow_short_forms(key: str, value: JsonObject) -> None:
    items = value.get("items")
    if key in ("tasks", "tests", "adapters") and isinstance(items, Mapping):
        value["items"] = {"anyOf": [{"type": "string"}, items]}
    elif key in _ONE_FOR_A_LIST:
        text = {"type": "string"}
        value["anyOf"] = [text, {"type": value.pop("type"), "items": value.pop("items")}]
    elif key in ("labels", "choices"):
        value["items"] = {"type": ["string", "number"]}
    elif key == "hub":
        value["anyOf"].insert(0, {"type": "string"})
