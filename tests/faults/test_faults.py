"""A seeded sample of the three suites of faults by default, all of them with `-m slow`; `figures.py` records them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.corruption import Corruption
from faults.forks import Forks, compiler_or_skip
from faults.hostile import Inputs
from faults.points import Points

SUITES = {"points": (Points, 16), "corruption": (Corruption, 32), "hostile": (Inputs, 32)}
"""Each suite and the size of its sample."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    compiler_or_skip()
    forks = Forks(faults=True)
    yield forks
    forks.close()


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    kind, size = SUITES[request.param]
    return kind(forks, tmp_path_factory.mktemp(request.param)), size


def test_a_sample_holds(suite: tuple[Any, int]) -> None:
    trials, size = suite
    assert _fallen(trials, random.Random(0).sample(list(trials.trials()), size)) == []


@pytest.mark.slow
def test_everything_holds(suite: tuple[Any, int]) -> None:
    trials, size = suite
    all_of_them = list(trials.trials())
    assert len(all_of_them) > 10 * size
    assert _fallen(trials, all_of_them) == []


def _fallen(suite: Any, trials: list[Any]) -> list[str]:
    return [f"{trial}: {wrong}" for trial in trials if (wrong := suite.judge(trial)) is not None]


def test_a_suite_sees_what_is_wrong(forks: Forks, tmp_path: Path) -> None:
    """A flipped bit that nobody reads is no detection: the judge of damages says so."""
    from faults.corruption import Damage, Target

    suite = Corruption(forks, tmp_path)
    base = next(suite.home.glob("base/*/model.safetensors"))
    assert suite.judge(Damage(Target("base", base, ("ls",)), "zeros")) is not None
