"""`python -m bench quantize`: the seconds from a 16-bit folder to a k-bit folder, ours against the peers.

1. Each round runs every contestant once, in turn, as a fresh process: load, quantize, pack, save; imports do not count.
   Then the floor is measured (`bench.floor`).
2. After the last round one process measures all saved checkpoints by the same rule (`bench.quality`).
3. A ratio is shown only where our error and our perplexity are not above the peer's by more than 2 %.

With `--widths 8,4,3,2` ours makes four bases in one process and a peer runs four times; times are sums.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.common import EMBEDDED, TEXTS, add_common, numbers, pairs, prepare, shape, words
from bench.harness import BenchError, finish, markdown, paired_ratio, run_module, run_script, say, session
from bench.venvs import peer_python

__all__ = ["PEERS", "add_arguments", "quality_ok", "run"]

TOLERANCE = 1.02
PEERS = ("gptqmodel", "optimum", "ist")
MIB = 2**20


@dataclass
class Contestant:
    name: str
    title: str
    python: str
    script: str
    options: dict[str, Any]
    together: bool = False  # all widths in one process
    results: list[dict[str, Any]] = field(default_factory=list)  # of each round
    failed: str | None = None

    def times(self, stage: str, kind: str = "wall") -> list[float]:
        """Of each round; 0 for a stage that the script does not tell apart."""
        return [result["stages"].get(stage, {}).get(kind, 0.0) for result in self.results]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "quantize")
    parser.add_argument("--bits", type=int, default=4, choices=(8, 4, 3, 2), help="width of the base")
    parser.add_argument("--widths", type=numbers, help="several widths in one go, e.g. 8,4,3,2 (instead of --bits)")
    parser.add_argument("--tokens", type=shape, help="calibration: SAMPLESxLENGTH (default 32x256; quick 8x128)")
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], help="first halves calibrate, second halves measure"
    )
    parser.add_argument("--batch", type=int, default=8, help="samples in a batch")
    parser.add_argument("--rounds", type=int, help="how often all are run (default 3; quick 1)")
    parser.add_argument("--peers", type=words, default=list(PEERS), help=f"of {','.join(PEERS)}, or none")
    parser.add_argument(
        "--dtype", default="float32", help="of our model: float32 (as plr quantize), bfloat16 or native"
    )
    parser.add_argument(
        "--forward-dtype",
        default="auto",
        help="of our calibration's forward: auto (as plr quantize), float32, bfloat16",
    )
    parser.add_argument("--peer-dtype", default="native", help="of the peers' models: native is what they take")


def quality_ok(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether mean layer error and every perplexity are at most 2 % above the peer's."""
    perplexities = all(ours["perplexity"][text] <= TOLERANCE * value for text, value in theirs["perplexity"].items())
    return perplexities and ours["error"] <= TOLERANCE * theirs["error"]


def contestants(args: argparse.Namespace, rows: str) -> list[Contestant]:
    """Ours first."""
    unknown = sorted(set(args.peers) - set(PEERS))
    if unknown:
        raise BenchError(f"unknown peer {unknown[0]!r}: give some of {', '.join(PEERS)}, or none")
    common = {"rows": rows, "model": str(args.model.absolute()), "group_size": args.group_size, "batch": args.batch}
    own = {**common, "dtype": args.dtype, "forward_dtype": args.forward_dtype}
    theirs = {**common, "dtype": args.peer_dtype}
    given = pairs(args.venv)
    found = [Contestant("plr", "plr", peer_python("plr", given, args.venvs), "run_plr", own, together=True)]
    for peer in args.peers:
        python = peer_python(peer, given, args.venvs)
        if peer == "gptqmodel":
            like = ("gptqmodel", "GPTQModel, same settings", True)
            defaults = ("gptqmodel-defaults", "GPTQModel, its defaults", False)
            for name, title, plain in (like, defaults):
                found.append(Contestant(name, title, python, "run_gptqmodel", {**theirs, "plain": plain}))
        elif peer == "optimum":
            found.append(Contestant(peer, "transformers GPTQConfig (optimum)", python, "run_optimum", theirs))
        else:
            found.append(Contestant(peer, "first implementation's schedule", python, "run_ist_style", own))
    return found


def run_once(c: Contestant, widths: list[int], folder: Path, logs: Path, threads: int) -> dict[str, Any]:
    """All widths once: the stages summed over the processes it takes, the peak of them."""
    parts = []
    for bits in [widths] if c.together else [[k] for k in widths]:
        log = logs / f"{c.name}-{'-'.join(map(str, bits))}.log"
        options = {**c.options, "bits": bits, "out": str((folder / c.name).absolute())}
        parts.append(run_script(c.python, c.script, options, threads=threads, log=log))
    stages = {
        stage: {kind: sum(part["stages"][stage][kind] for part in parts) for kind in ("wall", "cpu")}
        for stage in parts[0]["stages"]
    }
    return {**parts[0], "stages": stages, "peak_rss": max(part["peak_rss"] for part in parts)}


def warm_up(args: argparse.Namespace, field_: list[Contestant]) -> None:
    """Let each peer compile what it compiles on its first use, on the embedded model; one that cannot run fails early."""
    peers = {c.script: c for c in field_ if c.script not in ("run_plr", "run_ist_style")}
    if not peers:
        return
    small = argparse.Namespace(**{**vars(args), "model": EMBEDDED, "tokens": (8, 64), "out": args.out / "warm-up"})
    rows = prepare(small, TEXTS, TEXTS, 1, 64)["calibration"]  # ids of the embedded model's vocabulary
    for script, c in peers.items():
        say(f"warm-up: {script.removeprefix('run_')}")
        options = {**c.options, "model": str(EMBEDDED), "rows": rows, "group_size": 64, "bits": [4]}
        options["out"] = str(small.out / "checkpoints")
        try:
            run_script(c.python, script, options, threads=args.threads, log=small.out / "logs" / f"{script}.log")
        except BenchError as error:
            say(f"  failed: {error}")
            for same in field_:
                if same.script == script:
                    same.failed = str(error)


def run(args: argparse.Namespace) -> None:
    args.tokens = args.tokens or ((8, 128) if args.quick else (32, 256))
    args.out = args.out.absolute()
    rounds = args.rounds or (1 if args.quick else 3)
    widths: list[int] = args.widths or [args.bits]
    text = args.text or TEXTS
    about = session(
        args.threads,
        model=args.model.name,
        widths=widths,
        group_size=args.group_size,
        tokens=list(args.tokens),
        batch=args.batch,
        rounds=rounds,
        dtype=args.dtype,
        forward_dtype=args.forward_dtype,
        peer_dtype=args.peer_dtype,
        text=[path.name for path in text],
        seed="none: nothing is drawn",
    )
    data = prepare(args, text, text, 8 if args.quick else 16, min(512, args.tokens[1]) if args.quick else 512)
    field_ = contestants(args, data["calibration"])
    warm_up(args, field_)
    floors: list[dict[str, float]] = []
    folder = args.out / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(1, rounds + 1):
        for c in field_:
            if c.failed:
                continue
            say(f"round {number}/{rounds}: {c.title}")
            try:
                c.results.append(run_once(c, widths, folder, args.out / "logs", args.threads))
            except BenchError as error:
                if c is field_[0]:
                    raise
                c.failed = str(error)
                say(f"  failed: {error}")
                continue
            whole = c.results[-1]["stages"]["whole"]
            say(f"  {whole['wall']:.1f} s wall, {whole['cpu']:.1f} s CPU")
        options = {
            "model": str(args.model.absolute()),
            "rows": data["calibration"],
            "dtype": args.dtype,
            "forward_dtype": args.forward_dtype,
        }
        floors.append(run_module("floor", options, threads=args.threads, log=args.out / "logs" / "floor.log"))
        say(f"  floor {floors[-1]['total']:.1f} s")

    say("quality of all checkpoints")
    done = [c for c in field_ if not c.failed]
    checkpoints = {"16": None} | {f"{c.name}/{k}": str(folder / c.name / str(k)) for c in done for k in widths}
    options = {"model": str(args.model.absolute()), **data, "checkpoints": checkpoints}
    quality = run_module("quality", options, threads=args.threads, log=args.out / "logs" / "quality.log")
    report(args, about, field_, floors, quality, widths)


def report(
    args: argparse.Namespace,
    about: dict[str, Any],
    field_: list[Contestant],
    floors: list[dict[str, float]],
    quality: dict[str, Any],
    widths: Sequence[int],
) -> None:
    ours = field_[0]
    # Each width walks its own quantized model: forwards and Hessians of different widths are different work.
    floor = median(f["total"] for f in floors) * len(widths)
    peers: dict[str, Any] = {}
    rows: list[list[Any]] = []
    for c in field_:
        if c.failed:
            peers[c.name] = {"error": c.failed, "quality_ok": False, "ratio": None}
            rows.append([c.title, f"does not run: {c.failed.split(' (whole output')[0]}", *[None] * 7])
            continue
        measured = [quality[f"{c.name}/{k}"] for k in widths]
        mean_error = fmean(q["error"] for q in measured)
        shown = " / ".join(f"{fmean(q['perplexity'].values()):.4g}" for q in measured)
        compared: dict[str, Any] = {}
        if c is not ours:
            ok = all(quality_ok(quality[f"{ours.name}/{k}"], quality[f"{c.name}/{k}"]) for k in widths)
            compared = {"quality_ok": ok, "ratio": None}
            if ok:
                n = min(len(ours.results), len(c.results))
                for key, kind in (("ratio", "wall"), ("cpu_ratio", "cpu")):
                    compared[key] = vars(paired_ratio(ours.times("whole", kind)[:n], c.times("whole", kind)[:n]))
            peers[c.name] = compared
        ratio = compared.get("ratio")
        verdict = (
            "ours"
            if c is ours
            else "quality differs"
            if not ratio
            else "{ratio:.2f} [{lo:.2f}, {hi:.2f}]".format(**ratio)
        )
        quantizing = median(c.times("quantize"))
        rows.append(
            [
                c.title,
                median(c.times("whole")),
                median(c.times("whole", "cpu")),
                quantizing,
                median(r["peak_rss"] for r in c.results) / MIB,
                f"{mean_error:.4g}",
                shown,
                f"{100 * floor / quantizing:.0f} %",
                verdict,
            ]
        )
    base = fmean(quality["16"]["perplexity"].values())
    head = ["method", "wall s", "CPU s", "quantize s", "peak MiB", "mean layer error"]
    head += [f"perplexity (16 bits: {base:.4g})", "floor / quantize", "theirs / ours [interval]"]
    s = about["settings"]
    lines = [
        f"### Quantize {s['model']} to {', '.join(map(str, widths))} bits\n",
        markdown(head, rows),
        f"\nMedians of {s['rounds']} interleaved rounds, {about['threads']} threads, {s['tokens'][0]} x {s['tokens'][1]} tokens, "
        f"groups of {s['group_size']}, ours in {ours.results[0]['dtype']}; {about['cpu']}, load {about['load']} at the start"
        + (" (BUSY: times will not repeat)" if about["busy"] else "")
        + f". Floor: {floor:.2f} s. The first implementation's schedule saves dense weights, unpacked.",
    ]
    first = next((name for name, peer in peers.items() if "error" not in peer), None)
    best = peers.get(first) if first else None
    ratio = best["ratio"] if best else None
    line = {
        "peer": first,
        **{key: ratio[key] if ratio else None for key in ("ratio", "lo", "hi", "n", "interval")},
        "cpu_ratio": best["cpu_ratio"]["ratio"] if best and ratio else None,
        "floor_share": floor / median(ours.times("quantize")),
        "floor_share_whole": floor / median(ours.times("whole")),
        "quality_ok": bool(best and best["quality_ok"]),
        "peers": peers,
        "seconds": {c.name: median(c.times("whole")) for c in field_ if c.results},
        "cpu_seconds": {c.name: median(c.times("whole", "cpu")) for c in field_ if c.results},
        "peak_rss": {c.name: median(r["peak_rss"] for r in c.results) for c in field_ if c.results},
        "errors": {name: q["error"] for name, q in quality.items()},
        "perplexity": {name: q["perplexity"] for name, q in quality.items()},
        **about,
        "versions": {c.name: c.results[0]["versions"] for c in field_ if c.results},
        "dtypes": {c.name: c.results[0]["dtype"] for c in field_ if c.results},
    }
    details = {"rounds": {c.name: c.results for c in field_}, "floors": floors, "quality": quality}
    finish(args.out, "quantize", line, details, "\n".join(lines), as_json=args.json)
