"""`python -m bench adapters`: a training step of the sparse adapter against LoRA of equal size, and against a dense dW.

1. Models of true width with random weights, cut to `--layers`, and a small vocabulary: what all adapters share is kept short,
   so a whole model shows smaller differences. LoRA of rank `--rank` sets the number of parameters; the sparse adapter gets it
   as its budget.
2. Time: one process holds all variants and takes a step of each in every round, in an order that rotates.
3. Memory: a fresh process for each variant. *Kept* is what the forward keeps for the backward beside the weights (bytes of
   distinct storages, by torch's hooks: exact). *Lift* is how far three steps lift the peak of resident memory.
4. No ratio without `quality_ok`: the losses of all steps are those of the dense dW, in that very run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import shape, words
from bench.harness import BenchError, finish, markdown, paired_ratio, run_script, say, session
from bench.venvs import peer_python

__all__ = ["GOAL_MEMORY", "GOAL_TIME", "MODELS", "add_arguments", "losses_apart", "run"]

MIB = 2**20
TOLERANCE = 1e-3  # relative, of the loss of any step
GOAL_TIME, GOAL_MEMORY = 1.1, 1.0  # sparse over LoRA
VARIANTS = ("sparse", "lora", "dense")
MODELS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "family": "llama",
        "sizes": {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    },
    "minilm": {
        "family": "bert",
        "sizes": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    },
    "roberta": {
        "family": "bert",
        "sizes": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="smollm2,minilm,roberta", help="whose sizes, of " + ", ".join(MODELS))
    parser.add_argument("--layers", type=int, help="layers of each (default 4; quick 2)")
    parser.add_argument("--tokens", type=shape, help="a batch, SAMPLESxLENGTH (default 8x128; quick 4x64)")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA: sets the parameters of all")
    parser.add_argument("--grid", type=shape, default=(24, 32), help="n x m of the sparse adapter")
    parser.add_argument("--rounds", type=int, help="steps of each that are timed (default 20; quick 6)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every process")
    parser.add_argument("--out", type=Path, default=Path(".bench/adapters"), help="results, logs")
    parser.add_argument("--quick", action="store_true", help="fewer layers, tokens and rounds: some minutes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def losses_apart(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves of losses, relative to the second."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    names = words(args.models)
    if unknown := [name for name in names if name not in MODELS]:
        raise BenchError(f"--models {unknown[0]}: one of {', '.join(MODELS)}")
    if not names:
        raise BenchError(f"--models names none: some of {', '.join(MODELS)}")
    settings = {
        "layers": args.layers or (2 if args.quick else 4),
        "tokens": list(args.tokens or ((4, 64) if args.quick else (8, 128))),
        "rank": args.rank,
        "grid": list(args.grid),
        "rounds": args.rounds or (6 if args.quick else 20),
        "lr": 1e-3,
    }
    about = session(args.threads, **settings)
    python = peer_python("plr", {}, args.out)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        given = {**MODELS[name], **settings}
        say(f"{name}: steps of {', '.join(VARIANTS)} in turn")
        log = args.out / "logs" / f"{name}-steps.log"
        steps = run_script(
            python, "run_adapters", {**given, "do": "steps", "variants": VARIANTS}, threads=args.threads, log=log
        )
        memory = {}
        for variant in VARIANTS:
            say(f"{name}: memory of {variant}")
            log = args.out / "logs" / f"{name}-{variant}.log"
            options = {**given, "do": "memory", "variants": [variant]}
            memory[variant] = run_script(python, "run_adapters", options, threads=args.threads, log=log)
        found[name] = {"steps": steps, "memory": memory, **_compare(steps, memory)}
    _report(args, about, found)


def _compare(steps: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    """Verdicts on one model."""
    wall, cpu, losses = steps["wall"], steps["cpu"], steps["losses"]
    apart = losses_apart(losses["sparse"], losses["dense"])
    ok = apart <= TOLERANCE
    return {
        "quality_ok": ok,
        "apart": apart,
        "ratio": vars(paired_ratio(wall["sparse"], wall["lora"])) if ok else None,
        "cpu_ratio": vars(paired_ratio(cpu["sparse"], cpu["lora"])) if ok else None,
        "dense_ratio": vars(paired_ratio(wall["sparse"], wall["dense"])) if ok else None,
        "kept_over_lora": memory["sparse"]["saved"] / memory["lora"]["saved"],
        "lift_over_lora": memory["sparse"]["lift"] / memory["lora"]["lift"],
        "kept_over_dense": memory["sparse"]["saved"] / memory["dense"]["saved"],
        "lift_over_dense": memory["sparse"]["lift"] / memory["dense"]["lift"],
    }


def _report(args: argparse.Namespace, about: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, one in found.items():
        for variant in VARIANTS:
            steps, memory = one["steps"], one["memory"][variant]
            ratio = {"lora": one["ratio"], "dense": one["dense_ratio"], "sparse": None}[variant]
            verdict = "{ratio:.2f} [{lo:.2f}, {hi:.2f}]".format(**ratio) if ratio else None
            rows.append(
                [
                    name,
                    variant,
                    steps["parameters"][variant],
                    1e3 * median(steps["wall"][variant]),
                    1e3 * median(steps["cpu"][variant]),
                    memory["saved"] / MIB,
                    memory["lift"] / MIB,
                    f"{steps['losses'][variant][-1]:.5f}",
                    verdict if variant == "sparse" or one["quality_ok"] else "losses differ",
                ]
            )
    head = [
        "model",
        "adapter",
        "parameters",
        "ms a step",
        "CPU ms",
        "kept MiB",
        "lift MiB",
        "last loss",
        "theirs / sparse",
    ]
    s = about["settings"]
    lines = [
        "### Adapters\n",
        markdown(head, rows),
        f"\nMedians of {s['rounds']} interleaved steps; {s['layers']} layers, {s['tokens'][0]} x {s['tokens'][1]} tokens, "
        f"float32, {about['threads']} threads; {about['cpu']}, load {about['load']} at the start"
        + (" (BUSY)." if about["busy"] else "."),
    ]
    worst = min((one["ratio"] for one in found.values() if one["ratio"]), key=lambda r: r["ratio"], default=None)
    memory = max(max(one["kept_over_lora"], one["lift_over_lora"]) for one in found.values())
    line = {
        **{key: worst[key] if worst else None for key in ("ratio", "lo", "hi", "n", "interval")},
        "floor_share": None,
        "quality_ok": all(one["quality_ok"] for one in found.values()),
        "memory_over_lora": memory,
        "goal_time": worst is not None and worst["ratio"] >= 1 / GOAL_TIME,
        "goal_memory": memory <= GOAL_MEMORY,
        "models": {
            name: {key: value for key, value in one.items() if key not in ("steps", "memory")}
            for name, one in found.items()
        },
        **about,
        "versions": next(iter(found.values()))["steps"]["versions"],
    }
    finish(args.out, "adapters", line, {"models": found}, "\n".join(lines), as_json=args.json)
