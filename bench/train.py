"""`python -m bench train`: an optimizer step of LoRA, ours against transformers' Trainer with PEFT on a padded batch.

1. One process holds a model for each runner. In every round each takes the same few optimizer steps on the same rows, from the same
   first weights, in an order that rotates; the collation of rows is part of it, loading and evaluation are not.
2. `transformers` runs on the 16-bit model. Below 16 bits `gptqmodel` runs on the very base that ours has, by GPTQModel's torch
   kernel, and `nf4` on bitsandbytes' NF4 of the 16-bit model.
3. No ratio without `quality_ok`: all losses of a peer on the same weights are those of ours, step by step. NF4 is another base: its
   losses are shown, and no part of the verdict.
4. The floor: the linear layers alone on the true tokens, forward and the gradient of their inputs, the output layer at the answers'
   tokens, by the faster of torch's two libraries. Attention, norms, the adapter and the optimizer are no part of it.
5. Memory: a fresh process for each runner; `lift` is how far its steps lift the peak of resident memory.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import EMBEDDED, words
from bench.harness import BenchError, finish, markdown, paired_ratio, run_script, say, session
from bench.venvs import peer_python

__all__ = ["GOAL", "PEERS", "add_arguments", "apart", "run"]

GIB = 2**30
GOAL = 1.5
PEERS = ("transformers", "gptqmodel", "nf4")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of the loss of any step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of a model (default: the embedded)")
    parser.add_argument("--bits", type=int, default=16, help="of the base that ours trains on")
    parser.add_argument("--task", default="tiny_math", help="whose rows")
    parser.add_argument("--data", help="folder with the task's rows")
    parser.add_argument("--peers", help="some of " + ", ".join(PEERS) + " (default transformers)")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE), help="of the computation, for all")
    parser.add_argument("--batch", type=int, default=32, help="rows of an optimizer step")
    parser.add_argument("--micro", type=int, help="rows of a forward (default: the batch)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a round")
    parser.add_argument("--rounds", type=int, help="how often each takes them (default 7; quick 2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of a study")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every process")
    parser.add_argument("--out", type=Path, default=Path(".bench/train"), help="results, logs, the base")
    parser.add_argument("--quick", action="store_true", help="two rounds: a minute on the embedded model")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def apart(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest difference of the losses of any step of any round, relative to theirs.

    >>> apart([[2.0, 1.0]], [[2.0, 1.25]])
    0.2
    """
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    if not (args.model / "config.json").is_file():
        raise BenchError(f"--model {args.model}: there is no config.json in it")
    peers = words(args.peers) if args.peers else ["transformers"]
    if unknown := [name for name in peers if name not in PEERS]:
        raise BenchError(f"--peers {unknown[0]}: some of {', '.join(PEERS)}")
    if "gptqmodel" in peers and args.bits == 16:
        raise BenchError("--peers gptqmodel: it runs on a base below 16 bits: --bits 4")
    micro = args.micro or args.batch
    if args.batch % micro:
        raise BenchError(f"--micro {micro} does not divide --batch {args.batch}")
    settings = {
        "model": str(args.model.absolute()),
        "bits": args.bits,
        "task": args.task,
        "data": str(Path(args.data).absolute()) if args.data else None,
        "dtype": args.dtype,
        "batch": args.batch,
        "micro": micro,
        "steps": args.steps,
        "rounds": args.rounds or (2 if args.quick else 7),
        "lr": 5e-4,
        "overrides": args.set,
        "out": str(args.out / "work"),
    }
    about = session(args.threads, **settings | {"model": args.model.name})
    python = peer_python("plr", {}, args.out)
    say(f"steps of plr, {', '.join(peers)} in turn")
    given = {**settings, "do": "steps", "runners": ["plr", *peers]}
    measured = run_script(python, "run_train", given, threads=args.threads, log=args.out / "logs" / "steps.log")
    memory: dict[str, int] = {}
    for name in ["plr", *peers]:
        say(f"memory of {name}")
        given = {**settings, "do": "memory", "runners": [name]}
        log = args.out / "logs" / f"memory-{name}.log"
        memory[name] = run_script(python, "run_train", given, threads=args.threads, log=log)["lift"]
    _report(args, about, measured, memory)


def _report(args: argparse.Namespace, about: dict[str, Any], measured: dict[str, Any], memory: dict[str, int]) -> None:
    found, s = measured["found"], about["settings"]
    ours, rows, verdicts = found["plr"], [], {}
    for name, one in found.items():
        verdict: dict[str, Any] = {"apart": None, "ratio": None, "cpu_ratio": None}
        if name != "plr":
            # Below 16 bits only GPTQModel's runner has the weights that ours has.
            comparable = name == ("transformers" if s["bits"] == 16 else "gptqmodel")
            distance = apart(ours["losses"], one["losses"])
            verdict["apart"] = distance if comparable else None
            verdict["quality_ok"] = not comparable or distance <= TOLERANCE[s["dtype"]]
            if verdict["quality_ok"]:
                verdict["ratio"] = vars(paired_ratio(ours["wall"], one["wall"]))
                verdict["cpu_ratio"] = vars(paired_ratio(ours["cpu"], one["cpu"]))
            verdicts[name] = verdict
        interval = "{ratio:.2f} [{lo:.2f}, {hi:.2f}]"
        rows.append(
            [
                name,
                median(one["wall"]) / s["steps"],
                median(one["cpu"]) / s["steps"],
                measured["tokens"] / median(one["wall"]),
                memory[name] / GIB,
                measured["floor"] / median(one["cpu"]),
                f"{one['losses'][0][-1]:.5f}",
                interval.format(**verdict["ratio"]) if verdict["ratio"] else None,
                interval.format(**verdict["cpu_ratio"]) if verdict["cpu_ratio"] else None,
            ]
        )
    head = [
        "runner",
        "s a step",
        "CPU s",
        "tokens/s",
        "lift GiB",
        "floor / CPU",
        "last loss",
        "theirs / ours, wall",
        "CPU",
    ]
    lines = [
        "### Training\n",
        markdown(head, rows),
        f"\n{s['model']}, {s['bits']} bits, {s['task']}, LoRA of {measured['trained']:,} parameters, {s['dtype']}; medians of "
        f"{s['rounds']} rounds of {s['steps']} steps, {s['batch']} rows a step, {s['micro']} a forward, "
        f"{measured['tokens'] / s['steps'] / s['batch']:.0f} tokens a row on average, {measured['longest']} at most; "
        f"rows {'one behind the other' if measured['packed'] else 'padded'}; "
        f"{about['threads']} threads; {about['cpu']}, load {about['load']} at the start"
        + (" (BUSY)." if about["busy"] else "."),
    ]
    ratios = [one["ratio"] for one in verdicts.values() if one["ratio"]]
    worst = min(ratios, key=lambda ratio: ratio["ratio"], default=None)
    line = {
        **{key: worst[key] if worst else None for key in ("ratio", "lo", "hi", "n", "interval")},
        "floor_share": measured["floor"] / median(ours["cpu"]),
        "quality_ok": all(one["quality_ok"] for one in verdicts.values()),
        "goal": GOAL,
        "goal_met": worst is not None and worst["ratio"] >= GOAL,
        "peers": verdicts,
        "lift": memory,
        **about,
        "versions": measured["versions"],
    }
    finish(args.out, "train", line, {"measured": measured}, "\n".join(lines), as_json=args.json)
