"""Copy the tables of recorded studies into the README: ``python docs/fill_readme.py`` (``--check`` writes nothing).

Between ``<!-- table:STUDY -->`` and ``<!-- /table:STUDY -->`` stands what ``notes/results/STUDY/`` says: what the study
found, its first table, the number of documents and the 95 % intervals. Nobody types a number into the README by hand.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKER = re.compile(r"(<!-- table:([\w.-]+) -->\n)(.*?)(<!-- /table:\2 -->)", re.DOTALL)
PENDING = "_Not recorded yet._\n"


def block(folder: Path) -> str:
    """What the README says of the study recorded in ``folder`` (``table.md`` and ``results.csv``); of a benchmark its ``table.md``.

    Raises:
        ValueError: ``table.md`` has no table.
    """
    if (folder / "compare.md").is_file():
        return compared(folder)
    text = (folder / "table.md").read_text(encoding="utf-8").strip()
    if not (folder / "results.csv").is_file():
        return f"{text}\n"
    parts = text.split("\n\n")
    sections = [i for i, part in enumerate(parts) if part.startswith("### ")]
    if not sections:
        raise ValueError(f"{folder / 'table.md'} has no section")
    first = sections[0]
    said = [parts[first].removeprefix("### ").strip() + f" ({_counts(folder / 'results.csv')}).", _table(parts, first)]
    intervals = next((i for i in sections if parts[i].startswith("### 95 %")), None)
    if intervals is not None:
        said += [
            f"<details><summary>{parts[intervals].removeprefix('### ').replace('`', '')}</summary>",
            _table(parts, intervals),
            "</details>",
        ]
    where = f"notes/results/{folder.name}"
    said += parts[:first]
    said.append(f"Everything: [table]({where}/table.md), [CSV]({where}/results.csv).")
    return "\n\n".join(said) + "\n"


def compared(folder: Path) -> str:
    """What ``plr compare`` wrote: adapters by task where there are several tasks, then the figure; the costs of one task whole."""
    sections = (folder / "compare.md").read_text(encoding="utf-8").strip().split("\n\n### ")
    costs = sections[-1].partition("\n\n")[2]
    where = f"notes/results/{folder.name}"
    figure = f"![metric against peak memory]({where}/compare.svg)" if (folder / "compare.svg").is_file() else ""
    said = [f"{_counts(folder / 'results.csv')}."]
    if len(sections) > 1:
        said.append(sections[0].partition("\n\n")[2])
        said.append(f"What they cost: [compare.md]({where}/compare.md). Everything: [CSV]({where}/results.csv).")
    else:
        said += [figure] if figure else []
        said += ["<details><summary>The whole table</summary>", costs, "</details>"]
        said.append(f"Everything: [CSV]({where}/results.csv).")
    note = folder / "note.md"
    if note.is_file():
        said.append(note.read_text(encoding="utf-8").strip())
    return "\n\n".join(said) + "\n"


def filled(readme: str, results: Path) -> str:
    """``readme`` with every marked block rewritten; a study that is not recorded yet says so."""

    def fill(match: re.Match[str]) -> str:
        folder = results / match[2]
        text = block(folder) if (folder / "table.md").is_file() else PENDING
        return f"{match[1]}{text}{match[4]}"

    return MARKER.sub(fill, readme)


def _table(parts: list[str], section: int) -> str:
    """The first Markdown table behind the section's title."""
    for part in parts[section + 1 :]:
        if part.startswith("|"):
            return part
        if part.startswith("### "):
            break
    raise ValueError(f"no table below {parts[section]!r}")


def _counts(file: Path) -> str:
    """Documents a cell of each task, and the seeds: ``gsm8k: n = 64; sql: n = 300; 1 seed``."""
    counts: dict[str, set[int]] = {}
    seeds: set[str] = set()
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            counts.setdefault(row["task"], set()).update({int(row["n"])} if row["n"] not in ("", "0") else set())
            seeds.add(row["seed"])
    said = [
        f"{task}: n = {min(n)}" + (f" to {max(n)}" if len(n) > 1 else "") for task, n in sorted(counts.items()) if n
    ]
    return "; ".join([*said, f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"])


def main() -> int:
    now = README.read_text(encoding="utf-8")
    new = filled(now, ROOT / "notes" / "results")
    if "--check" in sys.argv[1:]:
        return int(new != now)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
