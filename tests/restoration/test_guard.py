"""The guard's decision: on marks by hand, and on marks that hold nothing to be gained."""

from __future__ import annotations

import random

import pytest

from plr.restoration.choose import PLACES, choose
from plr.restoration.guard import Candidate, best_of, certify, sentence
from plr.restoration.rows import Marks
from plr.stats import paired_lower_bound


def marks(exact: list[int], loss: float = 1.0) -> Marks:
    return Marks(tuple(loss + 0.01 * (i % 3) for i in range(len(exact))), tuple(map(float, exact)))


def candidate(mode: str, exact: list[int], loss: float = 1.0) -> Candidate:
    return Candidate(mode, 0.5, 1.0, marks(exact, loss))


def test_the_most_rows_right_win_and_the_loss_decides_between_equals() -> None:
    keep, better, alike = candidate("keep", [1, 0, 0]), candidate("path", [1, 1, 0]), candidate("scale", [1, 1, 0], 0.9)
    assert best_of([keep, better]) is better
    assert best_of([keep, better, alike]) is alike
    assert best_of([keep, candidate("restore", [0, 1, 0])]) is keep


def test_numbers_are_judged_by_their_loss_alone() -> None:
    keep, other = (
        Candidate(mode, 0.0, 1.0, Marks((loss,) * 20, None)) for mode, loss in (("keep", 1.0), ("path", 0.9))
    )
    assert best_of([keep, other]) is other
    verdict = certify(keep.marks, other.marks)
    assert verdict.certified
    assert verdict.exact is None
    assert not certify(other.marks, keep.marks).certified


@pytest.mark.parametrize(
    ("n", "gained", "lost", "certified"),
    [
        (500, 0, 0, True),
        (50, 0, 0, False),  # few rows prove nothing
        (1000, 20, 10, True),
        (1000, 40, 45, False),
        (1000, 60, 20, True),
        (100, 1, 9, False),
    ],
)
def test_no_worse_than_a_point_has_to_be_shown(n: int, gained: int, lost: int, certified: bool) -> None:
    before = [1] * lost + [0] * (n - lost)
    after = [0] * lost + [1] * gained + [0] * (n - lost - gained)
    verdict = certify(marks(before), marks(after))
    assert verdict.certified == certified
    assert (verdict.gained, verdict.lost) == (gained, lost)
    assert verdict.exact == pytest.approx((gained - lost) / n)
    assert verdict.bound == paired_lower_bound(gained, lost, n)


def test_a_clearly_lower_loss_certifies_where_no_row_is_lost_on_balance() -> None:
    assert certify(marks([1, 0] * 25), marks([1, 0] * 25, 0.8)).certified
    assert not certify(marks([1, 0] * 25), marks([0, 0] * 25, 0.8)).certified
    assert not certify(marks([1, 0] * 25), marks([1, 0] * 25, 1.0)).certified


def test_choosing_among_equals_gains_nothing_on_the_rows_that_certify() -> None:
    """Five candidates, right on 40 % of the rows by chance: the best looks better than keep where it was chosen, and only there."""
    rng = random.Random(0)
    looks = gains = 0.0
    trials, n = 200, 200
    for _ in range(trials):
        found = [[int(rng.random() < 0.4) for _ in range(2 * n)] for _ in range(5)]
        first = [candidate("keep" if i == 0 else f"c{i}", rows[:n]) for i, rows in enumerate(found)]
        chosen = first.index(best_of(first))
        looks += (sum(found[chosen][:n]) - sum(found[0][:n])) / n
        gains += (sum(found[chosen][n:]) - sum(found[0][n:])) / n
    assert looks / trials > 0.02
    assert abs(gains / trials) < 0.01


def test_an_equal_candidate_is_certified_now_and_then_and_a_worse_one_hardly_ever() -> None:
    """A candidate that is 5 points worse passes in less than a twentieth of 200 draws of 500 rows."""
    rng = random.Random(1)
    passed = 0
    for _ in range(200):
        before = [int(rng.random() < 0.5) for _ in range(500)]
        after = [one if rng.random() > 0.15 else int(rng.random() < 1 / 6) for one in before]
        passed += certify(marks(before), marks(after)).certified
    assert passed < 10


def test_every_sentence_names_what_is_served() -> None:
    keep, path = candidate("keep", [0] * 50), candidate("path", [1] * 50)
    verdict = certify(keep.marks, path.marks)
    assert sentence(keep, keep, None).startswith("keep is served")
    assert sentence(path, path, verdict).startswith("path (t = 0.5, s = 1) is served: on 50 rows")
    assert "+100.0 points" in sentence(path, path, verdict)
    assert "is not certified" in sentence(path, keep, verdict)


def test_places_first_and_factors_at_the_best_two() -> None:
    def read(t: float, scale: float) -> Marks:
        return Marks((abs(t - 0.6) + abs(scale - 1.6),) * 2, (0.0, 0.0))

    seen: list[tuple[int, int]] = []
    best, tried = choose(read, t=None, scale=None, on_progress=lambda done, total: seen.append((done, total)))
    assert [point.t for point in tried[: len(PLACES)]] == list(PLACES)
    assert {point.t for point in tried[len(PLACES) :]} == {0.5, 0.75}
    rising = [1.25, 1.6, 2.0]  # the first with a higher loss is the last
    assert [(point.t, point.scale) for point in tried[len(PLACES) :]] == [(t, s) for t in (0.5, 0.75) for s in rising]
    assert (best.t, best.scale) == (0.5, 1.6)
    assert seen[-1] == (11, 13)
    assert [(p.t, p.scale) for p in choose(read, t=0.3, scale=None)[1]] == [(0.3, s) for s in (1.0, *rising)]
    assert [(p.t, p.scale) for p in choose(read, t=None, scale=2.0)[1]] == [(t, 2.0) for t in PLACES]
