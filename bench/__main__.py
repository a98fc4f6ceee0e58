"""`python -m bench NAME`: see bench/README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import adapters, eval, load, lowbit, quantize, scale, scoring, train
from bench.harness import BenchError

__all__ = ["main", "parser"]

BENCHMARKS = {
    "quantize": quantize,
    "lowbit": lowbit,
    "load": load,
    "scale": scale,
    "adapters": adapters,
    "eval": eval,
    "scoring": scoring,
    "train": train,
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description="Ours and the peers, side by side.")
    commands = top.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        title = (module.__doc__ or "").split("\n")[0].split(": ", 1)[1]
        module.add_arguments(
            commands.add_parser(
                name, help=title, description=title, formatter_class=argparse.ArgumentDefaultsHelpFormatter
            )
        )
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a benchmark that could not be run, 2 wrong usage."""
    args = parser().parse_args(words)
    try:
        BENCHMARKS[args.name].run(args)
    except BenchError as error:
        print(f"bench {args.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
