"""The values made for a gold: what it asks is judged as SQLite judges it, and good values do satisfy the gold."""

from __future__ import annotations

import sqlite3
from itertools import product

import pytest

from plr.scoring.sql.candidates import Candidates, _around, _holds, _stored, linked
from plr.scoring.sql.demands import Atom
from plr.scoring.sql.reader import read_demands
from plr.scoring.sql.schema import read_schema

LITERALS = ["Oslo", "oslo", "5", "12", "", 5, 12, -3, 2.5]
OPERATORS = ["=", "!=", "<", "<=", ">", ">="]
PATTERNS = ["%s%", "Os%", "%lo", "O_lo", "5", "%"]


@pytest.mark.parametrize("affinity", ["TEXT", "NUMERIC"])
def test_an_atom_holds_where_sqlite_says_so(affinity: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE t (a {affinity})")
    atoms = [Atom(o, v) for o, v in product(OPERATORS, LITERALS)]
    atoms += [Atom(o, p) for o, p in product(("like", "not like"), PATTERNS)]
    for atom in atoms:
        for value in dict.fromkeys(_stored(near, affinity == "TEXT") for near in [*LITERALS, *_around(atom)]):
            connection.execute("DELETE FROM t")
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            ((kept,),) = connection.execute("SELECT a FROM t")
            assert (type(kept), kept) == (type(value), value)  # it is stored as it stands
            literal = repr(atom.value) if not isinstance(atom.value, str) else f"'{atom.value}'"
            ((held,),) = connection.execute(f"SELECT a {atom.operator} {literal} FROM t")
            assert _holds(value, atom, affinity == "TEXT") == bool(held), (value, atom, affinity)


@pytest.mark.parametrize(
    ("condition", "column"),
    [
        ("a = 'x'", "a"),
        ("a LIKE '%hi%'", "a"),
        ("a NOT LIKE 'q%' AND a <> 'w'", "a"),
        ("n > 3 AND n < 6", "n"),
        ("n BETWEEN 40 AND 50 AND n <> 45", "n"),
        ("n >= 0.25 AND n <= 0.75", "n"),
        ("n = 5 OR n = 9", "n"),
    ],
)
def test_good_values_satisfy_and_some_near_ones_do_not(condition: str, column: str) -> None:
    schema = read_schema("CREATE TABLE t (a VARCHAR, n NUMERIC)")
    query = f"SELECT * FROM t WHERE {condition}"
    found = Candidates(schema, read_demands(query, schema))
    connection = sqlite3.connect(":memory:")
    connection.execute(schema.tables[0].create)

    def satisfies(value: object) -> bool:
        connection.execute("DELETE FROM t")
        connection.execute(f"INSERT INTO t ({column}) VALUES (?)", (value,))
        return bool(connection.execute(query).fetchall())

    key = ("t", column)
    assert all(satisfies(value) for value in found.good[key])
    assert not all(satisfies(value) for value in found.near[key])
    assert set(found.good) == {key}


def test_joined_columns_share_candidates() -> None:
    schema = read_schema("CREATE TABLE t (a VARCHAR, n INTEGER); CREATE TABLE u (b VARCHAR)")
    found = Candidates(schema, read_demands("SELECT n FROM t JOIN u ON t.a = u.b WHERE u.b = 'x'", schema))
    assert found.good[("t", "a")] == found.good[("u", "b")] == ["x"]
    assert found.group[("t", "a")] == {("t", "a"), ("u", "b")}


def test_links_lead_on() -> None:
    a, b, c, d = (("t", name) for name in "abcd")
    assert linked([(a, b), (c, d), (b, c)])[a] == {a, b, c, d}
    assert linked([]) == {}
