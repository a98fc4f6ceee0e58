"""The process in which answers are executed: `python -m plr.scoring.sql.worker`.

It reads one JSON line `[context, gold, answer, seed]` and writes one line `[kind, detail]`, until its input ends. It
imports the standard library alone, so that it starts in a tenth of a second and takes 20 MB.

What `Sandbox` cannot hold is held here by the operating system: address space, and CPU
time of one sample (not wall time, which depends on who else runs). A process over its time is ended by the
signal and replaced by `plr.scoring.sql.pool`. No file can be written, no core is left.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time

from plr.scoring.sql.judge import Verdict, judge

__all__ = ["ADDRESS_SPACE", "CPU_SECONDS", "main"]

ADDRESS_SPACE = 256 << 20
CPU_SECONDS = 0.6


def main() -> None:
    _limit(resource.RLIMIT_AS, ADDRESS_SPACE)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 16)
    _limit(resource.RLIMIT_FSIZE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its input
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _write(["ready", ""])
    for line in sys.stdin:
        context, gold, answer, seed = json.loads(line)
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 3)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            verdict = judge(context, gold, answer, seed)
        except MemoryError:
            verdict = Verdict("too large", "out of the memory it may use")
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(list(verdict))


def _limit(what: int, soft: int) -> None:
    """Set the soft limit, within what this process was given."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _write(message: list[str]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
