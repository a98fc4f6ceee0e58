"""`python -m bench eval`: greedy answers to a task's prompts, ours against lm-eval's own `hf` backend.

1. One process holds one model. Ours (`plr.lm.generate`) and `HFLM.generate_until` answer the same prompts in turn, with the same
   stop strings and the same limit of tokens, at 0 shots and with examples before each question (the first of the train split).
2. The first round tries every batch size of `--peer-batches`; the fastest goes on to the other rounds and is the peer.
3. Answers are compared one by one. Where two differ, the model itself is asked for its logits at the first differing token: a
   near tie is counted and allowed, anything else is not. No ratio without it.
4. The floor: the model's linear layers alone, for the tokens that must be computed (the shared examples once), at the speed
   measured in the same process for products of 64 rows (answers) and of 1024 (prompts). Attention is no part of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import EMBEDDED, numbers
from bench.harness import BenchError, finish, markdown, paired_ratio, run_script, say, session
from bench.venvs import peer_python

__all__ = ["GOALS", "add_arguments", "run"]

GOALS = {0: 2.0, 8: 4.0}  # theirs over ours, by shots


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of a model (default: the embedded)")
    parser.add_argument("--task", default="tiny_math", help="whose prompts")
    parser.add_argument("--data", help="folder with the task's rows")
    parser.add_argument("--shots", type=numbers, help="examples before each question (default 0,8; the embedded 0,4)")
    parser.add_argument("--docs", type=int, help="questions (default 128; quick 48, and 24 with shots)")
    parser.add_argument("--max-new-tokens", type=int, help="limit of an answer (default: the task's)")
    parser.add_argument("--slots", type=int, default=64, help="answers that ours writes side by side")
    parser.add_argument("--peer-batches", type=numbers, default=[16, 64], help="batch sizes the peer may choose from")
    parser.add_argument("--dtype", default="float32", help="of the model, for both")
    parser.add_argument("--rounds", type=int, help="how often both answer all (default 3; quick 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the process")
    parser.add_argument("--out", type=Path, default=Path(".bench/eval"), help="results, logs")
    parser.add_argument("--quick", action="store_true", help="few questions, one round: ends within ten minutes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    if not (args.model / "config.json").is_file():
        raise BenchError(f"--model {args.model}: there is no config.json in it")
    if args.shots is None:
        args.shots = [0, 4] if args.model == EMBEDDED else [0, 8]  # eight do not fit into the embedded's 512 positions
    if not args.shots or not args.peer_batches:
        raise BenchError("--shots and --peer-batches name one number at least")
    if importlib.util.find_spec("lm_eval") is None:
        raise BenchError("lm-eval is not installed: pip install -c constraints.txt lm_eval")
    rounds = args.rounds or (1 if args.quick else 3)
    docs = {shots: args.docs or ((24 if shots else 48) if args.quick else 128) for shots in args.shots}
    about = session(
        args.threads,
        model=args.model.name,
        task=args.task,
        docs=docs,
        slots=args.slots,
        peer_batches=args.peer_batches,
        dtype=args.dtype,
        rounds=rounds,
    )
    given = {
        "model": str(args.model.absolute()),
        "task": args.task,
        "data": str(Path(args.data).absolute()) if args.data else None,
        "max_new_tokens": args.max_new_tokens,
        "slots": args.slots,
        "peer_batches": args.peer_batches,
        "dtype": args.dtype,
        "rounds": rounds,
    }
    found: dict[int, dict[str, Any]] = {}
    for shots in args.shots:
        say(f"{shots} shots, {docs[shots]} questions: {rounds} rounds, ours and the peer in turn")
        log = args.out / "logs" / f"{shots}-shots.log"
        options = {**given, "shots": shots, "docs": docs[shots]}
        measured = run_script(peer_python("plr", {}, args.out), "run_eval", options, threads=args.threads, log=log)
        goal = None if args.model == EMBEDDED else GOALS.get(shots)  # there the interpreter takes most of the time
        found[shots] = {**measured, **compare(measured, goal)}
    _report(args, about, found)


def compare(one: dict[str, Any], goal: float | None) -> dict[str, Any]:
    """Verdicts on one setting: `one` holds `wall` and `cpu` (seconds of each round, by runner), `answers`, `floor`.

    The peer is its batch size with the lowest median of wall seconds among those that ran in every round.
    """
    wall, cpu, answers = one["wall"], one["cpu"], one["answers"]
    whole = [name for name in wall if name != "ours" and len(wall[name]) == len(wall["ours"])]
    peer = min(whole, key=lambda name: median(wall[name]))
    ok = answers["different"] == 0
    ratio = vars(paired_ratio(wall["ours"], wall[peer])) if ok else None
    seconds = median(wall["ours"])
    return {
        "peer": peer,
        "quality_ok": ok,
        "ratio": ratio,
        "cpu_ratio": vars(paired_ratio(cpu["ours"], cpu[peer])) if ok else None,
        "goal": goal,
        "goal_met": ratio is not None and goal is not None and ratio["ratio"] >= goal,
        "tokens_per_second": one["tokens"]["generated"] / seconds,
        "peer_tokens_per_second": one["tokens"]["generated"] / median(wall[peer]),
        "floor_share": one["floor"]["seconds"] / seconds,
    }


def _report(args: argparse.Namespace, about: dict[str, Any], found: dict[int, dict[str, Any]]) -> None:
    rows = []
    for shots, one in found.items():
        answers, tokens = one["answers"], one["tokens"]
        for name, seconds in one["wall"].items():
            ratio = one["ratio"] if name == one["peer"] else None
            same = f"{answers['equal']} + {answers['near_ties']} near ties of {one['docs']}" if name == "ours" else None
            rows.append(
                [
                    shots,
                    "plr" if name == "ours" else f"lm-eval hf, batch {name}",
                    f"{median(seconds):.1f}",
                    f"{median(one['cpu'][name]):.1f}",
                    tokens["generated"] / median(seconds),
                    one["floor"]["seconds"] / median(seconds),
                    same,
                    "{ratio:.2f} [{lo:.2f}, {hi:.2f}]".format(**ratio) if ratio else None,
                ]
            )
        if not one["quality_ok"]:
            rows.append([shots, "NO RATIO", *[None] * 4, f"{answers['different']} answers differ", None])
    head = ["shots", "engine", "s", "CPU s", "tokens/s", "share of floor", "same answers", "theirs / ours"]
    s = about["settings"]
    limits = "; ".join(
        f"{shots} shots: {one['tokens']['prompt_mean']:.0f} tokens a prompt, {one['tokens']['shared']} of them shared, "
        f"{one['tokens']['generated'] / one['docs']:.0f} an answer, linear layers alone {one['floor']['rate']:.0f} tokens/s "
        f"at {one['floor']['rows']} rows"
        for shots, one in found.items()
    )
    lines = [
        f"### Answers of {s['model']} to {s['task']}\n",
        markdown(head, rows),
        f"\nMedians of {s['rounds']} interleaved rounds, {about['threads']} threads, {s['dtype']}; {limits}. "
        f"{about['cpu']}, load {about['load']} at the start" + (" (BUSY)." if about["busy"] else "."),
    ]
    known = [one for one in found.values() if one["ratio"]]
    worst = min(known, key=lambda one: one["ratio"]["ratio"] / (one["goal"] or 1.0), default=None)
    ratio = worst["ratio"] if worst else None
    line = {
        "ratio_of": "wall seconds, lm-eval's hf backend / ours, of the setting nearest to its goal or farthest below",
        **{key: ratio[key] if ratio else None for key in ("ratio", "lo", "hi", "n", "interval")},
        "floor_share": worst["floor_share"] if worst else None,
        "quality_ok": len(known) == len(found),
        "goals_met": all(one["goal_met"] for one in found.values() if one["goal"]),
        "by_shots": {
            str(shots): {
                key: value for key, value in one.items() if key not in ("stages", "versions", "answers_by_batch")
            }
            for shots, one in found.items()
        },
        **about,
        "versions": next(iter(found.values()))["versions"],
        "python": sys.version.split()[0],
    }
    finish(args.out, "eval", line, {"settings": found}, "\n".join(lines), as_json=args.json)
