"""What a query may not do: each is refused or stopped, within a second of CPU and 256 MB, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plr.errors import ResourceError
from plr.scoring import sql_pool
from plr.scoring.sql_execute import exec_match, exec_match_all
from plr.scoring.sql_pool import Pool, Sample, shared_pool
from plr.scoring.sql_sandbox import MAX_CHARS, Failure, Result, Sandbox
from plr.scoring.sql_worker import ADDRESS_SPACE

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize(("query", "kind"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_query_is_wrong_and_the_run_goes_on(query: str, kind: str) -> None:
    hostile, after = exec_match_all([Sample(CONTEXT, GOLD, query), Sample(CONTEXT, GOLD, GOLD)])
    assert hostile.value == 0.0
    assert hostile.explanation.startswith(f"{kind}: "), hostile.explanation
    assert after.value == 1.0


@pytest.mark.parametrize(
    "name", ["recursion that sorts", "zeroblobs sorted", "a megabyte", "a step that takes seconds"]
)
def test_one_query_takes_less_than_a_second_and_256_mb(name: str) -> None:
    """Measured by the operating system, in a worker that does nothing else."""
    worker = subprocess.Popen(
        [sys.executable, "-S", "-P", "-m", "plr.scoring.sql_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps([CONTEXT, GOLD, HOSTILE[name][0], 0]).encode() + b"\n")
    worker.stdin.close()
    _, _, used = os.wait4(worker.pid, 0)
    worker.returncode = 0
    assert used.ru_utime + used.ru_stime < 1.0
    assert used.ru_maxrss * 1024 < ADDRESS_SPACE


def test_memory_of_a_worker_is_limited() -> None:
    code = (
        "from plr.scoring import sql_worker as w; w._limit(w.resource.RLIMIT_AS, w.ADDRESS_SPACE); bytearray(1 << 28)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "MemoryError" in run.stderr


def test_a_worker_takes_the_standard_library_alone() -> None:
    code = "import sys, plr.scoring.sql_worker; assert not {'sqlglot', 'pydantic', 'torch', 'numpy'} & set(sys.modules)"
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
    monkeypatch.setattr(sql_pool.sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="the process that executes SQL does not start"):
        Pool(1).judge([Sample(CONTEXT, GOLD, GOLD)])
