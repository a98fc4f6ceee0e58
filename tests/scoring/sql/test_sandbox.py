"""What a query may not do: each is refused or stopped, within 0.6 seconds of CPU and 256 MB, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plr.errors import ResourceError
from plr.scoring.sql import pool as sql_pool
from plr.scoring.sql import process as sql_process
from plr.scoring.sql.execute import exec_match, exec_match_all
from plr.scoring.sql.pool import Pool, Sample, shared_pool
from plr.scoring.sql.sandbox import MAX_CHARS, Failure, Result, Sandbox
from plr.scoring.sql.worker import ADDRESS_SPACE, CPU_SECONDS

ROOT = Path(__file__).parents[3]
CONTEXT, GOLD = "CREATE TABLE t (a INTEGER, b VARCHAR)", "SELECT a FROM t WHERE b = 'x'"
COUNTER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
ONE_LONG_STEP = (  # 500 functions of 15 ms each: steps that no handler sees in the middle
    COUNTER.replace("FROM c)", "FROM c LIMIT 500)")
    + "SELECT SUM(instr(hex(zeroblob(32000)), hex(zeroblob(15000)) || x)) FROM c"
)

HOSTILE = {
    "recursion that counts": (COUNTER + "SELECT COUNT(*) FROM c", "timeout"),
    "recursion that returns": (COUNTER + "SELECT x FROM c", "too large"),
    "recursion that sorts": (COUNTER + "SELECT x FROM c ORDER BY x DESC", "timeout"),
    "a text that doubles": (
        "WITH RECURSIVE c(s) AS (SELECT 'aaaaaaaa' UNION ALL SELECT s || s FROM c) SELECT s FROM c",
        "too large",
    ),
    "randomblob": ("SELECT randomblob(1000000000)", "forbidden"),
    "zeroblob": ("SELECT zeroblob(1000000000)", "too large"),
    "zeroblobs sorted": ("SELECT x.a, zeroblob(60000) z FROM t x, t y, t w, t v ORDER BY z", "too large"),
    "cross joins": (
        "SELECT COUNT(*) FROM "
        + ", ".join(f"(SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) a{i}" for i in range(20)),
        "timeout",
    ),
    "ATTACH": ("ATTACH DATABASE '/tmp/other.db' AS other", "forbidden"),
    "VACUUM INTO": ("VACUUM INTO '/tmp/other.db'", "forbidden"),
    "PRAGMA": ("PRAGMA table_info(t)", "forbidden"),
    "PRAGMA as a table": ("SELECT * FROM pragma_table_info('t')", "forbidden"),
    "the schema": ("SELECT sql FROM sqlite_master", "forbidden"),
    "load_extension": ("SELECT load_extension('libm.so')", "forbidden"),
    "DROP": ("DROP TABLE t", "forbidden"),
    "INSERT": ("INSERT INTO t VALUES (1, 'x')", "forbidden"),
    "BEGIN": ("BEGIN", "forbidden"),
    "two statements": (GOLD + "; DROP TABLE t", "parse error"),
    "a megabyte": ("SELECT " + "1+" * 500_000 + "1", "too large"),
    "depth": ("SELECT " + "(" * 900 + "1" + ")" * 900, "too large"),
    "a step that takes seconds": (ONE_LONG_STEP, "timeout"),
    "surrogate": ("SELECT '\ud800'", "parse error"),
    "null character": ("SELECT '\x00'", "parse error"),
    "nothing": ("", "parse error"),
    "prose": ("I do not know", "parse error"),
}
COSTLY = ("recursion that counts", "recursion that returns", "recursion that sorts", "zeroblobs sorted", "cross joins",
          "a step that takes seconds")  # fmt: skip
"""They run until a limit stops them; the others are refused, or fail, before they do any work."""


@pytest.mark.parametrize(("query", "kind"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_query_is_wrong_and_the_run_goes_on(query: str, kind: str) -> None:
    hostile, after = exec_match_all([Sample(CONTEXT, GOLD, query), Sample(CONTEXT, GOLD, GOLD)])
    assert hostile.value == 0.0
    assert hostile.explanation.startswith(f"{kind}: "), hostile.explanation
    assert after.value == 1.0


LAUNCHER = """
import json, os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-S", "-P", "-m", "plr.scoring.sql.worker"], stdin=sys.stdin, stdout=2)
_, status, used = os.wait4(worker.pid, 0)
worker.returncode = 0
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]))
"""
"""Started from a process that is small itself: the memory of a child is counted from before its program begins."""


def _used(queries: list[str]) -> tuple[float, int, int, list[str]]:
    """Seconds of CPU, bytes of memory and exit status of a worker that judges ``queries``, start included; its verdicts."""
    lines = b"".join(json.dumps([CONTEXT, GOLD, query, 0]).encode() + b"\n" for query in queries)
    launcher = [sys.executable, "-S", "-P", "-c", LAUNCHER]
    run = subprocess.run(launcher, input=lines, capture_output=True, check=True, env={"PYTHONPATH": str(ROOT)})
    seconds, memory, status = json.loads(run.stdout)
    return seconds, memory, status, [json.loads(line)[0] for line in run.stderr.splitlines()][1:]


@pytest.fixture(scope="module")
def allowed() -> float:
    """Seconds of CPU: the limit, and a few starts of a worker (0.05 to 0.1 s where this was written), as slow as they are here."""
    return CPU_SECONDS + 4 * _used([])[0]


@pytest.mark.parametrize("name", COSTLY)
def test_one_query_takes_the_limit_of_cpu_and_256_mb_at_most(name: str, allowed: float) -> None:
    """Counted by the operating system, not by a clock: other work on the machine changes nothing."""
    query, kind = HOSTILE[name]
    seconds, memory, status, verdicts = _used([query])
    assert seconds < allowed
    assert memory < ADDRESS_SPACE
    assert (status, verdicts) in ((0, [kind]), (-signal.SIGPROF, []))


def test_all_that_is_refused_takes_no_more_than_one_query_may(allowed: float) -> None:
    refused = [HOSTILE[name] for name in HOSTILE if name not in COSTLY]
    seconds, memory, status, verdicts = _used([query for query, _ in refused])
    assert (status, verdicts) == (0, [kind for _, kind in refused])
    assert seconds < allowed
    assert memory < ADDRESS_SPACE


def test_verdicts_come_while_others_are_made_and_may_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow samples do not hold back those before them, and a closed iterator ends the work: 32 of them end 32 processes."""
    started: list[int] = []
    process = sql_pool.WorkerProcess
    monkeypatch.setattr(sql_pool, "WorkerProcess", lambda: (started.append(1), process())[1])
    pool = Pool(1)
    slow = Sample(CONTEXT, GOLD, HOSTILE["a step that takes seconds"][0])
    coming = pool.verdicts([Sample(CONTEXT, GOLD, GOLD)] * sql_pool.CHUNK + [slow] * 2 * sql_pool.CHUNK)
    assert next(coming).kind == "equal"
    coming.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert [verdict.kind for verdict in pool.judge([Sample(CONTEXT, GOLD, GOLD)])] == ["equal"]
    pool.close()
    assert len(started) < 16


def test_memory_of_a_worker_is_limited() -> None:
    code = (
        "from plr.scoring.sql import worker as w; w._limit(w.resource.RLIMIT_AS, w.ADDRESS_SPACE); bytearray(1 << 28)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "MemoryError" in run.stderr


def test_a_worker_takes_the_standard_library_alone() -> None:
    code = "import sys, plr.scoring.sql.worker; assert not {'sqlglot', 'pydantic', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_reading_is_all_that_is_left_and_loading_still_works() -> None:
    """A query that is, letter by letter, a statement of the loader is refused all the same."""
    box = Sandbox(["CREATE TABLE t (a)"])
    box.load([("DELETE FROM t", "INSERT INTO t VALUES (?)")], [[(1,), (2,)]])
    assert box.run("SELECT a FROM t") == Result([(1,), (2,)])
    assert box.run("DELETE FROM t") == Failure("forbidden", "DELETE from t")
    assert box.run("SELECT COUNT(*) FROM t") == Result([(2,)])
    box.load([("DELETE FROM t", "INSERT INTO t VALUES (?)")], [[(3,)]])
    assert box.run("SELECT a FROM t") == Result([(3,)])
    assert box.run("SELECT " + " " * MAX_CHARS) == Failure("too large", f"a query of more than {MAX_CHARS} characters")
    assert box.run("INSERT INTO t VALUES (?)") == Failure("forbidden", "INSERT into t")
    assert box.run("SELECT a FROM t") == Result([(3,)])
    box.close()


def test_a_worker_killed_from_outside_is_replaced_and_nobody_is_blamed() -> None:
    pool = Pool(1)
    assert [verdict.kind for verdict in pool.judge([Sample(CONTEXT, GOLD, GOLD)])] == ["equal"]
    worker = pool._workers[0]
    assert worker is not None
    worker._process.kill()
    worker._process.wait()
    verdicts = pool.judge([Sample(CONTEXT, GOLD, GOLD)] * 40)
    assert {verdict.kind for verdict in verdicts} == {"equal"}
    assert len(verdicts) == 40
    pool.close()


def test_a_gold_that_ends_its_process_is_undecidable() -> None:
    score = exec_match(GOLD, ONE_LONG_STEP, CONTEXT)
    assert score.value is None
    assert score.explanation.startswith("undecidable: the gold ends its process (CPU time)")


def test_threads_share_a_pool_and_keep_their_order() -> None:
    pool, found = Pool(2), dict[int, list[str]]()
    wrong = "SELECT b FROM t"

    def ask(number: int) -> None:
        answers = [GOLD if (i + number) % 3 else wrong for i in range(50)]
        found[number] = [verdict.kind for verdict in pool.judge([Sample(CONTEXT, GOLD, a) for a in answers])]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, kinds in found.items():
        assert kinds == ["equal" if (i + number) % 3 else "result mismatch" for i in range(50)]
    assert len(found) == 3
    pool.close()


def test_a_forked_child_has_workers_of_its_own() -> None:
    assert exec_match(GOLD, GOLD, CONTEXT).value == 1.0
    before = shared_pool()
    child = os.fork()
    if child == 0:
        right = sql_pool._shared is None and exec_match(GOLD, GOLD, CONTEXT).value == 1.0
        shared_pool().close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shared_pool() is before
    assert exec_match(GOLD, GOLD, CONTEXT).value == 1.0


def test_processes_that_do_not_start_are_an_error_and_not_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_process.sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="the process that executes SQL does not start"):
        Pool(1).judge([Sample(CONTEXT, GOLD, GOLD)])
