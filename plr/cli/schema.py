"""config-schema: what may stand in a file, for editors."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from plr.cli.root import app

__all__: list[str] = []


@app.command("config-schema")
def config_schema(
    which: Annotated[Literal["study", "task"], typer.Argument(help="The kind of file.")] = "study",
) -> None:
    """Print the JSON schema of study or task files: every key with type, default and meaning.

    An editor with a YAML language server completes and checks keys where the file names the schema in a comment:
    # yaml-language-server: $schema=study.schema.json

    Example: [bold]plr config-schema task > task.schema.json[/bold]
    """
    from plr.cli.show import emit
    from plr.study.schema import file_schema

    emit(file_schema(which))
