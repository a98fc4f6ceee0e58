"""`python -m bench load`: the seconds from a GPTQ folder to the first logits, ours against transformers with GPTQModel.

1. Without `--checkpoint` one is made from `--model` first (plain rounding: loading does not care).
2. Each round runs our two kernels and the peer in turn, as fresh processes; imports do not count.
3. A ratio is shown only where the logits agree: the root mean square of their difference is at most 1 % of theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.common import add_common, pairs
from bench.disk import disk_bits, headers, ideal_bits
from bench.harness import BenchError, finish, markdown, paired_ratio, run_script, say, session
from bench.venvs import peer_python

__all__ = ["add_arguments", "distance", "run"]

TOLERANCE = 0.01
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "load")
    parser.add_argument("--checkpoint", type=Path, help="a GPTQ folder, ours or another tool's (default: one is made)")
    parser.add_argument("--bits", type=int, default=4, choices=(8, 4, 3, 2), help="width of the one that is made")
    parser.add_argument("--rounds", type=int, help="how often all are run (default 5; quick 2)")
    parser.add_argument("--dtype", default="float32", help="of computation, for all")
    parser.add_argument("--length", type=int, default=32, help="tokens of the one sample")
    parser.add_argument("--without-peer", action="store_true", help="ours alone")


def distance(a: list[float], b: list[float]) -> float:
    """Root mean square of `a - b` over that of `b`."""
    return (fmean((x - y) ** 2 for x, y in zip(a, b, strict=True)) / fmean(y**2 for y in b)) ** 0.5


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    rounds = args.rounds or (2 if args.quick else 5)
    folder = args.checkpoint.absolute() if args.checkpoint else _make(args)
    config, quantization = _configs(folder)
    about = session(
        args.threads,
        checkpoint=folder.name,
        bits=quantization["bits"],
        group_size=quantization["group_size"],
        rounds=rounds,
        dtype=args.dtype,
        length=args.length,
    )
    ids = [(7 * i + 11) % config["vocab_size"] for i in range(args.length)]
    options = {"checkpoint": str(folder), "ids": ids, "dtype": args.dtype, "bits": quantization["bits"]}
    runs = {
        f"plr, {kernel}": (peer_python("plr", {}, args.venvs), "load_plr", {**options, "kernel": kernel})
        for kernel in ("dequantized", "packed")
    }
    if not args.without_peer:
        python = peer_python("gptqmodel", pairs(args.venv), args.venvs)
        runs["transformers + GPTQModel"] = (python, "load_transformers", options)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # round 0 fills the disk cache, and lets the peer compile
        for name, (python, script, given) in runs.items():
            say(f"round {number}/{rounds}: {name}")
            log = args.out / "logs" / f"{name.replace(' ', '-')}.log"
            result = run_script(python, script, given, threads=args.threads, log=log)
            if number:
                results[name].append(result)
    report(args, about, folder, results)


def _make(args: argparse.Namespace) -> Path:
    if not (args.model / "config.json").is_file():
        raise BenchError(f"--model {args.model}: there is no config.json in it")
    folder = args.out / "checkpoints" / f"{args.model.name}-{args.bits}bit"
    shutil.rmtree(folder, ignore_errors=True)
    (args.out / "data").mkdir(parents=True, exist_ok=True)
    rows = args.out / "data" / "none.json"
    rows.write_text("[[0]]", encoding="utf-8")
    settings = {"method": "rtn", "bits": args.bits, "group_size": args.group_size}
    options = {
        "model": str(args.model.absolute()),
        "rows": str(rows),
        "batch": 1,
        "out": str(folder),
        "settings": settings,
    }
    say(f"making {folder.name}")
    python = peer_python("plr", {}, args.venvs)
    run_script(python, "run_plr_method", options, threads=args.threads, log=args.out / "logs" / "make.log")
    return folder


def _configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "quantization_config" not in config:
        raise BenchError(f"{folder} is no GPTQ checkpoint: its config.json has no quantization_config")
    return config, config["quantization_config"]


def report(
    args: argparse.Namespace, about: dict[str, Any], folder: Path, results: dict[str, list[dict[str, Any]]]
) -> None:
    names = list(results)
    peer = names[2] if len(names) > 2 else None
    disk, s = disk_bits(folder), about["settings"]
    groups = (
        s["group_size"]
        if s["group_size"] != -1
        else max(t["shape"][0] for n, t in headers(folder).items() if n.endswith("g_idx"))
    )
    ideal = ideal_bits(s["bits"], groups)

    def walls(name: str) -> list[float]:
        return [r["stages"]["whole"]["wall"] for r in results[name]]

    compared: dict[str, dict[str, Any]] = {}
    rows: list[list[Any]] = []
    for name in names:
        verdict = "peer"
        if name != peer:
            apart = distance(results[name][-1]["logits"], results[peer][-1]["logits"]) if peer else None
            ok = apart is not None and apart <= TOLERANCE
            ratio = vars(paired_ratio(walls(name), walls(peer))) if ok and peer else None
            compared[name] = {"quality_ok": ok, "distance": apart, "ratio": ratio}
            verdict = (
                "{ratio:.2f} [{lo:.2f}, {hi:.2f}]".format(**ratio)
                if ratio
                else "no peer"
                if not peer
                else "logits differ"
            )
        stages = [r["stages"] for r in results[name]]
        load, first = (median(x[stage]["wall"] for x in stages) for stage in ("load", "first"))
        peak = median(r["peak_rss"] for r in results[name]) / MIB
        rows.append([name, median(walls(name)), load, first, median(x["whole"]["cpu"] for x in stages), peak, verdict])
    head = [
        "method",
        "folder to logits s",
        "load s",
        "first forward s",
        "CPU s",
        "peak MiB",
        "theirs / ours [interval]",
    ]
    lines = [
        f"### Load {folder.name}\n",
        markdown(head, rows),
        f"\nMedians of {s['rounds']} interleaved rounds, {about['threads']} threads, {s['dtype']}, {s['length']} tokens; "
        f"{about['cpu']}, load {about['load']} at the start" + (" (BUSY)" if about["busy"] else "") + ". On disk "
        f"{disk['bytes'] / MIB:.1f} MiB, {disk['bits']:.3f} bits a quantized weight (ideal {ideal:.3f}).",
    ]
    best = compared[names[0]]
    ratio = best["ratio"]
    line = {
        "peer": peer,
        **{key: ratio[key] if ratio else None for key in ("ratio", "lo", "hi", "n", "interval")},
        "floor_share": None,
        "quality_ok": best["quality_ok"],
        "kernels": compared,
        "seconds": {name: median(walls(name)) for name in names},
        "peak_rss": {name: median(r["peak_rss"] for r in results[name]) for name in names},
        "bytes": disk["bytes"],
        "bits_per_weight": disk["bits"],
        "ideal_bits": ideal,
        **about,
        "versions": {name: results[name][0]["versions"] for name in names},
    }
    rounds = {name: [{k: v for k, v in r.items() if k != "logits"} for r in found] for name, found in results.items()}
    finish(args.out, "load", line, {"rounds": rounds}, "\n".join(lines), as_json=args.json)
