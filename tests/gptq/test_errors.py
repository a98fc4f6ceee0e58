from __future__ import annotations

import pickle

import pytest

import plr.gptq
from plr.gptq import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_says_given_expected_next_and_survives_pickling(name: str) -> None:
    cls = getattr(errors, name)
    error = cls("bits=5 was given.", "4.", "use 4.")
    assert isinstance(error, errors.GPTQError)
    assert isinstance(error, ValueError)
    assert str(error) == "bits=5 was given. Expected: 4. Next: use 4."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.next_step == "use 4."


def test_the_public_names_are_sorted_and_there() -> None:
    assert plr.gptq.__all__ == sorted(plr.gptq.__all__)
    assert all(hasattr(plr.gptq, name) for name in plr.gptq.__all__)
    assert set(errors.__all__) <= set(plr.gptq.__all__)
