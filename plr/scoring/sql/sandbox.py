"""One SQLite database in memory that a query may read, and do nothing else with.

How a query is held:

1. SQLite's authorizer allows SELECT, reading a column, calling a function and recursion. Everything else (ATTACH, PRAGMA,
   any write, a transaction) is refused before it runs, and so are the functions in `FORBIDDEN`.
2. SQLite's own limits: length of the query and of every value, depth of an expression, columns, joined parts, no
   attached database.
3. A progress handler counts steps of SQLite's virtual machine, not seconds: the same query ends alike on every machine.
4. Rows and bytes of the result are counted while they come.

What is left for the process around it (`plr.scoring.sql.worker`): memory, and the time of a single step, which
no handler sees.
"""

from __future__ import annotations

import sqlite3
from typing import Literal, NamedTuple

from plr.scoring.sql.compare import Row

__all__ = ["FORBIDDEN", "MAX_BYTES", "MAX_CHARS", "MAX_ROWS", "MAX_STEPS", "Failure", "Result", "Sandbox"]

MAX_CHARS = 4096
MAX_ROWS = 5000
MAX_BYTES = 1 << 20
MAX_STEPS = 1_000_000
_STRIDE = 1000
FORBIDDEN = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "random", "randomblob",
                       "sqlite_log", "sqlite_compileoption_get", "sqlite_compileoption_used"})  # fmt: skip
"""Functions that reach outside, or whose value is not in the data."""
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 2 * MAX_CHARS,
    sqlite3.SQLITE_LIMIT_LENGTH: 1 << 16,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 30,
    sqlite3.SQLITE_LIMIT_COLUMN: 400,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 20,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 300,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_MISSING = ("no such table", "no such column", "ambiguous column name", "no such function", "no tables specified")
_LARGE = ("too big", "too large", "too many", "too long", "overflow", "too complex", "at most")

Kind = Literal["parse error", "missing table or column", "forbidden", "timeout", "too large"]


class Result(NamedTuple):
    rows: list[Row]


class Failure(NamedTuple):
    """A query that gave no result: `kind` of the taxonomy, and what SQLite said."""

    kind: Kind
    detail: str


class Sandbox:
    """A database with the tables that `statements` create. `load` fills them, `run` reads them."""

    def __init__(self, statements: list[str]) -> None:
        self._refused, self._steps, self._loading = "", 0, False
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("PRAGMA temp_store = MEMORY")
        for statement in statements:
            self.connection.execute(statement)
        for limit, value in _LIMITS.items():
            self.connection.setlimit(limit, value)
        self.connection.set_progress_handler(self._count, _STRIDE)
        self.connection.set_authorizer(self._authorize)

    def load(self, tables: list[tuple[str, str]], data: list[list[Row]]) -> None:
        """Load the rows of `data` in place of those that were there; `tables` are the statements (delete, insert) of each.

        The authorizer stays in place, so that SQLite compiles a query once for all databases.
        """
        self._steps, self._loading = 0, True
        try:
            for (delete, insert), rows in zip(tables, data, strict=True):
                self.connection.execute(delete)
                self.connection.executemany(insert, rows)
        finally:
            self._loading = False

    def run(self, query: str) -> Result | Failure:
        """Run `query`: its rows, or why there are none. Nothing raises but what ends the process."""
        if len(query) > MAX_CHARS:
            return Failure("too large", f"a query of more than {MAX_CHARS} characters")
        self._refused, self._steps = "", 0
        rows: list[Row] = []
        size = 0
        cursor = self.connection.cursor()
        try:
            # Statements are compiled once for each text, and those of load() may write: no query is one of theirs.
            for row in cursor.execute(query + "\n"):
                size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
                rows.append(row)
                if len(rows) > MAX_ROWS or size > MAX_BYTES:
                    return Failure("too large", f"more than {MAX_ROWS} rows or {MAX_BYTES} bytes")
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, ValueError, OverflowError, MemoryError) as error:
            return self._failure(error)
        finally:
            cursor.close()
        if cursor.description is None:
            return Failure("parse error", "no query")
        return Result(rows)

    def close(self) -> None:
        self.connection.close()

    def _failure(self, error: Exception) -> Failure:
        message = " ".join(str(error).split())[:200] or type(error).__name__
        if self._refused:
            return Failure("forbidden", self._refused)
        if self._steps > MAX_STEPS:
            return Failure("timeout", f"more than {MAX_STEPS} steps of SQLite's virtual machine")
        if isinstance(error, MemoryError):
            return Failure("too large", "out of the memory it may use")
        if message.startswith(_MISSING):
            return Failure("missing table or column", message)
        if any(word in message.lower() for word in _LARGE):
            return Failure("too large", message)
        return Failure("parse error", message)

    def _count(self) -> int:
        self._steps += _STRIDE
        return self._steps > MAX_STEPS

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if self._loading:
            return sqlite3.SQLITE_OK
        name = (second if action == sqlite3.SQLITE_FUNCTION else first) or ""
        table = action == sqlite3.SQLITE_READ and name.lower().startswith(("sqlite_", "pragma_", "dbstat"))
        function = action == sqlite3.SQLITE_FUNCTION and name.lower() in FORBIDDEN
        if action in _ALLOWED and not table and not function:
            return sqlite3.SQLITE_OK
        what = _NAMES.get(action, f"action {action}")
        self._refused = self._refused or f"{what} {name}".strip()
        return sqlite3.SQLITE_DENY


_NAMES = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_INSERT: "INSERT into",
    sqlite3.SQLITE_UPDATE: "UPDATE of",
    sqlite3.SQLITE_DELETE: "DELETE from",
    sqlite3.SQLITE_TRANSACTION: "transaction",
    sqlite3.SQLITE_SAVEPOINT: "savepoint",
    sqlite3.SQLITE_READ: "reading",
    sqlite3.SQLITE_FUNCTION: "function",
    sqlite3.SQLITE_CREATE_VTABLE: "virtual table",
}
