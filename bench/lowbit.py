"""`python -m bench lowbit`: what is left of a model at 8, 4, 3 and 2 bits: perplexity, layer error, answer loss.

1. The first half of each training text calibrates all methods alike; nothing of the second halves is seen.
2. Each (method, bits) is quantized in a process of its own and measured by `bench.quality`, then its checkpoint is
   deleted (`--keep` keeps it). The result lies in `<out>/cells/`, named after a hash of all it depends on: settings,
   model, texts, code. A run that was interrupted goes on where it stopped.
3. A method is `rtn`, `gptqmodel` (its defaults), `gptqmodel-plain` (our plain settings), or the quantize section of a
   preset. `--set NAME.preset=paper --set NAME.grid=mse` makes a method of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from bench.common import TEXTS, add_common, numbers, pairs, prepare, shape, words
from bench.disk import disk_bits, ideal_bits
from bench.harness import ROOT, BenchError, finish, markdown, run_module, run_script, say, session
from bench.venvs import peer_python

__all__ = ["add_arguments", "run", "settings_of"]

CALIBRATION_KEYS = ("calibration", "samples", "seed", "max_length", "by_bits", "preset")
REFERENCES = ("paper", "gptqmodel")
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "lowbit")
    parser.add_argument("--methods", type=words, default=["rtn", "gptqmodel", "paper", "best"], help="in table order")
    parser.add_argument("--bits", type=numbers, help="widths (default 8,4,3,2; quick 4,2)")
    parser.add_argument("--tokens", type=shape, help="calibration: SAMPLESxLENGTH (default 64x512; quick 8x128)")
    parser.add_argument("--train-text", type=Path, nargs="+", default=[], help="their first halves calibrate")
    parser.add_argument("--eval-text", type=Path, nargs="+", help="their second halves measure (default: --train-text)")
    parser.add_argument("--eval-windows", type=int, help="windows of each text (default all; quick 8)")
    parser.add_argument("--eval-length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--task", help="measure the answer loss on validation rows of this task")
    parser.add_argument("--data", help="folder with the task's rows")
    parser.add_argument("--task-rows", type=int, default=100, help="validation rows")
    parser.add_argument("--max-prompt-chars", type=int, help="leave longer prompts out")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE", help="change a method")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")


def settings_of(method: str, bits: int, group_size: int, overrides: Iterable[str]) -> dict[str, Any]:
    """The fields of `plr.core.specs.Quantization` that `method` means at `bits`.

    Raises:
        BenchError: no such method.
    """
    from plr.core.config import apply_overrides
    from plr.study.presets import PRESETS

    own = apply_overrides({}, [item for item in overrides if item.startswith(f"{method}.")]).get(method, {})
    start = own.get("preset", method)
    if start == "rtn":
        base: dict[str, Any] = {"method": "rtn", "sym": True}
    elif start in PRESETS:
        base = PRESETS[start].get("quantize", {})
    else:
        known = ", ".join(["rtn", "gptqmodel", "gptqmodel-plain", *PRESETS])
        raise BenchError(f"unknown method {method!r}: give one of {known}, or --set {method}.preset=paper")
    merged = {**base, **base.get("by_bits", {}).get(bits, {}), **own, **own.get("by_bits", {}).get(bits, {})}
    kept = {key: value for key, value in merged.items() if key not in CALIBRATION_KEYS}
    return {**kept, "bits": bits, "group_size": group_size}


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    args.tokens = args.tokens or ((8, 128) if args.quick else (64, 512))
    args.bits = args.bits or ([4, 2] if args.quick else [8, 4, 3, 2])
    train = args.train_text or TEXTS
    held_out = args.eval_text or train
    about = session(
        args.threads,
        model=args.model.name,
        methods=args.methods,
        bits=args.bits,
        group_size=args.group_size,
        tokens=list(args.tokens),
        batch=BATCH,
        eval_length=args.eval_length,
        train_text=[path.name for path in train],
        eval_text=[path.name for path in held_out],
        task=args.task,
        task_rows=args.task_rows if args.task else None,
        overrides=args.set,
        dtype="float32 for ours and for every measure; GPTQModel as it takes it",
    )
    stray = [item for item in args.set if item.partition(".")[0] not in args.methods]
    if stray:
        raise BenchError(f"--set {stray[0]}: that method is not among --methods {','.join(args.methods)}")
    data = prepare(args, train, held_out, args.eval_windows or (8 if args.quick else None), args.eval_length)
    ids = _digest(*(Path(file).read_bytes() for file in [data["calibration"], *data["eval"].values()]))
    world = {
        "data": ids,
        "model": _model_digest(args.model),
        "measure": _code("bench/quality.py", "bench/data.py", "bench/disk.py"),
        "task": _task(args),
    }
    cache = str(args.out / "data" / f"hessians-{_digest(ids, world['model'])[:12]}.safetensors")
    measure = {"model": str(args.model.absolute()), **data, "task": _task(args), "cache": cache}
    plans = [(method, bits, _plan(args, method, bits)) for bits in args.bits for method in args.methods]

    base = _cell(args, "16bit", {**world, "settings": None}, lambda: _measure(args, measure, "16bit", None))
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for method, bits, plan in plans:
        key = {**world, "settings": plan["settings"], "code": plan["code"]}
        name = f"{method}-{bits}"

        def make(name: str = name, plan: dict[str, Any] = plan, bits: int = bits) -> dict[str, Any]:
            say(f"{name}: quantize")
            folder = args.out / "checkpoints" / name
            shutil.rmtree(folder, ignore_errors=True)
            options = {**plan["options"], "rows": data["calibration"], "out": str(folder)}
            log = args.out / "logs" / f"{name}.log"
            made = run_script(plan["python"], plan["script"], options, threads=args.threads, log=log)
            if plan["script"] == "run_gptqmodel":
                folder = folder / str(bits)
            say(f"{name}: measure")
            result = {**_measure(args, measure, name, folder), **disk_bits(folder), "made": made}
            if not args.keep:
                shutil.rmtree(args.out / "checkpoints" / name)
            return {**result, "settings": plan["settings"]}

        cells[method, bits] = _cell(args, name, key, make)
    report(args, about, base, cells, data["eval_tokens"])


def _plan(args: argparse.Namespace, method: str, bits: int) -> dict[str, Any]:
    """How to make one cell, and what its result depends on."""
    model = {"model": str(args.model.absolute()), "batch": BATCH}
    if method in ("gptqmodel", "gptqmodel-plain"):
        python = peer_python("gptqmodel", pairs(args.venv), args.venvs)
        settings = {"group_size": args.group_size, "dtype": "native", "plain": method == "gptqmodel-plain"}
        code = _code("bench/peers/run_gptqmodel.py", "constraints.txt")
        options = {**model, **settings, "bits": [bits]}
        return {"python": python, "script": "run_gptqmodel", "options": options, "settings": settings, "code": code}
    settings = settings_of(method, bits, args.group_size, args.set)
    own = sorted(
        str(p.relative_to(ROOT)) for part in ("gptq", "quantizers") for p in (ROOT / "plr" / part).glob("*.py")
    )
    return {
        "python": peer_python("plr", {}, args.venvs),
        "script": "run_plr_method",
        "options": {**model, "settings": settings},
        "settings": settings,
        "code": _code("bench/peers/run_plr_method.py", *own),
    }


def _measure(args: argparse.Namespace, measure: dict[str, Any], name: str, folder: Path | None) -> dict[str, Any]:
    options = {**measure, "checkpoints": {name: None if folder is None else str(folder)}}
    log = args.out / "logs" / f"{name}-quality.log"
    return run_module("quality", options, threads=args.threads, log=log)[name]


def _cell(args: argparse.Namespace, name: str, key: dict[str, Any], make: Any) -> dict[str, Any]:
    """The stored result under this key, or a new one, stored."""
    path = args.out / "cells" / f"{name}-{_digest(json.dumps(key, sort_keys=True))[:12]}.json"
    if path.is_file():
        say(f"{name}: known ({path.name})")
        return json.loads(path.read_text(encoding="utf-8"))
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(path)
    return result


def _task(args: argparse.Namespace) -> dict[str, Any] | None:
    if not args.task:
        return None
    data = str(Path(args.data).absolute()) if args.data else None
    return {"name": args.task, "data": data, "limit": args.task_rows, "max_prompt_chars": args.max_prompt_chars}


def _digest(*parts: bytes | str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return sha.hexdigest()


def _code(*files: str) -> str:
    return _digest(*((ROOT / file).read_bytes() for file in files))


def _model_digest(folder: Path) -> str:
    """By name, size and time of the weights: hashing gigabytes would cost more than a cell."""
    weights = [path.stat() for path in sorted(folder.glob("*.safetensors"))]
    stats = json.dumps([[s.st_size, s.st_mtime_ns] for s in weights])
    return _digest((folder / "config.json").read_bytes(), stats)


def report(
    args: argparse.Namespace,
    about: dict[str, Any],
    base: dict[str, Any],
    cells: dict[tuple[str, int], dict[str, Any]],
    tokens: dict[str, int],
) -> None:
    texts = list(base["perplexity"])
    with_task = base["answer_loss"] is not None
    head = ["bits", "method", *(f"perplexity {text}" for text in texts), *(["answer loss"] if with_task else [])]
    head += ["mean layer error", "bits a weight (ideal)", "MiB", "seconds"]

    def quality(cell: dict[str, Any]) -> list[Any]:
        loss = [f"{cell['answer_loss']:.4f}"] if with_task else []
        return [*(f"{cell['perplexity'][text]:.4g}" for text in texts), *loss]

    rows: list[list[Any]] = [[16, "source", *quality(base), None, None, None, None]]
    for (method, bits), cell in cells.items():
        sizes = f"{cell['bits']:.3f} ({ideal_bits(bits, args.group_size):.3f})"
        seconds = cell["made"]["stages"]["whole"]["wall"]
        rows.append([bits, method, *quality(cell), f"{cell['error']:.4g}", sizes, cell["bytes"] / 2**20, seconds])
    s = about["settings"]
    lines = [
        f"### {s['model']} at low bits\n",
        markdown(head, rows),
        f"\nGroups of {s['group_size']}; {s['tokens'][0]} x {s['tokens'][1]} tokens of the first halves of "
        f"{', '.join(s['train_text'])} calibrate; perplexity of windows of {s['eval_length']} tokens of the second halves "
        f"({', '.join(f'{text}: n = {n}' for text, n in tokens.items())} tokens scored"
        + (f"; answer loss in nats a token on {s['task_rows']} validation rows of {s['task']}" if with_task else "")
        + "). GPTQModel with its own defaults. Layer error: on the inputs of the 16-bit model, mean over layers. "
        f"{about['threads']} threads, {about['cpu']}.",
    ]
    against = {name: compare(cells, "best", name, min(args.bits)) for name in REFERENCES}
    known = [value for value in against.values() if value is not None]
    worst = min(known, key=lambda value: value["ratio"]) if known else None
    line = {
        "ratio_of": f"perplexity at {min(args.bits)} bits, reference / best (> 1: ours is lower)",
        **{key: worst[key] if worst else None for key in ("ratio", "lo", "hi", "interval")},
        "floor_share": None,
        "quality_ok": bool(known) and all(value["never_worse"] for value in known),
        "against": against,
        "perplexity": {"16": base["perplexity"]} | {f"{m}/{b}": c["perplexity"] for (m, b), c in cells.items()},
        "errors": {f"{m}/{b}": cell["error"] for (m, b), cell in cells.items()},
        "bits_per_weight": {f"{m}/{b}": cell["bits"] for (m, b), cell in cells.items()},
        "answer_loss": {"16": base["answer_loss"]} | {f"{m}/{b}": c["answer_loss"] for (m, b), c in cells.items()},
        "eval_tokens": tokens,
        **about,
    }
    details = {"16": base, "cells": {f"{m}/{b}": cell for (m, b), cell in cells.items()}}
    finish(args.out, "lowbit", line, details, "\n".join(lines), as_json=args.json)


def compare(cells: dict[tuple[str, int], Any], ours: str, theirs: str, bits: int) -> dict[str, Any] | None:
    """Their perplexity over ours at `bits`: geometric mean over texts, with the extremes; None if one is not there.

    `never_worse`: at every width in the table ours is at most 2 % above theirs on every text.
    """
    if (ours, bits) not in cells or (theirs, bits) not in cells:
        return None

    def ratios(k: int) -> list[float]:
        mine, other = cells[ours, k]["perplexity"], cells[theirs, k]["perplexity"]
        return [other[text] / mine[text] for text in other]

    widths = [k for method, k in cells if method == ours and (theirs, k) in cells]
    found = ratios(bits)
    return {
        "ratio": geometric_mean(found),
        "lo": min(found),
        "hi": max(found),
        "interval": "min to max over texts",
        "never_worse": all(ratio * 1.02 >= 1 for k in widths for ratio in ratios(k)),
    }
