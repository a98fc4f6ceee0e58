"""`python -m bench scoring`: SQL answers scored in a second, and what one costs.

1. Rows of the task, three answers each: its gold, the gold of another row, its gold with one thing broken.
2. Each round scores its share of the rows through the task itself, all seven metrics, on as many cores as `--threads` says, and
   then the same samples in the straightforward way: one process, no sandbox, a fresh SQLite connection for every database.
3. CPU time a sample: ours in all (parent and workers), by part, and of SQLite alone on the same databases, which is the floor.

A ratio is shown only where every gold is right, shuffled gold is not, and both ways give the same verdicts.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench.harness import BenchError, finish, markdown, paired_ratio, say, session
from bench.scoring_parts import PARTS, floor, forget, parts, straightforward
from plr.errors import PlrError
from plr.scoring.sql import pool as sql_pool
from plr.scoring.sql.match import first_statement
from plr.scoring.sql.pool import Pool, Sample, shared_pool
from plr.tasks import Example, Response, TaskData, tasks

__all__ = ["add_arguments", "answers", "run"]

EXECUTED = "exec_match,first-answer"
GOAL = 500.0
"""Samples a second on two cores."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="rows of sql_create_context (default: those of the embedded tiny_sql)")
    parser.add_argument("--task-rows", type=int, help="how many rows are drawn (default 2000; quick 300)")
    parser.add_argument("--rounds", type=int, help="into how many shares they are cut (default 5; quick 2)")
    parser.add_argument("--threads", type=int, default=2, help="cores that may be used")
    parser.add_argument("--out", type=Path, default=Path(".bench/scoring"), help="results")
    parser.add_argument("--quick", action="store_true", help="few rows: ends within a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def answers(examples: Sequence[Example], seed: int = 0) -> dict[str, list[str]]:
    """What is scored: `gold`, `shuffled` (the gold of another row that is another text) and `corrupted`."""
    targets = [example.target for example in examples]
    if len(set(targets)) < 2:
        raise BenchError("all rows have one answer: nothing can be shuffled")
    drawn = random.Random(seed)
    shuffled = [next(t for t in iter(lambda: drawn.choice(targets), None) if t != target) for target in targets]
    return {"gold": targets, "shuffled": shuffled, "corrupted": [_broken(target, drawn) for target in targets]}


def _broken(target: str, drawn: random.Random) -> str:
    """A word left out, a word of another place, a literal in capitals, or a text that runs on."""
    words = target.split(" ")
    place = drawn.randrange(1, len(words))
    way = drawn.randrange(4)
    if way == 0:
        return " ".join(words[:place] + words[place + 1 :])
    if way == 1:
        return " ".join([*words[:place], drawn.choice(words[1:]), *words[place + 1 :]])
    return target.upper() if way == 2 else f"{target} AND 1 = 1\nOutput: 23"


def run(args: argparse.Namespace) -> None:
    rounds = args.rounds or (2 if args.quick else 5)
    count = args.task_rows or (300 if args.quick else 2000)
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < args.threads <= len(cores):
        raise BenchError(f"--threads {args.threads}: this process may use {len(cores)} cores")
    task = tasks.get("sql_create_context" if args.data else "tiny_sql")
    begun = time.perf_counter()
    try:
        examples = task.load("test", TaskData(path=args.data, limit=count)).examples
    except PlrError as error:
        raise BenchError(str(error)) from error
    loaded = time.perf_counter() - begun
    if len(examples) < rounds:
        raise BenchError(f"{len(examples)} rows cannot be cut into {rounds} rounds")
    about = session(args.threads, task=task.name, rows=len(examples), rounds=rounds)
    texts = answers(examples)
    found: list[dict[str, Any]] = []
    os.sched_setaffinity(0, cores[: args.threads])
    try:
        with patch.object(sql_pool, "_shared", Pool(args.threads)):
            idle = _idle()
            for number in range(rounds):
                for name, answered in texts.items():
                    say(f"round {number + 1}/{rounds}: {name}")
                    result = _round(task, examples[number::rounds], answered[number::rounds], idle)
                    found.append({"answers": name, "round": number, **result})
    finally:
        os.sched_setaffinity(0, cores)
    _report(args, about, loaded, found)


def _start() -> None:
    """The processes of the pool are there, as they are from the second batch of an evaluation on."""
    shared_pool().judge([Sample("CREATE TABLE t (a)", "SELECT a FROM t", "SELECT a FROM t")] * 64)


def _idle() -> float:
    """Seconds of CPU that starting the processes costs."""
    before = _children()
    _start()
    shared_pool().close()  # only processes that have ended are counted
    return _children() - before


def _round(task: Any, examples: Sequence[Example], answered: Sequence[str], idle: float) -> dict[str, Any]:
    """One kind of answers to one share of the rows."""
    _start()
    forget()
    children, parent, begun = _children(), time.process_time(), time.perf_counter()
    scores = task.score_all(examples, [Response(text, ended=True) for text in answered])
    wall, parent = time.perf_counter() - begun, time.process_time() - parent
    shared_pool().close()
    cpu = parent + _children() - children - idle
    samples = [
        Sample(str(example.row["context"]), str(example.row["answer"]), first_statement(text))
        for example, text in zip(examples, answered, strict=True)
    ]
    begun, own = time.perf_counter(), time.process_time()
    verdicts = straightforward(samples, answered)
    peer_wall, peer_cpu = time.perf_counter() - begun, time.process_time() - own
    values = [score[EXECUTED].value for score in scores]
    theirs = [None if v.kind == "undecidable" else float(v.kind == "equal") for v in verdicts]
    n = len(samples)
    return {
        "n": n,
        "wall": wall,
        "cpu_ms": 1000 * cpu / n,
        "parent_ms": 1000 * parent / n,
        "peer_wall": peer_wall,
        "peer_cpu_ms": 1000 * peer_cpu / n,
        "right": sum(value == 1.0 for value in values),
        "normalized": sum(score["exact_match,first-answer"].value == 1.0 for score in scores),
        "undecidable": values.count(None),
        "differ": sum(a != b for a, b in zip(values, theirs, strict=True)),
        "parts": parts(samples, answered),
        "floor_ms": floor(samples),
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _report(args: argparse.Namespace, about: dict[str, Any], loaded: float, found: list[dict[str, Any]]) -> None:
    rows: list[list[Any]] = []
    sets: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(each["answers"] for each in found):
        own = [each for each in found if each["answers"] == name]
        n, undecidable = (sum(each[key] for each in own) for key in ("n", "undecidable"))
        sets[name] = {
            "n": n,
            "undecidable": undecidable,
            "exec_match": sum(each["right"] for each in own) / max(1, n - undecidable),
            "normalized": sum(each["normalized"] for each in own) / n,
            "per_second": n / sum(each["wall"] for each in own),
            "cpu_ms": sum(each["cpu_ms"] * each["n"] for each in own) / n,
            "parent_ms": sum(each["parent_ms"] * each["n"] for each in own) / n,
            "allowed_per_second": 0.0,
            "peer_per_second": n / sum(each["peer_wall"] for each in own),
            "peer_cpu_ms": sum(each["peer_cpu_ms"] * each["n"] for each in own) / n,
            "floor_ms": sum(each["floor_ms"] * each["n"] for each in own) / n,
            "parts_ms": {part: median(each["parts"][part] for each in own) for part in PARTS},
            "differ": sum(each["differ"] for each in own),
        }
        sets[name]["allowed_per_second"] = 1000 * about["threads"] / sets[name]["cpu_ms"]
        rows.append([name, *(sets[name][key] for key in list(sets[name])[:11])])
    walls = [
        [sum(e[key] for e in found if e["round"] == i) for i in range(about["settings"]["rounds"])]
        for key in ("wall", "peer_wall")
    ]
    agreed = not any(each["differ"] for each in found)
    quality = agreed and sets["gold"]["exec_match"] == 1.0 and sets["shuffled"]["exec_match"] < 0.02
    ratio: dict[str, Any] = (
        vars(paired_ratio(*walls)) if quality else dict.fromkeys(("ratio", "lo", "hi", "n", "interval"))
    )
    whole = [sum(one[key] * one["n"] for one in sets.values()) for key in ("floor_ms", "cpu_ms")]
    slowest = min(one["per_second"] for one in sets.values())
    head = ["answers", "n", "undecidable", "exec_match", "normalized", "samples/s", "CPU ms", "of that parent", "CPU allows /s",
            "peer samples/s", "peer CPU ms", "SQLite alone, CPU ms"]  # fmt: skip
    shares = [[part, what, *(one["parts_ms"][part] for one in sets.values())] for part, what in PARTS.items()]
    shown = (
        "{ratio:.2f} [{lo:.2f}, {hi:.2f}] ({interval} of {n} rounds)".format(**ratio) if quality else "verdicts differ"
    )
    lines = [
        f"### SQL scored, {about['settings']['task']}, {about['threads']} cores\n",
        markdown(head, rows),
        "\nCPU milliseconds a sample by part, medians of the rounds:\n",
        markdown(["part", "what", *sets], shares),
        "\nThe peer is the straightforward way: one process, no sandbox, a fresh connection for every database. "
        f"Peer / ours on the wall clock: {shown}. SQLite alone is {whole[0] / whole[1]:.0%} of our CPU time. "
        f"Loading took {loaded:.2f} s; {about['cpu']}, load {about['load']} at the start"
        + (" (BUSY)." if about["busy"] else "."),
    ]
    line = {
        "peer": "one process, no sandbox, a fresh connection for every database",
        **ratio,
        "floor_share": whole[0] / whole[1],
        "quality_ok": quality,
        "per_second": slowest,
        "goal_per_second": GOAL,
        "sets": sets,
        **about,
    }
    finish(args.out.absolute(), "scoring", line, {"rounds": found}, "\n".join(lines), as_json=args.json)
