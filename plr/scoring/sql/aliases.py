"""Table and column aliases in one canonical spelling.

In each SELECT, outermost first, every source gets a name: a table its own (`t`), or `t#2`, `t#3` ... where
the same table already stands in this SELECT or in one around it; a derived table `#1`, `#2` ... A qualifier is
rewritten to that name, and left out where the SELECT has one source only and the qualifier means it. Names of WITH
tables are kept.
"""

from __future__ import annotations

from itertools import count

from sqlglot import exp

__all__ = ["drop_needless_aliases"]

_MAX_PUT_BACK = 16


def drop_needless_aliases(root: exp.Expr) -> None:
    """Rewrite the aliases of `root` in place. Identifiers must stand in lower case."""
    names: dict[int, dict[str, str]] = {}
    for select in list(root.find_all(exp.Select, bfs=True)):
        _put_column_aliases_back(select)
        taken = {name for outer in _around(select) for name in names.get(id(outer), {}).values()}
        names[id(select)] = _rename_sources(select, taken)
    for column in list(root.find_all(exp.Column)):
        qualifier = column.table
        if not qualifier or column.args.get("db"):
            continue
        for depth, select in enumerate(_around(column)):
            own = names[id(select)]
            if qualifier in own:
                alone = depth == 0 and len(_sources(select)) == 1
                column.set("table", None if alone else exp.to_identifier(own[qualifier], quoted="#" in own[qualifier]))
                break


def _around(node: exp.Expr) -> list[exp.Select]:
    """List the SELECTs around `node`, innermost first."""
    selects: list[exp.Select] = []
    parent = node.parent
    while parent is not None:
        if isinstance(parent, exp.Select):
            selects.append(parent)
        parent = parent.parent
    return selects


def _sources(select: exp.Select) -> list[exp.Expr]:
    clauses: list[exp.Expr | None] = [select.args.get("from_"), *(select.args.get("joins") or [])]
    return [clause.this for clause in clauses if clause is not None]


def _rename_sources(select: exp.Select, taken: set[str]) -> dict[str, str]:
    """Rename the sources of `select`; returns old name -> new name."""
    renamed: dict[str, str] = {}
    taken = set(taken)
    for source in _sources(select):
        if not isinstance(source, exp.Table | exp.Subquery):
            renamed[source.alias_or_name] = source.alias_or_name
            continue
        base = source.name if isinstance(source, exp.Table) else ""
        wanted = (f"{base}#{number}" if number > 1 or not base else base for number in count(1))
        name = next(each for each in wanted if each not in taken)
        taken.add(name)
        renamed[source.alias_or_name] = name
        alias = source.args.get("alias")
        if isinstance(alias, exp.TableAlias) and alias.args.get("columns"):
            renamed[source.alias_or_name] = source.alias_or_name
        else:
            source.set("alias", None if name == base else exp.TableAlias(this=exp.to_identifier(name, quoted=True)))
    return renamed


def _put_column_aliases_back(select: exp.Select) -> None:
    """Drop `AS name` of a projection where the name is used nowhere, or in ORDER BY alone: there the expression returns.

    A SELECT whose columns are seen from outside by name (a derived table, a WITH table, a part of a UNION) is left
    alone.
    """
    parent = select.parent
    if isinstance(parent, exp.CTE | exp.SetOperation):
        return
    if isinstance(parent, exp.Subquery) and isinstance(parent.parent, exp.From | exp.Join | exp.SetOperation):
        return
    aliased = [projection for projection in select.expressions if isinstance(projection, exp.Alias)]
    if not aliased:
        return
    order = select.args.get("order")
    uses: dict[str, list[exp.Column]] = {}
    for column in select.find_all(exp.Column):
        if not column.table:
            uses.setdefault(column.name, []).append(column)
    for projection in aliased:
        outside = [column for column in uses.get(projection.alias, []) if not _within(column, projection)]
        if len(outside) <= _MAX_PUT_BACK and all(order is not None and _within(column, order) for column in outside):
            for column in outside:
                column.replace(projection.this.copy())
            projection.replace(projection.this)


def _within(node: exp.Expr, ancestor: exp.Expr) -> bool:
    current: exp.Expr | None = node
    while current is not None:
        if current is ancestor:
            return True
        current = current.parent
    return False
