"""GSM8K: generated responses (1,500; under ``slow`` 11,000), read and scored as lm-eval's own filter classes and metric do it.

The oracle is ``lm_eval_scores`` of ``gsm8k_lm_eval.py``: lm-eval's ``RegexFilter``, ``TakeFirstFilter`` and ``exact_match`` with
the patterns and settings of its own ``gsm8k.yaml``, read from the installed package.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.tasks import Example, Response, tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed; the committed answers are compared all the same")

FILTERS = ("strict-match", "flexible-extract")

DIGITS = ("0", "1", "5", "9", "12", "40", "007", "1000", "999999", "\u0665", "\uff15", "\u096b", "\u00b2")
BEFORE = ("", "", "", "-", "$", "-$", "$-", "--", "+", "\u2212", "\u20ac")
BEHIND = ("", "", "", ",000", ",000,000", ".", "..", ".0", ".50", ",", ",5", ".5.5", "%", "e3")
MARKS = ("#### ", "#### ", "#### ", "####", "### ", "##### ", "####\u00a0", "####  ", "####\n", "####\t")
WORDS = ("the answer is ", "so ", "= ", "<<2+3=5>>", "apples", " ", "\n", "\n\n", "\r\n", "\u2028", ". ", ", ", "$", "-", "/",
         "Question:", "question:", "</s>", "<|im_end|>", "Answer:", "[invalid]", "\x00", "\U0001f600", "\u0130", "")  # fmt: skip
NUMBERS = [before + digits + behind for before in BEFORE for digits in DIGITS for behind in BEHIND]
ANSWERS = [mark + number for mark in MARKS for number in NUMBERS]
PIECES = [*WORDS, *random.Random(0).sample(NUMBERS, 60), *random.Random(1).sample(ANSWERS, 60)]
"""Answer-like text; a number of the gold is one of NUMBERS."""
RESPONSES = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=7).map("".join),
    st.builds("".join, st.tuples(st.sampled_from(WORDS), st.sampled_from(ANSWERS), st.sampled_from(WORDS))),
    st.text(alphabet="#0123456789.,$- \n\u0663", max_size=30),
    st.text(max_size=12),
)
GOLDS = st.sampled_from(
    [f"{words}\n#### {n}" for words in ("", "2+2 = <<2+2=4>>4", "#### 3") for n in [*NUMBERS, "5.\n", "5\n"]]
    + ["#### [INVALID]", "[invalid]", ""] * 100
)


def _oracle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gsm8k_lm_eval", Path(__file__).with_name("gsm8k_lm_eval.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LM_EVAL = _oracle()
TASK = tasks.get("gsm8k")


def _ours(response: str, gold: str) -> dict[str, list[object]]:
    scores = TASK.score(Example("test-0", {"question": "q", "answer": gold}, "p", gold), Response(response, ended=True))
    return {name: [scores[f"exact_match,{name}"].answer, scores[f"exact_match,{name}"].value] for name in FILTERS}


@pytest.mark.parametrize("strings", [1500, pytest.param(11_000, marks=pytest.mark.slow)])
def test_generated_strings(strings: int) -> None:
    seen: set[str] = set()
    right = dict.fromkeys(FILTERS, 0)

    @settings(max_examples=strings, deadline=None, derandomize=True, database=None)
    @given(RESPONSES, GOLDS, st.booleans())
    def agree(response: str, gold: str, same: bool) -> None:
        response = f"{response}{gold}" if same else response
        theirs = LM_EVAL.lm_eval_scores(response, gold)
        assert _ours(response, gold) == theirs
        seen.add(response)
        for name in FILTERS:
            right[name] += theirs[name][1] == 1.0

    agree()
    assert len(seen) > 0.9 * strings  # few are drawn twice
    for name in FILTERS:  # neither all wrong nor all right: the comparison has something to find
        assert 0.1 < right[name] / strings < 0.9
