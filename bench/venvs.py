"""An environment of its own for each peer, made once and kept: `.bench/venvs/<peer>-<version>/`."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from bench.harness import ROOT, BenchError, say

__all__ = ["NEEDS", "peer_python"]

NEEDS = {
    # peer -> (what the folder is named after, what is installed in turn)
    "gptqmodel": ("GPTQModel", [["torch"], ["transformers", "GPTQModel", "optimum"]]),
}
NEEDS["optimum"] = NEEDS["gptqmodel"]  # optimum quantizes with GPTQModel's kernels: one environment for both


def peer_python(peer: str, given: dict[str, str], folder: Path) -> str:
    """The interpreter to run `peer` with: the one given with --venv, or that of a venv made here.

    Raises:
        BenchError: no such interpreter, or pip could not install the peer.
    """
    if peer in given:
        if not Path(given[peer]).is_file():
            raise BenchError(f"--venv {peer}={given[peer]}: there is no such interpreter")
        return given[peer]
    if peer not in NEEDS:
        return sys.executable  # a script of ours, which needs torch and transformers alone
    package, installs = NEEDS[peer]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    match = re.search(rf"^{package}==(\S+)", constraints, re.MULTILINE | re.IGNORECASE)
    if match is None:
        raise BenchError(f"constraints.txt does not say which {package} to compare with")
    home = folder.absolute() / f"{package.lower()}-{match.group(1)}"
    python = home / "bin" / "python"
    marker, digest = home / "made-from", hashlib.sha256(constraints.encode()).hexdigest()
    if marker.is_file() and marker.read_text(encoding="utf-8") == digest:
        return str(python)
    say(f"making {home} (minutes, about 2 GB; kept for later runs)")
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.log"
    with log.open("wb") as output:
        steps = [[sys.executable, "-m", "venv", "--clear", str(home)]]
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
        # torch comes first, by itself: GPTQModel's build looks for it, and one index serves both.
        steps += [[*pip, *packages] for packages in installs]
        for step in steps:
            if subprocess.run(step, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                raise BenchError(f"{' '.join(step)} failed: see {log} (GPTQModel needs a C compiler)")
    marker.write_text(digest, encoding="utf-8")
    return str(python)
