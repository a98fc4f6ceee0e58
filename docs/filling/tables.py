"""Tables of recorded studies, copied into the README and the pages of `docs/`.

Between `<!-- table:STUDY -->` and `<!-- /table:STUDY -->` stands what `notes/results/STUDY/` says: for each task a grid of k and l
with its intervals, and the sentences that `plr grid` wrote about it. `<!-- grid:STUDY/TASK -->` is one grid of it with its
sentence, `<!-- advice:FOLDER -->` what `plr advise` said: its sentence and its candidates. Nobody types a number of a result by
hand.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARKER = re.compile(r"(<!-- (table|grid|advice):([\w./-]+) -->\n)(.*?)(<!-- /\2:\3 -->)", re.DOTALL)
PENDING = "_Not recorded yet._\n"
NOT_IN_STUDY = "·"
PLAIN = ("keep", "restore")
"""Modes that a table shows by (k, l) alone."""


def filled(page: str, results: Path, folder: Path) -> str:
    """Rewrite every marked block of `page`, which lies in `folder`; a study that is not recorded yet says so."""

    def fill(match: re.Match[str]) -> str:
        study, _, task = match[3].partition("/") if match[2] == "grid" else (match[3], "", "")
        source = results / study
        if not (source / "table.md").is_file():
            text = PENDING
        elif match[2] == "advice":
            text = advised(source, folder)
        elif match[2] == "grid":
            text = one_grid(source, task)
        else:
            text = block(source, folder)
        return f"{match[1]}{text}{match[5]}"

    return MARKER.sub(fill, page)


def block(source: Path, folder: Path) -> str:
    """Everything a page says of the study recorded in `source`; of a benchmark its `table.md` as it is.

    Raises:
        ValueError: `table.md` has no table.
    """
    where = Path(os.path.relpath(source, folder)).as_posix()
    if (source / "compare.md").is_file():
        return compared(source, where)
    if not (source / "results.csv").is_file():
        return (source / "table.md").read_text(encoding="utf-8").strip() + "\n"
    study = Recorded.read(source)
    parts = [study.headline]
    for line in study.lines:
        parts += [line.caption, line.table(line.values), line.sentence]
        parts += [
            f"<details markdown><summary>95 % intervals, {line.task}</summary>",
            line.table(line.intervals),
            "</details>",
        ]
    parts.append(f"Everything: [table]({where}/table.md), [CSV]({where}/results.csv).")
    return "\n\n".join(part for part in parts if part) + "\n"


def advised(source: Path, folder: Path) -> str:
    """The sentence of an advice and the table of its candidates, with a link to all of it."""
    where = Path(os.path.relpath(source, folder)).as_posix()
    said = (source / "table.md").read_text(encoding="utf-8").split("\n\n### ")[0].strip()
    return (
        f"{said}\n\nEverything: [table]({where}/table.md), [CSV]({where}/results.csv), [JSON]({where}/advice.json).\n"
    )


def one_grid(source: Path, task: str) -> str:
    """The grid of one task with its sentence.

    Raises:
        ValueError: the study has no such task.
    """
    study = Recorded.read(source)
    for line in study.lines:
        if line.task == task:
            return "\n\n".join([line.caption, line.table(line.values), line.sentence or study.headline]) + "\n"
    raise ValueError(f"{source} has no task {task}: {', '.join(line.task for line in study.lines)}")


def compared(source: Path, where: str) -> str:
    """What `plr compare` wrote: adapters by task where there are several tasks; of one task values side by side, then the costs."""
    sections = (source / "compare.md").read_text(encoding="utf-8").strip().split("\n\n### ")
    parts = [f"{_counts(source / 'results.csv')}."]
    links = f"[costs]({where}/compare.md), [table]({where}/table.md), [CSV]({where}/results.csv)"
    if len(sections) > 1:
        parts.append(sections[0].partition("\n\n")[2].replace("<details>", "<details markdown>"))
    else:
        costs = sections[-1].partition("\n\n")[2]
        parts.append(_side_by_side(next(part for part in costs.split("\n\n") if part.startswith("|"))))
        parts += ["<details markdown><summary>All columns: costs and intervals</summary>", costs, "</details>"]
    parts.append(f"Everything: {links}.")
    note = source / "note.md"
    if note.is_file():
        here = Path(where).parent.as_posix()
        parts.append(note.read_text(encoding="utf-8").strip().replace("(notes/results/", f"({here}/"))
    return "\n\n".join(parts) + "\n"


def _side_by_side(table: str) -> str:
    """A row for each adapter: its size, and its value at every (k, l)."""
    head, rows = _cells(table)
    records = [dict(zip(head, row, strict=True)) for row in rows]
    places = sorted({r["k → l"] for r in records}, key=lambda place: [-int(bits) for bits in place.split(" → ")])
    values: dict[tuple[str, str, str], dict[str, str]] = {}
    for r in records:
        values.setdefault((r["Adapter"], r["Trainable"], r["Adapter, MB"]), {})[r["k → l"]] = r["Value"]
    lines = [["Adapter", "Trainable", "MB", *places], ["---"] * (len(places) + 3)]
    lines += [[*key, *(found.get(place, NOT_IN_STUDY) for place in places)] for key, found in values.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(table: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a Markdown table."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return head, rows


@dataclass(frozen=True)
class Line:
    """One task and model of a study: values and intervals by (k, l)."""

    task: str
    caption: str
    sentence: str
    values: dict[tuple[int, int], str]
    intervals: dict[tuple[int, int], str]
    others: dict[tuple[int, str], str] = field(default_factory=dict)
    """Values of the modes that have columns of their own, by k and the column's name."""

    def table(self, cells: dict[tuple[int, int], str]) -> str:
        """The grid as Markdown: a row for each k, a column for each l."""
        ks = sorted({k for k, _ in cells}, reverse=True)
        ells = sorted({ell for _, ell in cells}, reverse=True)
        names = list(dict.fromkeys(name for _, name in self.others)) if cells is self.values else []
        rows = [["trained on \\ served on", *(f"{ell} bits" for ell in ells), *names]]
        rows += [["---"] * len(rows[0])]
        rows += [
            [
                f"**{k} bits**",
                *(cells.get((k, ell), NOT_IN_STUDY) for ell in ells),
                *(self.others.get((k, name), NOT_IN_STUDY) for name in names),
            ]
            for k in ks
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclass(frozen=True)
class Recorded:
    """A study as `plr grid` recorded it."""

    headline: str
    lines: tuple[Line, ...]

    @classmethod
    def read(cls, source: Path) -> Recorded:
        """Read `table.md` and `results.csv` of a folder.

        Raises:
            ValueError: no table, or one whose numbers are not those of `results.csv`.
        """
        parts = (source / "table.md").read_text(encoding="utf-8").strip().split("\n\n")
        sections = [i for i, part in enumerate(parts) if part.startswith("### ")]
        if not sections:
            raise ValueError(f"{source / 'table.md'} has no section")
        first = sections[0]
        metrics = re.findall(r"`([^`]+)`", parts[first])
        intervals = next(i for i in sections if parts[i].startswith("### 95 %"))
        headline = " ".join(part for part in parts[:first] if not part.startswith("- "))
        sentences = dict(
            item.removeprefix("- ").split(": ", 1)
            for part in parts[:first]
            if part.startswith("- ")
            for item in part.splitlines()
        )
        with (source / "results.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        lines = []
        for (task, model, cells), (_, _, bounds) in zip(
            _wide(_table(parts, first)), _wide(_table(parts, intervals)), strict=True
        ):
            mine = [row for row in rows if row["task"] == task and row["model"] == model]
            metric = next(name for name in metrics if any(row["metric"] == name for row in mine))
            plain = [row for row in mine if row.get("mode", "keep") in PLAIN]
            _agree(cells, [row for row in plain if row["metric"] == metric], source)
            others = _others([row for row in mine if row not in plain and row["metric"] == metric])
            caption = _caption(task, model, metric, plain)
            caption = caption.replace("best of its row", "best width of its row") if others else caption
            lines.append(Line(task, caption, sentences.get(task, ""), cells, bounds, others))
        return cls(headline, tuple(lines))


def _others(rows: list[dict[str, str]]) -> dict[tuple[int, str], str]:
    """Means over seeds of the modes with columns of their own, in the units of the table beside them."""
    values: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        place = (int(row["train_bits"]), f"{row['mode']}, {row['restore_bits']} bits")
        values.setdefault(place, []).append(float(row["value"]))
    loss = bool(rows) and rows[0]["metric"].endswith("loss")
    means = {place: sum(found) / len(found) for place, found in values.items()}
    return {place: f"{mean:.4f}" if loss else f"{100 * mean:.2f}" for place, mean in means.items()}


def _caption(task: str, model: str, metric: str, rows: list[dict[str, str]]) -> str:
    counts = sorted({int(row["n"]) for row in rows if row["metric"] == metric and row["n"] not in ("", "0")})
    n = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    seeds = len({row["seed"] for row in rows})
    unit = "nats per token, lower is better" if metric.endswith("loss") else "in percent"
    return f"**{model} on {task}**: `{metric}`, {unit} ({n}, {seeds} seed{'s' if seeds > 1 else ''}). Bold: best of its row."


def _wide(table: str) -> Iterator[tuple[str, str, dict[tuple[int, int], str]]]:
    """Task, model and cells by (k, l) of each row of a table in the report's form; means over tasks are left out."""
    head, rows = _cells(table)
    places: list[tuple[int, int]] = []
    for name in head[2:]:
        own = re.match(r"(\d+)-bit ", name)
        bits = int(own[1]) if own else int(name.removeprefix("PLR"))
        places.append((bits, bits) if own else (places[-1][0], bits))
    for task, model, *cells in rows:
        if task != "Avg.":
            yield task, model, {place: cell for place, cell in zip(places, cells, strict=True) if cell != "-"}


def _agree(cells: dict[tuple[int, int], str], rows: list[dict[str, str]], source: Path) -> None:
    """Raise ValueError where a table says another number than the CSV beside it (one of its seeds' mean, to the digits shown)."""
    for (k, ell), cell in cells.items():
        shown = cell.strip("* ").split(" ")[0]
        values = [
            float(r["value"]) for r in rows if (int(r["train_bits"]), int(r["restore_bits"])) == (k, ell) and r["value"]
        ]
        mean = sum(values) / len(values) if values else float("nan")
        digits = len(shown.partition(".")[2])
        if not any(abs(scale * mean - float(shown)) <= 0.51 * 10**-digits for scale in (1, 100)):
            raise ValueError(f"{source}: the table says {shown} at k = {k}, l = {ell}, results.csv {mean}")


def _table(parts: list[str], section: int) -> str:
    """The first Markdown table behind the section's title."""
    for part in parts[section + 1 :]:
        if part.startswith("|"):
            return part
        if part.startswith("### "):
            break
    raise ValueError(f"no table below {parts[section]!r}")


def _counts(file: Path) -> str:
    """Documents a cell of each task, and the seeds: `gsm8k: n = 64; sql: n = 300; 1 seed`."""
    counts: dict[str, set[int]] = {}
    seeds: set[str] = set()
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            counts.setdefault(row["task"], set()).update({int(row["n"])} if row["n"] not in ("", "0") else set())
            seeds.add(row["seed"])
    tasks = [
        f"{task}: n = {min(n)}" + (f" to {max(n)}" if len(n) > 1 else "") for task, n in sorted(counts.items()) if n
    ]
    return "; ".join([*tasks, f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"])
