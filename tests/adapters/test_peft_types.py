"""PEFT's enum of methods, opened for plr's own."""

from __future__ import annotations

import copy
from enum import Enum

import pytest
from peft import PeftType

from plr.adapters.peft_types import add_member, register
from plr.adapters.sparse.config import SparseConfig
from plr.adapters.sparse.tuner import SPARSE, SparseModel


class Letters(str, Enum):  # noqa: UP042 - as PEFT writes its own
    A = "A"


def test_a_member_that_was_added_is_like_one_that_was_written() -> None:
    added = add_member(Letters, "B")
    assert Letters("B") is Letters["B"] is added
    assert (added.name, added.value, added == "B", isinstance(added, Letters)) == ("B", "B", True, True)
    assert list(Letters) == [Letters.A, added]
    assert "B" in Letters.__members__
    assert copy.deepcopy(added) is added


def test_an_added_member_is_an_attribute_of_the_class_itself() -> None:
    """Python 3.11 looks attributes up among the members too; since 3.12 the class must have them, and PEFT asks with getattr."""
    assert vars(Letters).get("C") is None
    added = add_member(Letters, "C")
    assert vars(Letters)["C"] is added
    assert vars(PeftType)["SPARSE"] is SPARSE


def test_a_second_registration_is_the_first_and_a_foreign_one_is_refused() -> None:
    assert register("sparse", SparseConfig, SparseModel) is SPARSE
    with pytest.raises(KeyError, match="PEFT has a method called 'lora' already"):
        register("lora", SparseConfig, SparseModel)
