"""The guard: another restoration than keeping is served only if it is certified to be no worse on rows that did not choose it.

Half of the rows choose the best candidate, the other half certify it: a non-inferiority test with a margin of one point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import NamedTuple

from plr.core.fingerprint import JsonObject
from plr.restoration.rows import Marks
from plr.stats import paired_lower_bound

__all__ = ["KEEP", "LEAST_ROWS", "MARGIN", "Candidate", "Verdict", "best_of", "certify", "sentence"]

KEEP = "keep"
MARGIN = 0.01
"""One point: the share of rows that a restoration may be worse by, for all that is known."""
LEAST_ROWS = 20
"""Rows of both halves together, below which nothing is decided."""
ERRORS = 2.0
"""Standard errors by which a loss must be lower."""


class Candidate(NamedTuple):
    """A way to serve the adapter, and its marks on the rows that choose."""

    mode: str
    """The mode that serves the same by itself."""
    t: float
    """Place on the way between the bases: 0 keeps, 1 restores."""
    scale: float
    marks: Marks

    @property
    def record(self) -> JsonObject:
        """The candidate, for a manifest."""
        return {
            "mode": self.mode,
            "t": self.t,
            "scale": self.scale,
            "exact": self.marks.share,
            "loss": self.marks.loss,
        }

    @property
    def words(self) -> str:
        """A few words for people."""
        settings = {"path": f" (t = {self.t:g}, s = {self.scale:g})", "scale": f" (s = {self.scale:g})"}
        return self.mode + settings.get(self.mode, "")


class Verdict(NamedTuple):
    """A candidate against keeping, on the rows that certify."""

    certified: bool
    rows: int
    exact: float | None
    """Difference of the shares of rows that are right, candidate minus keep; None for a head that gives a number."""
    bound: float | None
    """Lower end of its one-sided 95 % interval."""
    gained: int | None
    lost: int | None
    loss: float
    """Mean difference of the losses of a row, candidate minus keep."""
    loss_error: float
    """Its standard error."""

    @property
    def record(self) -> JsonObject:
        """The verdict, for a manifest."""
        return self._asdict()


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Choose the candidate with the most rows right, of equals that of the least loss; the earlier one of equals again."""
    return min(candidates, key=lambda one: (0.0 if one.marks.share is None else -one.marks.share, one.marks.loss))


def certify(keep: Marks, candidate: Marks) -> Verdict:
    """Compare a candidate with keeping, row by row.

    It is certified where the one-sided 95 % bound of the difference of exact matches is above -1 point, or where no fewer rows are
    right and the loss is lower by two standard errors. A head that gives a number is judged by its loss alone.
    """
    n = len(keep.losses)
    differences = [b - a for a, b in zip(keep.losses, candidate.losses, strict=True)]
    loss, error = math.fsum(differences) / n, stdev(differences) / math.sqrt(n)
    lower = loss < -ERRORS * error
    if keep.exact is None or candidate.exact is None:
        return Verdict(lower, n, None, None, None, None, loss, error)
    gained = sum(a < b for a, b in zip(keep.exact, candidate.exact, strict=True))
    lost = sum(a > b for a, b in zip(keep.exact, candidate.exact, strict=True))
    bound = paired_lower_bound(gained, lost, n)
    certified = bound > -MARGIN or (lower and gained >= lost)
    return Verdict(certified, n, (gained - lost) / n, bound, gained, lost, loss, error)


def sentence(best: Candidate, served: Candidate, verdict: Verdict | None) -> str:
    """Say in one sentence what is served, and why."""
    if verdict is None:
        return "keep is served: nothing was better on the rows that choose"
    found = f"loss {verdict.loss:+.4f} ({ERRORS * verdict.loss_error:.4f} are two standard errors)"
    if verdict.exact is not None and verdict.bound is not None:
        found = f"{100 * verdict.exact:+.1f} points (95 % bound {100 * verdict.bound:+.1f}), {found}"
    if served.mode == KEEP:
        return f"keep is served: {best.words} is not certified on {verdict.rows} other rows, {found}"
    return f"{served.words} is served: on {verdict.rows} rows that did not choose it, {found} against keep"
