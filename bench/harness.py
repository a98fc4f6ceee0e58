"""Fresh processes, paired statistics, and the line of JSON a benchmark ends with. Standard library only: the process
that measures others stays small.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.clock import MARK

__all__ = [
    "ROOT",
    "BenchError",
    "Ratio",
    "finish",
    "markdown",
    "paired_ratio",
    "run_module",
    "run_script",
    "say",
    "session",
]

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().parent / "peers"
DRAWS = 10_000


class BenchError(Exception):
    """A benchmark cannot go on, or one of its processes failed."""


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def run_script(python: str, script: str, options: dict[str, Any], *, threads: int, log: Path) -> dict[str, Any]:
    """Run `bench/peers/<script>.py` with another interpreter; its result. Output goes to `log`.

    Raises:
        BenchError: it ended without a result; the message is the first line of its error.
    """
    return _run([python, str(SCRIPTS / f"{script}.py")], options, threads, log)


def run_module(name: str, options: dict[str, Any], *, threads: int, log: Path) -> dict[str, Any]:
    """Run `bench/<name>.py` with this interpreter; its result. Raises as `run_script`."""
    return _run([sys.executable, "-m", f"bench.{name}"], options, threads, log)


def _run(command: list[str], options: dict[str, Any], threads: int, log: Path) -> dict[str, Any]:
    log.parent.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **counts, **quiet}
    if command[0] == sys.executable:  # this checkout's plr, installed or not
        path = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(ROOT) + (os.pathsep + path if path else "")
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, json.dumps(options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            check=False,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    found = [line for line in text.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        raise BenchError(f"{_error(text) or f'ended with status {done.returncode}'} (whole output: {log})")
    return json.loads(found[-1].removeprefix(MARK))


def _error(text: str) -> str:
    """The line that names the last exception of a log: `ValueError: ...`."""
    named = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b.*$", text, re.MULTILINE)
    return named[-1].strip() if named else ""


@dataclass(frozen=True)
class Ratio:
    """How often ours fits into the peer's time: > 1 means ours is faster."""

    ratio: float
    lo: float
    hi: float
    n: int
    interval: str


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The median of `theirs[i] / ours[i]` with an interval: bootstrap over rounds, or the extremes below 5 rounds.

    >>> paired_ratio([1.0, 2.0, 1.0], [2.0, 6.0, 4.0])
    Ratio(ratio=3.0, lo=2.0, hi=4.0, n=3, interval='min to max')
    """
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    if not ratios:
        raise BenchError("there is no round to compare")
    n = len(ratios)
    if n < 5:
        return Ratio(median(ratios), min(ratios), max(ratios), n, "min to max")
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=n)) for _ in range(DRAWS))
    lo, hi = medians[int(0.025 * DRAWS)], medians[int(0.975 * DRAWS) - 1]
    return Ratio(median(ratios), lo, hi, n, "bootstrap 95 %")


def session(threads: int, **settings: Any) -> dict[str, Any]:
    """What the numbers depend on: date, machine, its load now, the commit, the settings. Warns on a busy machine."""
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if load > 0.25 * cores:
        say(f"WARNING: the machine is busy (load {load:.2f} on {cores} cores): times will not repeat.")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": cores,
        "load": round(load, 2),
        "busy": load > 0.25 * cores,
        "threads": threads,
        "commit": _commit(),
        "settings": settings,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; None is a dash, numbers have three or four digits."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def finish(out: Path, name: str, line: dict[str, Any], details: dict[str, Any], table: str, *, as_json: bool) -> None:
    """Write `<out>/<name>.json` and `.md`, print the table, and as the very last line the JSON where it is asked for."""
    line = {"name": name, **{k: asdict(v) if isinstance(v, Ratio) else v for k, v in line.items()}}
    out.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({**line, "details": details}, indent=2) + "\n"
    (out / f"{name}.json").write_text(whole, encoding="utf-8")
    (out / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    print(f"\nEverything: {out / f'{name}.json'}", flush=True)
    if as_json:
        print(json.dumps(line), flush=True)
