"""The `plr` command: options, errors, exit codes. The work of a command is done in the floors below.

Exit codes: 0 ok, 1 failure, 2 usage, 3 some cells failed, 4 out of memory or disk, 5 integrity, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib import import_module
from typing import Annotated

import typer

from plr.core.files import disk_full
from plr.core.memory import out_of_memory
from plr.errors import PlrError, ResourceError

__all__ = ["app", "main"]

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    name="plr",
    help="Quantize a model to k bits, train an adapter on it, restore the adapter onto an l-bit base, score the k x l grid.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"plr {version('plr')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return None


for _name in (
    "make",
    "study",
    "adapters",
    "compare",
    "blocks",
    "forgetting",
    "advise",
    "export",
    "looking",
    "score",
    "tasks",
    "transform",
    "schema",
    "listing",
    "removal",
    "store",
):  # the order in which --help lists their commands
    import_module(f"plr.cli.{_name}")


def main() -> None:
    """Entry point: every error of the user's situation is a message, never a traceback."""
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
        # Click's own usage errors are printed and exit with 2 by itself.
        app()
    except PlrError as error:
        _report(error, error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED  # Typer makes an exit of Ctrl-C
        if code not in (INTERRUPTED, TERMINATED):
            raise
        word = "interrupted" if code == INTERRUPTED else "terminated"
        _report(PlrError(word, hint="run the same command again: finished steps are kept"), code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("PLR_DEBUG"):
            raise
        _report(*_explained(error))


def _terminated(*_: object) -> None:
    sys.exit(TERMINATED)


def _explained(error: Exception) -> tuple[PlrError, int]:
    """Convert an error of Python or of a library to a message and an exit code."""
    if out_of_memory(error):
        hint = "use a smaller model, or lower runtime.micro_batch and runtime.slots"
        return PlrError("out of memory", hint=hint), ResourceError.exit_code
    code = ResourceError.exit_code if disk_full(error) else PlrError.exit_code
    if isinstance(error, OSError):
        return PlrError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")), code
    if code == ResourceError.exit_code:
        return PlrError(f"the disk is full: {error}", hint="make room and run the same command again"), code
    hint = "this is a defect of plr: run again with PLR_DEBUG=1 for the traceback and report it"
    return PlrError(f"{type(error).__name__}: {error}", hint=hint), code


def _report(error: PlrError, code: int) -> None:
    if "--json" in sys.argv:
        import json

        print(json.dumps({"error": error.message, "expected": error.expected, "next": error.hint, "exit_code": code}))
    else:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(str(error)))
    sys.exit(code)
