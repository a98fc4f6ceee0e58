"""Command lines of plr in forks of one process that has imported everything: an import of torch costs seconds, a fork none.

Reads requests from standard input, a JSON object a line, and answers with one a line::

    {"argv": ["ls"], "home": "...", "cwd": "...", "fault": [at, kind, errno] or null, "log": "..." or null, "seconds": 60}
    {"code": 0, "out": "...", "err": "...", "cpu": 0.4, "megabytes": 700.0}

``code`` is negative for a signal; ``megabytes`` is the most memory it held, what it was born with included. The module is run
with `shim.c` preloaded where faults are asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = ("--set", "quantize.samples=4", "--set", "train.train_limit=32", "--set", "train.validation_limit=8")
WARM = (
    ("quantize", "-b", "3", *SMALL),
    ("train", "-b", "3", "-t", "tiny_sql", *SMALL),
    ("restore", "--bits", "4"),
    ("restore", "--merge"),
    ("eval", "--limit", "2"),
    ("show",),
    ("verify",),
    ("ls",),
    ("gc",),
    ("adapters",),
    ("config-schema", "study"),
)
ROOM = 4 << 30
"""Bytes a fork may take before the kernel says no: it protects the machine, the tests ask for far less."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what imports print is no answer
    warm_up()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def warm_up() -> None:
    """Run each kind of command once in this process, so that every fork is born with what they import and remember."""
    from plr.cli.root import main as plr

    kept = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLR_HOME"] = folder
        for words in WARM:
            sys.argv = ["plr", *words]
            try:
                plr()
            except SystemExit as stop:
                if stop.code:
                    raise RuntimeError(f"plr {' '.join(words)} exits {stop.code}") from stop
        os.environ.clear()
        os.environ.update(kept)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        request["out"], request["err"] = folder + "/out", folder + "/err"
        if (child := os.fork()) == 0:
            os.setpgid(0, 0)
            os._exit(in_place(request))
        deadline = time.monotonic() + request.get("seconds", 120)
        while (done := os.wait4(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGALRM)
            time.sleep(0.002)
        _, status, usage = done
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": Path(request["out"]).read_text(errors="replace") if os.path.exists(request["out"]) else "",
            "err": Path(request["err"]).read_text(errors="replace") if os.path.exists(request["err"]) else "",
            "cpu": usage.ru_utime + usage.ru_stime,
            "megabytes": usage.ru_maxrss / 1024,
        }


def in_place(request: dict[str, Any]) -> int:
    """Run one command line in this process and return its exit code."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(request.get(name, os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.chdir(request["cwd"])
    os.environ |= {"PLR_HOME": request["home"], "COLUMNS": "250", **request.get("environment", {})}
    sys.argv = ["plr", *request["argv"]]
    size = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (size + ROOM, resource.RLIM_INFINITY))
    if request.get("fault") is not None:
        at, kind, number = request["fault"]
        arm = ctypes.CDLL(None).fault_arm
        arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        arm(request["home"].encode(), request["log"].encode(), at, kind, number)
    from plr.cli.root import main as plr

    code = 0
    try:
        plr()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # what leaves `main` would be a traceback on the user's screen
        import traceback

        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
