"""Templates read fields, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr.tasks.file.template import Template

NAMES = st.text(st.characters(categories=("L", "N"), include_characters="_- "), min_size=1).filter(
    lambda s: s == s.strip()
)


@given(st.dictionaries(NAMES, st.text(), min_size=1), st.text(), st.data())
def test_fields_are_replaced_and_everything_else_stays(row: dict[str, str], text: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(row)))
    literal = text.replace("{", "{{").replace("}", "}}")
    template = Template.parse(f"{literal}{{{name}}}{literal}")
    assert template.fields == (name,)
    assert template.fill(row) == text + row[name] + text


@pytest.mark.parametrize(
    "text", ["{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{}", "{ a}", "{a", "a}", "{a:{b}}", "{0.__class__}"]
)
def test_anything_but_a_plain_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Template.parse(text)


def test_braces_of_a_value_are_not_read_again() -> None:
    assert Template.parse("{{{a}}}").fill({"a": "{b}", "b": "no"}) == "{{b}}"
