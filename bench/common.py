"""Options that the benchmarks share, and the data they prepare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from bench.harness import ROOT, BenchError, run_module

__all__ = ["EMBEDDED", "add_common", "numbers", "pairs", "prepare", "shape", "words"]

EMBEDDED = ROOT / "plr" / "embedded" / "tiny"
TEXTS = [ROOT / "calibration" / "tiny_sql.jsonl", ROOT / "calibration" / "tiny_math.jsonl"]


def words(text: str) -> list[str]:
    """`"a,b"` -> `["a", "b"]`; the empty string and `none` are no words."""
    return [word for word in text.split(",") if word and word != "none"]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def shape(text: str) -> tuple[int, int]:
    """`"32x256"`: samples and their length in tokens."""
    samples, _, length = text.partition("x")
    if not (samples.isdigit() and length.isdigit() and int(samples) and int(length) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SAMPLESxLENGTH, e.g. 32x256")
    return int(samples), int(length)


def pairs(items: list[str]) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`."""
    for item in items:
        if "=" not in item:
            raise BenchError(f"{item!r} is not of the form KEY=VALUE")
    return dict(item.split("=", 1) for item in items)


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of a 16-bit model (default: the embedded)")
    parser.add_argument("--group-size", type=int, default=64, help="weights that share a scale; must divide all widths")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every process")
    parser.add_argument("--venv", action="append", default=[], metavar="PEER=PYTHON", help="an interpreter for a peer")
    parser.add_argument("--venvs", type=Path, default=Path(".bench/venvs"), help="where venvs are made and kept")
    parser.add_argument("--out", type=Path, default=Path(".bench") / name, help="results, logs, checkpoints")
    parser.add_argument("--quick", action="store_true", help="few tokens, one or two rounds: ends within ten minutes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def prepare(
    args: argparse.Namespace, train: list[Path], held_out: list[Path], eval_windows: int | None, eval_length: int
) -> dict[str, Any]:
    """Token windows in `<out>/data`: `{"calibration": file, "eval": {text: file}, "eval_tokens": {text: count}}`.

    Raises:
        BenchError: a folder or file that is not there, or too little text.
    """
    if not (args.model / "config.json").is_file():
        raise BenchError(f"--model {args.model}: there is no config.json in it")
    for path in [*train, *held_out]:
        if not path.is_file():
            raise BenchError(f"there is no text file {path}")
    samples, length = args.tokens
    return run_module(
        "data",
        {
            "model": str(args.model.absolute()),
            "train": [str(path.absolute()) for path in train or TEXTS],
            "eval": [str(path.absolute()) for path in held_out or TEXTS],
            "samples": samples,
            "length": length,
            "eval_length": eval_length,
            "eval_windows": eval_windows,
            "out": str((args.out / "data").absolute()),
        },
        threads=args.threads,
        log=args.out / "logs" / "data.log",
    )
