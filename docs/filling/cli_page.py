"""The page of commands, from the same declarations as `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from plr.cli.root import app

_WORDS = {str: "text", int: "number", float: "number", Path: "path"}
HEAD = """# Commands

<!-- Written by docs/fill.py from the declarations behind --help: change those, not this page. -->

| command | purpose |
|---|---|
{table}

Where a command takes a REF, give a path, a folder name, or the first digits of a hash, as many as no other artifact has; left
out, it is the latest artifact that fits, by the date on record. Every command has `--help`. `--json` prints one JSON value to
standard output. Long work shows its progress on standard error.

Exit codes: 0 done, 1 failure, 2 usage, 3 some cells failed, 4 out of memory or disk, 5 an artifact is broken or does not fit,
130 interrupted, 143 terminated.

| variable | meaning |
|---|---|
| `PLR_HOME` | the store; `./artifacts` if not set |
| `PLR_DEBUG` | any value: show tracebacks |
| `PLR_HUB_TIMEOUT`, `PLR_HUB_TRIES` | seconds of silence before a download is tried again (20), and how often (5) |
| `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` | as for huggingface_hub |
"""


def cli_page() -> str:
    """Write the page: a table of commands, then each with its arguments, options and example."""
    root: Any = typer.main.get_command(app)
    top = [
        f"| [`plr {name}`](#{_anchor(name)}) | {_cell(_summary(command))} |" for name, command in root.commands.items()
    ]
    parts = [HEAD.format(table="\n".join(top)).strip()]
    for name, command in root.commands.items():
        parts += _command(f"plr {name}", command, "##")
        for below, inner in getattr(command, "commands", {}).items():
            parts += _command(f"plr {name} {below}", inner, "###")
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any, level: str) -> Iterator[str]:
    text = _plain(command.help or "")
    prose, _, example = text.partition("Example:")
    yield f"{level} {name}"
    yield prose.strip()
    params = command.get_params(typer.Context(command))
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [
        param for param in params if param.param_type_name == "option" and not param.hidden and param.name != "help"
    ]
    if arguments:
        rows = [f"| `{_metavar(param)}` | {_cell(_meaning(param))} |" for param in arguments]
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    if options:
        rows = [
            f"| {_names(param)} | {_kind(param)} | {_default(param)} | {_cell(_meaning(param))} |" for param in options
        ]
        yield "\n".join(["| option | value | default | meaning |", "|---|---|---|---|", *rows])
    if example:
        yield f"```bash\n{example.strip()}\n```"


def _summary(command: Any) -> str:
    return _plain(command.help or "").partition("\n\n")[0]


def _plain(help_text: str) -> str:
    """Help without Rich's markup, paragraphs kept."""
    text = re.sub(r"\[/?(?:bold|dim|italic|green|red)\]", "", help_text).replace("\\[", "[")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _metavar(param: Any) -> str:
    name = str(param.name).rstrip("_").upper() + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _meaning(param: Any) -> str:
    return _plain(param.help or "") + (" Required." if param.required and param.param_type_name == "option" else "")


def _names(param: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(param.opts, key=len, reverse=True))


def _kind(param: Any) -> str:
    if param.is_flag:
        return "flag"
    annotation = param.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"{_WORDS[get_args(annotation)[0]]}, repeatable"
    return _WORDS[annotation] + ("" if param.min is None else f" ≥ {param.min}")


def _default(param: Any) -> str:
    value = param.default
    return "" if param.is_flag or value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(command: str) -> str:
    return f"plr-{command}"
