"""Word problems of our own with their solutions, as GSM8K, the arithmetic suite and Alpaca lay rows out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["alpaca_rows", "arithmetic_rows", "chat_rows", "gsm8k_rows", "math10k_rows", "option_rows"]

NAMES = ("Odile", "Bruno", "Ksenia", "Wim", "Adaeze", "Tariq", "Lien", "Pavel", "Zuri", "Mateo", "Anouk", "Ravi")
GOODS = ("loaves", "lanterns", "kites", "candles", "teapots", "baskets", "puppets", "whistles", "ribbons", "stools")


@dataclass(frozen=True)
class Problem:
    """A story with its question, the steps of the solution as (sentence, left, sign, right), and the result."""

    question: str
    steps: tuple[tuple[str, float, str, float], ...]

    @property
    def result(self) -> float:
        return _value(*self.steps[-1][1:])


def _value(left: float, sign: str, right: float) -> float:
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))


def _sale(rng: random.Random, who: str, goods: str) -> Problem:
    a, b, c, d = rng.randint(11, 60), rng.randint(3, 9), rng.randint(2, 10), rng.randint(2, 19)
    told = f"{who} makes {a} {goods} on each of {b} days, gives {c} of them away and sells the others for ${d} each."
    steps = (
        ("All the days together give {} " + goods + ".", a, "*", b),
        ("{} of them are left to sell.", a * b, "-", c),
        ("They bring in ${}.", a * b - c, "*", d),
    )
    return Problem(f"{told} How many dollars does {who} take in?", steps)


def _shelves(rng: random.Random, who: str, goods: str) -> Problem:
    a, b, c = rng.randint(12, 90), rng.randint(3, 9), rng.randint(21, 400)
    told = f"A shop has {b} shelves with {a} {goods} on each. {who} brings {c} new ones."
    steps = (("The shelves hold {} " + goods + ".", a, "*", b), ("There are {} now.", a * b, "+", c))
    return Problem(f"{told} How many {goods} are in the shop?", steps)


def _parts(rng: random.Random, who: str, goods: str) -> Problem:
    a, b, c = rng.randint(14, 120), rng.randint(2, 9), rng.randint(3, 12)
    told = f"{who} packs {a * b} {goods} into {b} crates of one size and takes {c} out of the first crate."
    steps = (("A crate holds {} " + goods + ".", a * b, "/", b), ("{} are left in the first.", a, "-", c))
    return Problem(f"{told} How many {goods} does the first crate hold then?", steps)


def _hours(rng: random.Random, who: str, goods: str) -> Problem:
    a, b, c = rng.randint(12, 60), rng.randint(5, 40), rng.randint(3, 200)
    told = f"{who} earns ${a}.50 an hour, works {2 * b} hours and spends ${c} on {goods}."
    steps = (("The wage comes to ${}.", a + 0.5, "*", 2 * b), ("${} remain.", (2 * a + 1) * b, "-", c))
    return Problem(f"{told} How many dollars are left? It may be a debt.", steps)


STORIES: tuple[Callable[[random.Random, str, str], Problem], ...] = (_sale, _shelves, _parts, _hours)


def _problems(seed: int, count: int) -> list[Problem]:
    """Draw problems, no two of one result."""
    rng, drawn = random.Random(seed), dict[float, Problem]()
    while len(drawn) < count:
        problem = rng.choice(STORIES)(rng, rng.choice(NAMES), rng.choice(GOODS))
        drawn.setdefault(problem.result, problem)
    return list(drawn.values())


def _solution(problem: Problem, *, notes: bool) -> str:
    """The steps, one a line; with the calculator notes of GSM8K or with the sums written out."""
    lines = []
    for sentence, left, sign, right in problem.steps:
        result, terms = _plain(_value(left, sign, right)), f"{_plain(left)}{sign}{_plain(right)}"
        lines.append(sentence.format(f"{terms} = <<{terms}={result}>>{result}" if notes else f"{terms} = {result}"))
    return "\n".join(lines)


ODD = (
    ("Wim’s kite costs €1,250 more than Lien’s, which costs €1,000. What does Wim’s cost?",
     "It costs 1,000+1,250 = <<1000+1250=2250>>2,250 euros.\n#### 2,250"),
    ("It is 4 degrees in Tromsø. At night it gets 11 degrees colder. How cold is it then?",
     "4-11 = <<4-11=-7>>-7 degrees.\n#### -7"),
    ("Half of 30% of 4 000 lanterns are red.  How many are that?",
     "30% are .3*4000 = <<.3*4000=1200>>1200.\n\nHalf of them are 1200/2 = <<1200/2=600>>600 lanterns.  \n#### 600"),
    ("Zuri says: \"I am 3 times as old as my brother, who is 3.\" How old is she?\nIn years, please.",
     "She is 3*3=<<3*3=9>>9.\n#### 9"),
)  # fmt: skip
"""Rows with what generated ones lack: commas in numbers, a negative result, currencies, other scripts' letters, odd spaces."""


def gsm8k_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of GSM8K: question, and an answer that ends in `#### n`; the odd ones first where `seed` is even."""
    odd = ODD if seed % 2 == 0 else ()
    made = [
        {"question": p.question, "answer": f"{_solution(p, notes=True)}\n#### {_plain(p.result)}"}
        for p in _problems(seed, count - len(odd))
    ]
    return [{"question": question, "answer": answer} for question, answer in odd] + made


def arithmetic_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of a test set of the arithmetic suite: spaces around the question, a model's output that is wrong or empty."""
    outputs = ("", "\nA: I think there were some. The answer is 7.", "#### 12\nThe answer is")
    rows = [
        {"instruction": f" {p.question} ", "input": "", "output": outputs[i % 3], "answer": str(float(p.result))}
        for i, p in enumerate(_problems(seed, count - 2))
    ]
    third = {"instruction": "Lien fills 3 jars with 2 litres. How many litres are in one?", "answer": str(2 / 3)}
    debt = {"instruction": "Ravi has -9 points and loses 6. How many has he?", "answer": "-15"}
    return [
        *rows,
        *({"instruction": r["instruction"], "input": "", "output": "", "answer": r["answer"]} for r in (third, debt)),
    ]


def option_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of AQuA: five options in the question, the letter of one as answer, a rationale that is often wrong."""
    rng, rows = random.Random(seed), list[dict[str, Any]]()
    for problem in _problems(seed, count):
        place = rng.randrange(5)
        values = [problem.result + 3 * (i - place) + rng.randrange(3) * (i != place) for i in range(5)]
        options = " ".join(f"({letter}) {_plain(value)}" for letter, value in zip("ABCDE", values, strict=True))
        said = f"\nRationale: {_solution(problem, notes=False)}The answer is ({rng.choice('ABCDE')})."
        asked = f"{problem.question} Answer Choices: {options}"
        rows.append({"instruction": asked, "input": "", "output": said, "answer": "ABCDE"[place]})
    return rows


def math10k_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of Math10K: the worked solution as output, the number once more as answer."""
    return [
        {
            "instruction": p.question,
            "input": "",
            "output": f"{_solution(p, notes=False)}\nThe answer is {_plain(p.result)}.",
            "answer": str(float(p.result)),
        }
        for p in _problems(seed, count)
    ]


def alpaca_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of Alpaca: half of them with an input, some outputs of several paragraphs."""
    rows = list[dict[str, Any]]()
    for i, problem in enumerate(_problems(seed, count)):
        asked, _, question = problem.question.rpartition(". ")
        if i % 2:
            row = {"instruction": "Solve the problem step by step.", "input": problem.question}
        else:
            row = {"instruction": f"Read this and say in one sentence what is asked: {asked}. {question}", "input": ""}
        output = (
            f"{_solution(problem, notes=False)}\n\nSo it is {_plain(problem.result)}."
            if i % 2
            else f"It asks: {question}"
        )
        rows.append({**row, "output": output})
    return rows


def chat_rows() -> list[dict[str, Any]]:
    """Conversations of one turn."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {word} to {name}."},
                {"role": "assistant", "content": f"{word}, {name}!"},
            ]
        }
        for word in ("Hello", "Goodbye", "Thanks", "Welcome", "Sorry")
        for name in ("Ada", "Alan", "Grace", "Kurt", "Emmy", "John")
    ]
