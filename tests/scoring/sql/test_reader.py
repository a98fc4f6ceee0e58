"""What a gold query asks of the data, read from its tokens."""

from __future__ import annotations

import pytest

from plr.scoring.sql.demands import Demands
from plr.scoring.sql.reader import read_demands
from plr.scoring.sql.schema import read_schema

CONTEXT = "CREATE TABLE shop (id INTEGER, city VARCHAR); CREATE TABLE sale (shop_id INTEGER, sum INTEGER, day VARCHAR)"
CITY, SUM, DAY, ID, SHOP_ID = ("shop", "city"), ("sale", "sum"), ("sale", "day"), ("shop", "id"), ("sale", "shop_id")


def asked(query: str) -> Demands:
    return read_demands(query, read_schema(CONTEXT))


@pytest.mark.parametrize(
    ("condition", "column", "atoms"),
    [
        ("city = 'Oslo'", CITY, [("=", "Oslo")]),
        ('"Oslo" = city', CITY, [("=", "Oslo")]),
        ("5 < sum", SUM, [(">", 5)]),
        ("sum >= -2.5", SUM, [(">=", -2.5)]),
        ("sum <> 5", SUM, [("!=", 5)]),
        ("NOT city = 'Oslo'", CITY, [("=", "Oslo")]),
        ("city NOT LIKE '%o'", CITY, [("not like", "%o")]),
        ("sum BETWEEN 3 AND 9", SUM, [(">=", 3), ("<=", 9)]),
        ("city IN ('Oslo', 'Rome')", CITY, [("=", "Oslo"), ("=", "Rome")]),
        ("city NOT IN ('Oslo')", CITY, [("!=", "Oslo")]),
        ("LOWER(city) = 'oslo'", CITY, [("=", "oslo")]),
        ("T2.sum = 3 OR T2.sum = 4", SUM, [("=", 3), ("=", 4)]),
    ],
)
def test_a_condition_is_an_atom(condition: str, column: tuple[str, str], atoms: list[tuple[str, str | int]]) -> None:
    wants = asked(f"SELECT T1.city FROM shop AS T1 JOIN sale AS T2 WHERE {condition}")
    assert {column: atoms} == {key: [tuple(atom) for atom in found] for key, found in wants.atoms.items()}


@pytest.mark.parametrize(
    ("query", "links"),
    [
        ("SELECT city FROM shop JOIN sale ON shop.id = sale.shop_id", {(ID, SHOP_ID)}),
        ("SELECT city FROM shop AS a, sale b WHERE b.shop_id = a.id", {(SHOP_ID, ID)}),
        ("SELECT city FROM shop WHERE id IN (SELECT shop_id FROM sale)", {(ID, SHOP_ID)}),
        ("SELECT id FROM shop EXCEPT SELECT shop_id FROM sale", {(ID, SHOP_ID)}),
        ("SELECT city, id FROM shop INTERSECT SELECT day, sum FROM sale", {(CITY, DAY), (ID, SUM)}),
        ("SELECT city FROM shop WHERE id = (SELECT MAX(shop_id) FROM sale)", {(ID, SHOP_ID)}),
    ],
)
def test_columns_that_must_share_values_are_linked(query: str, links: set[object]) -> None:
    assert set(asked(query).links) == links


def test_counts_limits_orders_and_groups() -> None:
    wants = asked("SELECT day FROM sale GROUP BY day HAVING COUNT(*) > 7 ORDER BY SUM(sum) DESC, day LIMIT 3")
    assert wants.counts == [7]
    assert wants.limit == 3
    assert wants.grouped_by == {DAY}
    assert wants.sorted_by == {SUM, DAY}
    assert wants.numeric == {SUM}
    assert wants.ordered
    assert wants.aggregates
    assert wants.atoms == {}


def test_a_column_that_is_less_than_a_number_holds_numbers_and_one_that_equals_a_text_does_not() -> None:
    assert asked("SELECT city FROM shop WHERE city > 5").compared_as_numbers == {CITY}
    assert asked("SELECT city FROM shop WHERE city > 'M'").compared_as_numbers == set()
    assert asked("SELECT city FROM shop WHERE city = 5").compared_as_numbers == set()


@pytest.mark.parametrize(
    "query", ["", "(", "SELECT", "= = =", "IN (", "a BETWEEN", "LIMIT", "UNION", "ORDER BY", "x.", "COUNT("]
)
def test_anything_can_be_read(query: str) -> None:
    assert asked(query).atoms == {}
