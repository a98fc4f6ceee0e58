"""Text files into token windows: the first half of each file calibrates, the second half measures.

A process of its own (`python -m bench.data JSON`), so that the process that runs the benchmark imports no tokenizer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.clock import MARK, options

__all__ = ["encode", "halves", "read_documents", "spread", "windows"]


def read_documents(path: Path) -> list[str]:
    """The texts of a file: the `text` of each row of a .jsonl, each line that is not blank of any other."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines


def halves(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """The documents cut where half of the characters are: no document stands on both sides.

    >>> halves(["aaa", "b", "cc"])
    (['aaa'], ['b', 'cc'])
    """
    if len(documents) < 2:
        raise SystemExit("DataError: a text of one document cannot be halved: give a file of several lines")
    total, seen, cut = sum(map(len, documents)), 0, 0
    while cut < len(documents) - 1 and (cut == 0 or seen + len(documents[cut]) <= total / 2):
        seen += len(documents[cut])
        cut += 1
    return list(documents[:cut]), list(documents[cut:])


def encode(tokenizer: Any, documents: Sequence[str], path: Path) -> list[int]:
    """One run of ids: rows of a .jsonl end with the tokenizer's EOS, lines of a text follow after an empty line."""
    if path.suffix != ".jsonl":
        return tokenizer("\n\n".join(documents), verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [i for ids in tokenizer(list(documents), verbose=False)["input_ids"] for i in [*ids, *end]]


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """Runs of `length` ids that do not overlap; what is left at the end is dropped."""
    return [list(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)]


def spread(rows: Sequence[list[int]], count: int | None) -> list[list[int]]:
    """`count` of the rows, evenly spaced; None takes all."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def main(o: dict[str, Any]) -> dict[str, Any]:
    """Write `calibration.json` (samples x length, an equal share of each text) and `eval-<text>.json` for each text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(o["model"])
    out = Path(o["out"])
    out.mkdir(parents=True, exist_ok=True)

    def rows(name: str, half: int, length: int) -> list[list[int]]:
        path = Path(name)
        return windows(encode(tokenizer, halves(read_documents(path))[half], path), length)

    train: dict[str, list[list[int]]] = {}
    held_out: dict[str, list[list[int]]] = {}
    for name in o["train"]:
        train[name] = rows(name, 0, o["length"])
    for name in o["eval"]:
        held_out[name] = spread(rows(name, 1, o["eval_length"]), o["eval_windows"])
    counts = [o["samples"] * (i + 1) // len(train) - o["samples"] * i // len(train) for i in range(len(train))]
    calibration: list[list[int]] = []
    for (name, found), count in zip(train.items(), counts, strict=True):
        if len(found) < count:
            raise SystemExit(f"DataError: {name} has {len(found)} windows of {o['length']} tokens, {count} are wanted")
        calibration += spread(found, count)
    for name, found in held_out.items():
        if not found:
            raise SystemExit(f"DataError: the second half of {name} has no window of {o['eval_length']} tokens")
    (out / "calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    files = {}
    for name, found in held_out.items():
        files[Path(name).stem] = str(out / f"eval-{Path(name).stem}.json")
        Path(files[Path(name).stem]).write_text(json.dumps(found), encoding="utf-8")
    tokens = {Path(name).stem: len(found) * (o["eval_length"] - 1) for name, found in held_out.items()}
    return {"calibration": str(out / "calibration.json"), "eval": files, "eval_tokens": tokens}


if __name__ == "__main__":
    print(MARK + json.dumps(main(options())))
    sys.exit(0)
