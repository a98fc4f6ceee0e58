"""The page of YAML keys, from the models that check the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from plr.study.presets import PRESETS
from plr.study.schema import Which, file_schema

SECTIONS = {
    "TaskConfig": "An entry of `tasks`",
    "TestConfig": "An entry of `tests`",
    "AdapterConfig": "An entry of `adapters`",
    "QuantizeConfig": "`quantize`",
    "TrainSpec": "`train`",
    "EvaluateConfig": "`evaluate`",
    "CorrectionKnobs": "`correction`",
    "Runtime": "`runtime`",
    "HubPart": "`hub`",
}
HEAD = """# YAML keys

<!-- Written by docs/fill.py from the models that check the files: change those, not this page. -->

Every key of study files (`plr grid`, and `plr train -c`) and task files, with type, default and meaning. A key that is not here is
an error that names the nearest one. `--set` takes the same keys with dots: `--set train.epochs=3`, `--set adapters.0.config.r=8`.

`plr config-schema study` and `plr config-schema task` print the same as JSON Schema. An editor with a YAML language server
completes and checks keys where a comment names the schema, as in every file of `configs/`:

```
# yaml-language-server: $schema=../schema/study.json
```
"""
PRESETS_ARE = """What `preset: NAME` or `--preset NAME` puts below a file's own settings. Without one a file starts from the
defaults above; single commands start from `tiny` for the embedded base, and from `paper` for other models."""


def yaml_page() -> str:
    """Write the page: study file part by part, presets, task file."""
    parts = [HEAD.strip()]
    for which in get_args(Which):
        schema = file_schema(which)
        heading = f"{which.capitalize()} file"
        parts += [f"## {heading}", *_part(schema)]
        parts += [text for name in SECTIONS if name in schema["$defs"] for text in _named(name, schema["$defs"][name])]
        parts += _presets() if which == "study" else []
    return "\n\n".join(parts) + "\n"


def _named(name: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"### {SECTIONS[name]}"
    yield from _part(part)


def _part(part: dict[str, Any]) -> Iterator[str]:
    yield part["description"]
    rows = [
        f"| `{key}` | {_type(value)} | {_default(key, value, part)} | {_cell(value['description'])} |"
        for key, value in part["properties"].items()
    ]
    yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        title = SECTIONS[name]
        return f"mapping: [{title}](#{_anchor(title)})"
    if "anyOf" in value:
        return " or ".join(_type(option) for option in value["anyOf"] if option.get("type") != "null")
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    kind = value.get("type")
    if kind == "array":
        return f"list of {_plural(_type(value['items']))}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping of bits to {_type(inner)}" if isinstance(inner, dict) and "$ref" in inner else "mapping"
    kinds = kind if isinstance(kind, list) else [str(kind)]
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "null": "none",
    }
    return " or ".join(names[one] for one in kinds) + _bounds(value)


def _plural(text: str) -> str:
    plurals = {"text": "texts", "whole number": "whole numbers", "text or number": "texts or numbers"}
    return plurals.get(text, text.replace("text or mapping", "texts or mappings"))


def _bounds(value: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {value[key]:g}" for key, sign in signs.items() if key in value)


def _default(key: str, value: dict[str, Any], part: dict[str, Any]) -> str:
    if key in part.get("required", []):
        return "required"
    default = value.get("default")
    if default is None or default in ({}, []):
        return ""
    if key in ("tasks", "adapters"):
        return f"`[{default[0].get('name') or default[0]['method']}]`"
    if isinstance(default, dict):
        return "see there"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _presets() -> Iterator[str]:
    yield "### Presets"
    yield PRESETS_ARE
    keys = sorted({key for preset in PRESETS.values() for key in _flat(preset)})
    rows = [
        f"| `{key}` | " + " | ".join(_value(_flat(preset), key) for preset in PRESETS.values()) + " |" for key in keys
    ]
    yield "\n".join(
        ["| key | " + " | ".join(f"`{name}`" for name in PRESETS) + " |", "|---" * (len(PRESETS) + 1) + "|", *rows]
    )


def _flat(settings: Any, lead: str = "") -> dict[str, Any]:
    pairs = settings.items() if isinstance(settings, dict) else enumerate(settings)
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{lead}{key}.") if isinstance(value, dict | list) else {f"{lead}{key}": value}
    return flat


def _value(flat: dict[str, Any], key: str) -> str:
    return f"`{json.dumps(flat[key]) if not isinstance(flat[key], str) else flat[key]}`" if key in flat else ""


def _anchor(title: str) -> str:
    return title.replace("`", "").lower().replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
