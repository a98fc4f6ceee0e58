"""The word problems of the embedded base: one running count, changed by one to three events.

A `Problem` is the thing itself (who, what, which events, which equations hold); how it is written is decided elsewhere:
`question` and `answer` write it in the form of GSM8K, which is what adapters are trained on, and `corpus` writes the
same worlds in other forms, which is what the base was pretrained on.

>>> import random
>>> problem = draw(random.Random(7))
>>> print(question(problem))
Mia has 54 cards. She buys 12 more. She buys 2 bags of 11. How many cards does Mia have?
>>> print(answer(problem))
Mia has <<54+12=66>>66.
Mia buys <<2*11=22>>22.
Mia has <<66+22=88>>88.
#### 88
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Equation", "Event", "Problem", "answer", "draw", "question"]

PEOPLE = (
    ("Tom", "He"), ("Ann", "She"), ("Ben", "He"), ("Eva", "She"), ("Sam", "He"), ("Mia", "She"),
    ("Leo", "He"), ("Zoe", "She"), ("Max", "He"), ("Ida", "She"), ("Jon", "He"), ("Amy", "She"),
)  # fmt: skip
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "toys", "cakes", "roses", "beads")
PACKS = ("boxes", "bags", "packs", "rows")
GAINS = ("buys", "finds", "wins", "gets")
LOSSES = ("loses", "sells", "uses", "breaks")
LIMIT = 150  # no running count goes above it: sums stay in the range that a base of a million weights can learn


@dataclass(frozen=True, slots=True)
class Equation:
    """`left op right = result`, all whole numbers, `op` one of `+ - * /`."""

    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}={self.result}"


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a story: its verb and sentence, the words a ledger would use, and the equations it adds (one or two)."""

    verb: str
    sentence: str
    entry: str
    equations: tuple[Equation, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A story: `start` things, then `events`; `asked` is the closing question and `result` its answer."""

    name: str
    pronoun: str
    item: str
    start: int
    events: tuple[Event, ...]
    asked: str
    result: int

    @property
    def equations(self) -> tuple[Equation, ...]:
        return tuple(equation for event in self.events for equation in event.equations)


def _gain(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    if count + 3 > LIMIT:
        return None
    amount = rng.randint(3, min(69, LIMIT - count))
    verb = rng.choice(GAINS)
    return Event(
        verb, f"{who} {verb} {amount} more.", f"plus {amount}", (Equation(count, "+", amount, count + amount),)
    )


def _loss(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    if count < 8:
        return None
    less = rng.randint(2, min(69, count - 2))
    verb = rng.choice(LOSSES)
    return Event(verb, f"{who} {verb} {less}.", f"minus {less}", (Equation(count, "-", less, count - less),))


def _pack_gain(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    packs, size = rng.randint(2, 9), rng.randint(3, 12)
    total = packs * size
    if count + total > LIMIT:
        return None
    kind = rng.choice(PACKS)
    equations = (Equation(packs, "*", size, total), Equation(count, "+", total, count + total))
    verb = rng.choice(GAINS)
    return Event(verb, f"{who} {verb} {packs} {kind} of {size}.", f"plus {packs} {kind} of {size}", equations)


def _pack_loss(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    packs, size = rng.randint(2, 9), rng.randint(3, 12)
    total = packs * size
    if count - total < 2:
        return None
    kind = rng.choice(PACKS)
    equations = (Equation(packs, "*", size, total), Equation(count, "-", total, count - total))
    verb = rng.choice(LOSSES)
    return Event(verb, f"{who} {verb} {packs} {kind} of {size}.", f"minus {packs} {kind} of {size}", equations)


def _times(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    factor = rng.randint(2, 4)
    if count * factor > LIMIT:
        return None
    grows = {2: "doubles", 3: "triples", 4: "grows 4 fold"}[factor]
    return Event(grows, f"The pile {grows}.", f"times {factor}", (Equation(count, "*", factor, count * factor),))


def _share(rng: random.Random, who: str, item: str, count: int) -> Event | None:
    divisors = [number for number in range(2, 10) if count % number == 0]
    if count < 8 or not divisors:
        return None
    parts = rng.choice(divisors)
    return Event(
        "keeps", f"{who} keeps 1 part in {parts}.", f"over {parts}", (Equation(count, "/", parts, count // parts),)
    )


Draw = Callable[[random.Random, str, str, int], Event | None]
DRAWS: tuple[Draw, ...] = (_gain, _gain, _loss, _loss, _pack_gain, _pack_gain, _pack_loss, _times, _share)


def draw(rng: random.Random) -> Problem:
    """Draw one problem of two or three equations; equal states of `rng` give equal problems."""
    name, pronoun = rng.choice(PEOPLE)
    item = rng.choice(ITEMS)
    start = rng.randint(4, 69)
    wanted = rng.choice((2, 2, 3))
    count, events, equations = start, [], 0
    while equations < wanted:
        event = rng.choice(DRAWS)(rng, pronoun, item, count)
        if event is None or equations + len(event.equations) > wanted:
            continue
        events.append(event)
        equations += len(event.equations)
        count = event.equations[-1].result
    asked = f"How many {item} does {name} have?"
    return Problem(name, pronoun, item, start, tuple(events), asked, count)


def question(problem: Problem) -> str:
    """Write the problem in plain sentences, as GSM8K asks it."""
    told = " ".join(event.sentence for event in problem.events)
    return f"{problem.name} has {problem.start} {problem.item}. {told} {problem.asked}"


def answer(problem: Problem) -> str:
    """Write the worked answer in the form of GSM8K: one `<<a+b=c>>c` calculator note a line, the last line `#### n`."""
    lines = []
    for event in problem.events:
        for equation in event.equations:
            verb = "has" if equation is event.equations[-1] else event.verb
            lines.append(f"{problem.name} {verb} <<{equation}>>{equation.result}.")
    return "\n".join([*lines, f"#### {problem.result}"])
