"""Run the suites of faults whole and record what held: `python tests/faults/figures.py [points|corruption|hostile] ...`.

Writes `notes/results/reliability/`, of which `docs/reliability.md` takes its table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from faults.corruption import Corruption  # noqa: E402
from faults.forks import Forks  # noqa: E402
from faults.hostile import Inputs  # noqa: E402
from faults.points import Points  # noqa: E402

RESULTS = ROOT / "notes" / "results" / "reliability"
SUITES: dict[str, tuple[Any, str]] = {
    "points": (Points, "a fault at each call that touches the store, then the same command again"),
    "corruption": (Corruption, "a damaged file, and the command that consumes it"),
    "hostile": (Inputs, "an input that is wrong by construction, or harmless and odd"),
}


def record(name: str) -> bool:
    """Run one suite whole; tell whether everything held."""
    kind, what = SUITES[name]
    started, fallen, parts = time.time(), list[str](), Counter[str]()
    forks = Forks(faults=True)
    with tempfile.TemporaryDirectory() as folder:
        suite = kind(forks, Path(folder))
        for trial in suite.trials():
            parts[trial.part] += 1
            if (wrong := suite.judge(trial)) is not None:
                fallen.append(f"{trial}: {wrong}".replace(folder, ""))
                print(fallen[-1], flush=True)
    forks.close()
    RESULTS.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    value = {
        "what": what,
        "tried": sum(parts.values()),
        "parts": dict(parts),
        "fallen": fallen,
        "seconds": round(time.time() - started),
        "date": str(date.today()),
        "commit": commit.stdout.strip(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return not fallen


def write_table() -> None:
    lines = ["| what | tried | held | of these | recorded |", "|---|---|---|---|---|"]
    for name in SUITES:
        if (file := RESULTS / f"{name}.json").is_file():
            value = json.loads(file.read_text(encoding="utf-8"))
            parts = ", ".join(f"{number} {part}" for part, number in value["parts"].items())
            held = value["tried"] - len(value["fallen"])
            lines.append(
                f"| {value['what']} | {value['tried']} | {held} | {parts} | {value['date']}, {value['commit']} |"
            )
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    held = [record(name) for name in sys.argv[1:] or SUITES]
    write_table()
    sys.exit(not all(held))
