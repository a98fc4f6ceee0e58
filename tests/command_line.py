"""The command line in this process, as tests call it."""

from __future__ import annotations

import sys

import pytest

from plr.cli.root import main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of ``plr WORDS``."""
    monkeypatch.setattr(sys, "argv", ["plr", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    out = capsys.readouterr()
    code = caught.value.code
    return (0 if code is None else int(code)), out.out, " ".join(out.err.split())
