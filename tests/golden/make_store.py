"""Make `tests/golden/store`: a small store of every kind of artifact, by the command line of whatever commit this runs in.

The store in the repository was made by commit d258e4d, the last before the packages of plr were laid out anew. What it holds must
be found, verified and used by every later version. To make it again, check that commit out beside this one and run there

    PLR_HOME=store python THIS_FILE
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SETTINGS = [
    "--set", "quantize.samples=8", "--set", "train.train_limit=32", "--set", "train.validation_limit=4",
    "--set", "train.batch_size=16", "--set", "adapters.0.config.r=1", "--set", "runtime.dtype=float32",
]  # fmt: skip
COMMANDS = [
    ["quantize", "--bits", "2"],
    ["train", "--bits", "2", "--task", "tiny_math"],
    ["restore", "--bits", "16"],
    ["eval", "--limit", "4", "--dtype", "float32"],
]


def main() -> None:
    for command in COMMANDS:
        settings = SETTINGS if command[0] in ("quantize", "train") else []
        subprocess.run([sys.executable, "-m", "plr", *command, *settings], check=True)
    home = Path("store")
    for folder in (".locks", ".work"):
        shutil.rmtree(home / folder, ignore_errors=True)


if __name__ == "__main__":
    main()
