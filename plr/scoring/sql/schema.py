"""CREATE TABLE statements read leniently, and written so that SQLite takes them.

The statements of sql-create-context were made by a program and checked by none: names that are keywords or begin
with a digit, a column or a table given twice, types no database has. All of these are read here; names are quoted
when the tables are made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from plr.scoring.sql.tokens import Token, quoted_name, tokens

__all__ = ["Column", "Schema", "Table", "read_schema"]

_CONSTRAINTS = ("constraint", "primary", "foreign", "unique", "check", "key", "index")
_AFTER_TYPE = (*_CONSTRAINTS, "not", "null", "default", "references", "collate", "autoincrement", "generated", "as")


@dataclass(frozen=True)
class Column:
    """`affinity` as SQLite derives it from the declared type: `INTEGER`, `TEXT`, `REAL` or `NUMERIC`."""

    name: str
    affinity: str
    unique: bool = False


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]

    @property
    def create(self) -> str:
        columns = ", ".join(f"{quoted_name(column.name)} {column.affinity}" for column in self.columns)
        return f"CREATE TABLE {quoted_name(self.name)} ({columns})"

    @property
    def delete(self) -> str:
        return f"DELETE FROM {quoted_name(self.name)}"

    @property
    def insert(self) -> str:
        return f"INSERT INTO {quoted_name(self.name)} VALUES ({', '.join('?' * len(self.columns))})"


@dataclass(frozen=True)
class Schema:
    """`references` are pairs of (table, column), in lower case, that foreign keys tie."""

    tables: tuple[Table, ...]
    references: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()

    def with_numbers(self, keys: Collection[tuple[str, str]]) -> Schema:
        """Let the columns of `keys` that were declared as text hold numbers: the gold asks which is greater."""

        def column(table: Table, old: Column) -> Column:
            number = old.affinity == "TEXT" and (table.name.lower(), old.name.lower()) in keys
            return replace(old, affinity="NUMERIC") if number else old

        tables = [replace(table, columns=tuple(column(table, old) for old in table.columns)) for table in self.tables]
        return replace(self, tables=tuple(tables))


def read_schema(context: str) -> Schema:
    """Read the tables of `context`, in order; a table or column that is given twice is one.

    >>> read_schema("CREATE TABLE Head (age INT, name VARCHAR(20) NOT NULL); CREATE TABLE t (1st REAL)").tables[0].create
    'CREATE TABLE "Head" ("age" INTEGER, "name" TEXT)'
    """
    context_tokens = tokens(context)
    tables: dict[str, tuple[str, dict[str, Column]]] = {}
    references: list[tuple[tuple[str, str], tuple[str, str]]] = []
    for position, token in enumerate(context_tokens):
        if token.value != "table" or token.kind != "word" or position == 0:
            continue
        start = position + 1
        while (
            start < len(context_tokens)
            and context_tokens[start].kind == "word"
            and context_tokens[start].value in ("if", "not", "exists")
        ):
            start += 1
        opening = next((i for i in range(start, len(context_tokens)) if context_tokens[i].raw == "("), None)
        if opening is None or opening == start:
            continue
        name = _name(context_tokens[opening - 1])
        _, columns = tables.setdefault(name.lower(), (name, {}))
        for item in _items(context_tokens, opening):
            _read_item(item, name.lower(), columns, references)
    filled = tuple(Table(name, tuple(columns.values())) for name, columns in tables.values() if columns)
    return Schema(filled, tuple(references))


def _items(context_tokens: list[Token], opening: int) -> list[list[Token]]:
    """List the items between the commas of the parentheses that open at `opening`."""
    items: list[list[Token]] = [[]]
    depth = 0
    for token in context_tokens[opening:]:
        depth += (token.raw == "(") - (token.raw == ")")
        if depth == 0:
            break
        if token.raw == "," and depth == 1:
            items.append([])
        elif not (token.raw == "(" and depth == 1 and not items[-1] and len(items) == 1):
            items[-1].append(token)
    return [item for item in items if item]


def _read_item(
    item: list[Token],
    table: str,
    columns: dict[str, Column],
    references: list[tuple[tuple[str, str], tuple[str, str]]],
) -> None:
    words = [token.value if token.kind == "word" else "" for token in item]
    if words[0] in _CONSTRAINTS and len(item) > 1 and (words[1] == "key" or item[1].raw == "("):
        if words[0] in ("primary", "unique"):
            named = [token.value.lower() for token in item if token.raw not in "()," and token.value.lower() in columns]
            if len(named) == 1:
                old = columns[named[0]]
                columns[named[0]] = Column(old.name, old.affinity, True)
    else:
        name = _name(item[0])
        end = next((i for i in range(1, len(item)) if words[i] in _AFTER_TYPE), len(item))
        unique = "primary" in words[1:] or "unique" in words[1:]
        columns.setdefault(name.lower(), Column(name, _affinity(" ".join(words[1:end])), unique))
    if "references" in words:
        at = words.index("references")
        parts = [token.value.lower() for token in item if token.kind in ("word", "name", "text")]
        target = [token.value.lower() for token in item[at + 1 :] if token.kind in ("word", "name", "text")]
        own = parts[2] if words[0] == "foreign" and len(parts) > 2 else parts[0]
        if len(target) > 1:
            references.append(((table, own), (target[0], target[1])))


def _name(token: Token) -> str:
    return token.raw if token.kind in ("word", "number", "op") else token.value


def _affinity(declared: str) -> str:
    """Derive the affinity by section 3.1 of "Datatypes In SQLite"; a column without a type is a text here."""
    if "int" in declared:
        return "INTEGER"
    if not declared or any(word in declared for word in ("char", "clob", "text", "blob", "string")):
        return "TEXT"
    if any(word in declared for word in ("real", "floa", "doub")):
        return "REAL"
    return "NUMERIC"
