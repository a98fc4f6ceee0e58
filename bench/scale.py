"""`python -m bench scale`: seconds and peak memory to quantize models of true shape, random weights, on a CPU or a GPU.

1. A checkpoint with the shape of a Llama and random bfloat16 weights is made in `<out>/models` (kept). `--blocks N` cuts it
   to its first N blocks: what quantizing needs beside the weights does not depend on their number.
2. Ours runs as a fresh process, as `plr quantize` does: with `--low-memory` weights stay as stored, one block at a time is
   cast and computed, and activations lie in files; without, the model is loaded in float32.
3. Shown are seconds a block, the peak of resident memory, of its anonymous part (what cannot be written back to files and so
   must fit), and of GPU memory.

Random weights say nothing on quality: no error is compared here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.common import shape
from bench.harness import finish, markdown, run_module, run_script, say, session
from bench.peers.clock import MARK, options
from bench.venvs import peer_python

__all__ = ["SHAPES", "add_arguments", "run"]

GIB = 2**30
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "intermediate_size": 8192,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "intermediate_size": 8192,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 14336,
    },
}
COMMON: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 500000.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b", help="whose sizes")
    parser.add_argument("--blocks", type=int, help="only the first N blocks (default: all; quick 1)")
    parser.add_argument("--bits", type=int, default=4, choices=(8, 4, 3, 2), help="width of the base")
    parser.add_argument("--tokens", type=shape, help="calibration: SAMPLESxLENGTH (default 500x512; quick 4x128)")
    parser.add_argument("--batch", type=int, default=8, help="samples in a batch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--forward-dtype", default="bfloat16", help="of the calibration's forward")
    parser.add_argument("--low-memory", action="store_true", help="one block at a time, activations in files")
    parser.add_argument("--threads", type=int, default=2, help="threads of the process")
    parser.add_argument("--out", type=Path, default=Path(".bench/scale"), help="models, results, logs")
    parser.add_argument("--quick", action="store_true", help="one block, few tokens")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> None:
    args.out = args.out.absolute()
    args.tokens = args.tokens or ((4, 128) if args.quick else (500, 512))
    depth = SHAPES[args.shape]["num_hidden_layers"]
    blocks = args.blocks or (1 if args.quick else depth)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("out", "json", "name", "threads")}
    about = session(args.threads, **settings)
    folder = args.out / "models" / f"{args.shape}-{blocks}"
    if not (folder / "config.json").is_file():
        say(f"making {folder}")
        make = {"shape": args.shape, "blocks": blocks, "out": str(folder)}
        run_module("scale", make, threads=args.threads, log=args.out / "logs" / "make.log")
    say("quantizing")
    own = {
        "model": str(folder),
        "bits": args.bits,
        "samples": args.tokens[0],
        "length": args.tokens[1],
        "batch": args.batch,
        "device": args.device,
        "forward_dtype": args.forward_dtype,
        "low_memory": args.low_memory,
        "work": str(args.out / "work"),
        "out": str(args.out / "checkpoint"),
    }
    python = peer_python("plr", {}, args.out)
    done = run_script(python, "run_scale", own, threads=args.threads, log=args.out / "logs" / "scale.log")
    seconds = {name: stage["wall"] for name, stage in done["stages"].items()}
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    whole = weights + done["block_bytes"] * (depth - blocks)
    line = {
        "shape": args.shape,
        "blocks": blocks,
        "of": depth,
        "low_memory": args.low_memory,
        "device": args.device,
        "tokens": args.tokens[0] * args.tokens[1],
        "seconds_quantize": seconds["quantize"],
        "seconds_a_block": seconds["quantize"] / blocks,
        "weights_gib": weights / GIB,
        "weights_gib_of_all_blocks": whole / GIB,
        "peak_rss_gib": done["peak_rss"] / GIB,
        "peak_anonymous_gib": done["peak_anonymous"] / GIB,
        "beside_the_weights_gib": (done["peak_anonymous"] - weights) / GIB,
        "peak_gpu_gib": done["peak_gpu"] / GIB,
        "quality_ok": None,
        "ratio": None,
    }
    rows = [[key, value] for key, value in line.items() if key not in ("quality_ok", "ratio")]
    finish(
        args.out, "scale", line, {"session": about, "run": done}, markdown(["what", "value"], rows), as_json=args.json
    )


def make(o: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of random bfloat16 weights of standard deviation 0.02, norms at one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    tied = o["shape"] != "llama-3.1-8b"
    config = LlamaConfig(
        **{**COMMON, **SHAPES[o["shape"]], "num_hidden_layers": o["blocks"], "tie_word_embeddings": tied}
    )
    with no_init_weights():
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.02)
    model.save_pretrained(o["out"], max_shard_size="2GB")
    return {"parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    print("\n" + MARK + json.dumps(make(options())))
